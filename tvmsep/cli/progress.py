"""What `tune` shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmsep.tuner import TaskState, TuneState

_PLAIN_EVERY_S = 10.0
_REFRESH_S = 0.2


def milliseconds(seconds: float) -> str:
    """`3.62 ms`, or a dash."""
    return f"{seconds * 1e3:.2f} ms" if math.isfinite(seconds) else "-"


def clock(seconds: float) -> str:
    """`1:05`."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def summary(state: TuneState) -> str:
    """One line: where the run stands."""
    parts = ["1 trial" if state.trials == 1 else f"{state.trials} trials"]
    if state.elapsed_s > 1:
        parts[0] += f" ({state.trials_per_s:.1f}/s)"
    parts.append(clock(state.elapsed_s))
    if state.phase == "ended":
        pass
    elif state.budget_s is not None:
        parts.append(f"{clock(state.budget_s - state.elapsed_s)} left")
    elif state.trial_limit is not None:
        parts.append(f"{state.trial_limit - state.trials} trials left")
    if all(math.isfinite(state.network_s(n)) for n in state.thread_counts):
        parts.append(
            "tasks sum to " + " and ".join(_estimate(state, n) for n in state.thread_counts)
        )
    else:
        missing = sum(1 for t in state.tasks if not math.isfinite(t.best_s))
        parts.append(f"{missing} of {len(state.tasks)} tasks not measured yet")
    if state.phase == "final":
        parts.append("measuring the best again, in turn")
    return ", ".join(parts)


def _estimate(state: TuneState, threads: int) -> str:
    """`6.51 ms (7.20 at the start)`, with the thread count where there are several."""
    now, start = state.network_s(threads), state.network_s(threads, start=True)
    text = milliseconds(now)
    if math.isfinite(start) and start > 0:
        text += f" ({start * 1e3:.2f} at the start)"
    if len(state.thread_counts) > 1:
        text += f" on {threads} thread{'s' if threads > 1 else ''}"
    return text


def _share(task: TaskState) -> str:
    if not math.isfinite(task.best_s) or task.floor_s == 0:
        return "-"
    return f"{100 * task.floor_s / task.best_s:.0f}%"


def _weight_s(task: TaskState) -> float:
    """The network's time in a task; tasks without a time come last."""
    return task.task.count * task.best_s if math.isfinite(task.best_s) else 0.0


def task_rows(state: TuneState) -> list[list[str]]:
    """Name, count, best time, GFLOP/s, share of peak, configs tried, failures; heaviest first."""
    rows = []
    for t in sorted(state.tasks, key=_weight_s, reverse=True):
        known = math.isfinite(t.best_s)
        w = t.task.workload
        rows.append(
            [
                w.label,
                str(t.task.threads),
                str(t.task.count),
                f"{t.best_s * 1e6:.1f}" if known else "-",
                f"{w.flops / t.best_s / 1e9:.0f}" if known and w.flops else "-",
                _share(t),
                f"{min(t.trials, len(t.space))}/{len(t.space)}",
                str(t.failures) if t.failures else "",
            ]
        )
    return rows


HEAD = ("task", "threads", "runs", "best us", "GFLOP/s", "of peak", "tried", "failed")


class TuneProgress:
    """Call it with the state after each trial; use it in a `with`."""

    def __init__(self) -> None:
        self._live: Any = None
        self._last = -math.inf

    def __enter__(self) -> TuneProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, state: TuneState) -> None:
        """Show the state, unless it was shown a moment ago."""
        now = time.monotonic()
        if self._live is not None:
            if now - self._last >= _REFRESH_S:
                self._last = now
                self._live.update(self._table(state), refresh=True)
        elif now - self._last >= _PLAIN_EVERY_S:
            self._last = now
            print(summary(state), file=sys.stderr, flush=True)

    def _table(self, state: TuneState) -> Any:
        from rich.table import Table

        height = self._live.console.size.height
        table = Table(caption=summary(state), caption_justify="left", expand=False)
        for i, name in enumerate(HEAD):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        rows = task_rows(state)
        room = max(3, height - 7)
        for row in rows[:room]:
            table.add_row(*row)
        if len(rows) > room:
            table.add_row(f"... and {len(rows) - room} lighter tasks")
        return table
