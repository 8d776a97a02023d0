"""tvmsep: autotune depthwise-separable CNNs with Apache TVM and ship them as bundles."""

from __future__ import annotations

__version__ = "0.1.0"
