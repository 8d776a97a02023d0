"""`tvmsep compare` as a function: what is asked for, prepared, measured and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from tvmsep.compare import comparison as c
from tvmsep.compare import entrants as e
from tvmsep.compare.rounds import ROUNDS
from tvmsep.compare.stats import ALPHA, QUANTILE
from tvmsep.contracts import InputError, Target
from tvmsep.contracts.trial import EMULATED_NOTE
from tvmsep.graph import Plan
from tvmsep.measure import Board
from tvmsep.measure.lock import HostLock, Scratch

LOCK_TIMEOUT_S = 1800.0


def _two(what: Sequence[object]) -> None:
    if len(what) < 2:
        raise InputError("nothing to compare: give two or more entrants")


def compare(
    words: Sequence[str],
    *,
    build: e.Build,
    model: str | None = None,
    target: str = "local",
    threads: Sequence[int] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    claims: Sequence[str] = (),
    tracker: tuple[str, int] | None = None,
    key: str = "",
    say: Callable[[str], None] = lambda _: None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> c.Comparison:
    """Compare whole networks.

    Args:
        words: two or more of `SPEC` or `NAME=SPEC`, see `entrants`.
        build: `tvmsep.build`.
        model: where an entrant needs it; by default the one that a bundle's manifest names.
        target: what logs and defaults are compiled for.
        threads: thread counts; all cores by default.
        rounds: of fresh processes.
        seed: of the order of turns and of the inputs.
        claims: such as `ours <= 1.0 * onnxruntime`.
        tracker: RPC tracker that lends a board of the target; None measures on this host.
        key: the board's key at the tracker.
        say: told of every step.
        shapes: of the inputs by name; by default the first of the first bundle that has several.

    Raises:
        TvmsepError: a user's mistake, an engine that is not installed or does not run, outputs
            that differ.
    """
    from tvmsep.targets import host_cores, load_target

    specs = e.parse(words)
    _two(specs)
    names = [s.name for s in specs]
    ours = next((s.name for s in specs if s.kind in ("bundle", "log", "default")), None)
    for claim in claims:
        c.parse_claim(claim, names, ours)
    hardware = load_target(target)
    cores = hardware.cores if tracker else host_cores()
    counts = sorted(set(threads or [cores]))
    if counts[0] < 1 or counts[-1] > cores:
        outside = [str(n) for n in counts if not 1 <= n <= cores]
        raise InputError(f"--threads {','.join(outside)}: give 1 to {cores}")
    if tracker:
        foreign = [s.text for s in specs if s.kind not in e.BOARD_KINDS]
        if foreign:
            raise InputError(
                f"{foreign[0]} cannot be measured over RPC: only bundles, logs and default can"
            )
    scratch = Scratch("tvmsep-compare-")
    with ExitStack() as stack:
        stack.callback(scratch.close)
        network = e.find_network(specs, model, scratch.path, shapes)
        e.check(specs, network)
        lock = HostLock(LOCK_TIMEOUT_S)
        stack.callback(lock.close)
        prepared = []
        for n in counts:
            ready = []
            for spec in specs:
                if spec.kind not in ("bundle", "engine"):
                    say(f"preparing {spec.name}, threads {n}")
                with lock.hold(exclusive=False):
                    ready.append(e.prepare(spec, network, n, hardware, scratch.path, build))
            prepared.append((n, ready))
        titles = [(s.name, s.text) for s in specs]
        inputs = (network.arrays(seed), network.arrays(seed + 1))
        if tracker is None:
            board: Board | None = None
            rows, pairs, warnings, worst = c.compare_here(
                prepared, titles, inputs, rounds=rounds, seed=seed, told=say
            )
        else:
            from tvmsep.compare.board import compare_there

            board, rows, pairs, warnings, worst = compare_there(
                prepared, titles, inputs, hardware, tracker, key, rounds=rounds, seed=seed,
                told=say,
            )  # fmt: skip
    warnings = [*e.untuned(specs, counts), *warnings]
    if tracker is None and e.on_emulator(specs):
        warnings.append(f"the CUDA device here {EMULATED_NOTE}")
    return c.Comparison(
        subject=network.title, sha256=network.sha256, board=board.name if board else "local",
        machine=c.machine(board),
        alpha=ALPHA, quantile=QUANTILE, rounds=rounds, seed=seed, largest_difference=worst,
        entrants=tuple(rows), pairs=tuple(pairs), warnings=tuple(warnings),
        claims=tuple(c.settle(claims, names, ours, pairs)),
    )  # fmt: skip


def compare_kernels(
    words: Sequence[str],
    plans: Mapping[int, Sequence[Plan]],
    target: Target,
    *,
    task: str | None = None,
    layer: str | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    claims: Sequence[str] = (),
    tracker: tuple[str, int] | None = None,
    key: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> c.Comparison:
    """Compare configs of one kernel, on this host or on a board, outputs checked.

    Args:
        words: configs, templates, logs, bundles, or `default`.
        plans: for each thread count the network's, without and with fused kernels.
        target: what to compile for.
        task: see `kernels.find_task`.
        layer: see `kernels.find_task`.
        rounds: of fresh sessions.
        seed: of the order of turns and of the inputs.
        claims: as for `compare`.
        tracker: as for `compare`.
        key: as for `compare`.
        say: told of every step.

    Raises:
        TvmsepError: a user's mistake, or a config that does not build or run.
    """
    from tvmsep.compare.board import compare_kernels_there
    from tvmsep.compare.kernels import choose, find_task

    _two(words)
    choices = {}
    for mine in plans.values():
        found = find_task(mine, target, task, layer)  # of a batch's images one may run a thread
        choices[found.threads] = choose(words, found, target)
    first = next(iter(choices.values()))
    names = [choice.name for choice in first]
    for claim in claims:
        c.parse_claim(claim, names, names[0])
    board, rows, pairs, warnings = compare_kernels_there(
        choices, target, tracker, key, rounds=rounds, seed=seed, told=say
    )
    return c.Comparison(
        subject=first[0].task.workload.label, sha256="", board=board.name,
        machine=c.machine(board if tracker else None),
        alpha=ALPHA, quantile=QUANTILE, rounds=rounds, seed=seed, largest_difference=0.0,
        entrants=tuple(rows), pairs=tuple(pairs), warnings=tuple(warnings),
        claims=tuple(c.settle(claims, names, names[0], pairs)),
    )  # fmt: skip
