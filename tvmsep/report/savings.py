"""What separability buys on a board: both forms of each block, built and measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import msgspec

from tvmsep.contracts import Config, Target, Task, Workload
from tvmsep.graph import Plan
from tvmsep.logs import Best
from tvmsep.measure import Built, Failed, Farm, Measured, ModelBoard
from tvmsep.report.layers import Block, block_of, pairs
from tvmsep.schedules import TEMPLATES, template_for
from tvmsep.tuner.state import winner_of


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """One block in both forms, measured in context on the same board. Times are seconds."""

    block: Block
    standard_s: float
    separable_s: float
    tuned: bool
    """Whether every kernel ran its tuned config."""

    @property
    def speedup(self) -> float:
        """How many times faster the separable form ran."""
        return self.standard_s / self.separable_s


def standard_form(dw: Workload, pw: Workload) -> Workload:
    """One convolution with the pair's input, kernel, stride and output."""
    return msgspec.structs.replace(
        dw, op="conv", oc=pw.oc, groups=1, out_block=pw.out_block, epilogue=pw.epilogue,
        out_split=pw.out_split,
    )  # fmt: skip


def saving_tasks(plan: Plan, target: Target) -> list[tuple[Block, list[Task], list[Task]]]:
    """Per distinct block: its tasks in standard form, and in separable form."""
    found: dict[tuple[Workload, Workload], tuple[Block, list[Task], list[Task]]] = {}
    for name, dw, pw in pairs(plan):
        if (dw, pw) in found:
            continue
        forms = []
        for form in ([standard_form(dw, pw)], [dw, pw]):
            tasks = []
            for w in form:
                template = template_for(w, target)
                if template is None:
                    raise ValueError(f"no template takes {w.label}")
                tasks.append(
                    Task(
                        workload=w, target=target.name, threads=plan.threads,
                        template=template.name,
                    )
                )  # fmt: skip
            forms.append(tasks)
        found[dw, pw] = (block_of(name, dw, pw), forms[0], forms[1])
    return list(found.values())


def measure_savings(
    plan: Plan, target: Target, farm: Farm | ModelBoard, winners: dict[str, Best]
) -> Iterator[Saving | tuple[Block, Failed]]:
    """Measure both forms of every distinct block, one block at a time.

    Args:
        plan: of the network.
        target: what to build for.
        farm: builders and a board, or a model of one.
        winners: tuned configs by task key; a task without one runs its default.
    """
    for block, standard, separable in saving_tasks(plan, target):
        times: list[float] = []
        failure: Failed | None = None
        tuned = all(winner_of(t, winners) for t in (*standard, *separable))
        for form in (standard, separable):
            jobs = [(t, _config(t, target, winners)) for t in form]
            builds = farm.build(jobs)
            bad = next((b for b in builds if isinstance(b, Failed)), None)
            ready = [
                (t, c, b) for (t, c), b in zip(jobs, builds, strict=True) if isinstance(b, Built)
            ]
            total = 0.0
            for answer in farm.run(ready) if bad is None else ():
                if isinstance(answer, Measured):
                    total += statistics.median(answer.times_s)
                else:
                    bad = answer
            times.append(total)
            failure = failure or bad
        if failure is not None:
            yield block, failure
        else:
            yield Saving(block=block, standard_s=times[0], separable_s=times[1], tuned=tuned)


def _config(task: Task, target: Target, winners: dict[str, Best]) -> Config:
    best = winner_of(task, winners)
    if best is not None:
        return best.config
    return TEMPLATES[task.template].default(task.workload, target, task.threads)
