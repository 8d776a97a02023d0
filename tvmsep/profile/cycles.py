"""A model of the cycles that a core needs for each kernel's hot loop; nothing is run.

The loop comes out of the assembly that TVM emits. Out-of-order cores are modelled by llvm-mca
with LLVM's own tables, in-order ones by `tvmsep.profile.inorder` with latencies from the same
tables. Either takes every load for a hit in L1 and the loop's instructions for a straight line:
of a loop with branches (a depthwise one has some for the image's border) both sides are counted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from tvmsep.codegen.assembly import Loop, hot_loop
from tvmsep.compiler import parts
from tvmsep.compiler.emit import CONFIG, SCHEDULED, WORKLOAD
from tvmsep.contracts import InputError, Target, Workload

if TYPE_CHECKING:
    from tvm import IRModule

ITERATIONS = 100
VERSION = 22
"""The first llvm-mca with tables for all our targets' cores."""
_TIMEOUT_S = 60


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
    if not target.mca_cpu:
        raise InputError(
            f"target {target.name} has no cycle model: LLVM has no right tables for its core, or "
            "its file does not name one (`mca_cpu`)"
        )
    tool = find_mca()
    runs = Counter(p.workload.key for p in parts(module) if p.workload)
    found: dict[str, LoopCycles] = {}
    for func in module.functions.values():
        attrs = dict(func.attrs or {})
        if WORKLOAD not in attrs:
            continue
        w = msgspec.json.decode(str(attrs[WORKLOAD]), type=Workload)
        loop = _compiled_loop(func, target)
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
        model=name, target=target.name, core=f"{target.mca_cpu} ({_version_line(tool)})",
        loops=tuple(found[key] for key in order if key in found),
    )  # fmt: skip


def loop_cycles(loop: Loop, target: Target, tool: str) -> float:
    """Modelled cycles of one iteration of a loop, in a steady state.

    Raises:
        InputError: llvm-mca refuses the loop.
    """
    report = run_mca(loop.code, target, tool)
    if not target.in_order:
        return float(report["SummaryView"]["TotalCycles"]) / ITERATIONS
    from tvmsep.profile.inorder import in_order_cycles

    latencies = [int(i["Latency"]) for i in report["InstructionInfoView"]["InstructionList"]]
    return in_order_cycles(loop.code, latencies, target.fma_latency_cycles)


def run_mca(code: list[str], target: Target, tool: str) -> dict[str, Any]:
    """What llvm-mca says of a straight line of instructions that repeats.

    Raises:
        InputError: it refuses them.
    """
    words = [
        tool, f"-mtriple={target.triple}", f"-mcpu={target.mca_cpu}", "-json",
        f"-iterations={ITERATIONS}",
    ]  # fmt: skip
    if target.mca_dispatch:
        words.append(f"-dispatch={target.mca_dispatch}")
    # Where a jump leads does not matter to the model, and its label is not here.
    text = re.sub(r"\.L\w+", "top", "top:\n" + "\n".join(code) + "\n")
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{tool} took over {_TIMEOUT_S} s for {len(code)} lines") from error
    if done.returncode:
        raise InputError(f"{tool} refuses a loop of {target.name}: {done.stderr.strip()[:300]}")
    report: dict[str, Any] = json.loads(done.stdout)["CodeRegions"][0]
    return report


def find_mca() -> str:
    """The newest llvm-mca that is installed.

    Raises:
        InputError: none is, or it is too old.
    """
    names = [f"llvm-mca-{n}" for n in range(VERSION + 6, VERSION - 1, -1)] + ["llvm-mca"]
    tool = next((t for t in map(shutil.which, names) if t), None)
    advice = f"install it (Debian: apt install llvm-{VERSION}); nothing else here needs it"
    if tool is None:
        raise InputError(f"--cycles needs llvm-mca {VERSION} or newer: {advice}")
    found = re.search(r"version (\d+)", _version_line(tool))
    if found is None or int(found.group(1)) < VERSION:
        raise InputError(f"--cycles needs llvm-mca {VERSION} or newer, {tool} is older: {advice}")
    return tool


def _version_line(tool: str) -> str:
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S)
    found = re.search(r"LLVM version \S+", done.stdout)
    return found.group() if found else "LLVM of unknown version"


def _compiled_loop(func: Any, target: Target) -> Loop:
    import tvm

    built = tvm.tirx.build(
        func.with_attr("global_symbol", "main"), tvm.target.Target(target.tvm_dict())
    )
    return hot_loop(built.inspect_source("s").splitlines())
