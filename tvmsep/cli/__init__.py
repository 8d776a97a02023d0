"""The command line. Each verb imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO


def main() -> None:
    """Entry point of `tvmsep`: prints a user's mistakes as one line and exits with 2."""
    if sys.platform == "win32":
        print(
            "error: tvmsep runs on Linux and macOS; on Windows, run it inside WSL2: wsl --install",
            file=sys.stderr,
        )
        raise SystemExit(2)
    warnings.showwarning = _show_warning
    from tvmsep.cli import interrupt
    from tvmsep.cli.app import app
    from tvmsep.contracts import TvmsepError

    interrupt.install()
    try:
        app(prog_name="tvmsep")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except RuntimeError:
        if not interrupt.pending():
            raise
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        interrupt.no_more()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line, without the place in our code that gave it."""
    print(f"warning: {message}", file=file or sys.stderr)
