"""Comparing over RPC: whole networks of ours, and single kernels. Each round is a fresh session.

Our server forks a child for each session, so that a session is a fresh process. All entrants are in
it together, for a board lends one session at a time. All sessions are on one board: where a tracker
lends several under the key, on the one that it lent first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tvmsep.compare.comparison import PairRow, Row, difference, judge, tolerance
from tvmsep.compare.engines import Array
from tvmsep.compare.kernels import Choice
from tvmsep.compare.rounds import Entrant, Round
from tvmsep.contracts import BoardError, InputError, Target, TvmsepError
from tvmsep.contracts.trial import EMULATED_NOTE, is_emulated
from tvmsep.measure import Board, Failed, Farm
from tvmsep.measure.network import NetworkJob

NETWORK_TURNS, KERNEL_TURNS = 6, 5
"""Of each entrant in a round; a network's turn is a dozen runs, a kernel's some 20 ms."""
Found = tuple[Board, list[Row], list[PairRow], list[str]]


def _turns(count: int, each: int, shuffler: random.Random) -> list[int]:
    return [i for _ in range(each) for i in shuffler.sample(range(count), count)]


def _error(failed: Failed, name: str) -> TvmsepError:
    kind = BoardError if failed.failure in ("board_lost", "link_lost") else InputError
    return kind(f"{name}: {failed.failure}: {failed.detail}")


def compare_kernels_there(
    choices: Mapping[int, Sequence[Choice]],
    target: Target,
    tracker: tuple[str, int] | None,
    key: str,
    *,
    rounds: int,
    seed: int,
    told: Callable[[str], None],
) -> Found:
    """Kernels at every thread count; each output is checked against a reference before it counts.

    Raises:
        InputError: a config does not build, or computes something else.
        BoardError: the board went away.
    """
    rows: list[Row] = []
    pairs: list[PairRow] = []
    warnings: list[str] = []
    shuffler = random.Random(seed)
    with Farm(target, tracker=tracker, key=key, seed=seed, one_board=True) as farm:
        board = _first(farm, told)
        if is_emulated(board.cpu):
            warnings.append(f"board {board.name} {EMULATED_NOTE}")
        for threads, mine in choices.items():
            told(f"building {len(mine)} kernels, threads {threads}")
            built = farm.build([(x.task, x.config) for x in mine])
            jobs = []
            for choice, answer in zip(mine, built, strict=True):
                if isinstance(answer, Failed):
                    raise _error(answer, choice.text)
                jobs.append((choice.task, choice.config, answer))
            played = []
            for number in range(1, rounds + 1):
                turns: list[list[tuple[float, ...]]] = [[] for _ in mine]
                order = [*range(len(mine)), *_turns(len(mine), KERNEL_TURNS, shuffler)]
                found = farm.measure_turns(jobs, order)
                if isinstance(found, Failed):
                    raise _error(found, f"board {board.name}")
                answers, load = found
                for at, (i, got) in enumerate(zip(order, answers, strict=True)):
                    if isinstance(got, Failed):
                        raise _error(got, mine[i].text)
                    if at >= len(mine):  # the first ones warm up
                        turns[i].append(tuple(got.times_s))
                played.append(Round(tuple(map(tuple, turns)), load))
                _tell(told, number, rounds, threads, [x.name for x in mine], played[-1])
            names = [(x.name, x.config.key) for x in mine]
            judged = judge(names, [x.template for x in mine], threads, played)
            rows += judged[0]
            pairs += judged[1]
            warnings += judged[2]
        return board, rows, pairs, warnings


def compare_there(
    prepared: Sequence[tuple[int, Sequence[Entrant]]],
    names: Sequence[tuple[str, str]],
    inputs: tuple[Sequence[Array], Sequence[Array]],
    target: Target,
    tracker: tuple[str, int],
    key: str,
    *,
    rounds: int,
    seed: int,
    told: Callable[[str], None],
) -> tuple[Board, list[Row], list[PairRow], list[str], float]:
    """Whole bundles at every thread count, without clock readings inside.

    Raises:
        InputError: a bundle is not for this target, or their outputs differ.
        BoardError: the board went away.
    """
    import tempfile

    rows: list[Row] = []
    pairs: list[PairRow] = []
    warnings: list[str] = []
    worst = 0.0
    shuffler = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="tvmsep-compare-") as folder,
        Farm(target, builders=0, tracker=tracker, key=key, seed=seed, one_board=True) as farm,
    ):
        board = _first(farm, told)
        if is_emulated(board.cpu):
            warnings.append(f"board {board.name} {EMULATED_NOTE}")
        for threads, entrants in prepared:
            allowed = tolerance(entrants)
            jobs = [
                _job(e, inputs[0], target, Path(folder) / f"{threads}-{i}.so")
                for i, e in enumerate(entrants)
            ]
            played = []
            for number in range(1, rounds + 1):
                order = _turns(len(jobs), NETWORK_TURNS, shuffler)
                answer = farm.time_turns(jobs, order)
                if isinstance(answer, Failed):
                    raise _error(answer, f"board {board.name}")
                times, outputs, load = answer
                for entrant, got in zip(entrants, outputs, strict=True):
                    error = difference(got, outputs[0])
                    worst = max(worst, error)
                    if not error <= allowed:
                        raise InputError(
                            f"{entrant.name} and {entrants[0].name} do not compute the same: their "
                            f"outputs differ by {error:.1e} of the largest"
                        )
                turns: list[list[tuple[float, ...]]] = [[] for _ in jobs]
                for i, seconds in zip(order, times, strict=True):
                    turns[i].append(tuple(seconds.tolist()))
                played.append(Round(tuple(map(tuple, turns)), load))
                _tell(told, number, rounds, threads, [e.name for e in entrants], played[-1])
            found = judge(names, [""] * len(names), threads, played)
            rows += found[0]
            pairs += found[1]
            warnings += found[2]
        return board, rows, pairs, warnings, worst


def _first(farm: Farm, told: Callable[[str], None]) -> Board:
    """The board that everything is measured on."""
    board = farm.connect()
    if board.name != "local":
        told(f"measuring on board {board.name}, {board.cpu or 'CPU unknown'}")
    return board


def _tell(
    told: Callable[[str], None], number: int, rounds: int, threads: int, names: Sequence[str],
    played: Round,
) -> None:  # fmt: skip
    figures = ", ".join(
        f"{name} {1e3 * s:.3f} ms" for name, s in zip(names, played.figures_s, strict=True)
    )
    told(f"round {number} of {rounds}, threads {threads}: {figures}")


def _job(entrant: Entrant, inputs: Sequence[Array], target: Target, library: Path) -> NetworkJob:
    """A bundle as the board's end takes it; its library goes to the file `library`."""
    from tvmsep.bundle import Package

    threads = entrant.job.threads
    with Package(entrant.job.path) as package:
        manifest = package.manifest
        if manifest.target.name != target.name:
            raise InputError(
                f"{entrant.name} was built for target {manifest.target.name}, not for "
                f"{target.name}: give --target, or build it for that"
            )
        shapes = {t.name: a.shape for t, a in zip(manifest.inputs, inputs, strict=True)}
        which = manifest.find(shapes) if manifest.further else 0
        variant = package.pick(threads, threads, which)
        library.write_bytes(package.read(variant.library))
        weights = list(package.weights(which).values())
    return NetworkJob([], library, [*inputs, *weights], [], len(manifest.outputs), threads)
