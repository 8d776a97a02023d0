"""A whole comparison: prepare, check that all compute the same, play the rounds, judge."""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tvmsep.compare import stats, watch
from tvmsep.compare.engines import OURS, Array
from tvmsep.compare.rounds import Entrant, Round
from tvmsep.compare.seat import Seat
from tvmsep.contracts import InputError
from tvmsep.contracts.words import counted
from tvmsep.contracts.workload import HALF_MOST

if TYPE_CHECKING:
    from tvmsep.measure import Board

TOLERANCE = 1e-4
"""Largest difference between entrants, relative to the largest output: float32 engines differ by
1e-6 to 1e-5, an engine that computes in half precision by some 4e-4."""
VARIES = 1e-3


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One entrant at one thread count."""

    name: str
    what: str
    version: str
    threads: int
    time_s: float
    """The median of the rounds' figures: a call undisturbed."""
    low_s: float
    high_s: float
    """The lowest and the highest of them."""
    median_s: float
    """The median of all calls, disturbed ones included."""
    rounds_s: tuple[float, ...]
    """One figure a round."""


class PairRow(msgspec.Struct, frozen=True, kw_only=True):
    """Two entrants at one thread count: how `a`'s time relates to `b`'s."""

    a: str
    b: str
    threads: int
    ratio: float
    """By turns that stand beside each other: not exactly the ratio of the two rows' times."""
    low: float | None
    high: float | None
    p: float
    verdict: stats.Verdict
    """Of `a`: whether it is faster or slower than `b`."""
    more_rounds: int | None
    ratios: tuple[float, ...] = ()
    """One a round: what the verdict is made from."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What `--assert` asked for, at one thread count."""

    text: str
    threads: int
    holds: bool
    why: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `compare` found."""

    subject: str
    sha256: str
    board: str
    machine: dict[str, Any]
    alpha: float
    quantile: float
    rounds: int
    seed: int
    largest_difference: float
    """Between two entrants' outputs, relative to the largest output."""
    entrants: tuple[Row, ...]
    pairs: tuple[PairRow, ...]
    warnings: tuple[str, ...]
    claims: tuple[Claim, ...] = ()


def machine(board: Board | None = None) -> dict[str, Any]:
    """What the figures were measured on, and when.

    Args:
        board: another machine than this one.
    """
    import tvmsep
    from tvmsep.targets import host_cores, host_cpu

    where: dict[str, Any] = {
        "cpu": host_cpu()[0], "cores": host_cores(), "system": platform.platform()
    }  # fmt: skip
    if board is not None:
        where = {"cpu": board.cpu or "unknown", "board": board.name}
    return {
        **where,
        "python": platform.python_version(),
        "tvmsep": tvmsep.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def tolerance(entrants: Sequence[Entrant]) -> float:
    """How far these entrants' outputs may be apart."""
    from tvmsep.bundle import Package

    for e in entrants:
        if e.adapter == OURS.adapter:
            with Package(e.job.path, verify=False) as package:
                if package.manifest.precision != "float32":
                    return HALF_MOST
    return TOLERANCE


def check_outputs(
    entrants: Sequence[Entrant], inputs: Sequence[Array], others: Sequence[Array]
) -> tuple[float, list[str]]:
    """See that all compute the same; the largest difference, and what to warn of.

    Raises:
        InputError: two do not, or one does not run.
    """
    first: list[list[Array]] = []
    worst, allowed = 0.0, tolerance(entrants)
    for e in entrants:
        seat = Seat(e.name, e.adapter, e.job, inputs)
        try:
            seat.begin()
            seat.ready()
            got = [seat.run(inputs), seat.run(others)]
        finally:
            seat.close()
        first = first or got
        for mine, theirs in zip(got, first, strict=True):
            error = difference(mine, theirs)
            if not error <= allowed:
                raise InputError(
                    f"{e.name} and {entrants[0].name} do not compute the same: their outputs "
                    f"differ by {error:.1e} of the largest (allowed: {allowed:.0e}); compare "
                    "what was made from one model"
                )
            worst = max(worst, error)
    notes = []
    if difference(first[0], first[1]) < max(VARIES, worst):
        notes.append("the output hardly depends on the input: equal outputs prove little here")
    if worst > TOLERANCE:
        notes.append(f"half precision: outputs differ by {worst:.1e} of the largest")
    return worst, notes


def difference(got: Sequence[Array], want: Sequence[Array]) -> float:
    """The worst output's largest error over its largest value; infinite where shapes differ."""
    if [a.size for a in got] != [a.size for a in want]:
        return float("inf")
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        if not np.isfinite(g).all():
            return float("inf")
        gap = np.abs(g.astype(np.float64).ravel() - w.ravel()).max()
        worst = max(worst, float(gap) / (float(np.abs(w).max()) or 1.0))
    return worst


def judge(
    names: Sequence[tuple[str, str]], versions: Sequence[str], threads: int, rounds: Sequence[Round]
) -> tuple[list[Row], list[PairRow], list[str]]:
    """Rows, pairs and warnings of one thread count.

    Args:
        names: of the entrants, and what each is.
        versions: of the entrants.
        threads: of all.
        rounds: as they were played.
    """
    figures = np.array([r.figures_s for r in rounds])
    by_round = [r.calls_s for r in rounds]
    calls = [[s for one in by_round for s in one[i]] for i in range(len(names))]
    rows = [
        Row(
            name=name, what=what, version=versions[i], threads=threads,
            time_s=float(np.median(figures[:, i])), low_s=float(figures[:, i].min()),
            high_s=float(figures[:, i].max()), median_s=float(np.median(calls[i])),
            rounds_s=tuple(figures[:, i].tolist()),
        )
        for i, (name, what) in enumerate(names)
    ]  # fmt: skip
    pairs = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            logs = [r.log_ratio(i, j) for r in rounds]
            p = stats.pair(logs)
            known = np.isfinite(p.high)
            pairs.append(
                PairRow(
                    a=names[i][0], b=names[j][0], threads=threads, ratio=p.ratio,
                    low=p.low if known else None, high=p.high if known else None, p=p.p,
                    verdict=p.verdict, more_rounds=p.more_rounds,
                    ratios=tuple(np.exp(logs).tolist()),
                )
            )  # fmt: skip
    found = watch.warnings([r.load for r in rounds], figures.tolist(), calls)
    return (
        rows,
        pairs,
        [f"{counted('thread', threads)}: {w}" for w in found],
    )


_CLAIM = re.compile(r"\s*([\w.#:-]+)\s*(<=|>=|<|>)\s*(?:(\d+(?:\.\d+)?)\s*\*\s*)?([\w.#:-]+)\s*")


def parse_claim(text: str, names: Sequence[str], ours: str | None) -> tuple[str, str, float, str]:
    """`ours <= 1.05 * onnxruntime` as name, sign, factor, name.

    Args:
        text: as above.
        names: of the entrants.
        ours: the first entrant of ours, which `ours` stands for where none has that name.

    Raises:
        InputError: malformed, or a name is unknown.
    """
    found = _CLAIM.fullmatch(text)
    if found is None:
        raise InputError(f'--assert {text!r}: write it as "ours <= 1.0 * onnxruntime"')
    left, sign, factor, right = found.groups()
    known = []
    for name in (left, right):
        if name == "ours" and name not in names and ours is not None:
            name = ours
        if name not in names:
            raise InputError(f"--assert {text!r}: no entrant {name}: there are {', '.join(names)}")
        known.append(name)
    if known[0] == known[1]:
        raise InputError(f"--assert {text!r}: both sides are {known[0]}")
    return known[0], sign, float(factor or 1.0), known[1]


def settle(
    texts: Sequence[str], names: Sequence[str], ours: str | None, pairs: Sequence[PairRow]
) -> list[Claim]:
    """Whether each claim is shown, at every thread count.

    A claim holds only if the whole interval lies on its side: what cannot be told was not shown.
    """
    claims = []
    for text in texts:
        left, sign, factor, right = parse_claim(text, names, ours)
        for pair in pairs:
            if {pair.a, pair.b} != {left, right}:
                continue
            low, high, ratio = pair.low or 0.0, pair.high or float("inf"), pair.ratio
            if pair.a != left:
                low, high, ratio = 1 / high, 1 / low if low else float("inf"), 1 / ratio
            holds = high <= factor if sign in ("<", "<=") else low >= factor
            state = (
                "shown" if holds else "refuted" if not low <= factor <= high else "cannot be told"
            )
            more = "" if state != "cannot be told" else "; more rounds (--rounds) may tell"
            why = f"{state}: {left} takes {ratio:.3f} ({low:.3f} to {high:.3f}) of {right}{more}"
            claims.append(Claim(text=text, threads=pair.threads, holds=holds, why=why))
    return claims


def compare_here(
    prepared: Sequence[tuple[int, Sequence[Entrant]]],
    names: Sequence[tuple[str, str]],
    inputs: tuple[Sequence[Array], Sequence[Array]],
    *,
    rounds: int,
    seed: int,
    told: Callable[[str], None],
) -> tuple[list[Row], list[PairRow], list[str], float]:
    """All thread counts on this host: rows, pairs, warnings, largest difference of outputs."""
    from tvmsep.compare.rounds import play

    rows: list[Row] = []
    pairs: list[PairRow] = []
    warnings: list[str] = []
    worst = 0.0
    for threads, entrants in prepared:
        told(f"checking that all compute the same, threads {threads}")
        error, notes = check_outputs(entrants, *inputs)
        worst = max(worst, error)
        warnings += [n for n in notes if n not in warnings]

        def say(number: int, played: Round) -> None:
            figures = ", ".join(
                f"{e.name} {1e3 * s:.2f} ms"
                for e, s in zip(entrants, played.figures_s, strict=True)  # noqa: B023
            )
            told(f"round {number} of {rounds}, threads {threads}: {figures}")  # noqa: B023

        played, versions = play(entrants, inputs[0], rounds=rounds, seed=seed, told=say)
        found = judge(names, versions, threads, played)
        rows += found[0]
        pairs += found[1]
        warnings += found[2]
    return rows, pairs, warnings, worst
