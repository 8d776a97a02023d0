"""Whether a depthwise and a pointwise kernel become one: decided by times.

On a GPU whose network was never timed, a model of the traffic with device memory decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvmsep.contracts import Target, Task, Workload
from tvmsep.graph import Plan, fuse, fusible
from tvmsep.logs import Best
from tvmsep.schedules import TEMPLATES, template_for
from tvmsep.tuner.state import task_key

GAIN = 0.01
"""The fused kernel must be faster than both separate ones by this share of their time."""


def choose_plan(plan: Plan, target: Target, winners: Mapping[str, Best]) -> tuple[Plan, list[Best]]:
    """The plan with those pairs fused whose fused winner beats the winners of its parts.

    Only times taken inside the network count: without all three a pair stays separate, but for
    GPUs, where a pair of which none was timed is fused if that saves enough traffic by
    `tvmsep.estimate.pair`. The answer depends on the winners alone, so that one log always makes
    one network.

    Args:
        plan: the network with separate kernels.
        target: its target.
        winners: of each task key, as `best_trials` names them.

    Returns:
        The plan, and the winners that a decision was based on: with them alone it is the same.
    """
    chosen, grounds = [], []
    for output, w in fusible(plan, target).items():
        times = [_winner(part, target, plan.threads, winners) for part in (w, *w.parts)]
        known = [best for best in times if best is not None]
        if target.gpu is not None and not known:
            if _saves(w, target):
                chosen.append(output)
            continue
        if len(known) < len(times):
            continue
        grounds += [best for best in known if best not in grounds]
        both, *separate = known
        if both.seconds < (1 - GAIN) * sum(best.seconds for best in separate):
            chosen.append(output)
    return fuse(plan, target, chosen), grounds


def _saves(w: Workload, target: Target) -> bool:
    """Whether the model says that a GPU had better run one kernel, and the compiler spills none."""
    from tvmsep.codegen import LinkRefused
    from tvmsep.estimate.gpu import Unfit
    from tvmsep.estimate.pair import model_pair, spill_bytes

    try:
        return model_pair(w, target).worth and not spill_bytes(w, target)
    except (Unfit, LinkRefused):
        return False


def _winner(w: Workload, target: Target, threads: int, winners: Mapping[str, Best]) -> Best | None:
    """What was timed for the workload inside a network and is still in its space."""
    template = template_for(w, target)
    assert template is not None
    task = Task(workload=w, target=target.name, threads=threads, template=template.name)
    best = winners.get(task_key(task))
    if best is None or best.trial.phase != "network":
        return None
    return best if best.config in TEMPLATES[template.name].space(w, target, threads) else None
