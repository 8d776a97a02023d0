"""A target file from what a board reports: a start, for a person to read and edit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date

from tvmsep.boards.facts import Facts
from tvmsep.contracts import BoardError, Target


@dataclass(frozen=True)
class _Core:
    """What of a core's design the operating system does not report."""

    mcpu: str
    fma_latency_cycles: int
    fma_per_cycle: float
    source: str


_ARM = "Arm, {} Software Optimization Guide"
_ARM_CORES = {
    "0xd03": _Core("cortex-a53", 4, 1.0, "LLVM, AArch64SchedA53.td"),
    "0xd05": _Core("cortex-a55", 4, 1.0, _ARM.format("Cortex-A55")),
    "0xd07": _Core("cortex-a57", 4, 1.0, _ARM.format("Cortex-A57")),
    "0xd08": _Core("cortex-a72", 3, 1.0, _ARM.format("Cortex-A72")),
    "0xd09": _Core("cortex-a73", 3, 1.0, "as Cortex-A72"),
    "0xd0a": _Core("cortex-a75", 3, 2.0, _ARM.format("Cortex-A75")),
    "0xd0b": _Core("cortex-a76", 2, 2.0, _ARM.format("Cortex-A76")),
    "0xd0c": _Core("neoverse-n1", 2, 2.0, _ARM.format("Neoverse N1")),
    "0xd0d": _Core("cortex-a77", 2, 2.0, _ARM.format("Cortex-A77")),
    "0xd40": _Core("neoverse-v1", 2, 4.0, _ARM.format("Neoverse V1")),
    "0xd41": _Core("cortex-a78", 2, 2.0, _ARM.format("Cortex-A78")),
    "0xd42": _Core("cortex-a78ae", 2, 2.0, "as Cortex-A78"),
    "0xd44": _Core("cortex-x1", 2, 4.0, _ARM.format("Cortex-X1")),
    "0xd49": _Core("neoverse-n2", 2, 2.0, _ARM.format("Neoverse N2")),
    "0xd4f": _Core("neoverse-v2", 2, 4.0, _ARM.format("Neoverse V2")),
}
"""By the part number of cores that Arm (implementer 0x41) designed."""

_RARE = (
    "half_width_is_free", "lane_operand", "half_arithmetic", "in_order", "mca_dispatch",
    "clock_ghz", "bandwidth",
)  # fmt: skip
"""Facts that a file leaves out where they are none."""

_AVX512 = ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd")
_AVX2 = ("avx2", "fma", "bmi2")


def guess(facts: Facts, name: str, origin: str) -> tuple[Target, tuple[str, ...]]:
    """A target for a board, and the names of the facts in it that the board did not report.

    Args:
        facts: what the board reports.
        name: of the target.
        origin: where the facts come from, for the `source` line.

    Raises:
        BoardError: nothing is known about such a CPU.
    """
    has = set(facts.features)
    half = False
    mattr: tuple[str, ...] = ()
    needs: tuple[str, ...] = _AVX512
    sources = [f"reported by {facts.cpu or 'the board'} at {origin} on {date.today():%Y-%m-%d}"]
    if facts.machine == "x86_64" and has.issuperset(_AVX512):
        wide = "avx512_vbmi2" in has
        mcpu = "znver4" if wide and facts.vendor == "AuthenticAMD" else "skylake-avx512"
        mattr = ("-prefer-256-bit",) if mcpu == "skylake-avx512" else ()
        lanes, registers, latency, rate, broadcast = 16, 32, 4, 1.0, True
    elif facts.machine == "x86_64" and has.issuperset(_AVX2):
        mcpu = "haswell"
        lanes, registers, latency, rate, broadcast, needs = 8, 16, 5, 2.0, False, _AVX2
    elif facts.machine == "aarch64":
        kinds = [_ARM_CORES.get(p.split()[-1]) for p in facts.parts if p.startswith("0x41 ")]
        # Of two kinds of cores the stronger ones are worth tuning for.
        core = max((k for k in kinds if k), key=lambda k: k.fma_per_cycle, default=None)
        if core:
            sources.append(core.source)
        core = core or _Core("generic", 4, 1.0, "")
        mcpu, latency, rate = core.mcpu, core.fma_latency_cycles, core.fma_per_cycle
        lanes, registers, broadcast, needs = 4, 32, False, ("asimd",)
        if mcpu != "generic" and "asimdhp" in has:
            half, needs = True, ("asimd", "asimdhp")
    else:
        raise BoardError(
            f"cannot write a target for {facts.machine or 'an unknown machine'} "
            f"({facts.cpu or 'unknown CPU'}): it needs x86-64 with AVX2, or aarch64; "
            "copy the nearest file of targets/ and edit it"
        )
    unknown = ["fma_latency_cycles", "fma_per_cycle", "mcpu"]
    if not facts.cache_bytes(2):
        unknown.append("l2_bytes")
    system = "apple-darwin" if facts.system == "Darwin" else "unknown-linux-gnu"
    target = Target(
        name=name,
        description=facts.cpu or name,
        triple=f"{facts.machine}-{system}",
        mcpu=mcpu,
        mattr=mattr,
        cores=facts.cores,
        lanes=lanes,
        vector_registers=registers,
        fma_latency_cycles=latency,
        fma_per_cycle=rate,
        broadcast_operand=broadcast,
        lane_operand=facts.machine == "aarch64",
        half_arithmetic=half,
        half_width_is_free=mcpu == "znver4",
        l2_bytes=facts.cache_bytes(2) or 262144,
        l3_bytes=facts.cache_bytes(3),
        requires=needs,
        vendor=facts.vendor if mcpu == "znver4" else "",
        source="; ".join(sources),
    )
    return target, tuple(unknown)


def as_toml(target: Target, unknown: tuple[str, ...], facts: Facts) -> str:
    """The file's text, with a remark on each line that wants a person's eye."""
    remarks = dict.fromkeys(unknown, "not reported by the board: check it")
    remarks["cores"] = f"memory {facts.memory_bytes / 2**30:.1f} GiB"
    if len(facts.parts) > 1:
        remarks["cores"] = f"of {len(facts.parts)} kinds: keep the strong ones' number only"
    lines = []
    for name in target.__struct_fields__:
        value = getattr(target, name)
        rare = name in _RARE and not value
        if name == "link" or rare or value is None or value in ("", ()):
            continue
        text = f"{name} = {json.dumps(value)}"
        lines.append(f"{text:<30}# {remarks[name]}" if name in remarks else text)
    if "darwin" in target.triple:
        lines += ["", "[link]", 'flavour = "macho"']
    return "\n".join(lines) + "\n"
