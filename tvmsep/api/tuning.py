"""Tuning: the search, and a bundle of what it found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.api.building import Report, check_labels, make_bundle
from tvmsep.api.planning import Prepared, Shapes, check_writable, must_fit, prepare, prepare_all
from tvmsep.contracts import (
    BoardError,
    InputError,
    Target,
    Trial,
)
from tvmsep.contracts.trial import MODELLED
from tvmsep.contracts.words import counted

if TYPE_CHECKING:
    from tvmsep.contracts.preprocess import Preprocess
    from tvmsep.measure import Measuring
    from tvmsep.tuner import Strategy, TuneResult, TuneState


def tune(
    model: Any,
    *,
    out: str | os.PathLike[str],
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    log: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strategy: Strategy = "xgboost",
    warm_start: Sequence[str | os.PathLike[str]] | None = None,
    shapes: Shapes | Sequence[Shapes] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    params: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    tracker: tuple[str, int] | None = None,
    key: str = "",
    builders: int | str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    progress: Callable[[TuneState], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Tune a model and write a bundle.

    Args:
        model: a path, a built-in's name, an ONNX proto, a torch module or exported program.
        out: the bundle to write.
        target: name, TOML path, `local`, or a `Target`.
        threads: thread counts to tune for; the target's cores by default.
        budget_s: seconds to tune, re-measuring included; None for until nothing more is gained.
        trials: search trials of this run at most.
        log: tuning log to go on with and append to; beside `out` by default.
        seed: fixes every random choice.
        strategy: how configs are chosen: by the cost model, at random, or the defaults alone.
        warm_start: logs from which the cost model learns beforehand, of this target or related
            ones; None for those that ship with tvmsep for it, an empty sequence for none.
        shapes: fixes dynamic input shapes; several sets are tuned one after the other, with equal
            shares of what is left of the budget and the trials, into one bundle.
        example_inputs: for a torch module.
        params: for a Relay program: the file of its weights.
        preprocess: how a picture becomes the input; known for built-ins.
        labels: class names.
        tracker: RPC tracker that lends boards of the target; None measures on this host.
        key: the boards' key at the tracker.
        builders: compiling processes; one a core by default. Or a Dask scheduler's address,
            `tcp://host:8786`.
        layout: of activations: on a GPU `nchw4c` (the default), `nchw` or `nhwc`; on a CPU see
            `tvmsep.graph.layouts`.
        dtype: `float32`, or on a GPU or a CPU that computes in it `float16`: of weights, and of
            activations between kernels.
        progress: called after every trial.
        say: told of steps that take more than a moment.

    Raises:
        TvmsepError: a user's mistake; nothing was written but log lines of finished trials.
    """
    from tvmsep.logs import LogFile
    from tvmsep.measure import Farm
    from tvmsep.tuner import tune_tasks

    if budget_s is not None and not budget_s > 0:
        raise InputError(f"budget_s is {budget_s}: give a number of seconds above 0")
    path = Path(out)
    check_writable(path)
    log_path = Path(log) if log is not None else path.with_suffix(".jsonl")
    if log_path.resolve() == path.resolve():
        raise InputError(f"{path} cannot be the bundle and its log: give another with --log")
    several = prepare_all(
        model, target=target, threads=threads, shapes=shapes, example_inputs=example_inputs,
        params=params, layout=layout, dtype=dtype,
    )  # fmt: skip
    hardware = several[0].target
    check_labels(labels, several[0].imported)
    if tracker is None:
        must_fit(hardware)
    prior = _prior(warm_start, hardware)
    started, done, results = time.monotonic(), 0, []
    with LogFile(log_path, target=hardware.name, say=say) as records:
        with Farm(hardware, builders=builders, tracker=tracker, key=key, seed=seed) as farm:
            for number, prepared in enumerate(several):
                which = "" if len(several) == 1 else f" of {prepared.title}"
                count = len(prepared.tasks())
                say(f"{count} tasks{which} for {hardware.name}; log {records.path}")
                for line in _about_batches(prepared):
                    say(line)
                peak, left = farm.peak_flops_per_core(), len(several) - number
                result = tune_tasks(
                    prepared.tasks(), hardware, farm, records,
                    peak_flops_per_core=peak, plans=prepared.networks(),
                    networks=prepared.plans,
                    budget_s=None if budget_s is None
                    else max(1.0, started + budget_s - time.monotonic()) / left,
                    trials=None if trials is None else -(-(trials - done) // left),
                    seed=seed, strategy=strategy, prior=prior, progress=progress,
                )  # fmt: skip
                results.append(result)
                done += result.state.trials
                for note in result.state.notes:
                    say(note)
                if result.reason in ("interrupted", "board_lost"):
                    break
        if not result.best and result.reason == "interrupted":
            raise KeyboardInterrupt  # there is nothing to write, and a bundle may be there
        if not result.best and result.reason == "board_lost":
            raise BoardError("no board is left and nothing was measured: no bundle is written")
        if result.reason == "interrupted":
            say("interrupted: writing a bundle of the best so far; Ctrl-C again ends without one")
        elif result.reason == "board_lost":
            say("no board is left: writing a bundle of the best so far")
        report = make_bundle(
            several, path, result.best, len(records.trials), say, preprocess, labels, peak / 1e9
        )
    report.results = tuple(results)
    return report


def search(
    model: Any,
    board: Measuring,
    *,
    log: str | os.PathLike[str],
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    seed: int = 0,
    strategy: Strategy = "xgboost",
    warm_start: Sequence[str | os.PathLike[str]] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    params: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    progress: Callable[[TuneState], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> TuneResult:
    """Search as `tune` does, on a board that measures nothing: no bundle is written.

    Args:
        model: as for `tune`.
        board: `tvmsep.measure.ReplayBoard`, `NullBoard` or `ModelBoard`.
        log: where its answers go; it holds nothing else.
        target: as for `tune`; it need not fit this host.
        threads: thread counts; the target's cores by default.
        budget_s: seconds.
        trials: at most so many.
        seed: fixes every random choice.
        strategy: as for `tune`.
        warm_start: logs from which the cost model learns beforehand.
        shapes: fixes dynamic input shapes.
        params: for a Relay program: the file of its weights.
        layout: as for `tune`.
        dtype: as for `tune`.
        progress: called after every trial.
        say: told what happens.

    Raises:
        TvmsepError: a user's mistake, or the board knows none of the model's tasks.
    """
    from tvmsep.logs import LogFile
    from tvmsep.measure.offline import PEAK_FLOPS, Offline
    from tvmsep.tuner import tune_tasks

    prepared = prepare(
        model, target=target, threads=threads, shapes=shapes, params=params, layout=layout,
        dtype=dtype,
    )  # fmt: skip
    prior = _prior(warm_start, prepared.target)
    name, tasks = board.connect().name, prepared.tasks()
    answered = [t for t in tasks if board.known(t) is None or board.known(t)]
    if not answered:
        raise InputError(
            f"board {name} knows none of the {len(tasks)} tasks of this model for "
            f"{prepared.target.name} and the thread counts asked for: give a log of this model"
        )
    told = f"times are modelled ({board.connect().cpu})" if name == MODELLED else (
        "times are not this machine's"
    )  # fmt: skip
    say(f"board {name} measures nothing: {told}, no bundle is written")
    if len(answered) < len(tasks):
        say(f"{len(answered)} of {len(tasks)} tasks are known to board {name}")
    peak = board.peak_flops_per_core() if isinstance(board, Offline) else PEAK_FLOPS
    with LogFile(Path(log), target=prepared.target.name, measured=False) as records:
        return tune_tasks(
            answered, prepared.target, board, records, peak_flops_per_core=peak,
            networks=prepared.plans,
            budget_s=budget_s, trials=trials, seed=seed, strategy=strategy, prior=prior,
            progress=progress,
        )  # fmt: skip


def _about_batches(prepared: Prepared) -> Iterator[str]:
    """What is tuned where a batch is computed by its images."""
    for n, plan in prepared.plans.items():
        if plan.batch > 1:
            head = ", and the layers behind the last image" if plan.head else ""
            yield (
                f"on {counted('thread', n)} a batch of {plan.batch} is computed "
                f"{counted('image', plan.images)} at a time: tuned is one image on "
                f"{counted('thread', plan.threads)}{head}"
            )


def _prior(warm_start: Sequence[str | os.PathLike[str]] | None, target: Target) -> list[Trial]:
    """Measured trials of earlier logs."""
    from tvmsep.logs import read_log, shipped_logs

    sources = shipped_logs(target.name) if warm_start is None else [Path(p) for p in warm_start]
    trials: list[Trial] = []
    for source in sources:
        found = [t for t in read_log(source) if t.measured]
        if not found:
            raise InputError(f"log {source} holds no measured trial: give another to start from")
        trials += found
    return trials
