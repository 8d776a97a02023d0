"""The command line. Each verb imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, TextIO


def main() -> None:
    """Entry point of `tvmsep`: prints a user's mistakes as one line and exits with 2."""
    if sys.platform == "win32":
        print(
            "error: tvmsep runs on Linux and macOS; on Windows, run it inside WSL2: wsl --install",
            file=sys.stderr,
        )
        raise SystemExit(2)
    warnings.showwarning = _show_warning
    import typer

    from tvmsep.cli import interrupt
    from tvmsep.cli.app import app
    from tvmsep.contracts import TvmsepError

    interrupt.install()
    # click's, of whatever click Typer has
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        _refuse_empty(sys.argv)
        if any(name.startswith("TVMSEP_EMULATOR_") for name in os.environ):
            from tvmsep.emulator import check_environment

            check_environment()
        code = app(prog_name="tvmsep", standalone_mode=False)
    except usage_error as error:
        raise SystemExit(_mistake(error)) from None
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
    raise SystemExit(code if isinstance(code, int) else 0)


def _refuse_empty(words: list[str]) -> None:
    """An empty file name would be taken for this folder.

    Raises:
        InputError: there is an empty word, often a variable of the shell that is not set.
    """
    from tvmsep.contracts import InputError

    for before, word in zip(words, words[1:], strict=False):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            option = word[:-1] or before
            what = f"{option} got an empty value" if option.startswith("-") else "an empty argument"
            raise InputError(f"{what}: give one, or leave it out")


def _mistake(error: Any) -> int:
    """Print what the parser refused as one line; the exit status."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    path = error.ctx.command_path if error.ctx is not None else "tvmsep"
    text = " ".join(error.format_message().split()).rstrip(".")
    lists = "the commands" if text.startswith("No such command") else "what it takes"
    print(f"error: {text[:1].lower()}{text[1:]}; {path} --help lists {lists}", file=sys.stderr)
    return int(error.exit_code)


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
