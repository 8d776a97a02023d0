"""What fusing depthwise and pointwise kernels gains, pair by pair, inside the network.

    python benchmarks/fusion.py mobilenet_v1 mobilenet_v2 --threads 1,2 --configs 4 --rounds 6

Variants of the network with separate and with fused kernels take turns; all other kernels have
the same configs in both. Configs come from the shipped logs where these have them, else from the
defaults; for the fused kernels `--configs` of the space are drawn, beside the default. A row is
one kind of pair: medians of all its runs in microseconds, the best fused config, the ratio.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from statistics import median

from tvmsep.api import choose_configs, prepare
from tvmsep.contracts import Config, TvmsepError, Workload
from tvmsep.graph import Plan, fuse, fusible, open_splits, resplit
from tvmsep.logs import best_trials, read_log, shipped_logs
from tvmsep.measure import Failed, Farm
from tvmsep.schedules import TEMPLATES

Choice = dict[Workload, tuple[str, Config]]


def finalists(w: Workload, farm: Farm, threads: int, drawn: int, seed: int) -> list[Config]:
    """The default and `drawn` others, a fixed choice."""
    template = TEMPLATES["dwpw"]
    configs = template.space(w, farm.target, threads).configs()
    default = template.default(w, farm.target, threads)
    others = [c for c in configs if c != default]
    return [default, *random.Random(seed).sample(others, min(drawn, len(others)))]


def rows(
    farm: Farm, plan: Plan, choice: Choice, drawn: int, rounds: int
) -> list[tuple[str, float, float, Config]]:
    """Label, separate and fused seconds, and the fused config, of each kind of pair.

    Raises:
        TvmsepError: the networks could not be timed.
    """
    pairs = fusible(plan, farm.target)
    joined = fuse(plan, farm.target, pairs)
    kinds = list(dict.fromkeys(pairs.values()))
    fields = {w: finalists(w, farm, plan.threads, drawn, i) for i, w in enumerate(kinds)}
    for count, turns in ((drawn + 1, max(2, rounds // 2)), (3, rounds), (1, 3 * rounds)):
        variants: list[Choice] = []
        for v in range(count):
            own = {w: ("dwpw", f[v % min(count, len(f))]) for w, f in fields.items()}
            used = [s.workload for s in joined.steps if s.workload is not None]
            variants.append({w: own[w] if w in own else choice[w] for w in used})
        answer = farm.run_networks([plan, *[joined] * count], [choice, *variants], rounds=turns)
        if isinstance(answer, Failed):
            raise TvmsepError(f"the networks were not timed: {answer.failure}: {answer.detail}")
        separate, *fused = answer.kernels
        times: dict[tuple[Workload, Config], list[float]] = {}
        for variant, found in zip(variants, fused, strict=True):
            for w in kinds:
                times.setdefault((w, variant[w][1]), []).extend(found[w])
        middle = {at: median(t) for at, t in times.items()}
        fields = {
            w: sorted((c for c in f if (w, c) in middle), key=lambda c, w=w: middle[w, c])  # type: ignore[misc]
            for w, f in fields.items()
        }
    apart = {w: sum(median(separate[part]) for part in w.parts) for w in kinds}
    return [(w.label, apart[w], middle[w, fields[w][0]], fields[w][0]) for w in kinds]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table as Markdown; 2 if it could not be measured."""
    parser = argparse.ArgumentParser(description="fused against separate kernels, in the network")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", default="1,2", help="thread counts, as 1,2")
    parser.add_argument("--configs", type=int, default=11, help="fused configs beside the default")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each finalist")
    args = parser.parse_args(argv)
    try:
        for model in args.models:
            prepared = prepare(model, threads=[int(n) for n in args.threads.split(",")])
            logs = shipped_logs(prepared.target.name)
            winners = best_trials(t for log in logs for t in read_log(log))
            with Farm(prepared.target) as farm:
                for threads, planned in prepared.plans.items():
                    # Pairs divide rows: all that may be divided so is.
                    plan = resplit(planned, dict.fromkeys(open_splits(planned), "rows"))
                    choice, _, _ = choose_configs(prepared, plan, winners)
                    print(f"\n{model}, {threads} threads, {prepared.target.name}\n")
                    print("| pair | separate, µs | fused, µs | ratio | config |")
                    print("|---|---|---|---|---|", flush=True)
                    for label, apart, both, config in rows(
                        farm, plan, choice, args.configs, args.rounds
                    ):
                        ratio = both / apart
                        print(
                            f"| {label} | {apart * 1e6:.1f} | {both * 1e6:.1f} | {ratio:.2f} "
                            f"| `{config.key}` |",
                            flush=True,
                        )
    except (TvmsepError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
