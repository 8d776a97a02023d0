"""Which kernels a network is made of, where there is a choice: decided by times.

A value may be divided over the threads by rows or by channels, and a depthwise and a pointwise
kernel may be one. All of it is decided at once, for the least sum of times. On a GPU whose network
was never timed, a model of the traffic with device memory decides what is fused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tvmsep.contracts import Target, Task, Workload
from tvmsep.contracts.workload import SPLITS, Split
from tvmsep.graph import Plan, Step, fuse, fusible, open_splits, resplit, resplit_steps
from tvmsep.logs import Best
from tvmsep.schedules import TEMPLATES, template_for
from tvmsep.tuner.eliminate import Cost, Factor, cheapest
from tvmsep.tuner.state import task_key

GAIN = 0.01
"""Other kernels than the plan's must be faster by this share of their time."""
_FUSED = "fused"
"""How a value is divided that is never written: the kernels around it are one."""
_NEVER: Cost = (1 << 20, 0.0)


def choose_plan(plan: Plan, target: Target, winners: Mapping[str, Best]) -> tuple[Plan, list[Best]]:
    """The plan with those splits and those pairs fused whose winners' times add up to least.

    Only times taken inside the network count, whatever the search has found since. Kernels that
    have one are preferred to kernels that have none: a log of other splits, made by another version
    or for another network, gives what was measured. Where nothing was timed all stays as planned,
    but for GPUs, where a pair of which nothing was timed is fused if that saves enough traffic by
    `tvmsep.estimate.pair`. A pair whose separate kernels were not timed stays separate. The answer
    depends on the winners alone, so that one log always makes one network.

    Args:
        plan: the network with separate kernels.
        target: its target.
        winners: of each task key, as `best_trials` names them.

    Returns:
        The plan, and the winners that a decision was based on: with them alone it is the same.
    """
    chooser = _Chooser(plan, target, winners)
    ways = chooser.choose()
    fused = [last for last, first in chooser.pairs.items() if ways[first] == _FUSED]
    splits = {v: chooser.split(v, ways) for v in ways}
    return fuse(resplit(plan, splits), target, fused), list(chooser.grounds.values())


def choose_splits(plan: Plan, target: Target, winners: Mapping[str, Best]) -> Plan:
    """The plan divided as `choose_plan` divides it, with separate kernels."""
    if plan.threads == 1:
        return plan
    chooser = _Chooser(plan, target, winners)
    ways = chooser.choose()
    return resplit(plan, {v: chooser.split(v, ways) for v in ways})


class _Chooser:
    """The variables are open values, and values between two kernels that may be one."""

    def __init__(self, plan: Plan, target: Target, winners: Mapping[str, Best]) -> None:
        self.plan, self.target, self.winners = plan, target, winners
        self.grounds: dict[str, Best] = {}
        self._known: dict[Workload, Best | None] = {}
        self.planned = {s.output: s.workload for s in plan.steps if s.workload is not None}
        other = open_splits(plan) | self._timed()
        self.domains: dict[str, list[str]] = {
            v: [self.planned[v].out_split, x] for v, x in other.items()
        }
        # One kernel divides what it writes by rows, so all that may be is.
        by_rows = resplit(plan, {v: "rows" for v in other})
        steps = {s.output: s for s in plan.steps}
        self.pairs = {o: steps[o].inputs[0] for o in fusible(by_rows, target)}
        """The output of each pair's pointwise kernel, and of its depthwise one."""
        for between in self.pairs.values():
            known = self.domains.setdefault(between, [self.planned[between].out_split])
            known.append(_FUSED)

    def _timed(self) -> dict[str, Split]:
        """Values of which only kernels that divide them otherwise were timed, open or not.

        Where both were it may have been at different times, which do not compare.
        """
        found: dict[str, Split] = {}
        for value, w in self.planned.items() if self.plan.threads > 1 else ():
            after: Split = "channels" if w.out_split == "rows" else "rows"
            timed = {
                split: any(
                    self._winner(msgspec.structs.replace(w, in_split=before, out_split=split))
                    for before in SPLITS
                )
                for split in SPLITS
            }
            if w.out_block and w.op != "unpack" and timed[after] and not timed[w.out_split]:
                found[value] = after
        return found

    def split(self, value: str, ways: Mapping[str, str]) -> Split:
        """How a value is divided; what is never written, as what its pair writes."""
        way = ways.get(value, self.planned[value].out_split)
        if way == _FUSED:
            return self.split(next(o for o, x in self.pairs.items() if x == value), ways)
        return "rows" if way == "rows" else "channels"

    def choose(self) -> dict[str, str]:
        """The value of each variable."""
        steps = {s.output: s for s in self.plan.steps}
        between = set(self.pairs.values())
        factors = []
        for output in self.planned:
            if output in between:
                continue  # its pair's
            parts = [steps[output]]
            if output in self.pairs:
                parts.insert(0, steps[self.pairs[output]])
            values = dict.fromkeys([parts[0].inputs[0], *(s.output for s in parts)])
            scope = tuple(v for v in values if v in self.domains)
            if scope:
                table = {}
                for at in itertools.product(*(self.domains[v] for v in scope)):
                    table[at] = self._cost(parts, dict(zip(scope, at, strict=True)))
                factors.append(Factor(scope, table))
        return cheapest(self.domains, factors)

    def _cost(self, parts: Sequence[Step], ways: Mapping[str, str]) -> Cost:
        """Of a kernel, or of two with a value between them, separate or as one."""
        splits = {v: self.split(v, ways) for v in ways}
        divided = [s.workload for s in resplit_steps(parts, splits) if s.workload is not None]
        if _FUSED in ways.values():
            return self._fused(Workload.joined(*divided))
        planned = [step.workload for step in parts]
        return _total(self._separate(w, w == own) for w, own in zip(divided, planned, strict=True))

    def _separate(self, w: Workload, planned: bool) -> Cost:
        best = self._winner(w)
        if best is None:
            return 1, 0.0
        return 0, best.seconds / (1.0 if planned else 1.0 - GAIN)

    def _fused(self, w: Workload) -> Cost:
        if template_for(w, self.target) is None:
            return _NEVER
        known = [best for part in (w, *w.parts) if (best := self._winner(part)) is not None]
        if self.target.gpu is not None and not known:
            return (0, 0.0) if _saves(w, self.target) else _NEVER
        return (0, known[0].seconds / (1.0 - GAIN)) if len(known) == 3 else _NEVER

    def _winner(self, w: Workload) -> Best | None:
        """What was timed for the workload inside a network and is still in its space."""
        if w not in self._known:
            self._known[w] = self._look_up(w)
        return self._known[w]

    def _look_up(self, w: Workload) -> Best | None:
        template = template_for(w, self.target)
        if template is None:
            return None
        threads = self.plan.threads
        task = Task(workload=w, target=self.target.name, threads=threads, template=template.name)
        found = self.winners.get(task_key(task))
        best = found.inside if found is not None else None
        if best is None:
            return None
        if best.config not in TEMPLATES[template.name].space(w, self.target, threads):
            return None
        return self.grounds.setdefault(task_key(task), best)


def _total(costs: Iterable[Cost]) -> Cost:
    missing, seconds = zip(*costs, strict=True)
    return sum(missing), sum(seconds)


def _saves(w: Workload, target: Target) -> bool:
    """Whether the model says that a GPU had better run one kernel, and the compiler spills none."""
    from tvmsep.codegen import LinkRefused
    from tvmsep.estimate.gpu import Unfit
    from tvmsep.estimate.pair import model_pair, spill_bytes

    try:
        return model_pair(w, target).worth and not spill_bytes(w, target)
    except (Unfit, LinkRefused):
        return False
