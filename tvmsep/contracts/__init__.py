"""The words every room shares: target, workload, task, config, space, template, trial, errors."""

from tvmsep.contracts.config import Config, Space, Value
from tvmsep.contracts.errors import (
    BoardError,
    BundleError,
    InputError,
    LogError,
    ModelError,
    OpenShapeError,
    TargetError,
    TvmsepError,
)
from tvmsep.contracts.target import Gpu, Target
from tvmsep.contracts.template import Template
from tvmsep.contracts.trial import Failure, Trial
from tvmsep.contracts.workload import Task, Workload

__all__ = [
    "BoardError",
    "BundleError",
    "Config",
    "Failure",
    "Gpu",
    "InputError",
    "LogError",
    "ModelError",
    "OpenShapeError",
    "Space",
    "Target",
    "TargetError",
    "Task",
    "Template",
    "Trial",
    "TvmsepError",
    "Value",
    "Workload",
]
