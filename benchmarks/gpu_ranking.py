"""How the model of a GPU ranks the configs of a network's heaviest kernels; nothing is run.

python benchmarks/gpu_ranking.py [MODEL ...] [--target jetson-orin] [--sample 60] [--kernels 5]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

from tvmsep import api
from tvmsep.codegen import kernel
from tvmsep.contracts import Config, Target, Task, TvmsepError
from tvmsep.estimate.gpu import GpuTime, Unfit, gpu_seconds
from tvmsep.schedules import TEMPLATES


def ranked(
    task: Task, target: Target, sample: int, seed: int = 0
) -> tuple[list[tuple[Config, GpuTime]], int]:
    """The default and some configs drawn at random, the fastest first; the default's place."""
    template = TEMPLATES[task.template]
    configs = template.space(task.workload, target, 1).configs()
    default = template.default(task.workload, target, 1)
    drawn = random.Random(seed).sample(configs, min(sample, len(configs)))
    found = []
    for config in dict.fromkeys([default, *drawn]):
        try:
            time = gpu_seconds(kernel(task.workload, target, task.template, config), target)
        except (Unfit, TvmsepError):  # beyond the device's limits: no candidate either
            continue
        found.append((config, time))
    found.sort(key=lambda x: x[1].seconds)
    return found, [c for c, _ in found].index(default) + 1


def line(config: Config, t: GpuTime) -> str:
    """A config, its modelled time, and what limits it."""
    limits = ", ".join(f"{k} {1e6 * v:.1f}" for k, v in t.limits_s.items())
    return (
        f"{1e6 * t.seconds:8.1f} us  {config.key}\n            {t.blocks} blocks of {t.threads}, "
        f"{t.resident} resident, {t.registers} registers, {t.shared} B shared; us by {limits}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the best, the default and the worst of each kernel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["mobilenet_v1", "mobilenet_v2"])
    parser.add_argument("--target", default="jetson-orin")
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--kernels", type=int, default=5)
    args = parser.parse_args(argv)
    try:
        for model in args.models:
            prepared = api.prepare(model, target=args.target)
            if prepared.target.gpu is None:
                raise TvmsepError(f"target {args.target} has no GPU: give one with a [gpu] table")
            for task in prepared.tasks()[: args.kernels]:
                found, place = ranked(task, prepared.target, args.sample)
                print(f"{model}: {task.workload.label}, default {place} of {len(found)}")
                default = found[place - 1]
                for config, time in (*found[:2], default, found[-1]):
                    print(line(config, time))
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
