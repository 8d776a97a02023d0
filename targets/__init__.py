"""The targets: one TOML file each. Adding a target needs no Python."""

from __future__ import annotations

import math
import os
import platform
import re
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from tvmsep.contracts import Target, TargetError


def host_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def host_cpu() -> tuple[str, str, frozenset[str]]:
    """(model name, vendor id, feature flags) as the operating system reports them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), "", frozenset()

    def field(*names: str) -> str:
        for name in names:
            found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
            if found:
                return found.group(1).strip()
        return ""

    model = field("model name", "Model", "CPU part") or platform.machine()
    return model, field("vendor_id"), frozenset(field("flags", "Features").split())


def _read(path: Path, origin: str) -> Target:
    try:
        target = msgspec.toml.decode(path.read_bytes(), type=Target)
    except OSError as error:
        raise TargetError(f"cannot read target {origin}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TargetError(
            f"target {origin} is malformed: {error}; compare it with targets/x86-avx2.toml, with "
            "targets/t4.toml if it has a GPU"
        ) from error
    why = _nonsense(target)
    if why:
        raise TargetError(f"target {origin}: {why}")
    if target.cores == 0:
        target = msgspec.structs.replace(target, cores=host_cores())
    return target


_AT_LEAST = {
    "lanes": 1, "vector_registers": 4, "fma_latency_cycles": 1, "fma_per_cycle": 0.01,
    "l2_bytes": 1024, "cores": 0, "l3_bytes": 0,
}  # fmt: skip
_GPU_RANGES: dict[str, tuple[float, float]] = {
    "sms": (1, 10_000), "warp": (32, 32), "threads_per_block": (32, 1024),
    "threads_per_sm": (32, 1 << 16), "blocks_per_sm": (1, 1024), "registers_per_thread": (16, 255),
    "registers_per_sm": (1024, 1 << 22), "registers_per_block": (1024, 1 << 22),
    "shared_per_block": (1024, 1 << 20), "shared_per_sm": (1024, 1 << 22),
    "l2_bytes": (1024, 1 << 40), "bandwidth": (1e6, 1e16), "fp32_flops": (1e6, 1e18),
    "clock_ghz": (1e-3, 1e3),
}  # fmt: skip


def _nonsense(t: Target) -> str:
    """The first fact that no hardware has, or ""."""
    for field, least in _AT_LEAST.items():
        if not least <= (value := getattr(t, field)) < math.inf:
            return f"{field} is {value}: it must be at least {least:g}"
    if t.gpu is None:
        return ""
    if not re.fullmatch(r"sm_\d{2,3}a?", t.gpu.arch):
        return f"[gpu] arch is {t.gpu.arch!r}: write it as sm_87"
    for field, (low, high) in _GPU_RANGES.items():
        if not low <= (value := getattr(t.gpu, field)) <= high:
            return f"[gpu] {field} is {value}: it must be {low:g} to {high:g}"
    return ""


def target_names() -> list[str]:
    """Names of the targets that ship with tvmsep."""
    folder = resources.files("tvmsep.targets")
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml"))


def misfit(t: Target) -> str | None:
    """Why code for `t` cannot run on this host, or None if it can."""
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    if t.machine != machine:
        return f"it is for {t.machine}, this host is {machine}"
    _, vendor, flags = host_cpu()
    missing = [f for f in t.requires if f not in flags]
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    if t.vendor and vendor != t.vendor:
        return f"it is for {t.vendor} CPUs, this one reports {vendor or 'no vendor'}"
    return None


@cache
def _host_parts() -> frozenset[str]:
    """Implementer and part number of this host's cores, where they are Arm's or alike."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = (
        re.findall(rf"^CPU {f}\s*:\s*(\S+)", text, re.MULTILINE) for f in ("implementer", "part")
    )
    return frozenset(map(" ".join, zip(*found, strict=False)))


def local_target() -> Target:
    """The CPU target that fits this host best; one for certain cores only where they are here.

    Raises:
        TargetError: no target fits; says why for each.
    """
    fits, reasons = [], []
    for name in target_names():
        target = load_target(name)
        if target.gpu is not None:
            continue
        why = misfit(target)
        if why is None and target.parts and not _host_parts() & set(target.parts):
            why = f"it is for cores {', '.join(target.parts)}"
        if why is None:
            fits.append(target)
        else:
            reasons.append(f"{name}: {why}")
    if not fits:
        raise TargetError("no target fits this host (" + "; ".join(reasons) + ")")
    return max(fits, key=lambda t: (bool(t.vendor or t.parts), t.lanes, len(t.requires)))


def load_target(spec: str = "local") -> Target:
    """A target by name, by path to a TOML file, or `local`: the one that fits this host.

    Raises:
        TargetError: unknown name, unreadable or malformed file.
    """
    if spec == "local":
        return local_target()
    if spec.endswith(".toml") or os.sep in spec:
        return _read(Path(spec), spec)
    if spec not in target_names():
        known = ", ".join(["local", *target_names()])
        raise TargetError(f"unknown target {spec!r}; known: {known}, or a path to a TOML file")
    with resources.as_file(resources.files("tvmsep.targets") / f"{spec}.toml") as path:
        return _read(path, spec)
