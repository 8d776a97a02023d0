"""One kernel of a network: which task is meant, and which config each entrant has for it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvmsep.contracts import Config, InputError, Target, Task
from tvmsep.contracts.config import OPTIONAL
from tvmsep.contracts.words import counted
from tvmsep.graph import Plan
from tvmsep.logs import chosen_by, read_log
from tvmsep.schedules import CUDA, TEMPLATES
from tvmsep.tuner.state import winner_of


@dataclass(frozen=True)
class Choice:
    """One way to compute a task."""

    name: str
    text: str
    task: Task
    """With the template that this one takes."""
    config: Config

    @property
    def template(self) -> str:
        """Its name."""
        return self.task.template


def find_task(plans: Sequence[Plan], target: Target, task: str | None, layer: str | None) -> Task:
    """The kernel that the user means.

    Args:
        plans: of one thread count; of what has one label the first plan's is taken.
        target: of the tasks.
        task: part of a task's label, such as `pointwise 14x14 512`.
        layer: a step's name, as `tvmsep inspect` prints it.

    Raises:
        InputError: none, or several.
    """
    tasks = [t for plan in plans for t in plan.tasks(target)]
    if layer is not None:
        for plan in plans:
            for step in plan.all_steps:
                if step.output == layer and step.workload is not None:
                    return next(t for t in tasks if t.workload == step.workload)
        raise InputError(f"--layer {layer}: no kernel of that name; see `tvmsep inspect MODEL`")
    assert task is not None
    named = {t.workload.label: t for t in reversed(tasks)}
    found = [task] if task in named else [label for label in named if task in label]
    if len(found) == 1:
        return named[found[0]]
    labels = sorted(found or named)
    if not found:
        near = difflib.get_close_matches(task, labels, 5, 0.0)
        raise InputError(f"--task {task!r}: no kernel is called so; the nearest: {', '.join(near)}")
    shown = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    raise InputError(f"--task {task!r} fits several: {shown}; give one in full, or --layer")


def choose(words: Sequence[str], task: Task, target: Target) -> list[Choice]:
    """The config of each entrant: a config, a template, a log, a bundle, or `default`.

    Raises:
        InputError: one is none of these, or does not fit the task.
    """
    found: list[Choice] = []
    for word in words:
        choice = _choice(word, task, target)
        name, n = choice.name, 2
        while name in {c.name for c in found}:
            name, n = f"{choice.name}#{n}", n + 1
        found.append(replace(choice, name=name))
    return found


def _choice(word: str, task: Task, target: Target) -> Choice:
    w, label = task.workload, task.workload.label
    own = TEMPLATES[task.template]
    path = Path(word)
    if word == "default":
        return Choice(word, word, task, own.default(w, target, task.threads))
    if word in TEMPLATES:
        template = TEMPLATES[word]
        if (word in CUDA) != (target.gpu is not None):
            kind = "CUDA devices" if word in CUDA else "CPUs"
            raise InputError(
                f"template {word} is for {kind}, and {target.name} is none: {own.name} computes "
                f"{label} there"
            )
        if not template.accepts(w, target):
            raise InputError(f"template {word} does not compute {label}; {own.name} does")
        other = Task(
            workload=w, target=task.target, threads=task.threads, template=word, count=task.count
        )
        return Choice(word, word, other, template.default(w, target, task.threads))
    if path.suffix in (".jsonl", ".tvmsep"):
        best = winner_of(task, chosen_by(read_log(path)))
        if best is None:
            raise InputError(
                f"{word} has no trial of {label} for {target.name} at "
                f"{counted('thread', task.threads)}"
                + (f" that divides {w.out_split} over them" if task.threads > 1 else "")
            )
        return Choice(path.stem, word, task, best.config)
    return Choice(word, word, task, read_config(word, task, target))


def read_config(text: str, task: Task, target: Target) -> Config:
    """`tile_p=14 loop=px`, with spaces or commas; knobs that are left out are the default's.

    Raises:
        InputError: malformed, no such knob, or outside the space; says what there is.
    """
    template = TEMPLATES[task.template]
    space = template.space(task.workload, target, task.threads)
    values = dict(template.default(task.workload, target, task.threads))
    given = set[str]()
    for part in text.replace(",", " ").split():
        knob, sign, value = part.partition("=")
        if not sign:
            raise InputError(
                f"{text!r}: no config (tile_p=14 loop=px), template ({', '.join(TEMPLATES)}), "
                "bundle, log, or default"
            )
        if knob not in space.knobs:
            raise InputError(
                f"{text!r}: {task.template} has no knob {knob}: there are {', '.join(space.knobs)}"
            )
        domain = space.knobs[knob]
        typed = next((v for v in domain if str(v) == value), None)
        if typed is None:
            shown = ", ".join(map(str, domain))
            raise InputError(f"{text!r}: knob {knob} of {task.workload.label} takes {shown}")
        values[knob] = typed
        given.add(knob)
    # A whole config leaves out knobs that are off, and another order of loops may not have them.
    off = {knob: 0 for knob in OPTIONAL if knob in values and knob not in given}
    config = Config(values)
    if off and (given >= {*space.knobs} - {*OPTIONAL} or config not in space):
        config = Config({**values, **off})
    if config not in space:
        raise InputError(
            f"{text!r}: {config.key} is not valid for {task.workload.label} on {target.name}: "
            "give other values"
        )
    return config
