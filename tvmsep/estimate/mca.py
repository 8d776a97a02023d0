"""Modelled cycles of a loop of assembly, by llvm-mca or by the scoreboard of in-order cores."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

from tvmsep.codegen import machine_code
from tvmsep.codegen.assembly import Loop, hot_loop
from tvmsep.contracts import InputError, Target

ITERATIONS = 100
VERSION = 22
"""The first llvm-mca with tables for all our targets' cores."""
_TIMEOUT_S = 60


def loop_cycles(loop: Loop, target: Target, tool: str) -> float:
    """Modelled cycles of one iteration of a loop, in a steady state.

    Raises:
        InputError: llvm-mca refuses the loop.
    """
    report = run_mca(loop.code, target, tool)
    if not target.in_order:
        return float(report["SummaryView"]["TotalCycles"]) / ITERATIONS
    from tvmsep.estimate.inorder import in_order_cycles

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
        raise InputError(f"the cycle model needs llvm-mca {VERSION} or newer: {advice}")
    found = re.search(r"version (\d+)", version_line(tool))
    if found is None or int(found.group(1)) < VERSION:
        raise InputError(
            f"the cycle model needs llvm-mca {VERSION} or newer, {tool} is older: {advice}"
        )
    return tool


def version_line(tool: str) -> str:
    """`LLVM version 22.1.0`."""
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S)
    found = re.search(r"LLVM version \S+", done.stdout)
    return found.group() if found else "LLVM of unknown version"


def compiled_loop(func: Any, target: Target) -> Loop:
    """Compile a scheduled kernel and find its hot loop; empty where it has none."""
    built = machine_code(func.with_attr("global_symbol", "main"), target)
    return hot_loop(built.inspect_source("s").splitlines())


def must_have_model(target: Target) -> None:
    """See that a target's core can be modelled.

    Raises:
        InputError: it names no core to model.
    """
    if target.gpu is not None:
        raise InputError(
            f"target {target.name} is a GPU's and has no cycle model: `tvmsep inspect --resources` "
            "shows what the kernels of a bundle use of it"
        )
    if not target.mca_cpu:
        raise InputError(
            f"target {target.name} has no cycle model: LLVM has no right tables for its core, or "
            "its file does not name one (`mca_cpu`)"
        )
