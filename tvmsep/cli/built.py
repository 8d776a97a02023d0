"""What `tune` and `build` print at their end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tvmsep.contracts.words import counted

if TYPE_CHECKING:
    from tvmsep.api import Report
    from tvmsep.bundle import Variant
    from tvmsep.tuner import TuneState

QUIET = 0.05
"""Largest difference between a network's time and the sum of its kernels' on a quiet machine."""
STEPS_S = 1e-4
"""What going from kernel to kernel may cost besides."""


def print_report(report: Report, as_json: bool) -> None:
    """The bundle, its check, and each variant's times; for every set of input shapes."""
    import msgspec

    size = report.path.stat().st_size
    several = report.manifest.specialisations
    states = [r.state for r in report.results]
    if as_json:
        state = states[0] if states else None
        text = {
            "bundle": str(report.path),
            "bytes": size,
            "tasks": report.tasks,
            "tuned_tasks": report.tuned,
            "modelled": report.modelled,
            "emulated": report.emulated,
            "check": msgspec.to_builtins(report.check),
            "variants": msgspec.to_builtins(report.manifest.variants),
            "kernels_s": state.kernels_s if state else {},
            "network_s": state.whole_s if state else {},
        }
        if len(several) > 1:
            text["shapes"] = [
                {
                    "inputs": msgspec.to_builtins(one.inputs),
                    "variants": msgspec.to_builtins(one.variants),
                    "kernels_s": states[n].kernels_s if n < len(states) else {},
                    "network_s": states[n].whole_s if n < len(states) else {},
                }
                for n, one in enumerate(several)
            ]
        print(json.dumps(text))
        return
    for line in report.check.lines() if report.check else ():
        print(line)
    for n, one in enumerate(several):
        if len(several) > 1:
            print(f"{one.title}:")
        for v in one.variants:
            _print_variant(v, states[n] if n < len(states) else None)
    how = "that a model chose: modelled, not measured" if report.modelled else "that was measured"
    if report.emulated:
        how += " on an emulated device, whose times say nothing about speed"
    print(f"{report.tuned} of {report.tasks} kernels run a config {how}")
    print(f"wrote {report.path} ({size / 1e6:.1f} MB)")


def _print_variant(v: Variant, state: TuneState | None) -> None:
    estimate = "" if v.estimate_s is None else f", kernels sum to {v.estimate_s * 1e3:.2f} ms"
    whole = state.whole_s.get(v.threads) if state else None
    apart, apart_s = 0.0, 0.0
    if state and whole is not None:
        kernels = state.kernels_s[v.threads]
        apart, apart_s = whole / kernels - 1, abs(whole - kernels)
        estimate = (
            f", kernels sum to {kernels * 1e3:.2f} ms, the network takes {whole * 1e3:.2f} ms"
            f" ({100 * apart:+.0f}%)"
        )
    print(f"{counted('thread', v.threads)}: peak RAM {v.peak_ram_bytes / 1e6:.1f} MB{estimate}")
    if abs(apart) > QUIET and apart_s > STEPS_S:
        print(
            f"  more than {100 * QUIET:.0f}% apart: the machine was not quiet; run this again "
            "when it is, and the best few are measured anew"
        )
