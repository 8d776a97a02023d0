"""A virtual environment for each engine, made on demand in the user's cache and kept.

Engines disagree about NumPy, OpenMP and each other, so each has its own. Whoever wants torch
without its GPU libraries sets pip's own PIP_EXTRA_INDEX_URL to an index of CPU builds.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

import platformdirs
from engines import Engine

from harness.process import Failure, run

INSTALL_TIMEOUT_S = 1800.0
_STAMP = "complete"


def cache_folder() -> Path:
    """Where environments live unless the command line says otherwise."""
    return platformdirs.user_cache_path("tvmsep") / "engines"


def folder_of(engine: Engine, root: Path) -> Path:
    """The environment's folder: other pins or another Python make another one."""
    text = "\n".join((sys.version, sys.prefix, *engine.requirements))
    return root / f"{engine.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def python_of(engine: Engine, root: Path) -> Path | Failure:
    """The engine's interpreter, its environment made first where it is missing.

    Only a finished environment has a stamp, so that an interrupted one is made anew. Whoever else
    makes the same one is waited for.
    """
    if not engine.requirements:
        return Path(sys.executable)
    folder = folder_of(engine, root)
    python = folder / "bin" / "python"
    if (folder / _STAMP).is_file():
        return python
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _STAMP).is_file():
            return python
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [*pip, "--quiet", "--prefer-binary", *engine.requirements],
        ):
            failed = run(command, timeout_s=INSTALL_TIMEOUT_S)
            if failed is not None:
                return Failure("install", failed.detail)
        (folder / _STAMP).touch()
    return python


def frozen(python: Path) -> list[str]:
    """What is installed beside an interpreter, as `name==version`."""
    done = subprocess.run(
        [str(python), "-m", "pip", "freeze", "--disable-pip-version-check"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout.splitlines()
