"""What no template takes runs on the device too: shared by threads, without races, and right."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_kit import device, target
from scipy.special import erf

from tvmsep.contracts import ModelError

__all__ = ["device"]  # a fixture

Array = np.ndarray[Any, Any]


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + erf(x / 2**0.5))


def normed(x: Array, scale: Array, shift: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-5
    ) * scale + shift


def draw(*shape: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Array], list[Array]]] = {
    "softmax": (lambda op, a: op.nn.softmax(a, -1), softmax, [draw(1, 1000)]),
    "softmax of few": (
        lambda op, a: op.nn.softmax(a, 1), lambda a: softmax(a, 1), [draw(1, 99, 3, 5)],
    ),
    "softmax of many": (
        lambda op, a: op.nn.softmax(a, 1), lambda a: softmax(a, 1), [draw(1, 5, 50, 50)],
    ),
    "log softmax": (
        lambda op, a: op.nn.log_softmax(a, -1), lambda a: np.log(softmax(a)), [draw(4, 300)],
    ),
    "transpose": (
        lambda op, a: op.permute_dims(a, [0, 2, 3, 1]), lambda a: a.transpose(0, 2, 3, 1),
        [draw(1, 6, 14, 14)],
    ),
    "concat": (
        lambda op, a, b: op.concat([a, b], 1), lambda a, b: np.concatenate([a, b], 1),
        [draw(1, 3, 9, 9), draw(1, 5, 9, 9)],
    ),
    "mean of an image": (
        lambda op, a: op.mean(a, [2, 3]), lambda a: a.mean((2, 3)), [draw(1, 6, 57, 57)],
    ),
    "mean of all": (lambda op, a: op.mean(a), lambda a: a.mean(), [draw(1, 96, 7, 7)]),
    "sum across": (lambda op, a: op.sum(a, [0, 2]), lambda a: a.sum((0, 2)), [draw(5, 6, 70, 3)]),
    "maximum": (lambda op, a: op.max(a, [1]), lambda a: a.max(1), [draw(1, 130, 7, 7)]),
    "argmax": (lambda op, a: op.argmax(a, 1), lambda a: a.argmax(1), [draw(3, 1000)]),
    "argmax of a map": (lambda op, a: op.argmax(a, 1), lambda a: a.argmax(1), [draw(1, 5, 50, 50)]),
    "product": (lambda op, a, b: op.matmul(a, b), np.matmul, [draw(2, 33, 70), draw(2, 70, 40)]),
    "layer norm": (
        lambda op, a, s, b: op.nn.layer_norm(a, s, b, [-1]), normed,
        [draw(1, 19, 64), draw(64), draw(64)],
    ),
    "gelu": (lambda op, a: op.nn.gelu(a), gelu, [draw(1, 19, 64)]),
    "functions": (
        lambda op, a: op.sin(op.log(op.exp(op.tanh(op.sigmoid(a))))),
        lambda a: np.sin(np.tanh(1 / (1 + np.exp(-a)))), [draw(1, 19, 64)],
    ),
    "halves": (
        lambda op, a: op.nn.softmax(op.nn.gelu(a), -1), lambda a: softmax(gelu(a)),
        [draw(1, 500, dtype="float16")],
    ),
    "sums so far": (lambda op, a: op.cumsum(a, 1), lambda a: a.cumsum(1), [draw(2, 700)]),
    "products so far": (lambda op, a: op.cumprod(a, 0), lambda a: a.cumprod(0), [draw(9, 3)]),
    "sums before, of all": (
        lambda op, a: op.cumsum(a, exclusive=True), lambda a: a.cumsum() - a.reshape(-1),
        [draw(4, 3, 5)],
    ),
    "the largest": (
        lambda op, a: op.topk(a, 5, ret_type="values"), lambda a: -np.sort(-a)[:, :5],
        [draw(1, 300)],
    ),
    "one number": (lambda op, a: op.add(a, a), lambda a: a + a, [draw()]),
    "condition": (
        lambda op, a: op.astype(op.greater(a, op.negative(a)), "int64"), lambda a: a > -a,
        [draw(3, 5)],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def network(device: Any) -> Any:
    """All cases as outputs of one network, run once."""
    import tvm
    from tvm import relax

    from tvmsep.compiler.compile import compile_library, lower

    builder, inputs, arrays = relax.BlockBuilder(), [], []
    for _, _, given in CASES.values():
        for array in given:
            kind = relax.TensorType(array.shape, str(array.dtype))
            inputs.append(relax.Var(f"x{len(inputs)}", kind))
            arrays.append(array)
    left = list(inputs)
    with builder.function("main", inputs, attrs={"num_input": len(inputs)}):
        with builder.dataflow():
            made = []
            for write, _, given in CASES.values():
                made.append(builder.emit(write(relax.op, *(left.pop(0) for _ in given))))
            out = builder.emit_output(relax.Tuple(made))
        builder.emit_func_output(out)
    t = target()
    lowered = lower(builder.get(), t)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lib.so"
        file.write_bytes(compile_library(lowered, t))
        vm = relax.VirtualMachine(tvm.runtime.load_module(str(file)), device)
        results = vm["main"](*(tvm.runtime.tensor(a, device) for a in arrays))
        return lowered, {name: r.numpy() for name, r in zip(CASES, results, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(name: str, network: Any) -> None:
    _, want_of, given = CASES[name]
    got = network[1][name].astype(np.float64)
    want = np.asarray(want_of(*(a.astype(np.float64) for a in given)))
    assert got.shape == want.shape
    limit = 5e-3 if given[0].dtype == np.float16 else 1e-5
    assert np.abs(got - want).max() <= limit * max(np.abs(want).max(), 1e-30)


def test_no_large_loop_is_left_to_one_thread(network: Any) -> None:
    """Every block is bound, and a thread loops for long only where very many do."""
    from tvm import s_tir, tirx

    seen = 0
    for func in network[0].functions.values():
        if not isinstance(func, tirx.PrimFunc):
            continue
        sch = s_tir.Schedule(func)
        for block in sch.get_child_blocks(sch.get_sblock("root")):
            loops = [sch.get(loop) for loop in sch.get_loops(block)]
            work = math.prod(int(loop.extent) for loop in loops)
            threads = math.prod(int(lp.extent) for lp in loops if lp.thread_binding is not None)
            if loops:
                assert any(lp.thread_binding is not None for lp in loops), func
                assert work <= 128 * threads or threads >= 2048, func
                seen += 1
    assert seen > len(CASES)


def test_what_cannot_be_bound_is_refused_by_name() -> None:
    import tvm
    from tvm.script import tirx as T

    from tvmsep.compiler.fallback_cuda import schedule_rest_cuda

    @T.prim_func
    def by_hand(x: T.Buffer((8,), "float32")):  # type: ignore[no-untyped-def, valid-type]
        for i in range(8):
            x[i] = x[i] + T.float32(1)

    with pytest.raises(ModelError, match="operator odd cannot run on a CUDA device"):
        schedule_rest_cuda(tvm.IRModule({"odd": by_hand}), target())
