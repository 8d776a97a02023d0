"""A board's runtime without a wheel: TVM's runtime and an RPC server, compiled here for a target.

TVM's wheel ships the sources of its runtime, all but eight headers, which are in `runtime/tvm`.
What measuring needs of them (FFI, tensors, threads, RPC, Relax's virtual machine) becomes one
program with the server in `runtime/*.cc`. Sources are compiled in a few large units: most of the
time goes into headers. LLVM's libc++ is linked in, so a board needs a C library and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata, util
from pathlib import Path

import platformdirs

from tvmsep import __version__
from tvmsep.codegen.link import LinkError, LinkRefused, zig, zig_triple
from tvmsep.contracts import InputError, Target, TargetError
from tvmsep.measure.lock import Scratch

GLIBC = "2.28"
"""Oldest C library of a board; that of TVM's own wheels."""
COMPILE_TIMEOUT_S = 900.0
"""Of one compiler. A unit takes 10 to 60 s of one core; zig's C++ library, once a target, 50 s."""
ABOUT = "runtime.json"
_OURS = Path(__file__).with_name("runtime")
_FFI = (
    "object error function tensor dtype container init_once custom_allocator backtrace "
    "extra/module extra/library_module extra/library_module_dynamic_lib "
    "extra/library_module_system_lib extra/env_context extra/env_c_api extra/json_parser "
    "extra/json_writer"
)
_RUNTIME = (
    "module device_api cpu_device_api file_utils logging tensor thread_pool threading_backend "
    "timer workspace_pool memory/memory_manager vm/vm vm/executable vm/bytecode vm/builtin"
)
_RPC = "rpc/rpc_endpoint rpc/rpc_local_session rpc/rpc_module rpc/rpc_server_env rpc/rpc_session"
_UNITS = {
    "ffi": [f"src/ffi/{n}.cc" for n in _FFI.split()],
    "runtime": [f"src/runtime/{n}.cc" for n in _RUNTIME.split()],
    "rpc": [*(f"src/runtime/{n}.cc" for n in _RPC.split()), "channel.cc"],
}
_SERVER = ("facts", "tracker", "background", "server")
_FLAGS = ("-std=c++20", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-I.", "-Iinclude")
_TVM_FLAGS = (
    "-fvisibility-inlines-hidden", "-ffunction-sections", "-Wno-everything", "-DNDEBUG",
    "-DTVM_FFI_EXPORTS", "-DTVM_RUNTIME_EXPORTS", "-DTVM_THREADPOOL_USE_OPENMP=0",
    "-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0",
)  # fmt: skip
_PROGRAM = "tvmsep-server"
_LINK = ("-rdynamic", "-s", "-Wl,--gc-sections", "-o", _PROGRAM)
"""What is loaded finds TVM in the program. A library beside it would have a second libc++, and
TVM's exceptions, which cross from one to the other, would not be caught."""


def build(t: Target, out: Path, say: Callable[[str], None]) -> bool:
    """Write the folder for a target's boards.

    Finished folders are kept in the user's cache, by target, versions and sources.

    Args:
        t: any Linux target with glibc.
        out: the folder, which must not exist.
        say: told what takes long.

    Returns:
        Whether it had to be compiled.

    Raises:
        TargetError: no such runtime can be made for the target.
        InputError: `out` exists or cannot be written.
        LinkError: no compiler, or it refuses, with what it said first.
    """
    triple = _triple(t)
    zig()
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists: remove it, or name another folder with -o")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder: make it, or name another with -o")
    cache = platformdirs.user_cache_path("tvmsep")
    kept = cache / "runtimes" / f"{triple}-{_digest(triple)}"
    fresh = not _sound(kept)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent):
            pass  # found out before the work rather than after it
        if fresh:
            say(f"compiling TVM's runtime for {triple}: some minutes, once")
            scratch = Scratch("tvmsep-runtime-")
            try:
                made = _make(triple, scratch.path, cache / "zig")
                _place(made, kept)
            finally:
                scratch.close()
        _place(kept, out, must=True)
    except OSError as error:
        where = error.filename or out
        raise InputError(
            f"cannot write {where}: {error.strerror}; choose another folder"
        ) from error
    return fresh


def _triple(t: Target) -> str:
    """The target's triple as zig takes it, with the C library's version."""
    words = t.triple.split("-")
    if "linux" not in words or not words[-1].startswith("gnu"):
        raise TargetError(
            f"target {t.name} ({t.triple}) is not Linux with glibc, for which runtimes are built; "
            "`tvmsep targets` lists others"
        )
    return f"{zig_triple(t.triple)}.{GLIBC}"


def _versions() -> dict[str, str]:
    packages = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "zig": "ziglang"}
    return {k: metadata.version(p) for k, p in packages.items()} | {"tvmsep": __version__}


def _digest(triple: str) -> str:
    """Of all that decides what is built."""
    words = [triple, _versions(), _UNITS, _FLAGS, _TVM_FLAGS, _LINK]
    known = hashlib.sha256(json.dumps(words).encode())
    for path in sorted(_OURS.rglob("*")):
        if path.is_file():
            known.update(path.read_bytes())
    return known.hexdigest()[:16]


def _sound(kept: Path) -> bool:
    """Whether a kept folder holds what was put there."""
    try:
        files = json.loads((kept / ABOUT).read_bytes())["sha256"]
        return all(_sha256(kept / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _place(made: Path, out: Path, *, must: bool = False) -> None:
    """Copy a folder beside `out`, then rename it: nothing half-written appears.

    Another process may have been quicker; its folder is as good, unless `must`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        new = Path(folder) / "new"
        shutil.copytree(made, new)
        for path in new.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if not must and out.exists() and not _sound(out):
            out.rename(Path(folder) / "damaged")
        try:
            new.rename(out)
        except OSError:
            if must or not _sound(out):
                raise


def _package(name: str) -> Path:
    spec = util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _tree(folder: Path) -> None:
    """The sources as TVM's repository has them: the wheel's, the headers it lacks, and ours."""
    tvm, ffi = _package("tvm"), _package("tvm_ffi")
    if not (tvm / "src/runtime/rpc").is_dir() or not (ffi / "src/ffi").is_dir():
        raise LinkError("the installed apache-tvm has no C++ sources: install the wheel from PyPI")
    unused = shutil.ignore_patterns("extra")
    shutil.copytree(tvm / "src/runtime", folder / "src/runtime", ignore=unused)
    shutil.copytree(ffi / "src/ffi", folder / "src/ffi")
    for include in (tvm / "include", ffi / "include"):
        shutil.copytree(include, folder / "include", dirs_exist_ok=True)
    shutil.copytree(_OURS / "tvm", folder, dirs_exist_ok=True)
    for path in (*_OURS.glob("*.cc"), *_OURS.glob("*.h")):
        shutil.copy(path, folder)
    for unit, sources in _UNITS.items():
        text = "".join(f'#include "{source}"\n' for source in sources)
        (folder / f"{unit}.cc").write_text(text)


class _Compiler:
    """zig's `c++` in one folder of sources; the first failure ends all that run.

    Args:
        triple: zig's.
        folder: of the sources; what is made lies beside them.
        cache: where zig keeps its C++ library; safe for several at once.
    """

    def __init__(self, triple: str, folder: Path, cache: Path) -> None:
        self._command = [zig(), "c++", "-target", triple]
        self._folder = folder
        caches = {"ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(folder / ".zig")}
        self._env = {**os.environ, **caches}
        self._running: list[subprocess.Popen[str]] = []
        self._failed = False

    def run(self, what: str, words: Sequence[str]) -> None:
        """Compile or link; raises `LinkRefused` with the first errors."""
        with subprocess.Popen(
            [*self._command, *words], cwd=self._folder, env=self._env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        ) as proc:  # fmt: skip
            self._running.append(proc)
            if self._failed:
                _kill(proc)
            try:
                said = proc.communicate(timeout=COMPILE_TIMEOUT_S)[1]
            except subprocess.TimeoutExpired:
                said = f"error: took over {COMPILE_TIMEOUT_S:g} s"
                _kill(proc)
            except BaseException:  # Ctrl-C
                _kill(proc)
                raise
            self._running.remove(proc)
        if proc.returncode:
            self.stop()
            lines = [line.strip() for line in said.splitlines() if "error:" in line]
            text = "; ".join(lines[:3]) or said.strip()[-300:]
            raise LinkRefused(f"{what} does not compile for {self._command[3]}: {text}")

    def all(self, jobs: dict[str, list[str]]) -> None:
        """Run several, as many at once as there are cores; the first failure is raised."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                for job in as_completed([pool.submit(self.run, *job) for job in jobs.items()]):
                    job.result()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End what runs, and let nothing start."""
        self._failed = True
        for proc in list(self._running):
            _kill(proc)


def _kill(proc: subprocess.Popen[str]) -> None:
    """A compiler and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(proc.pid, signal.SIGKILL)


def _make(triple: str, folder: Path, cache: Path) -> Path:
    """Compile in a folder; answers the one with what a board gets."""
    source, made = folder / "source", folder / "made"
    made.mkdir()
    source.mkdir()
    _tree(source)
    cache.mkdir(parents=True, exist_ok=True)
    compiler, versions = _Compiler(triple, source, cache), _versions()
    names = {"TVM_VERSION": "tvm", "FFI_VERSION": "tvm_ffi", "TVMSEP_VERSION": "tvmsep"}
    told = [f'-D{k}="{versions[v]}"' for k, v in names.items()]
    strict = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]
    jobs = {f"{n}.cc": [*_FLAGS, *strict, *told, "-c", f"{n}.cc", "-o", f"{n}.o"] for n in _SERVER}
    compiler.all(jobs)  # ours first: quick to fail
    jobs = {f"TVM's {u}": [*_FLAGS, *_TVM_FLAGS, "-c", f"{u}.cc", "-o", f"{u}.o"] for u in _UNITS}
    compiler.all(jobs)
    compiler.run(_PROGRAM, [*(f"{n}.o" for n in (*_SERVER, *_UNITS)), *_LINK])
    shutil.copy(source / _PROGRAM, made)
    (made / _PROGRAM).chmod(0o755)
    shutil.copy(_OURS / "tvmsep-server.service", made)
    text = (_OURS / "README.in").read_text()
    about = {"triple": triple.removesuffix(f".{GLIBC}"), "glibc": GLIBC}
    (made / "README.md").write_text(text.format(**about, tvm=versions["tvm"]))
    (made / "licenses").mkdir()
    for name, path in _licences():
        shutil.copyfile(path, made / "licenses" / name)
    files = {str(p.relative_to(made)): _sha256(p) for p in sorted(made.rglob("*")) if p.is_file()}
    text = json.dumps({**about, "versions": versions, "sha256": files}, indent=1)
    (made / ABOUT).write_text(text + "\n")
    return made


def _licences() -> Iterator[tuple[str, Path]]:
    """Texts that must travel with the files."""
    tvm, lib = _package("tvm"), Path(zig()).parent / "lib"
    yield "tvm-LICENSE.txt", tvm / "LICENSE"
    yield "tvm-NOTICE.txt", tvm / "NOTICE"
    yield "tvmsep-NOTICE.txt", _OURS / "NOTICE"
    for file in metadata.files("apache-tvm-ffi") or []:
        if file.name in ("LICENSE", "NOTICE") and "licenses" in file.parts:
            yield f"tvm-ffi-{file.name}.txt", Path(str(file.locate()))
    for name in ("libcxx", "libunwind"):
        yield f"{name}-LICENSE.txt", lib / name / "LICENSE.TXT"
