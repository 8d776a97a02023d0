"""Bundles: one file that holds a network's compiled libraries, weights, log and manifest.

This room is what runs on a user's machine: it imports no compiler. NumPy and TVM's runtime are
loaded by what needs them, at its first use.

>>> from tvmsep.bundle import Bundle
>>> with Bundle.load("mobilenet.tvmsep", threads=2) as net:  # doctest: +SKIP
...     scores = net(picture)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmsep.bundle.load import Bundle
    from tvmsep.bundle.manifest import Manifest, Specialisation, TensorInfo, Variant
    from tvmsep.bundle.package import Package, read_log
    from tvmsep.bundle.picture import load_picture, read_preprocess
    from tvmsep.bundle.runtime import runtime_version
    from tvmsep.bundle.session import InferenceSession, SessionOptions
    from tvmsep.bundle.timing import BenchResult, bench
    from tvmsep.bundle.unpack import export
    from tvmsep.bundle.write import Compiled, write_bundle

_HOME = {
    "BenchResult": "timing",
    "Bundle": "load",
    "Compiled": "write",
    "InferenceSession": "session",
    "Manifest": "manifest",
    "Package": "package",
    "SessionOptions": "session",
    "Specialisation": "manifest",
    "TensorInfo": "manifest",
    "Variant": "manifest",
    "bench": "timing",
    "export": "unpack",
    "load_picture": "picture",
    "read_log": "package",
    "read_preprocess": "picture",
    "runtime_version": "runtime",
    "write_bundle": "write",
}

__all__ = [
    "BenchResult",
    "Bundle",
    "Compiled",
    "InferenceSession",
    "Manifest",
    "Package",
    "SessionOptions",
    "Specialisation",
    "TensorInfo",
    "Variant",
    "bench",
    "export",
    "load_picture",
    "read_log",
    "read_preprocess",
    "runtime_version",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
