"""The part of deployment for boards without Python: the runtime that is built here."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path

from tvmsep.boards import build_runtime, deploy
from tvmsep.boards.facts import misfit, parse
from tvmsep.boards.remove import MARK, SERVE
from tvmsep.boards.ssh import CommandFailed, Ssh
from tvmsep.contracts import BoardError
from tvmsep.measure.lock import Scratch

FOLDER = "runtime"
PROGRAM = "tvmsep-server"
DISK_BYTES = 32 << 20
"""The program has 3 MB; uploads need room too."""


def program(folder: str) -> str:
    """The server, on the board."""
    return f"{folder}/{FOLDER}/{PROGRAM}"


def home(ssh: Ssh, asked: deploy.Asked) -> str:
    """The home folder there.

    Raises:
        BoardError: the board is of another machine than the target.
    """
    machine, _, there = ssh.run('printf "%s %s" "$(uname -m)" "$HOME"').partition(" ")
    wanted = asked.target.machine
    # A 64-bit kernel runs the 32-bit programs of its own family, mostly.
    family = {"aarch64": "armv7l"}
    if machine != wanted and family.get(machine) != wanted and not machine.startswith("armv"):
        raise BoardError(
            f"target {asked.target.name} is for {wanted}, the board is {machine}; "
            "`tvmsep targets` lists others, `tvmsep targets new` writes one"
        )
    return there


def install(ssh: Ssh, asked: deploy.Asked, folder: str, say: Callable[[str], None]) -> None:
    """Copy the runtime, unless this very one is there, and see that it runs.

    A server that runs in the old one is ended first.

    Raises:
        TvmsepError: no runtime can be built for the target, or it does not suit the board.
    """
    q = shlex.quote
    scratch = Scratch("tvmsep-deploy-")
    try:
        made = scratch.path / FOLDER
        build_runtime.build(asked.target, made, say)
        stamp = hashlib.sha256((made / build_runtime.ABOUT).read_bytes()).hexdigest()
        seen = ssh.run(f"cat {q(folder)}/{deploy.INSTALLED} 2>/dev/null; true").strip()
        if seen == stamp:
            say("this runtime is installed there already")
        else:
            files: list[tuple[str, bytes | Path]] = [
                (str(p.relative_to(made)), p) for p in sorted(made.rglob("*")) if p.is_file()
            ]
            say("copying the runtime")
            old, new = f"{folder}/{FOLDER}", f"{folder}/{FOLDER}.new"
            ssh.run(
                f"set -e; rm -rf {q(new)} {q(folder)}/{deploy.INSTALLED}; mkdir {q(new)}; "
                f"tar -xf - -C {q(new)}",
                send=deploy.tar(files),
                timeout_s=deploy.COPY_TIMEOUT_S,
            )
            # The new one can end the old one's server, and Python's.
            ssh.run(
                f"set -e; {q(new)}/{PROGRAM} stop {q(folder)}/{SERVE}.json >&2; "
                f"rm -rf {q(old)}; mv {q(new)} {q(old)}",
                timeout_s=deploy.STOP_TIMEOUT_S,
            )
        facts = parse(ssh.run([program(folder), "facts"]))
        ssh.run(f"printf '%s\\n' {stamp} > {q(folder)}/{deploy.INSTALLED}")
    except CommandFailed as error:
        raise BoardError(
            f"the runtime does not run on the board: {error}; it needs glibc "
            f"{build_runtime.GLIBC} or newer for {asked.target.machine}, and a --dir from which "
            "programs may run"
        ) from error
    finally:
        scratch.close()
    say(deploy.describe(ssh, facts))
    why = misfit(facts, asked.target)
    if why:
        raise BoardError(f"{why}; `tvmsep targets` lists others, `tvmsep targets new` writes one")
    if facts.disk_free_bytes < DISK_BYTES:
        raise BoardError(
            f"the board has {facts.disk_free_bytes / 1e6:,.0f} MB free, too little for uploads: "
            "free some"
        )
    from tvmsep.boards.doctor import judge

    for finding in judge(facts):
        if finding.level == "warn":
            say(f"warning: {finding.says}: {finding.advice}")


def remove(ssh: Ssh, folder: str) -> str:
    """End the server and remove the folder, with the board's shell alone.

    Returns:
        `absent` where the folder is not ours, else what became of the server.

    Raises:
        CommandFailed: the board's shell could not.
    """
    at = f'"$HOME"{shlex.quote(folder[1:])}' if folder.startswith("~/") else shlex.quote(folder)
    return ssh.run(
        f'at={at}; test -e "$at/{MARK}" || {{ echo absent; exit; }}; '
        f'said="$("$at/{FOLDER}/{PROGRAM}" stop "$at/{SERVE}.json")" || exit 1; '
        'rm -rf "$at" && echo "$said"',
        timeout_s=deploy.STOP_TIMEOUT_S,
    ).strip()
