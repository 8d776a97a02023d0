"""Verbs that start from a model: `tune`, `build`, `inspect`."""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmsep.cli import interrupt, options
from tvmsep.cli.built import print_report
from tvmsep.cli.options import (
    AsJson,
    DtypeOption,
    LabelsOption,
    LayoutOption,
    Model,
    ParamsOption,
    PreprocessOption,
    ShapeSetsOption,
    ShapesOption,
    TargetName,
    Threads,
)
from tvmsep.cli.verify_cmd import verify
from tvmsep.contracts import BoardError, InputError
from tvmsep.contracts.trial import MODELLED

if TYPE_CHECKING:
    from tvmsep.tuner import Strategy

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="The bundle; by default MODEL.tvmsep."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (tune, build, verify, inspect):
        app.command()(verb)


def _say(text: str) -> None:
    interrupt.survived()
    print(text, file=sys.stderr, flush=True)


def _out(output: Path | None, model: str) -> Path:
    """Where the bundle goes: never over the model."""
    if output is not None:
        if output.exists() and Path(model).exists() and output.samefile(model):
            raise InputError(f"-o {output} is the model itself: give the bundle another name")
        return output
    stem = (
        Path(model).stem if "/" in model or model.endswith((".onnx", ".pt2", ".relay")) else model
    )
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem.removeprefix("zoo:"))
    return Path(f"{safe}.tvmsep")


def tune(
    model: Model,
    output: Output = None,
    target: TargetName = "local",
    threads: Threads = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop after 90s, 3m, 1h; by default at a plateau."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many trials of this run.")
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Log to go on with and append to; by default beside the bundle."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every random choice.")] = 0,
    rpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="RPC tracker that lends boards of the target."),
    ] = None,
    key: Annotated[str, typer.Option(help="The boards' key at the tracker.")] = "",
    builders: Annotated[
        str | None,
        typer.Option(
            metavar="N|tcp://HOST:PORT",
            help="Compiling processes, by default one a core; or a Dask scheduler.",
        ),
    ] = None,
    board: Annotated[
        str | None,
        typer.Option(
            metavar="model|replay:LOG|null[:TIME]",
            help="Measure nothing: answer by a model of the target, from a log, or from a "
            "formula; writes no bundle.",
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(metavar="xgboost|random|default", help="How configs are chosen.")
    ] = "xgboost",
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="LOG", help="Log the cost model learns from first; by default the shipped ones."
        ),
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Learn from no other log.")] = False,
    shape: ShapeSetsOption = None,
    params: ParamsOption = None,
    preprocess: PreprocessOption = None,
    labels: LabelsOption = None,
    layout: LayoutOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model on this host or over RPC and write a bundle.

    Ctrl-C ends the search and writes a bundle of the best so far (exit status 130). The same
    command goes on from the log.
    """
    from tvmsep import api
    from tvmsep.cli.progress import TuneProgress, summary

    # A batch system's way of asking to stop gets what Ctrl-C gets: a bundle of the best so far.
    signal.signal(signal.SIGTERM, interrupt.interrupt)
    if key and rpc is None:
        raise InputError("--key names boards at a tracker: give --rpc HOST:PORT too")
    if cold and warm_start:
        raise InputError("--cold and --warm-start contradict each other: give one of them")
    way = options.strategy(strategy)
    if board is not None:
        for flag, given in (("--rpc", rpc), ("-o", output), ("--builders", builders)):
            if given is not None:
                raise InputError(f"--board {board} measures nothing and takes no {flag}")
        _search(
            model, board, target=target, threads=threads, budget=budget, trials=trials, log=log,
            seed=seed, strategy=way, warm_start=warm_start or [], shape=shape,
            params=params, layout=layout, dtype=dtype, as_json=as_json,
        )  # fmt: skip
        return
    out = _out(output, model)
    tracker = options.tracker(rpc, key, target, _say) if rpc else None
    with TuneProgress() as progress:
        report = api.tune(
            model,
            out=out,
            target=target,
            threads=options.thread_counts(threads),
            budget_s=options.seconds(budget),
            trials=trials,
            log=log,
            seed=seed,
            strategy=way,
            warm_start=() if cold else warm_start,
            shapes=options.shape_sets(shape),
            params=params,
            preprocess=options.preprocess(preprocess),
            labels=options.labels(labels),
            tracker=tracker,
            key=key,
            builders=options.builders(builders),
            layout=layout,
            dtype=dtype,
            progress=progress,
            say=_say,
        )
    if report.result is not None:
        reason = report.result.reason.replace("_", " ")
        _say(f"tuning ended ({reason}): {summary(report.result.state)}")
    print_report(report, as_json)
    if report.result is not None and report.result.reason == "interrupted":
        raise typer.Exit(130)
    if report.result is not None and report.result.reason == "board_lost":
        raise BoardError(
            f"board {key or 'local'} did not come back; what it measured is in the log and in the "
            "bundle: check the board, then run the same command to go on"
        )


def _search(
    model: str,
    board: str,
    *,
    target: str,
    threads: str | None,
    budget: str | None,
    trials: int | None,
    log: Path | None,
    seed: int,
    strategy: Strategy,
    warm_start: list[Path],
    shape: list[str] | None,
    params: Path | None,
    layout: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """`tune --board`."""
    from tvmsep import api
    from tvmsep.cli.progress import TuneProgress, summary

    offline = options.offline_board(board, target)
    name = offline.connect().name
    with offline, TuneProgress() as progress:
        result = api.search(
            model,
            offline,
            log=log or _out(None, model).with_suffix(f".{name}.jsonl"),
            target=target,
            threads=options.thread_counts(threads),
            budget_s=options.seconds(budget),
            trials=trials,
            seed=seed,
            strategy=strategy,
            warm_start=warm_start,
            shapes=options.shapes(shape),
            params=params,
            layout=layout,
            dtype=dtype,
            progress=progress,
            say=_say,
        )
    state = result.state
    sums = {n: state.network_s(n) for n in state.thread_counts}
    known = {n: s if math.isfinite(s) else None for n, s in sums.items()}
    if as_json:
        text = {
            "measured": False,
            "modelled": name == MODELLED,
            "board": name,
            "reason": result.reason,
            "trials": state.trials,
            "tasks_s": known,
        }
        print(json.dumps(text))
    else:
        how = "modelled, not measured" if name == MODELLED else "not measured"
        print(f"{how} (board {name}), ended ({result.reason}): {summary(state)}")
    if result.reason == "interrupted":
        raise typer.Exit(130)


def build(
    model: Model,
    output: Output = None,
    target: TargetName = "local",
    threads: Threads = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Tuning log or bundle to take configs from; repeat for several."),
    ] = None,
    logs: Annotated[
        bool, typer.Option("--logs/--no-logs", help="Use the logs that ship with tvmsep.")
    ] = True,
    shape: ShapeSetsOption = None,
    params: ParamsOption = None,
    preprocess: PreprocessOption = None,
    labels: LabelsOption = None,
    layout: LayoutOption = None,
    dtype: DtypeOption = None,
    as_json: AsJson = False,
) -> None:
    """Build a bundle without measuring, from logs or from analytic defaults."""
    from tvmsep import api

    if log and not logs:
        raise InputError("--log and --no-logs contradict each other: give one of them")
    report = api.build(
        model,
        out=_out(output, model),
        target=target,
        threads=options.thread_counts(threads),
        logs=log if log else (None if logs else ()),
        shapes=options.shape_sets(shape),
        params=params,
        preprocess=options.preprocess(preprocess),
        labels=options.labels(labels),
        layout=layout,
        dtype=dtype,
        say=_say,
    )
    print_report(report, as_json)


def inspect(
    model: Model,
    target: TargetName = "local",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to plan for.")] = None,
    savings: Annotated[
        bool,
        typer.Option(help="Measure each separable block against a standard convolution here."),
    ] = False,
    roofline: Annotated[
        bool,
        typer.Option(help="Time each layer in its network here against the board's limits."),
    ] = False,
    cycles: Annotated[
        bool,
        typer.Option(help="Model each kernel's hot loop on the target's core; MODEL or a bundle."),
    ] = False,
    resources: Annotated[
        bool,
        typer.Option(help="Registers, spills, shared memory, occupancy: a CUDA target's bundle."),
    ] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --savings: tune both forms first.")
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="Log to take configs from: with --savings it is appended to; with --roofline and "
            "--cycles it may be a bundle, and without it the shipped logs are used."
        ),
    ] = None,
    shape: ShapesOption = None,
    params: ParamsOption = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's layers, what they cost, and what separability saves."""
    from tvmsep import api

    if savings + roofline + cycles > 1:
        raise InputError("--savings, --roofline and --cycles are tables: give one of them")
    if budget and not savings:
        raise InputError("--budget belongs to --savings: give it too")
    if log and not (savings or roofline or cycles):
        raise InputError("--log belongs to --savings, --roofline, --cycles: give one of them too")
    if resources and (savings or roofline or cycles or not model.endswith(".tvmsep")):
        raise InputError("--resources is a table of a bundle: inspect BUNDLE --resources")
    if model.endswith(".tvmsep"):
        if resources:
            from tvmsep.cli.resource_table import show_resources

            show_resources(Path(model), as_json)
            return
        if not cycles:
            raise InputError(f"{model} is a bundle: inspect a model, or give --cycles, --resources")
        from tvmsep.cli.cycle_table import show_bundle_cycles

        show_bundle_cycles(Path(model), threads, options.shapes(shape), as_json)
        return
    prepared = api.prepare(
        model,
        target=target,
        threads=[threads] if threads else None,
        shapes=options.shapes(shape),
        params=params,
        by_image=roofline or cycles or savings,
    )
    ((count, plan),) = prepared.plans.items()
    if savings:
        from tvmsep.cli.savings import show_savings

        show_savings(prepared, plan, options.seconds(budget), log, as_json)
    elif roofline:
        from tvmsep.cli.profile_table import show_roofline

        show_roofline(prepared, count, log, as_json)
    elif cycles:
        from tvmsep.cli.cycle_table import show_cycles

        show_cycles(prepared, plan, log, as_json)
    else:
        _show_layers(prepared.imported.name, plan, as_json)


def _show_layers(name: str, plan: Any, as_json: bool) -> None:
    import msgspec

    from tvmsep.cli.table import print_table
    from tvmsep.report import blocks, layers

    rows, pairs = layers(plan), blocks(plan)
    totals = {k: sum(getattr(r, k) for r in rows) for k in ("macs", "params", "bytes")}
    if as_json:
        text = {
            "model": name,
            "layers": msgspec.to_builtins(rows),
            "blocks": [{**msgspec.to_builtins(b), "saving": b.saving} for b in pairs],
            "totals": totals,
        }
        print(json.dumps(text))
        return

    def image(shape: tuple[int, int, int, int]) -> str:
        n, c, h, w = shape
        return f"{h}x{w}x{c}" if n == 1 else f"{n}x{h}x{w}x{c}"

    head = (
        "layer", "op", "epilogue", "kernel", "stride", "groups", "input", "output", "MACs",
        "params", "bytes", "FLOP/byte", "template",
    )  # fmt: skip
    cells = [
        [
            r.name, r.op, r.epilogue, r.kernel, r.stride, str(r.groups), image(r.input),
            image(r.output), f"{r.macs:,}", f"{r.params:,}", f"{r.bytes:,}",
            f"{r.flop_per_byte:.1f}", r.template,
        ]
        for r in rows
    ]  # fmt: skip
    cells.append(
        ["total", *[""] * 7, *(f"{totals[k]:,}" for k in ("macs", "params", "bytes")), "", ""]
    )
    print_table(head, cells, left=3, title=name)
    if not pairs:
        return
    print()
    print_table(
        ("separable block", "M>N", "kernel", "output", "standard", "dw + pw", "times fewer"),
        [
            [
                b.name, f"{b.in_channels}>{b.out_channels}", f"{b.kernel[0]}x{b.kernel[1]}",
                f"{b.output[0]}x{b.output[1]}", f"{b.standard:,}", f"{b.separable:,}",
                f"{b.saving:.1f}",
            ]
            for b in pairs
        ],
        title="Multiplications: N Dp^2 Dk^2 M against M Dp^2 (Dk^2 + N); ratio 1/N + 1/Dk^2",
    )  # fmt: skip
