"""What every frontend returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvmsep.contracts.preprocess import Preprocess

if TYPE_CHECKING:
    import numpy as np
    import tvm
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Reference = Callable[[Sequence[Array]], list[Array]]
else:
    Array = Any
    Reference = Callable


@dataclass(frozen=True)
class TensorSpec:
    """One input or output as the model names it. `dtype` is a NumPy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """`input float32[1,3,224,224]`."""
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass
class Imported:
    """A model as Relax, with what is needed to check it, name it and feed it."""

    name: str
    """Short name for tables and manifests; says so when the weights are random."""
    module: tvm.IRModule
    """`main` takes the inputs in order and returns the output, or a tuple of them when the
    model has several. All shapes are static; weights are constants."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source: dict[str, str]
    """`kind` (onnx, torch, pt2, builtin or zoo), `path` or `spec`, `sha256`, `licence` if known."""
    reference: Reference | None
    """Runs the original model in its own framework: arrays in, arrays out, in model order.
    The session is made at the first call."""
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = field(default=None, repr=False)
