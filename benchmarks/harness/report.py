"""The tables that people read, the JSON that programs read, and the machine both are about."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from engines import Engine

from harness.environment import frozen
from harness.rounds import Row, Series
from harness.runner import Runner

ERROR_LIMIT = 1e-4
"""Float32 engines differ by 1e-6 to 1e-5; fp16 anywhere shows as some 4e-4."""
FEWER_CORES, MORE_CORES = 0.5, 0.25
"""Busy cores that are further from the thread count than this are worth a note."""

HEAD = (
    "threads", "engine", "version", "lowest ms", "highest ms", "spread", "ratio", "paired",
    "of peak", "error", "notes",
)  # fmt: skip


def machine(target: str, peaks: Sequence[float]) -> dict[str, Any]:
    """What the figures were measured on."""
    import tvmsep
    from tvmsep.targets import host_cores, host_cpu

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": host_cpu()[0],
        "cores": host_cores(),
        "features": sorted(f for f in host_cpu()[2] if f.startswith(("avx", "fma", "amx"))),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tvmsep": tvmsep.__version__,
        "target": target,
        "peak_gflops_per_core": [p / 1e9 for p in peaks],
    }


def notes(
    row: Row, series: Series, engine: Engine, *, isa: str, runs: int, facts: Mapping[str, str]
) -> str:
    """What a reader must know of a row; `runs` is the number of calls asked for."""
    found = []
    if row.wrong:
        found.append("WRONG OUTPUT")
    n = row.turn.threads
    if not n - FEWER_CORES <= row.cores_busy <= n + MORE_CORES:
        found.append(f"kept {row.cores_busy:.1f} cores busy")
    if (calls := min(len(s.times_s) for s in series.measured)) < runs:
        found.append(f"{calls} calls a round")
    if series.failure is not None:
        found.append(f"{row.rounds} of {len(series.samples)} rounds, then {series.failure.kind}")
    if series.turn.engine == "tvmsep" and "tuned" in facts:
        found.append(f"{facts['tuned']} tuned")
    if isa == "avx2":
        found.append("AVX2" if engine.limited else "NOT limited to AVX2")
    return "; ".join(found)


def cells(row: Row, version: str, notes: str) -> tuple[str, ...]:
    """A row as the table's text."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        str(row.turn.threads), row.turn.engine, version,
        f"{1e3 * row.lowest_s:.2f}", f"{1e3 * row.highest_s:.2f}",
        f"{row.highest_s / row.lowest_s - 1:.1%}",
        number(row.ratio, ".3f"), number(row.paired, ".3f"),
        f"{row.peak_share:.1%}", f"{row.error:.0e}", notes,
    )  # fmt: skip


def _version(runner: Runner, engine: Engine) -> str:
    version = runner.versions[engine.name]
    return version if engine.package.lower() in engine.name else f"{engine.package} {version}"


def show(
    runner: Runner,
    series: Sequence[Series],
    rows: Sequence[Row],
    engines: Mapping[str, Engine],
    peak_flops_per_core: float,
) -> None:
    """Print one network's table."""
    from tvmsep.cli.table import print_table

    network = runner.network
    best = ", ".join(
        f"{peer} at {n} thread{'s' if n > 1 else ''}"
        for n, peer in sorted({(r.turn.threads, r.best_peer) for r in rows if r.best_peer})
    )
    by_turn = {s.turn: s for s in series}
    body = [
        cells(
            row,
            _version(runner, engines[row.turn.engine]),
            notes(
                row, by_turn[row.turn], engines[row.turn.engine], isa=runner.isa, runs=runner.runs,
                facts=runner.facts[f"{row.turn.engine}/{row.turn.threads}"],
            ),
        )
        for row in rows
    ]  # fmt: skip
    print_table(
        HEAD, body, left=3,
        title=f"{network.spec} {list(network.shape)}, {network.flops / 1e9:.3f} GFLOP; ratios to "
        f"the best peer ({best or 'none'}); peak {peak_flops_per_core / 1e9:.1f} GFLOP/s a core",
    )  # fmt: skip


def network_json(
    runner: Runner, series: Sequence[Series], rows: Sequence[Row], change: float
) -> dict[str, Any]:
    """One network with everything that was measured on it."""
    net = runner.network
    by_turn = {r.turn: r for r in rows}
    results = []
    for one in series:
        row = by_turn.get(one.turn)
        result: dict[str, Any] = {
            "engine": one.turn.engine, "threads": one.turn.threads,
            "failure": None if one.failure is None else vars(one.failure),
            "facts": runner.facts.get(f"{one.turn.engine}/{one.turn.threads}", {}),
            "rounds": [
                None if s is None else {
                    "median_s": s.median_s, "min_s": min(s.times_s), "runs": len(s.times_s),
                    "iqr_s": _iqr(s.times_s), "cores_busy": s.cores_busy, "error": s.error,
                }
                for s in one.samples
            ],
        }  # fmt: skip
        if row is not None:
            result |= {
                "lowest_s": row.lowest_s, "highest_s": row.highest_s, "ratio": row.ratio,
                "paired": row.paired, "best_peer": row.best_peer, "peak_share": row.peak_share,
                "error": row.error, "wrong": row.wrong,
            }  # fmt: skip
        results.append(result)
    return {
        "spec": net.spec, "sha256": net.sha256, "shape": net.shape, "flops": net.flops,
        "input_changes_output_by": change, "results": results,
    }  # fmt: skip


def _iqr(times_s: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(times_s, n=4, method="inclusive")
    return high - low


def engines_json(runner: Runner, engines: Sequence[Engine]) -> dict[str, Any]:
    """Versions, pins, everything installed beside them, and the limit on instructions."""
    return {
        e.name: {
            "version": runner.versions.get(e.name),
            "requirements": e.requirements,
            "installed": frozen(runner.pythons[e.name]) if e.name in runner.pythons else [],
            "avx2": {"limited": e.limited, "how": e.avx2},
        }
        for e in engines
    }
