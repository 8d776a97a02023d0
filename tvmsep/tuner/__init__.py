"""Search: which config to measure next, for which task, and when to stop."""

from tvmsep.tuner.session import TaskState, TuneResult, TuneState, tune_tasks

__all__ = ["TaskState", "TuneResult", "TuneState", "tune_tasks"]
