"""What happens to an accumulator before it is stored, as `schedules/epilogue.py`, on CUDA.

Exponentials are the device library's (`expf`: 1 ulp, some ten instructions without a branch), not
the polynomials that LLVM vectorises: CUDA C cannot write a value's bits down within an expression,
and TVM's own `exp` becomes the hardware's approximation, which is off by up to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tvmsep.schedules.epilogue import EXPONENTIAL, activate

if TYPE_CHECKING:
    from tvm.tirx import PrimExpr


def device_call(name: str, *args: PrimExpr) -> PrimExpr:
    """A call of CUDA's fp32 mathematics: `expf`, `tanhf`, ..."""
    from tvm import tirx

    return tirx.call_pure_extern("float32", name, *args)


def sigmoid(x: PrimExpr) -> PrimExpr:
    """1 / (1 + e**-x); exactly 0 where e**-x is infinite."""
    from tvm import tirx

    one = tirx.const(1.0, "float32")
    return one / (one + device_call("expf", tirx.const(0.0, "float32") - x))


_EXPONENTIAL: dict[str, Callable[[Any], Any]] = {
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
}
assert set(_EXPONENTIAL) == set(EXPONENTIAL)


def calls(steps: Sequence[str]) -> bool:
    """Whether an epilogue calls a function, which TVM does not do with vectors."""
    return any(step in _EXPONENTIAL for step in steps)


def finish(epilogue: Sequence[str], acc: Any, bias: Any, residual: Any) -> Any:
    """Run an epilogue on one float32 accumulator value; `bias` and `residual` are float32 too."""
    for step in epilogue:
        if step == "bias":
            acc = acc + bias
        elif step == "add":
            acc = acc + residual
        elif step in _EXPONENTIAL:
            acc = _EXPONENTIAL[step](acc)
        else:
            acc = activate(step, acc)
    return acc
