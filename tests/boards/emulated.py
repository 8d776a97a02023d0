"""An emulated board: another architecture's Python under qemu-user, with its own files.

`prepare.sh` fetches the files. No chroot and no binfmt_misc: `sys.executable` of the guest is a
script that starts qemu again, so what it starts is emulated too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("TVMSEP_BOARDS", "/var/cache/tvmsep-boards"))


def files(arch: str) -> Path:
    """The prepared files of an architecture; skips where there are none."""
    found = CACHE / arch
    made = list(found.glob(".made-by-*"))
    if not made:
        script = "prepare_armhf.sh" if arch == "armhf" else f"prepare.sh {arch}"
        pytest.skip(f"no emulated {arch}: run tests/boards/{script} {found}")
    return found


def qemu(machine: str) -> str:
    """The user-mode emulator; skips where it is not installed."""
    names = (f"qemu-{machine}-static", f"qemu-{machine}")
    tool = next((t for t in map(shutil.which, names) if t), None)
    if tool is None:
        pytest.skip(f"no qemu-{machine}: install qemu-user-static (Debian) to emulate boards")
    return tool


def python(folder: Path) -> Path:
    """A command that is Python on the emulated aarch64 board, this source tree's tvmsep with it."""
    root, tool = files("arm64"), qemu("aarch64")
    site = folder / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tvmsep", site / "tvmsep", ignore=ignored)
    for room in ("schedules", "targets"):
        shutil.copytree(ROOT / room, site / "tvmsep" / room, ignore=ignored)
    command = folder / "python"
    command.write_text(
        "#!/bin/sh\n"
        f"export PYTHONHOME={root}/usr PYTHONPATH={site}:{root}/site PYTHONSAFEPATH=1\n"
        "export PYTHONDONTWRITEBYTECODE=1 TVM_USE_RUNTIME_LIB=1\n"
        f'exec {tool} -0 "$0" -L {root} {root}/usr/bin/python3.11 "$@"\n'
    )
    command.chmod(0o755)
    done = subprocess.run(
        [command, "-c", "import platform; print(platform.machine())"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode or done.stdout.strip() != "aarch64":
        pytest.skip(f"{tool} does not run {root}: {done.stderr.strip()[-200:]}")
    return command


def target(folder: Path, like: str = "aarch64") -> Path:
    """A target file for the emulated board, whose /proc/cpuinfo is this host's."""
    text = (ROOT / "targets" / f"{like}.toml").read_text()
    gone = ("requires", "name", "cores", "parts")
    lines = [x for x in text.splitlines() if not x.startswith(gone)]
    path = folder / f"emulated-{like}.toml"
    path.write_text("\n".join(['name = "emulated"', "cores = 2", *lines]) + "\n")
    return path
