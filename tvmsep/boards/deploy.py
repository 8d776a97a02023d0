"""A board over ssh: look at it, install, start the server, tunnel: `tvmsep board deploy`.

Everything on the board lies in one folder, and everything here in one folder of the user's state:
`undeploy` removes both. The order of events, each of which can be repeated:

1. one round trip finds a Python and asks for the facts; what cannot work is refused now;
2. a venv with tvmsep (a wheel made here) and its requirements, from the board's network or from
   wheels that are copied; or, for a board without Python, the runtime that is built here
   (`deploy_runtime`);
3. a tunnel process here starts the server there, on the board's loopback, and keeps both ends
   together (see `tunnel`).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from tvmsep.boards import background, remove, wheel
from tvmsep.boards.background import START_TIMEOUT_S
from tvmsep.boards.facts import Facts, misfit, parse, version_mismatch
from tvmsep.boards.ssh import CommandFailed, Ssh
from tvmsep.boards.supervise import START_TIMEOUT_S as SUPERVISED_S
from tvmsep.contracts import BoardError, InputError, Target
from tvmsep.contracts.words import counted

MIN_PYTHON = (3, 11)
MIN_GLIBC = (2, 28)
DISK_BYTES = 1 << 30
"""TVM's wheel alone unpacks to 320 MB, and pip needs room to do it."""
INSTALL_TIMEOUT_S = 1800.0
COPY_TIMEOUT_S = 900.0
SERVER_TIMEOUT_S = START_TIMEOUT_S + 30.0
"""For a small board to import TVM: above the limit of `serve --detach` there, which starts it."""
TUNNEL_TIMEOUT_S = SERVER_TIMEOUT_S + SUPERVISED_S + 30.0
"""Above the sum of the limits within: the server's start, then the connection's."""
STOP_TIMEOUT_S = 60.0
"""Above what `remove.stop` takes when a process does not heed SIGTERM."""
_WITH_WHEELS = ("x86_64", "aarch64")
_PYTHONS = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
INSTALLED = "installed"
"""The file that says what is."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What the tunnel needs to know, and `undeploy`."""

    destination: str
    options: tuple[str, ...]
    folder: str
    """On the board, absolute."""
    python: str
    """On the board; "" where it has the runtime instead."""
    key: str
    port: int
    """Here: what leads to the board's server."""
    tracker: str
    """`host:port`, seen from here."""
    threads: int | None


@dataclass(frozen=True)
class Asked:
    """What the user wants."""

    target: Target
    key: str
    folder: str
    port: int
    tracker: str
    threads: int | None
    python: str | None
    install: bool
    wheels: Path | None
    runtime: bool = False
    """Install the runtime that needs no Python."""


def home(ssh: Ssh) -> Path:
    """The folder here that belongs to a destination."""
    digest = hashlib.sha256("\0".join((ssh.destination, *ssh.options)).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", ssh.destination)
    return platformdirs.user_state_path("tvmsep") / "boards" / f"{name}-{digest}"


def look(ssh: Ssh, python: str | None, folder: str) -> tuple[str, Facts]:
    """The board's Python, and what it says about the board.

    Raises:
        BoardError: no connection, or no Python there.
    """
    try:
        found = _find(ssh, [python] if python else _PYTHONS)
    except CommandFailed as error:
        what = python or "python3"
        raise BoardError(
            f"{ssh.destination} has no {what}: install Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} "
            "or newer there, name one with --python, or do without: --runtime"
        ) from error
    script = Path(__file__).parents[1] / "measure" / "facts.py"
    return found, parse(ssh.run([found, "-", folder], send=script.read_bytes()))


def _find(ssh: Ssh, names: Sequence[str]) -> str:
    """The first Python that runs and is new enough, else the first that runs at all."""
    new = f"import sys; sys.exit(sys.version_info < {MIN_PYTHON})"
    tries = [
        f"{n} -c {shlex.quote(code)} 2>/dev/null && command -v {n} && exit"
        for code in (new, "")
        for n in map(shlex.quote, names)  # a version manager's shim exists and does not run
    ]
    return ssh.run(f"{'; '.join(tries)}; exit 3").strip().splitlines()[-1]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def check(facts: Facts, asked: Asked) -> Iterator[str]:
    """Warnings about a board.

    Raises:
        BoardError: it cannot work; says why and what would.
    """
    where = f"the board ({facts.cpu or facts.machine})"
    why = misfit(facts, asked.target)
    if why:
        raise BoardError(f"{why}; `tvmsep targets` lists others, `tvmsep targets new` writes one")
    if facts.bits == 32 and facts.machine in _WITH_WHEELS:
        raise BoardError(
            f"{where} has a 32-bit Python on a 64-bit kernel, which cannot load code for "
            f"{facts.machine}: install the 64-bit system, name a 64-bit Python with --python, or "
            "take a 32-bit --target and --runtime"
        )
    if _numbers(facts.python) < MIN_PYTHON:
        raise BoardError(
            f"{where} has Python {facts.python}, and tvmsep needs {MIN_PYTHON[0]}.{MIN_PYTHON[1]} "
            "or newer: install it there, name one with --python, or do without: --runtime"
        )
    if asked.install:
        if facts.machine not in _WITH_WHEELS:
            raise BoardError(
                f"{where} is {facts.machine}, for which TVM has no wheel: add --runtime, "
                "which needs none"
            )
        libc, version = facts.libc.partition(" ")[::2]
        if facts.system == "Linux" and (libc != "glibc" or _numbers(version) < MIN_GLIBC):
            raise BoardError(
                f"{where} has {facts.libc or 'another libc than glibc'}, and TVM's wheels need "
                f"glibc {MIN_GLIBC[0]}.{MIN_GLIBC[1]} or newer: install a newer system"
            )
        if facts.disk_free_bytes < DISK_BYTES:
            raise BoardError(
                f"{where} has {facts.disk_free_bytes / 1e6:,.0f} MB free, and the installation "
                f"needs {DISK_BYTES / 1e6:,.0f} MB: free some, or choose another --dir"
            )
    from tvmsep.boards.doctor import judge

    for finding in judge(facts):
        if finding.level == "warn":
            yield f"{finding.says}: {finding.advice}"


def tar(files: Sequence[tuple[str, bytes | Path]]) -> bytes:
    """An archive of files, by their names in it; programs stay programs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, source in files:
            data = source if isinstance(source, bytes) else source.read_bytes()
            info = tarfile.TarInfo(name)
            program = isinstance(source, Path) and os.access(source, os.X_OK)
            info.size, info.mode = len(data), 0o755 if program else 0o644
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _claim(ssh: Ssh, folder: str) -> None:
    """Make the folder on the board, and mark it as ours."""
    q, mark = shlex.quote(folder), shlex.quote(f"{folder}/{remove.MARK}")
    try:
        ssh.run(
            f'set -e; mkdir -p {q}; chmod 700 {q}; test -e {mark} || test -z "$(ls -A {q})" || '
            f"{{ echo 'is not empty, and not ours: choose another --dir' >&2; exit 1; }}; "
            f"echo 'tvmsep board undeploy removes this folder' > {mark}"
        )
    except CommandFailed as error:
        raise BoardError(f"folder {folder} on the board: {error}") from error


def _download(folder: Path, facts: Facts) -> str:
    """The command that fetches a board's wheels."""
    version = ".".join(facts.python.split(".")[:2])
    words = ["pip", "download", "--dest", str(folder), "--only-binary", ":all:"]
    words += ["--platform", f"manylinux_2_28_{facts.machine}", "--python-version", version]
    needs = metadata.requires("tvmsep") or []
    return shlex.join([*words, *(n for n in needs if "extra ==" not in n)])


def install(
    ssh: Ssh, python: str, facts: Facts, asked: Asked, folder: str, say: Callable[[str], None]
) -> str:
    """Make the venv, unless this very tvmsep is installed already; answers its Python.

    A server that runs in the old one is ended first: it would go on with files that are gone.

    Raises:
        BoardError: there are no wheels here, or something failed on the board.
    """
    name, data = wheel.build()
    files: list[tuple[str, bytes | Path]] = [(name, data)]
    if asked.wheels is not None:
        copied = sorted(asked.wheels.glob("*.whl"))
        if not copied:
            raise InputError(
                f"--wheels {asked.wheels} holds no wheel; fill it, where there is a network: "
                f"{_download(asked.wheels, facts)}"
            )
        files += [(p.name, p) for p in copied if not p.name.startswith("tvmsep-")]
    made = f"{folder}/venv/bin/python"
    stamp = f"{hashlib.sha256(data).hexdigest()} {facts.python} {python}"
    q = shlex.quote
    runs = f"{q(made)} -P -c 'import tvmsep' >/dev/null 2>&1"
    seen = ssh.run(f"{runs} && cat {q(folder)}/{INSTALLED} 2>/dev/null; true").strip()
    if seen == stamp:
        say("this tvmsep is installed there already")
        return made
    say(f"copying {counted('wheel', len(files))}")
    ssh.run(
        f"set -e; rm -rf {q(folder)}/wheels {q(folder)}/{INSTALLED}; mkdir {q(folder)}/wheels; "
        f"tar -xf - -C {q(folder)}/wheels",
        send=tar(files),
        timeout_s=COPY_TIMEOUT_S,
    )
    script = Path(remove.__file__).read_bytes()
    ssh.run([python, "-", "stop", folder], send=script, timeout_s=STOP_TIMEOUT_S)
    say("installing tvmsep and its requirements on the board: some minutes on a small one")
    offline = f"--no-index --find-links {q(folder)}/wheels " if asked.wheels is not None else ""
    try:
        ssh.run([python, "-c", "import venv, ensurepip"])
        ssh.run(
            f"set -e; {q(python)} -m venv --clear {q(folder)}/venv; "
            f"{q(made)} -m pip install --disable-pip-version-check --quiet {offline}"
            f"{q(folder)}/wheels/{name}; rm -rf {q(folder)}/wheels; "
            f"printf '%s\\n' {q(stamp)} > {q(folder)}/{INSTALLED}",
            timeout_s=INSTALL_TIMEOUT_S,
        )
    except CommandFailed as error:
        text = str(error)
        hint = (
            "install its venv package: sudo apt install python3-venv"
            if "ensurepip" in text or "No module named 'venv'" in text
            else "a board without a network needs --wheels DIR"
        )
        raise BoardError(f"installing on the board failed: {text}; {hint}") from error
    return made


def _reuse(ssh: Ssh, python: str) -> None:
    """See that an interpreter on the board has what the server needs."""
    from tvmsep import __version__
    from tvmsep.boards.doctor import our_tvm

    code = (
        "import tvmsep, importlib.metadata as m; print(tvmsep.__version__, m.version('apache-tvm'))"
    )
    try:
        theirs, tvm = ssh.run([python, "-c", code]).split()
    except (CommandFailed, ValueError) as error:
        raise BoardError(
            f"--no-install: {python} on the board does not import tvmsep and TVM ({error}); "
            "leave --no-install out"
        ) from error
    why = version_mismatch(tvm, our_tvm())
    if theirs != __version__:
        why = f"the board has tvmsep {theirs}, this machine {__version__}; install the same on both"
    if why:
        raise BoardError(f"--no-install: {why}")


def describe(ssh: Ssh, facts: Facts) -> str:
    """One line about a board."""
    python = f"Python {facts.python}, " if facts.python else ""
    return (
        f"{ssh.destination}: {facts.cpu}, {facts.machine}, {counted('core', facts.cores)}, "
        f"{facts.memory_bytes / 2**30:.1f} GiB, {facts.libc}, {python}"
        f"{facts.disk_free_bytes / 1e9:.1f} GB free"
    )


def deploy(ssh: Ssh, asked: Asked, say: Callable[[str], None]) -> dict[str, Any]:
    """Bring a board up; answers the tunnel's state once its server can be reached.

    Raises:
        TvmsepError: a step failed; the same command goes on from there, `undeploy` removes it.
    """
    if asked.runtime:
        from tvmsep.boards import deploy_runtime

        home_there, python = deploy_runtime.home(ssh, asked), ""
    else:
        python, facts = look(ssh, asked.python, asked.folder)
        say(describe(ssh, facts))
        for warning in check(facts, asked):
            say(f"warning: {warning}")
        home_there = facts.home
    folder = re.sub(r"^~(?=/|$)", lambda _: home_there, asked.folder)
    if not folder.startswith("/"):
        folder = f"{home_there}/{folder}"
    folder = os.path.normpath(folder)
    here = home(ssh)
    background.stop(here / "tunnel.json")
    _claim(ssh, folder)
    if asked.runtime:
        deploy_runtime.install(ssh, asked, folder, say)
    elif asked.install:
        python = install(ssh, python, facts, asked, folder, say)
    else:
        _reuse(ssh, python)
    here.mkdir(parents=True, exist_ok=True, mode=0o700)
    plan = Deployment(
        destination=ssh.destination,
        options=ssh.options,
        folder=folder,
        python=python,
        key=asked.key,
        port=asked.port,
        tracker=asked.tracker,
        threads=asked.threads,
    )
    (here / "plan.json").write_bytes(msgspec.json.encode(plan))
    say("starting the server and the tunnel")
    command = [sys.executable, "-P", "-m", "tvmsep.boards.tunnel", str(here)]
    return background.start(command, here / "tunnel.json", TUNNEL_TIMEOUT_S)


def _clean(ssh: Ssh, folder: str, python: str | None, runtime: bool) -> str:
    """End the board's server and remove its folder; the words of `remove.py`.

    Raises:
        BoardError: nothing there can do it.
    """
    from tvmsep.boards import deploy_runtime

    try:
        if runtime:
            return deploy_runtime.remove(ssh, folder)
        found = _find(ssh, [*reversed(_PYTHONS), *([python] if python else [])])
    except CommandFailed:
        try:
            return deploy_runtime.remove(ssh, folder)
        except CommandFailed as error:
            raise BoardError(f"cannot clean up on {ssh.destination}: {error}") from error
    script = Path(remove.__file__).read_bytes()
    words = [found, "-", "remove", folder]
    return ssh.run(words, send=script, timeout_s=STOP_TIMEOUT_S).strip()


def undeploy(ssh: Ssh, folder: str | None, say: Callable[[str], None]) -> None:
    """End the tunnel and the server, and remove both folders.

    Args:
        ssh: the board.
        folder: on the board; None for the one that was deployed from here.
        say: told what was done.

    Raises:
        BoardError: the board does not answer, or the tunnel does not end; what is on this
            machine stays, for it says what to remove there.
    """
    here = home(ssh)
    if background.stop(here / "tunnel.json"):
        say("ended the tunnel")
    python, runtime = None, False
    try:
        plan = msgspec.json.decode((here / "plan.json").read_bytes(), type=Deployment)
        folder, python, runtime = folder or plan.folder, plan.python, not plan.python
    except (OSError, msgspec.DecodeError):
        folder = folder or "~/.tvmsep"
    answer = _clean(ssh, folder, python, runtime)
    if answer == "absent":
        say(f"{ssh.destination} has no {folder} of ours")
    else:
        say(f"removed {folder} on {ssh.destination}; its server {answer}")
    shutil.rmtree(here, ignore_errors=True)
