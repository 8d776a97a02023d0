"""Verbs for seeing which is faster, and why: `compare`, `diff`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmsep.cli import options
from tvmsep.cli.options import AsJson, BundleShape, TargetName, Threads
from tvmsep.contracts import InputError
from tvmsep.contracts.words import counted

if TYPE_CHECKING:
    from tvmsep.compare import Comparison, PairRow

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Where an entrant needs it; by default the one a bundle was made from.",
    ),
]
Layer = Annotated[
    str | None,
    typer.Option("--layer", metavar="NAME", help="One layer of the model, as `inspect` names it."),
]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", metavar="TEXT", help='One kernel, such as "pointwise 14x14 512".'),
]

CLAIM_FAILED = 3
"""Exit status where an assertion was not shown."""


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (compare, diff):
        app.command()(verb)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compare(
    entrants: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]A [NAME=]B...",
            help="Bundles, logs, default, stock-tvm, metaschedule:TRIALS, onnxruntime, openvino, "
            "torch, or FILE.py:CLASS. With --task or --layer also configs and templates.",
        ),
    ],
    model: ModelOption = None,
    target: TargetName = "local",
    threads: Threads = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of fresh processes; 8 or more can tell.")
    ] = None,
    task: TaskOption = None,
    layer: Layer = None,
    claims: Annotated[
        list[str] | None,
        typer.Option("--assert", metavar='"A <= 1.0 * B"', help="Exit with 3 unless it is shown."),
    ] = None,
    rpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="RPC tracker that lends a board of the target."),
    ] = None,
    key: Annotated[str, typer.Option(help="The board's key at the tracker.")] = "",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page that stands alone.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs and order.")] = 0,
    shape: BundleShape = None,
    as_json: AsJson = False,
) -> None:
    """Measure which is faster, or that it cannot be told.

    Fresh processes in rounds of random order, on the same inputs and threads, outputs checked equal
    first. Two logs without a model are compared without measuring: what changed in each task.
    """
    import msgspec

    from tvmsep import api
    from tvmsep.compare import ROUNDS

    # What Ctrl-C cleans up, a batch system's way of asking to stop does too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    if key and rpc is None:
        raise InputError("--key names boards at a tracker: give --rpc HOST:PORT too")
    if task is not None and layer is not None:
        raise InputError("--task and --layer both name one kernel: give one of them")
    if html is not None:
        _check_page(html, [*(e.partition("=")[2] or e for e in entrants), *entrants, model or ""])
    logs = [Path(e) for e in entrants if e.endswith(".jsonl")]
    if len(entrants) == len(logs) == 2 and model is None and task is None and layer is None:
        for flag, given in (
            ("--assert", claims), ("--html", html), ("--rpc", rpc), ("--shape", shape),
        ):  # fmt: skip
            if given:
                raise InputError(f"two logs are compared without measuring: {flag} needs --model")
        _changes(logs[0], logs[1], as_json)
        return
    tracker = options.tracker(rpc, key, target, _say) if rpc else None
    found = api.compare(
        entrants, model=model, target=target, threads=options.thread_counts(threads),
        rounds=rounds or ROUNDS, seed=seed, task=task, layer=layer, claims=claims or (),
        tracker=tracker, key=key, say=_say, shapes=options.shapes(shape),
    )  # fmt: skip
    if html is not None:
        from tvmsep.report import comparison_page

        options.write_new(html, comparison_page(found, _command()))
        _say(f"wrote {html}")
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
    else:
        show(found)
    if not all(claim.holds for claim in found.claims):
        raise typer.Exit(CLAIM_FAILED)


def _check_page(path: Path, inputs: Sequence[str]) -> None:
    from tvmsep.bundle.archive import check_replaceable
    from tvmsep.report.html import check_extra

    check_replaceable(path, *inputs)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--html {path}: give a file in a folder that is there")
    check_extra()


def _command() -> str:
    import shlex

    return shlex.join(["tvmsep", *sys.argv[1:]])


def words(pair: PairRow) -> str:
    """A verdict for people."""
    if pair.verdict != "cant_tell":
        return f"{pair.a} is {pair.verdict}"
    if pair.more_rounds is None:
        return "can't tell"
    return f"can't tell; {counted('more round', pair.more_rounds)} might"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:#.4g}"


def show(found: Comparison) -> None:
    """Print the table, the other pairs, the warnings and the claims."""
    from tvmsep.cli.table import print_table

    first = found.entrants[0].name
    by_pair = {(p.a, p.b, p.threads): p for p in found.pairs}
    rows = []
    for row in found.entrants:
        pair = by_pair.get((first, row.name, row.threads))
        rows.append(
            [
                str(row.threads), row.name, row.version, _ms(row.time_s),
                f"{_ms(row.low_s)} to {_ms(row.high_s)}",
                *(["", "", ""] if pair is None else [
                    f"{pair.ratio:.3f}",
                    "" if pair.low is None else f"{pair.low:.3f} to {pair.high:.3f}",
                    words(pair),
                ]),
            ]
        )  # fmt: skip
    print_table(
        ("threads", "entrant", "version", "ms", "rounds", f"{first} takes", "99 % interval",
         "verdict"),
        rows, left=3, title=f"{found.subject}, {found.rounds} rounds, board {found.board}",
    )  # fmt: skip
    rest = [p for p in found.pairs if p.a != first]
    if rest:
        print()
        print_table(
            ("threads", "pair", "ratio", "99 % interval", "verdict"),
            [
                [
                    str(p.threads), f"{p.a} / {p.b}", f"{p.ratio:.3f}",
                    "" if p.low is None else f"{p.low:.3f} to {p.high:.3f}", words(p),
                ]
                for p in rest
            ],
            left=2,
        )  # fmt: skip
    print(
        f"outputs agree to {found.largest_difference:.1e} of the largest; a time is the median of "
        f"the rounds' {found.quantile:.0%} quantiles, a ratio that of turns beside each other"
    )
    for warning in found.warnings:
        print(f"warning: {warning}")
    for claim in found.claims:
        state = "holds" if claim.holds else "FAILS"
        print(f"assert {claim.text}, threads {claim.threads}: {state} ({claim.why})")


def _changes(before: Path, after: Path, as_json: bool) -> None:
    import msgspec

    from tvmsep.cli.table import print_table
    from tvmsep.compare.changes import changes

    found = changes(before, after)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
        return
    print_table(
        ("task", "threads", "knobs", "before us", "after us", "ratio", "trials", "failures"),
        [
            [
                t.label, str(t.threads), t.knobs,
                *("" if s is None else f"{1e6 * s:.1f}" for s in (t.before_s, t.after_s)),
                "" if t.ratio is None else f"{t.ratio:.3f}",
                f"{t.trials[0]} > {t.trials[1]}", t.failures,
            ]
            for t in found
        ],
        left=3, title=f"{before} > {after}: what is in the logs, not measured now",
    )  # fmt: skip
    told = [t for t in found if t.ratio is not None]
    changed = sum(t.knobs != "same" for t in told)
    print(
        f"{len(told)} of {len(found)} tasks are in both; {changed} of them chose another config. "
        "Times of two logs were taken at two times: to compare them, give --model and measure"
    )


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A config, template, log or bundle.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, or `default`.")],
    model: ModelOption = None,
    task: TaskOption = None,
    layer: Layer = None,
    target: TargetName = "local",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to plan for.")] = None,
    shape: BundleShape = None,
    as_json: AsJson = False,
) -> None:
    """Show two configs of one kernel side by side: lowered loops, and assembly or CUDA C."""
    import msgspec

    from tvmsep import api
    from tvmsep.cli.side_by_side import print_sides

    if (task is None) == (layer is None):
        raise InputError("name one kernel: give --task or --layer")
    found = api.diff(
        a, b, model=model, task=task, layer=layer, target=target, threads=threads,
        shapes=options.shapes(shape),
    )  # fmt: skip
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
        return
    print(f"{found.task}, {counted('thread', found.threads)}, target {found.target}")
    print_sides(f"A: {found.a.config}", found.a.loops, f"B: {found.b.config}", found.b.loops)
    print()
    print_sides(f"A: {found.a.summary}", found.a.hot, f"B: {found.b.summary}", found.b.hot)
