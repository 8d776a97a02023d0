"""Tuning logs: append-only JSONL, one trial a line, usable at any moment."""

from tvmsep.logs.best import Best, best_trials
from tvmsep.logs.file import LogFile, read_log

__all__ = ["Best", "LogFile", "best_trials", "read_log"]
