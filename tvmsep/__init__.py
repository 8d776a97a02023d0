"""tvmsep: autotune depthwise-separable CNNs with Apache TVM and ship them as bundles."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tvmsep.api import Report, build, tune, verify
    from tvmsep.bundle import Bundle, InferenceSession, SessionOptions
    from tvmsep.check import Check
    from tvmsep.contracts import TvmsepError

_HOME = {
    "Bundle": "tvmsep.bundle",
    "Check": "tvmsep.check",
    "InferenceSession": "tvmsep.bundle",
    "Report": "tvmsep.api",
    "SessionOptions": "tvmsep.bundle",
    "TvmsepError": "tvmsep.contracts",
    "build": "tvmsep.api",
    "tune": "tvmsep.api",
    "verify": "tvmsep.api",
}

__all__ = [
    "Bundle",
    "Check",
    "InferenceSession",
    "Report",
    "SessionOptions",
    "TvmsepError",
    "__version__",
    "build",
    "tune",
    "verify",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
