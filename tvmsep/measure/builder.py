"""From a config to a shared library that a board can load and time.

The path is the shortest that TVM 0.27 offers: schedule, TVM's s_tir lowering
(`codegen/lowering.py`), LLVM to an object file, LLD. Many tasks share a harness: it is compiled
once, kept beside the candidates and linked with each of them, so that it costs a candidate nothing
but its 60 KB. A candidate for a GPU is the host's code and the device's, compiled here: the board
needs no compiler.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Target, Task
from tvmsep.measure import harness
from tvmsep.measure.library import objects_of
from tvmsep.measure.results import Built, Failed, shorten

if TYPE_CHECKING:
    from tvm import IRModule, tirx


def warm() -> None:
    """Import what a build needs, and lower one trivial kernel so that lazy parts are loaded."""
    import tvm
    from tvm import te

    import tvmsep.codegen  # noqa: F401 - imported for its cost

    x = te.placeholder((16,), name="x")
    y = te.compute((16,), lambda i: x[i] + x[i], name="y")
    tvm.tirx.build(te.create_prim_func([x, y]), tvm.target.Target("llvm"))


def _object(mod: IRModule | tirx.PrimFunc, target: Target, out: Path) -> None:
    """Compile to an object file that appears complete or not at all."""
    from tvmsep.codegen import machine_code

    lib = machine_code(mod, target)
    handle, name = tempfile.mkstemp(dir=out.parent, suffix=".o")
    os.close(handle)
    lib.write_to_file(name, "o")
    os.replace(name, out)


def _harness(params: harness.Params, task: Task, target: Target, outdir: Path) -> Path:
    """The object file of the harness that fits the task, compiled at first use."""
    text = harness.source(params, task.workload, target, task.threads)
    key = hashlib.sha256(f"{text}\n{sorted(target.tvm_dict().items())}".encode()).hexdigest()[:16]
    out = outdir / f"harness-{key}.o"
    if not out.exists():
        import tvm

        _object(tvm.script.from_source(text), target, out)
    return out


def _events(target: Target, outdir: Path) -> Path:
    """The object file of `compiler/events.c`, compiled at first use."""
    from tvmsep.compiler import events_object

    out = outdir / "events.o"
    if not out.exists():
        part = out.with_suffix(f".{os.getpid()}")
        part.write_bytes(events_object(target))
        os.replace(part, out)
    return out


def link_candidate(func: tirx.PrimFunc, task: Task, target: Target, outdir: Path) -> Built:
    """Compile a scheduled kernel and link it with its task's harness.

    Args:
        func: parameters as `tvmsep.codegen.kernel` orders them; it is renamed.
        task: whose workload and thread count the harness follows.
        target: what to compile for.
        outdir: an existing folder; equal programs share one file in it.

    Raises:
        LinkError: with the linker's words. TVM's own errors pass through.
    """
    from tvmsep.codegen import link_shared

    func = func.with_attr("global_symbol", harness.KERNEL)
    if target.gpu is not None:
        return _link_for_device(func, target, outdir)
    timer = _harness(harness.params_of(func), task, target, outdir)
    handle, name = tempfile.mkstemp(dir=outdir, suffix=".o")
    os.close(handle)
    obj = Path(name)
    try:
        _object(func, target, obj)
        program = hashlib.sha256(obj.read_bytes()).hexdigest()[:16]
        so = outdir / f"{program}-{timer.stem.removeprefix('harness-')}.so"
        if not so.exists():
            linked = obj.with_suffix(".so")
            link_shared([obj, timer], linked, target)
            os.replace(linked, so)
        kept = outdir / f"{program}.o"
        os.replace(obj, kept)
    finally:
        obj.unlink(missing_ok=True)
    return Built(so=so, program=program, object=kept)


def _link_for_device(func: tirx.PrimFunc, target: Target, outdir: Path) -> Built:
    """As `link_candidate`; `Built.object` is None, since machine code of a device has no linker."""
    from tvmsep.codegen import link_shared, machine_code

    lib = machine_code(func, target)
    with tempfile.TemporaryDirectory(dir=outdir) as name:
        objects = objects_of(lib, target, Path(name))
        digest = hashlib.sha256(b"".join(o.read_bytes() for o in objects))
        program = digest.hexdigest()[:16]
        so = outdir / f"{program}.so"
        if not so.exists():
            linked = Path(name) / so.name
            link_shared([*objects, _events(target, outdir)], linked, target)
            os.replace(linked, so)
    return Built(so=so, program=program)


def build_candidate(task: Task, target: Target, config: Config, outdir: Path) -> Built | Failed:
    """Build one config of a task; runs inside a warm worker.

    Raises:
        KeyError: the task names a template that is not in the registry.
        LinkError: there is no linker. TVM's own errors pass through.
    """
    from tvmsep.codegen import LinkRefused, kernel
    from tvmsep.codegen.nvrtc import DeviceCodeRefused

    template = task.template.partition("@")[0]
    try:
        func = kernel(task.workload, target, template, config, name=harness.KERNEL)
        return link_candidate(func, task, target, outdir)
    except DeviceCodeRefused as exc:
        return Failed("compile_error", shorten(str(exc)))
    except LinkRefused as exc:
        return Failed("link_error", shorten(str(exc)))


def _renamed(kernel: Path, name: str, outdir: Path) -> Path:
    """A candidate's object file with its kernel called `name`.

    All names have one length, so no offset moves; linkers look symbols up by name, whatever their
    order in the file.
    """
    out = outdir / f"{kernel.stem}-{name}.o"
    if not out.exists():
        part = out.with_suffix(f".{os.getpid()}")
        part.write_bytes(kernel.read_bytes().replace(harness.KERNEL.encode(), name.encode()))
        os.replace(part, out)
    return out


def build_network(module: str, target: Target, kernels: Mapping[str, Path], outdir: Path) -> Path:
    """Compile a whole network; runs inside a warm worker.

    Args:
        module: what `tvmsep.compiler.emit` made, as `tvm.ir.save_json` wrote it.
        target: what to compile for.
        kernels: object files of candidates, by the names under which the module calls them.
        outdir: an existing folder.

    Raises:
        LinkError: the linker is missing or refuses. TVM's own errors pass through.
    """
    import tvm

    from tvmsep.compiler import MARKED, compile_library, lower, mark

    objects = [_renamed(path, name, outdir) for name, path in kernels.items()]
    relax = tvm.ir.load_json(module)
    lowered = lower(relax, target)
    if relax.attrs is not None and MARKED in relax.attrs:
        lowered, objects = mark(lowered), [*objects, _events(target, outdir)]
    library = compile_library(lowered, target, objects)
    out = outdir / f"network-{hashlib.sha256(library).hexdigest()[:16]}.so"
    if not out.exists():
        part = out.with_suffix(f".{os.getpid()}")
        part.write_bytes(library)
        os.replace(part, out)
    return out
