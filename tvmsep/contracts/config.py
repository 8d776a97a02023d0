"""A schedule is data: `Config` holds one value per knob, `Space` the values a knob may take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Value = int | str

OPTIONAL = ("prefetch", "direct")
"""Knobs that a config does not mention where they are 0, that is off: they came when logs had been
shipped, whose configs shall go on meaning what they meant."""


class Config(Mapping[str, Value]):
    """One value per knob, but for optional ones that are off: frozen, ordered, hashable, printable.

    >>> Config(tile_p=14, order="px").key
    'tile_p=14 order=px'
    """

    __slots__ = ("_items", "_map")

    def __init__(self, values: Mapping[str, Value] | None = None, /, **kw: Value) -> None:
        given = {**(values or {}), **kw}
        self._map: dict[str, Value] = {
            knob: value for knob, value in given.items() if value or knob not in OPTIONAL
        }
        self._items = tuple(self._map.items())

    def __getitem__(self, knob: str) -> Value:
        return self._map[knob]

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def __len__(self) -> int:
        return len(self._map)

    def __hash__(self) -> int:
        return hash(frozenset(self._items))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and dict(self._map) == dict(other._map)

    def int(self, knob: str) -> int:
        """The value of an integer knob."""
        value = self._map[knob]
        if not isinstance(value, int):
            raise TypeError(f"knob {knob} holds {value!r}, not an integer")
        return value

    @property
    def key(self) -> str:
        """One line that names this config, as logs and tables show it."""
        return " ".join(f"{k}={v}" for k, v in self._items)

    def __repr__(self) -> str:
        return f"Config({self.key})"


class Space:
    """Named, finite, ordered knob domains plus a validity rule.

    Args:
        knobs: each knob's domain, in the order in which a reader would choose them.
        valid: says whether one combination is legal (fits the registers, divides the shape).
    """

    def __init__(
        self,
        knobs: Mapping[str, tuple[Value, ...]],
        valid: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    ) -> None:
        self.knobs = dict(knobs)
        self.valid = valid

    def __contains__(self, config: Mapping[str, Value]) -> bool:
        off = {knob: 0 for knob in OPTIONAL if knob in self.knobs}
        whole = {**off, **config}
        return (
            set(whole) == set(self.knobs)
            and all(whole[k] in dom for k, dom in self.knobs.items())
            and self.valid(whole)
        )

    def configs(self) -> list[Config]:
        """Every valid config, in lexical order of the domains."""
        found = []
        for values in itertools.product(*self.knobs.values()):
            candidate = dict(zip(self.knobs, values, strict=True))
            if self.valid(candidate):
                found.append(Config(candidate))
        return found
