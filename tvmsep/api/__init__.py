"""The verbs as Python functions: what the command line calls, and what a program can call.

>>> import tvmsep
>>> report = tvmsep.tune("mobilenet_v2", out="v2.tvmsep", budget_s=180)  # doctest: +SKIP
>>> net = tvmsep.Bundle.load("v2.tvmsep", threads=2)  # doctest: +SKIP
"""

from __future__ import annotations

from tvmsep.api.building import Report, build, choose_configs, read_trials
from tvmsep.api.comparing import compare, diff
from tvmsep.api.exporting import export_object
from tvmsep.api.planning import Prepared, check_writable, must_fit, prepare
from tvmsep.api.tuning import search, tune
from tvmsep.api.verifying import prepare_for, verify

__all__ = [
    "Prepared",
    "Report",
    "build",
    "check_writable",
    "choose_configs",
    "compare",
    "diff",
    "export_object",
    "must_fit",
    "prepare",
    "prepare_for",
    "read_trials",
    "search",
    "tune",
    "verify",
]
