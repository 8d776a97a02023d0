"""Linking with the LLD that the `ziglang` wheel carries: no system compiler, any target."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
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
    command += ["-o", str(out), *map(str, objects)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise LinkError(f"linker {command[0]!r} not found") from error
    except subprocess.TimeoutExpired as error:
        raise LinkRefused(f"linker took over {_TIMEOUT_S} s: {' '.join(command)}") from error
    if done.returncode:
        raise LinkRefused(f"{' '.join(command[:3])}: {done.stderr.strip()[-2000:]}")
