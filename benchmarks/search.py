"""Search strategies against each other, on a log: how good after how many trials.

    LOG=benchmarks/data/random.jsonl.gz
    python benchmarks/search.py --trials 150 --log $LOG --out docs/search.svg
    python benchmarks/search.py --cold --each --trials 64 --log $LOG --out docs/drawn.svg

Nothing is measured: the replay board answers from a log, and only what that log holds is proposed.
The figure is the network's time (the sum over its tasks of the best found so far, the default's
where nothing was tried yet; a kernel that could replace two others counts where it is faster than
both) over the best that the log knows, as a median over seeds with its quartiles. `xgboost` learns
from nothing before the first trial, `warm` from the log of another network on the same target
(`--cold` leaves it out). Both commands replay a log whose configs were drawn at random
(`sample.py`): from the log of a search random choice does as well as any, for what it holds was
chosen, and of two kernels in five it holds three configs. The second searches each task by itself
(`--each`: the geometric mean).
"""

from __future__ import annotations

import argparse
import gzip
import math
import tempfile
from pathlib import Path

import numpy as np

from tvmsep.api import prepare
from tvmsep.contracts import Target, Task, Trial
from tvmsep.logs import LogFile, read_log
from tvmsep.measure import ReplayBoard
from tvmsep.measure.offline import PEAK_FLOPS
from tvmsep.tuner import Strategy, session, tune_tasks
from tvmsep.tuner.state import same_code, task_key

ROOT = Path(__file__).parents[1]
NEAR = 1.05
"""A network's time within 5 % of the best counts as found."""
BUDGET = 16
"""From here on the cost model has to be worth its while."""


def load(path: Path) -> list[Trial]:
    """A log's trials; one that ends with `.gz` is unpacked first."""
    if path.suffix != ".gz":
        return read_log(path)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        return read_log(plain)


def ideal(tasks: list[Task], target: Target, trials: list[Trial]) -> tuple[dict[str, float], ...]:
    """By task: the time of the default, and the best that the log knows."""
    from tvmsep.schedules import TEMPLATES

    start, best = {}, {}
    for task in tasks:
        key = task_key(task)
        codes = same_code(task)
        mine = [t for t in trials if t.task_key in codes and t.phase == "search" and t.times_s]
        default = TEMPLATES[task.template].default(task.workload, target, task.threads)
        first = [t.median_s for t in mine if t.as_config() == default]
        if mine:
            best[key] = min(t.median_s for t in mine)
            # A log begins with the default of its day.
            start[key] = first[0] if first else mine[0].median_s
    return start, best


def network_s(tasks: list[Task], times: dict[str, float]) -> float:
    """Seconds of the network with these times of its tasks; each pair fused if that is faster."""
    of = {t.workload: times[task_key(t)] for t in tasks if task_key(t) in times}
    seconds = 0.0
    for task in tasks:
        w = task.workload
        if w not in of:
            continue
        if w.op != "dwpw":
            seconds += task.count * of[w]
        elif all(part in of for part in w.parts):
            seconds -= task.count * max(0.0, sum(of[part] for part in w.parts) - of[w])
    return seconds


def curve(
    tasks: list[Task], target: Target, log: list[Trial], strategy: Strategy,
    prior: list[Trial], seed: int, trials: int,
) -> list[float]:  # fmt: skip
    """Time over the best after each trial."""
    start, best = ideal(tasks, target, log)
    known = [t for t in tasks if task_key(t) in best]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        with LogFile(path, target=target.name, measured=False) as records:
            tune_tasks(
                known, target, ReplayBoard(log), records, peak_flops_per_core=PEAK_FLOPS,
                trials=trials, seed=seed, strategy=strategy, prior=prior,
            )  # fmt: skip
            found = [t for t in records.trials if t.phase == "search"]
    limit = network_s(known, best)
    now, ratios = dict(start), []
    for t in found[:trials]:
        if t.times_s:
            now[t.task_key] = min(now[t.task_key], t.median_s)
        ratios.append(network_s(known, now) / limit)
    return ratios + [ratios[-1]] * (trials - len(ratios))


def each_alone(
    tasks: list[Task], target: Target, log: list[Trial], strategy: Strategy,
    prior: list[Trial], seed: int, trials: int,
) -> list[float]:  # fmt: skip
    """Geometric mean over tasks of time over the best, each searched by itself."""
    _, best = ideal(tasks, target, log)
    known = [t for t in tasks if task_key(t) in best]
    runs = [curve([t], target, log, strategy, prior, seed, trials) for t in known]
    return [float(x) for x in np.exp(np.mean(np.log(runs), axis=0))]


def worse_at(ours: np.ndarray, theirs: np.ndarray, after: int) -> list[int]:
    """Budgets beyond `after` at which our median is not better, unless both know the best."""
    a, b = np.median(ours, axis=0), np.median(theirs, axis=0)
    return [n + 1 for n in range(after, len(a)) if a[n] >= b[n] > 1.0 + 1e-9]


def reached(ratios: list[float]) -> float:
    """Trials until the time is near the best; infinite if never."""
    return next((i + 1 for i, r in enumerate(ratios) if r <= NEAR), math.inf)


def main() -> None:
    """Print trials until near the best, and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--log", type=Path, default=ROOT / "logs/x86-zen4/mobilenet_v2.jsonl")
    parser.add_argument("--warm", type=Path, nargs="+", help="logs that teach the model",
                        default=[ROOT / "logs/x86-zen4/mobilenet_v1.jsonl"])  # fmt: skip
    parser.add_argument("--cold", action="store_true", help="compare cold strategies alone")
    parser.add_argument("--each", action="store_true", help="search each task by itself; the mean")
    parser.add_argument("--target", default="x86-zen4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--out", type=Path, help="an .svg, .png or .pdf to draw")
    args = parser.parse_args()

    session.PLATEAU_TRIALS = args.trials  # every curve has its full length
    prepared = prepare(args.model, target=args.target, threads=args.threads)
    target, plan = prepared.target, prepared.plans[args.threads]
    planned = {s.workload.kernel for s in plan.steps if s.workload is not None}
    tasks = [t for t in prepared.tasks() if t.workload.op == "dwpw" or t.workload.kernel in planned]
    log = load(args.log)
    ways: dict[str, tuple[Strategy, list[Trial]]] = {
        "random": ("random", []),
        "xgboost": ("xgboost", []),
    }
    if not args.cold:
        taught = [t for path in args.warm for t in load(path)]
        ways[f"xgboost, warm ({', '.join(p.stem for p in args.warm)})"] = ("xgboost", taught)
    start, best = ideal(tasks, target, log)
    sums = [network_s(tasks, times) * 1e3 for times in (start, best)]
    print(f"{args.model}, {len(best)} of {len(tasks)} tasks in {args.log.name}, threads "
          f"{args.threads}: defaults {sums[0]:.2f} ms, best {sums[1]:.2f} ms "
          f"({sums[0] / sums[1]:.3f}); {args.seeds} seeds")  # fmt: skip
    curves: dict[str, np.ndarray] = {}
    for name, (strategy, prior) in ways.items():
        search = each_alone if args.each else curve
        runs = [search(tasks, target, log, strategy, prior, s, args.trials)
                for s in range(args.seeds)]  # fmt: skip
        curves[name] = np.array(runs)
        until = sorted(reached(r) for r in runs)
        middle = until[len(until) // 2]
        shown = sorted({n for n in (20, 50, 100, 200, 400) if n < args.trials} | {args.trials})
        ends = ", ".join(f"{np.median(curves[name][:, n - 1]):.3f} at {n}" for n in shown)
        print(f"{name}: within {NEAR - 1:.0%} of the best after {middle:g} trials "
              f"(seeds: {until[0]:g} to {until[-1]:g}); median {ends}", flush=True)  # fmt: skip
    worse = worse_at(curves["xgboost"], curves["random"], BUDGET)
    print(f"xgboost's median is better than random's at every budget over {BUDGET} trials"
          if not worse else
          f"xgboost's median is not better than random's at {len(worse)} budgets over {BUDGET} "
          f"trials: {worse[0]} to {worse[-1]}")  # fmt: skip
    if args.out:
        draw(curves, args)


def draw(curves: dict[str, np.ndarray], args: argparse.Namespace) -> None:
    """Medians as lines, quartiles as bands."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "search"})
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, runs in curves.items():
        x = np.arange(1, runs.shape[1] + 1)
        (line,) = axes.plot(x, np.median(runs, axis=0), label=name)
        low, high = np.quantile(runs, [0.25, 0.75], axis=0)
        axes.fill_between(x, low, high, alpha=0.2, color=line.get_color())
    axes.axhline(NEAR, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="trials",
        ylabel=f"{'kernel' if args.each else 'network'}'s time / best in the log",
        title=f"{args.model}, {args.threads} thread(s), replayed from {args.target}, "
        f"{args.seeds} seeds",
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.out, metadata={"Date": None})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
