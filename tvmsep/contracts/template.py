"""What a schedule file provides. TVM is imported inside the functions, never by this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmsep.contracts.config import Config, Space
from tvmsep.contracts.target import Target
from tvmsep.contracts.workload import Workload

if TYPE_CHECKING:
    from tvm import s_tir, tirx


class Template(Protocol):
    """Maths, space, and how a config becomes s_tir primitives. One object a file.

    `name` and `version` go into every log line: raise `version` whenever the code a config
    makes changes, so that old measurements are not taken for new ones. A knob that is new, and
    whose 0 makes the code of before, needs none if it is in `config.OPTIONAL`.
    """

    name: str
    version: int

    def accepts(self, w: Workload, t: Target) -> bool:
        """Whether this template computes `w` on `t`."""
        ...

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """The maths alone, in TE.

        Parameters: input, weights, bias, residual, scale (those that are present), output.
        """
        ...

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """The knobs and their domains."""
        ...

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """A good config derived from the target's facts, without measuring. Lies in `space`."""
        ...

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """Schedule primitives only: cannot change the maths."""
        ...
