"""Models in: ONNX, PyTorch, built-ins and a few published networks, all as one Relax module.

Nothing heavy (TVM, ONNX, torch) is imported before a model is loaded.
"""

from __future__ import annotations

from tvmsep.contracts.preprocess import Preprocess
from tvmsep.frontends.builtin import builtin_proto, list_builtins
from tvmsep.frontends.load import load_model
from tvmsep.frontends.model import Imported, TensorSpec
from tvmsep.frontends.zoo import fetch

__all__ = [
    "Imported",
    "Preprocess",
    "TensorSpec",
    "builtin_proto",
    "fetch",
    "list_builtins",
    "load_model",
]
