"""From the Relax module to a linked library: our own pass list, so that nothing is re-scheduled."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.codegen import compile_c, link_object, link_shared
from tvmsep.codegen.cuda import building, device_object
from tvmsep.codegen.lowering import pipeline
from tvmsep.compiler.batch import parts_of
from tvmsep.compiler.fallback import schedule_rest
from tvmsep.compiler.fallback_cuda import legalise_scans, schedule_rest_cuda
from tvmsep.compiler.shares import cut_loops
from tvmsep.compiler.unaligned import accept_unaligned_inputs
from tvmsep.contracts import ModelError, Target

if TYPE_CHECKING:
    from tvm import IRModule


_POOL = Path(__file__).with_name("pool.c")


def lower(mod: IRModule, target: Target) -> IRModule:
    """Legalise and fuse what is left of Relax, schedule it, plan memory, lower to VM calls.

    Raises:
        ModelError: an operator that TVM cannot compile; names the node.
    """
    import tvm
    from tvm.relax import transform as rt
    from tvm.relax.backend import DispatchSortScan

    def run(m: IRModule, *passes: Any) -> IRModule:
        return tvm.transform.Sequential(list(passes))(m)

    with tvm.target.Target(target.tvm_dict()):
        if target.gpu is not None:
            mod = legalise_scans(mod)
        mod = run(mod, DispatchSortScan(), rt.LegalizeOps())
        _check_legal(mod)
        mod = run(mod, rt.AnnotateTIROpPattern(), rt.FuseOps(), rt.FuseTIR())
        mod = run(mod, rt.RewriteDataflowReshape(), rt.DeadCodeElimination())
        if target.gpu is not None:
            mod = schedule_rest_cuda(mod, target)
        else:
            mod = cut_loops(accept_unaligned_inputs(schedule_rest(mod, target)))
        mod = run(
            mod,
            rt.ToNonDataflow(),
            rt.RemovePurityChecking(),
            rt.CallTIRRewrite(),
            rt.StaticPlanBlockMemory(),
            rt.LowerAllocTensor(),
            rt.KillAfterLastUse(),
            rt.LowerRuntimeBuiltin(),
            rt.ComputePrimValue(),
            rt.VMShapeLower(),
        )
        return _attach_symbols(mod)


def _attach_symbols(mod: IRModule) -> IRModule:
    """Give each function its symbol, with the prefix of a module that has one (`SYSTEM_LIB`).

    Where there is a prefix TVM renames what functions call, and cannot copy a call whose argument
    is a call that gives a pointer, as a prefetch is. Kernels call no function of the module: the
    pass does not see their bodies.
    """
    from tvm import tirx
    from tvm.relax import transform as rt

    prefix = str((mod.attrs or {}).get(SYSTEM_LIB, ""))
    bodies = {}
    for var, func in list(mod.functions_items()):
        if isinstance(func, tirx.PrimFunc):
            bodies[prefix + var.name_hint] = func.body
            mod[var] = func.with_body(tirx.Evaluate(0))
    mod = rt.AttachGlobalSymbol()(mod)
    for var, func in list(mod.functions_items()):
        if isinstance(func, tirx.PrimFunc):
            name = var.name_hint
            mod[var] = func.with_body(bodies[name if name in bodies else prefix + name])
    return mod


def _check_legal(mod: IRModule) -> None:
    """Every operator has become a TIR function, or a call that the VM knows."""
    from tvm import ir

    known = (
        "call_tir", "call_pure_packed", "call_dps_packed", "call_tir_inplace", "memory.view",
        "reshape",
    )  # fmt: skip
    for block in [b for part in parts_of(mod).values() for b in part.body.blocks]:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, ir.Call) or not isinstance(call.op, ir.Op):
                continue
            name = call.op.name.removeprefix("relax.")
            if name not in known:
                shown = binding.var.name
                raise ModelError(
                    f"node {shown} ({name}) is not supported: export the model without it"
                )


def peak_bytes(lowered: IRModule) -> int:
    """Bytes of the statically planned activations: every storage that the network allocates."""
    text = "".join(part.script(show_meta=False) for part in parts_of(lowered).values())
    sizes = re.findall(r"alloc_storage\(R\.shape\(\[(\d+)\]\)", text)
    if "alloc_storage" in text and not sizes:
        raise ValueError("TVM prints storages in a way that is not understood here")
    return sum(map(int, sizes))


def compile_library(lowered: IRModule, target: Target, kernels: Sequence[Path] = ()) -> bytes:
    """Compile a lowered module and link it with a pool of threads; returns the shared library.

    Args:
        lowered: what `lower` made.
        target: what to compile for.
        kernels: object files of those that the module calls and does not hold.

    Raises:
        DeviceCodeRefused: with the words of a device's compiler.
        LinkError: with the linker's words.
    """
    ex = _build(lowered, target)
    with tempfile.TemporaryDirectory(prefix="tvmsep-") as folder:
        out, pool = Path(folder) / "lib.so", Path(folder) / "pool.o"
        pool.write_bytes(compile_c(_POOL, target.triple))

        def link(output: str, objects: list[str], **_: Any) -> None:
            _compile_imports(ex, target, objects)
            link_shared([*map(Path, objects), *kernels, pool], Path(output), target)

        link.output_format = "so"  # type: ignore[attr-defined]
        ex.export_library(str(out), fcompile=link, workspace_dir=folder)
        return out.read_bytes()


SYSTEM_LIB = "system_lib_prefix"
"""Attribute of a module: what TVM puts before the names of its functions in a static library."""


def compile_object(lowered: IRModule, target: Target, data: Mapping[str, bytes]) -> bytes:
    """Compile a lowered module into one object file that registers its functions at start-up.

    Args:
        lowered: what `lower` made of a module with the attribute `SYSTEM_LIB`.
        target: what to compile for; an ELF one.
        data: files to embed, by name; see `link_object`.

    Raises:
        DeviceCodeRefused: with the words of a device's compiler.
        LinkError: with the linker's words.
    """
    ex = _build(lowered, target)
    prefix = str(lowered.attrs[SYSTEM_LIB])
    with tempfile.TemporaryDirectory(prefix="tvmsep-") as folder:
        out = Path(folder) / "lib.o"
        files = [Path(folder) / name for name in data]
        for file in files:
            file.write_bytes(data[file.name])

        def link(output: str, objects: list[str], **_: Any) -> None:
            _compile_imports(ex, target, objects, prefix)
            link_object([*map(Path, objects)], files, Path(output), target)

        link.output_format = "o"  # type: ignore[attr-defined]
        ex.export_library(str(out), fcompile=link, workspace_dir=folder)
        return out.read_bytes()


def _compile_imports(ex: Any, target: Target, objects: list[str], prefix: str = "") -> None:
    """Replace the object file that TVM made for what a module imports, CUDA C, by machine code."""
    if target.gpu is None or (code := device_object(ex.mod, target, prefix)) is None:
        return
    (imports,) = (x for x in objects if x.endswith("devc.o"))
    Path(imports).write_bytes(code)


def _build(lowered: IRModule, target: Target) -> Any:
    import tvm
    from tvm import relax

    device = tvm.target.Target(target.tvm_dict())
    with building(target):
        return relax.build(lowered, device, relax_pipeline=None, tir_pipeline=pipeline(target))
