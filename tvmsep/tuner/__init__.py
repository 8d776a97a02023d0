"""Search: which config to measure next, for which task, and when to stop."""

from tvmsep.tuner.run import Strategy
from tvmsep.tuner.session import tune_tasks
from tvmsep.tuner.state import TaskState, TuneResult, TuneState

__all__ = ["Strategy", "TaskState", "TuneResult", "TuneState", "tune_tasks"]
