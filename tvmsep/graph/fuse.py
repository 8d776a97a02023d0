"""Plans in which a depthwise convolution and the pointwise one that reads it are one kernel."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection

from tvmsep.contracts import Target, Workload
from tvmsep.graph.plan import Plan, Step
from tvmsep.schedules import template_for


def fusible(plan: Plan, target: Target) -> dict[str, Workload]:
    """Pointwise steps, by output, that could absorb the depthwise step before them; as what.

    The pair qualifies if nothing else reads what lies between, both divide their rows over the
    threads, and a template takes it.
    """
    uses = Counter(plan.outputs)
    for step in plan.steps:
        uses.update(step.inputs)
    made = {s.output: s.workload for s in plan.steps if s.workload is not None}
    found = {}
    for step in plan.steps:
        w = step.workload
        before = made.get(step.inputs[0]) if step.inputs else None
        if w is None or before is None or (before.op, w.op) != ("depthwise", "pointwise"):
            continue
        both = Workload.joined(before, w)
        if both.parts == (before, w) and uses[step.inputs[0]] == 1 and template_for(both, target):
            found[step.output] = both
    return found


def fuse(plan: Plan, target: Target, outputs: Collection[str]) -> Plan:
    """The plan with the named steps of `fusible` fused; the same inputs and parameters."""
    pairs = {o: w for o, w in fusible(plan, target).items() if o in outputs}
    made = {s.output: s for s in plan.steps}
    gone = {made[o].inputs[0] for o in pairs}
    steps = []
    for step in plan.steps:
        if step.output in pairs:
            w, first = pairs[step.output], made[step.inputs[0]]
            template = template_for(w, target)
            assert template is not None
            inputs = [first.inputs[0], *step.inputs[1:]]
            params = [*first.params, *step.params]
            steps.append(Step(step.output, inputs, params, w, template.name))
        elif step.output not in gone:
            steps.append(step)
    return dataclasses.replace(
        plan,
        steps=steps,
        shapes={n: s for n, s in plan.shapes.items() if n not in gone},
        layouts={n: x for n, x in plan.layouts.items() if n not in gone},
    )
