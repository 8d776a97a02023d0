"""The cheapest assignment of a few values to variables whose costs hang on two or three at a time.

Variables are eliminated one by one: the costs that a variable is part of are added up, and what is
left is the least of them for every assignment of its neighbours (non-serial dynamic programming,
Bertele and Brioschi 1972). Along a chain of layers this is the dynamic programming of NeoCPU (Liu
et al., USENIX ATC 2019); branches are exact too as long as few of them are open at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Cost = tuple[int, float]
"""Compared first by the first number."""
MOST_NEIGHBOURS = 12
"""A variable between more is left at its first value: tables grow by a power of them."""


@dataclass(frozen=True)
class Factor:
    """Costs by the values of these variables, in their order."""

    scope: tuple[str, ...]
    costs: Mapping[tuple[str, ...], Cost]


def cheapest(domains: Mapping[str, Sequence[str]], factors: Sequence[Factor]) -> dict[str, str]:
    """The value of each variable in the assignment of least total cost.

    Args:
        domains: each variable's values; of equal costs the earlier value wins.
        factors: what is added up; every scope is of variables with a domain, and every assignment
            of a scope has its cost.
    """
    domains = dict(domains)
    left = list(factors)
    order: list[tuple[str, tuple[str, ...], dict[tuple[str, ...], str]]] = []
    waiting = set(domains)
    while waiting:
        around = {v: {n for f in left if v in f.scope for n in f.scope} - {v} for v in waiting}
        v = min(waiting, key=lambda v: (len(around[v]), list(domains).index(v)))
        if len(around[v]) > MOST_NEIGHBOURS:
            v = max(waiting, key=lambda v: (len(around[v]), -list(domains).index(v)))
            first = domains[v][0]
            domains[v] = [first]
            left = [_given(f, v, first) for f in left]
            around[v] = set()
        mine = [f for f in left if v in f.scope]
        scope = tuple(n for n in domains if n in around[v])
        costs: dict[tuple[str, ...], Cost] = {}
        choice: dict[tuple[str, ...], str] = {}
        for at in itertools.product(*(domains[n] for n in scope)):
            known = dict(zip(scope, at, strict=True))
            sums = [(_sum(mine, {**known, v: value}), value) for value in domains[v]]
            costs[at], choice[at] = min(sums, key=lambda s: s[0])
        left = [*(f for f in left if v not in f.scope), Factor(scope, costs)]
        order.append((v, scope, choice))
        waiting.remove(v)
    found: dict[str, str] = {}
    for v, scope, choice in reversed(order):
        found[v] = choice[tuple(found[n] for n in scope)]
    return found


def _sum(factors: Sequence[Factor], values: Mapping[str, str]) -> Cost:
    costs = [f.costs[tuple(values[n] for n in f.scope)] for f in factors]
    return sum(c for c, _ in costs), sum(s for _, s in costs)


def _given(factor: Factor, variable: str, value: str) -> Factor:
    """The factor once a variable has its value."""
    if variable not in factor.scope:
        return factor
    i = factor.scope.index(variable)
    costs = {k[:i] + k[i + 1 :]: c for k, c in factor.costs.items() if k[i] == value}
    return Factor(factor.scope[:i] + factor.scope[i + 1 :], costs)
