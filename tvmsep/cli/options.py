"""What several verbs share: parsing of durations, thread lists, shapes, files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmsep.contracts import InputError

if TYPE_CHECKING:
    from tvmsep.contracts import Target
    from tvmsep.contracts.preprocess import Preprocess
    from tvmsep.measure import ModelBoard, NullBoard, ReplayBoard
    from tvmsep.tuner import Strategy

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An .onnx, .pt2 or .relay file, a built-in (mobilenet_v2:width=0.5), or zoo:NAME.",
    ),
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .tvmsep file.")]
TargetName = Annotated[
    str, typer.Option("--target", help="A target's name or TOML file; local fits this host.")
]
Threads = Annotated[
    str | None,
    typer.Option("--threads", metavar="N[,N]", help="Thread counts; by default all cores."),
]


def shape_option(help_: str) -> Any:
    """`--shape`, which takes one input's shape and may be given again."""
    return typer.Option("--shape", metavar="NAME=1,3,224,224", help=help_)


ShapesOption = Annotated[list[str] | None, shape_option("Fix a dynamic input's shape.")]
ShapeSetsOption = Annotated[
    list[str] | None,
    shape_option("Fix a dynamic input's shape; again for another shape in the same bundle."),
]
BundleShape = Annotated[
    list[str] | None, shape_option("Which of the bundle's input shapes; by default the first.")
]
ParamsOption = Annotated[
    Path | None, typer.Option("--params", metavar="FILE", help="A .relay file's weights.")
]
PreprocessOption = Annotated[
    Path | None,
    typer.Option("--preprocess", metavar="TOML", help="How a picture becomes the input."),
]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="Class names, one a line.")
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="Of activations: nchw4c (default), nchw or nhwc on a GPU, nhwc or blocks of about a "
        "vector (nchw4c, nchw8c, ...) on a CPU.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|float16",
        help="Of weights and what lies between kernels, on a GPU or a CPU that computes in "
        "float16; inputs and outputs stay float32.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str | None, flag: str = "--budget") -> float | None:
    """`90`, `90s`, `3m`, `1.5h` as seconds.

    Raises:
        InputError: anything else, or nothing.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found.group(2) not in _UNITS or float(found.group(1)) <= 0:
        raise InputError(f"{flag} {text!r} is not a duration: write 90s, 3m or 1h")
    return float(found.group(1)) * _UNITS[found.group(2)]


def thread_counts(text: str | None) -> list[int] | None:
    """`1,2` as numbers.

    Raises:
        InputError: not a list of positive numbers.
    """
    if text is None:
        return None
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise InputError(f"--threads {text!r} is not a list of thread counts: write 2 or 1,2")
    return sorted({int(p) for p in parts})


def builders(text: str | None) -> int | str | None:
    """A number of processes, or a Dask scheduler's address.

    Raises:
        InputError: neither.
    """
    if text is None:
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    from tvmsep.boards.address import host_port

    if text.startswith("tcp://"):
        host_port(text.removeprefix("tcp://"), "--builders")
        return text
    raise InputError(f"--builders {text!r}: write a number above 0, or tcp://host:8786")


def strategy(text: str) -> Strategy:
    """How configs are chosen.

    Raises:
        InputError: no such strategy.
    """
    ways: dict[str, Strategy] = {"xgboost": "xgboost", "random": "random", "default": "default"}
    if text in ways:
        return ways[text]
    raise InputError(f"--strategy {text!r}: write xgboost, random or default")


def offline_board(text: str, target: str) -> ReplayBoard | NullBoard | ModelBoard:
    """`replay:LOG`, `model`, `null`, or `null:5ms`.

    Args:
        text: the option's.
        target: name or file: what `model` models.

    Raises:
        InputError: anything else, or the target has no model.
        LogError: the log cannot be read.
        TargetError: no such target.
    """
    from tvmsep.logs import read_log
    from tvmsep.measure import ModelBoard, NullBoard, ReplayBoard
    from tvmsep.targets import load_target

    kind, _, rest = text.partition(":")
    if kind == "replay" and rest:
        return ReplayBoard(read_log(rest))
    if text == "model":
        return ModelBoard(load_target(target))
    if kind == "null":
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", rest)
        if found:
            return NullBoard(float(found.group(1)) * (1e-3 if found.group(2) == "ms" else 1.0))
        if not rest:
            return NullBoard()
    raise InputError(f"--board {text!r}: write model, replay:LOG, null, or null:5ms")


def shapes(items: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """`name=1,3,224,224`, once an input, as a dictionary.

    Raises:
        InputError: a malformed item, or two for one input.
    """
    sets = shape_sets(items)
    if sets is not None and len(sets) > 1:
        raise InputError("--shape was given twice for one input: this command takes one shape")
    return sets[0] if sets else None


def shape_sets(items: list[str] | None) -> list[dict[str, tuple[int, ...]]] | None:
    """`name=1,3,224,224`, several times, as one dictionary for each set of shapes.

    The first shapes of the inputs make the first set, the second ones the second; an input with one
    shape has it in every set.

    Raises:
        InputError: a malformed item, or inputs with different numbers of shapes.
    """
    found: dict[str, list[tuple[int, ...]]] = {}
    for item in items or []:
        name, _, dims = item.rpartition("=")
        parts = [d.strip() for d in dims.split(",")]
        if not name or not all(p.isdecimal() and int(p) > 0 for p in parts):
            raise InputError(f"--shape {item!r}: write it as name=1,3,224,224")
        found.setdefault(name, []).append(tuple(map(int, parts)))
    counts = {name: len(given) for name, given in found.items() if len(given) > 1}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {n}" for name, n in counts.items())
        raise InputError(f"--shape: {told}: give each input one shape, or one for each set")
    sets = max(counts.values(), default=1)
    return [
        {name: given[i if len(given) > 1 else 0] for name, given in found.items()}
        for i in range(sets)
    ] if found else None  # fmt: skip


def tracker(
    text: str, key: str, target: str | Target, say: Callable[[str], None], *, flag: str = "--rpc"
) -> tuple[str, int]:
    """The address of a tracker that answers and lends boards under `key` that suit a target.

    Args:
        text: `host:port`.
        key: the boards'.
        target: name or file, or the target itself.
        flag: which option it was given with.
        say: told when all boards are busy, for the session will have to wait.

    Raises:
        InputError: no address, or no key.
        TargetError: no such target.
        BoardError: nothing answers, it is no tracker, it knows no such board, or one that it
            might lend has another TVM or another instruction set.
    """
    from importlib.metadata import version

    from tvmsep.boards import lookup
    from tvmsep.boards.address import host_port
    from tvmsep.targets import load_target

    place = host_port(text, flag)
    if not key:
        how = "write HOST:PORT/KEY" if flag == "--board" else "add --key NAME"
        raise InputError(f"{flag} needs the boards' key: {how}, as their servers have it")
    wanted = load_target(target) if isinstance(target, str) else target
    boards = lookup.known(lookup.summary(place, flag), text, key)
    lookup.suitable(boards, wanted, version("apache-tvm"))
    if all(b.state == "busy" for b in boards):
        say(f"every board {key} is busy: waiting for one (`tvmsep boards --rpc {text}`)")
    return place


def check_new(path: Path, *inputs: Path) -> None:
    """See before any work that a file can be written, and is none of those that are read.

    Raises:
        InputError: it cannot, or is.
    """
    import tempfile

    from tvmsep.bundle.archive import cannot_write, check_replaceable

    check_replaceable(path, *inputs)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def write_new(path: Path, text: str) -> None:
    """Write a file as a whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    from tvmsep.bundle.archive import write_file

    write_file(path, lambda file: file.write(text.encode()))


def preprocess(path: Path | None) -> Preprocess | None:
    """The preprocessing in a TOML file."""
    if path is None:
        return None
    from tvmsep.bundle import read_preprocess

    return read_preprocess(path)


def labels(path: Path | None) -> list[str] | None:
    """Class names, one a line.

    Raises:
        InputError: unreadable or empty.
    """
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"--labels {path}: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--labels {path}: not text in UTF-8; write one name a line") from error
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"--labels {path} is empty: write one class name a line")
    return names
