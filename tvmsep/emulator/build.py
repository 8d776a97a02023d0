"""Compiling for the emulator by the compiler in the `ziglang` wheel: sources, and its parts."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

from tvmsep.codegen.link import LinkError, zig
from tvmsep.emulator.environment import CHECK, check_environment
from tvmsep.emulator.source import EmulatorError, translate

_HERE = Path(__file__).parent
_TIMEOUT_S = 120
_OPTIMISE = ("-O1", "-g0", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=on")
_DEVICE = (
    "-x", "c++", "-std=c++20", "-nostdinc", "-fno-exceptions", "-fno-rtti", "-fno-math-errno",
    "-fvisibility=hidden", "-fno-threadsafe-statics", "-Wno-everything", "-march=native",
    "-D__CUDA_ARCH__=870",
)  # fmt: skip
# The sanitizer's pass takes accesses of up to 16 bytes and skips wider ones; and where no loop
# becomes a copy, what is copied is a vector, whose alignment counts.
_CHECKED = (
    "-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm",
    "-disable-loop-idiom-all", "-fno-slp-vectorize", "-fno-vectorize", "-fno-unroll-loops",
)  # fmt: skip


def checks_wanted() -> bool:
    """Whether the environment asks for checks."""
    return os.environ.get(CHECK, "0") not in ("", "0")


def compile_source(source: str, check: bool | None = None) -> bytes:
    """A shared library for this CPU from CUDA C as TVM writes it.

    Args:
        source: one file with any number of kernels.
        check: whether the library checks each access; the environment decides if it is None.

    Raises:
        EmulatorError: what the compiler says against the source, or that it took too long; or a
            variable of the emulator holds nonsense.
        LinkError: there is no compiler.
    """
    check_environment()
    wanted = checks_wanted() if check is None else check
    parts = [parts_object("runtime"), parts_object("check" if wanted else "nocheck")]
    with tempfile.TemporaryDirectory(prefix="tvmsep-emulator-") as name:
        folder = Path(name)
        made, out = folder / "kernels.cpp", folder / "kernels.so"
        made.write_text(translate(source))
        _run(
            [zig(), "clang", f"--target={_triple()}", *_OPTIMISE, *_DEVICE,
             *(_CHECKED if wanted else ()), *_half_flags(), f"-I{_HERE / 'include'}", "-c",
             str(made), "-o", str(made.with_suffix(".o"))]
        )  # fmt: skip
        link([made.with_suffix(".o"), *parts], out)
        return out.read_bytes()


def link(objects: list[Path], out: Path, *options: str) -> None:
    """A shared library of objects; what they miss is found in the process that loads it."""
    flags = ["-shared", "--hash-style=gnu", "--build-id=none", "-s", "-z", "noexecstack"]
    _run([zig(), "ld.lld", *flags, *options, "-o", str(out), *map(str, objects)])


def native(name: str) -> Path:
    """A file of the emulator's own sources."""
    return _HERE / "native" / name


def parts_object(name: str) -> Path:
    """The object file of `native/NAME.c`, compiled once for this user.

    Raises:
        EmulatorError: it cannot be compiled or kept.
    """
    return cached(f"{name}.o", _compile_part, name)


def cached(name: str, make: object, *args: object) -> Path:
    """What `make(path, *args)` writes, kept in the user's cache by the digest of our sources."""
    kept = platformdirs.user_cache_path("tvmsep") / "emulator" / _digest() / name
    if kept.exists():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            path = Path(folder) / name
            make(path, *args)  # type: ignore[operator]
            for file in [path] if path.is_file() else path.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            path.replace(kept)
    except OSError as error:
        if kept.exists():
            return kept  # another process was first
        raise EmulatorError(f"cannot write {error.filename}: {error.strerror}") from error
    return kept


def _compile_part(out: Path, name: str) -> None:
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(out.parent), "ZIG_LOCAL_CACHE_DIR": str(out.parent)}
    flags = ["-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-sanitize=all", "-U_FORTIFY_SOURCE"]
    warn = ["-Wall", "-Wextra", "-Werror"]
    command = [zig(), "cc", "-target", _triple(), *flags, *warn, "-c"]
    _run([*command, str(native(f"{name}.c")), "-o", str(out)], caches)


@cache
def _digest() -> str:
    digest = hashlib.sha256()
    for file in sorted((_HERE / "native").iterdir()):
        digest.update(file.read_bytes())
    return f"{_machine()}-{digest.hexdigest()[:16]}"


def _machine() -> str:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise EmulatorError(
            f"the CUDA emulator runs on Linux on x86_64 and aarch64, not on {sys.platform} on "
            f"{machine}"
        )
    return machine


def _triple() -> str:
    return f"{_machine()}-linux-gnu"


def _half_flags() -> tuple[str, ...]:
    """x86 computes halves as floats and rounds at the end, unless told that each step rounds."""
    return ("-Xclang", "-ffloat16-excess-precision=none") if _machine() == "x86_64" else ()


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise LinkError(f"compiler {command[0]!r} not found") from error
    except subprocess.TimeoutExpired as error:
        raise EmulatorError(f"the compiler took over {_TIMEOUT_S} s") from error
    if done.returncode:
        said = done.stderr.strip()
        errors = "\n".join(x for x in said.splitlines() if "error:" in x)
        raise EmulatorError(f"the emulator's compiler refuses: {(errors or said)[:2000]}")
