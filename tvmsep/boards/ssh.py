"""Commands on a board through the OpenSSH client: the user's own configuration, keys, known hosts.

Never a password, and never a question: `BatchMode`. A board whose key ssh does not know yet is
refused, for accepting it is the user's decision.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from shutil import which

from tvmsep.contracts import BoardError, InputError

CONNECT_TIMEOUT_S = 8
ALIVE_S = 5
"""A dead connection is noticed after three times as long."""

_HINTS = (
    ("Permission denied", "no key of yours opens it: ssh-copy-id {0}, or give one with "
     "--ssh-option '-i FILE'"),
    ("Host key verification failed", "ssh does not know this host's key: run `ssh {0}` once and "
     "compare the fingerprint"),
    ("Could not resolve", "check the name"),
    ("Connection refused", "no ssh server listens there: check the address, or --ssh-option "
     "'-p PORT'"),
    ("timed out", "is it on, and on this network?"),
    ("No route to host", "is it on, and on this network?"),
    ("Bad configuration option", "check --ssh-option"),
    ("unknown option", "check --ssh-option"),
    ("illegal option", "check --ssh-option"),
)  # fmt: skip


class CommandFailed(BoardError):
    """A command on the board ended with an error; the message holds its last words."""


@dataclass(frozen=True)
class Ssh:
    """How to reach one board.

    Attributes:
        destination: `user@host`, or a name in the user's ssh configuration.
        options: more words for ssh.
    """

    destination: str
    options: tuple[str, ...] = ()

    def words(self, *more: str) -> list[str]:
        """The command line, up to the remote command."""
        own = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
        own += ["-o", f"ServerAliveInterval={ALIVE_S}", "-o", "ServerAliveCountMax=3"]
        return ["ssh", "-T", *own, *self.options, *more, "--", self.destination]

    def run(
        self, command: Sequence[str] | str, *, send: bytes = b"", timeout_s: float = 30.0
    ) -> str:
        """Run a command on the board; answers what it prints.

        Args:
            command: words, or a line for the board's shell.
            send: its standard input.
            timeout_s: limit on all of it.

        Raises:
            CommandFailed: it ended with an error.
            BoardError: ssh could not connect, or time is up.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        try:
            done = subprocess.run(
                [*self.words(), line], input=send, capture_output=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise BoardError(
                f"{self.destination}: no end within {timeout_s:g} s: {line[:80]}; "
                "is the network or the board very slow?"
            ) from error
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        if done.returncode == 255:
            raise BoardError(self.refusal(" ".join(words)))
        last = " ".join(words[-3:]) or f"exit status {done.returncode}"
        raise CommandFailed(f"{self.destination}: {last[-600:]}")

    def refusal(self, said: str) -> str:
        """What ssh said, and what to do."""
        hint = next((h for text, h in _HINTS if text in said), "try `ssh {0}` by hand")
        return f"ssh {self.destination}: {said[-300:]}; {hint.format(self.destination)}"


def make(destination: str, options: Sequence[str]) -> Ssh:
    """An `Ssh` from what the user typed.

    Raises:
        InputError: it is no destination, or an option cannot be split into words.
        BoardError: there is no ssh here.
    """
    if not destination or destination.startswith("-") or any(c.isspace() for c in destination):
        raise InputError(f"{destination!r} is no ssh destination: write user@host")
    try:
        words = [word for option in options for word in shlex.split(option)]
    except ValueError as error:
        raise InputError(f"--ssh-option {' '.join(options)!r}: {error}") from error
    if which("ssh") is None:
        raise BoardError("there is no ssh here: install the OpenSSH client")
    return Ssh(destination, tuple(words))
