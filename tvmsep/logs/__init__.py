"""Tuning logs: append-only JSONL, one trial a line, usable at any moment."""

from tvmsep.logs.best import Best, best_trials, chosen_by
from tvmsep.logs.file import LogFile, read_log
from tvmsep.logs.shipped import shipped_logs

__all__ = ["Best", "LogFile", "best_trials", "chosen_by", "read_log", "shipped_logs"]
