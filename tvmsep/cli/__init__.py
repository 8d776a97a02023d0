"""The command line. Each verb imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `tvmsep`: prints a user's mistakes as one line and exits with 2."""
    if sys.platform == "win32":
        print(
            "error: tvmsep runs on Linux and macOS; on Windows, run it inside WSL2: wsl --install",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from tvmsep.cli.app import app
    from tvmsep.contracts import TvmsepError

    try:
        app(prog_name="tvmsep")
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
