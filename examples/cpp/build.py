"""Build the C++ example with the compiler and the libraries that pip installed.

    python examples/cpp/build.py -o classify

Needs the extra `tune` (the compiler is zig's `c++`, from the ziglang wheel) on the machine that
builds; the program needs neither it nor Python. The two libraries of TVM's runtime are found
beside the program if they are there (`--bundle-libs` copies them), else in the wheels. The first
build takes a minute or two: zig compiles its C++ library, once.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent


def folder(package: str) -> Path:
    """Where a wheel lies, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: {package} is not installed: pip install 'tvmsep[tune]'")
    return Path(spec.submodule_search_locations[0])


def command(sources: list[str], out: Path) -> list[str]:
    """The compiler's command line."""
    ffi, tvm = folder("tvm_ffi"), folder("tvm")
    libraries = [ffi / "lib", tvm / "lib"]
    return [
        sys.executable, "-m", "ziglang", "c++", "-std=c++17", "-O2", "-s", "-Wall", "-o", str(out),
        *sources, f"-I{HERE}", f"-I{ffi / 'include'}",
        f'-DTVMSEP_TVM_VERSION="{version("apache-tvm")}"',
        *(f"-L{p}" for p in libraries), "-ltvm_runtime", "-ltvm_ffi",
        "-Wl,-rpath,$ORIGIN", *(f"-Wl,-rpath,{p}" for p in libraries),
    ]  # fmt: skip


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sources", nargs="*", default=[str(HERE / "classify.cpp")])
    parser.add_argument("-o", "--output", type=Path, default=Path("classify"))
    parser.add_argument("--bundle-libs", action="store_true", help="copy the libraries beside it")
    asked, more = parser.parse_known_args()  # -I and the like are the compiler's
    if not asked.output.resolve().parent.is_dir():
        print(f"error: {asked.output.parent} is no folder: make it first", file=sys.stderr)
        return 2
    done = subprocess.run([*command(asked.sources, asked.output), *more])
    if asked.bundle_libs and done.returncode == 0:
        for file in (
            folder("tvm_ffi") / "lib/libtvm_ffi.so",
            folder("tvm") / "lib/libtvm_runtime.so",
        ):
            shutil.copy(file, asked.output.resolve().parent)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
