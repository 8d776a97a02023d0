"""A model of the cycles that a core needs for each kernel's hot loop; nothing is run.

The loop comes out of the assembly that TVM emits. Out-of-order cores are modelled by llvm-mca
with LLVM's own tables, in-order ones by `tvmsep.estimate.inorder` with latencies from the same
tables. Either takes every load for a hit in L1 and the loop's instructions for a straight line:
of a loop with branches (a depthwise one has some for the image's border) both sides are counted.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from tvmsep.compiler import parts
from tvmsep.compiler.emit import CONFIG, SCHEDULED, WORKLOAD
from tvmsep.contracts import Target, Workload
from tvmsep.estimate.mca import compiled_loop, find_mca, loop_cycles, must_have_model, version_line

if TYPE_CHECKING:
    from tvm import IRModule


class LoopCycles(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel's hot loop; cycles, multiply-adds and loads are of one iteration."""

    layer: str
    runs: int
    """How often the network runs the kernel."""
    template: str
    config: str
    cycles: float
    """As modelled."""
    fmas: int
    """Vector multiply-adds; 0 where the kernel has none."""
    loads: int
    """Registers loaded."""
    spills: int
    """Loads and stores of the stack."""
    fma_use: float
    """Multiply-adds over those that the core could start meanwhile."""


class CycleModel(msgspec.Struct, frozen=True, kw_only=True):
    """Of a network: modelled, not measured."""

    model: str
    target: str
    core: str
    """What was modelled, and by what."""
    loops: tuple[LoopCycles, ...]
    """In the network's order."""


def modelled(module: IRModule, target: Target, name: str) -> CycleModel:
    """Model the hot loop of every kernel that a template made.

    Args:
        module: what `tvmsep.compiler.emit` made, or a bundle's Relax text parsed.
        target: for which it is compiled.
        name: the model's.

    Raises:
        InputError: the target names no core to model, or llvm-mca is missing, too old or refuses.
    """
    must_have_model(target)
    tool = find_mca()
    runs = Counter(p.workload.key for p in parts(module) if p.workload)
    found: dict[str, LoopCycles] = {}
    for func in module.functions.values():
        attrs = dict(func.attrs or {})
        if WORKLOAD not in attrs:
            continue
        w = msgspec.json.decode(str(attrs[WORKLOAD]), type=Workload)
        loop = compiled_loop(func, target)
        if not loop.code:
            continue  # a kernel of a few vectors, without a loop
        cycles = loop_cycles(loop, target, tool)
        found[w.key] = LoopCycles(
            layer=w.label, runs=runs[w.key], template=str(attrs.get(SCHEDULED, "")),
            config=str(attrs.get(CONFIG, "")), cycles=cycles, fmas=loop.fmas, loads=loop.loads,
            spills=loop.spills, fma_use=loop.fmas / (cycles * target.fma_per_cycle),
        )  # fmt: skip
    order = list(dict.fromkeys(p.workload.key for p in parts(module) if p.workload))
    return CycleModel(
        model=name, target=target.name, core=f"{target.mca_cpu} ({version_line(tool)})",
        loops=tuple(found[key] for key in order if key in found),
    )  # fmt: skip
