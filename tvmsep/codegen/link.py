"""Linking, and what little C there is, by the `ziglang` wheel: no system compiler, any target."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import util
from pathlib import Path

from tvmsep.contracts import Target, TvmsepError

_TIMEOUT_S = 60


class LinkError(TvmsepError):
    """The linker is missing, or refuses."""


class LinkRefused(LinkError):
    """The linker runs, and refuses these objects: a failure of what was compiled."""


@cache
def zig() -> str:
    """Path of the program in the `ziglang` wheel.

    Raises:
        LinkError: it is not installed.
    """
    spec = util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise LinkError("no linker: `pip install 'tvmsep[tune]'` brings one (ziglang's LLD)")
    name = "zig.exe" if sys.platform == "win32" else "zig"
    return str(Path(spec.submodule_search_locations[0]) / name)


def link_shared(objects: Sequence[Path], out: Path, t: Target) -> None:
    """Link object files into the shared library `out`.

    Undefined symbols (TVM's runtime, libc) are resolved when the library is loaded. The variable
    TVMSEP_LINKER names another command to use, e.g. `gcc -shared`.

    Raises:
        LinkRefused: with what the linker said, or that it took too long.
        LinkError: there is no linker.
    """
    own = os.environ.get("TVMSEP_LINKER")
    if own:
        command = own.split()
    elif t.link.flavour == "macho":
        command = [zig(), "ld64.lld", "-dylib", "-undefined", "dynamic_lookup"]
    else:
        command = [zig(), "ld.lld", "-shared", "--hash-style=gnu", "--build-id=none"]
    _run([*command, "-o", str(out), *map(str, objects)])


def link_object(objects: Sequence[Path], data: Sequence[Path], out: Path, t: Target) -> None:
    """Link object files and data files of one folder into the relocatable object `out`.

    The bytes of a data file `a.b` become the symbols `_binary_a_b_start` and `_binary_a_b_end`.

    Raises:
        LinkRefused: with what the linker said, or that it took too long.
        LinkError: there is no linker, or none that can do this for the target.
    """
    if t.link.flavour == "macho":
        raise LinkError(f"objects for static linking are made for ELF; {t.name} has Mach-O")
    names = [d.name for d in data]
    command = [zig(), "ld.lld", "-r", "-o", str(out), *map(str, objects), "-b", "binary", *names]
    _run(command, data[0].parent)


@cache
def compile_c(source: Path, triple: str) -> bytes:
    """The object file of a C file of ours for LLVM's `triple`; equal on every machine.

    Raises:
        LinkRefused: with what the compiler said, or that it took too long.
        LinkError: there is no compiler.
    """
    flags = ["-c", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    with tempfile.TemporaryDirectory(prefix="tvmsep-") as folder:
        out = Path(folder) / "out.o"
        command = [zig(), "cc", *flags, "-target", zig_triple(triple)]
        caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        _run([*command, str(source), "-o", str(out)], env={**os.environ, **caches})
        return out.read_bytes()


def zig_triple(triple: str) -> str:
    """A triple of LLVM's as zig writes it: without a vendor and the version of ARM or macOS."""
    machine, *rest = triple.split("-")
    for prefix, name in (("armv", "arm"), ("arm64", "aarch64"), ("i686", "x86")):
        machine = name if machine.startswith(prefix) else machine
    if rest[-1].startswith(("darwin", "macos")):
        return f"{machine}-macos"
    return "-".join([machine, *rest[rest.index("linux") :]])


def _run(
    command: list[str], folder: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=folder, env=env
        )
    except FileNotFoundError as error:
        raise LinkError(f"linker {command[0]!r} not found") from error
    except subprocess.TimeoutExpired as error:
        raise LinkRefused(f"linker took over {_TIMEOUT_S} s: {' '.join(command)}") from error
    if done.returncode:
        raise LinkRefused(f"{' '.join(command[:3])}: {done.stderr.strip()[-2000:]}")
