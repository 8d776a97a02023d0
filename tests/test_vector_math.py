"""The polynomials against float64, from denormals to infinity; and that networks call no libm."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from graph_kit import Net, compile_plan, pipeline_error, plan_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tvmsep.codegen.reference import finish as finish_numpy
from tvmsep.compiler.libm import without_libm
from tvmsep.contracts import Target
from tvmsep.frontends import load_model
from tvmsep.schedules import vector_math
from tvmsep.schedules.epilogue import finish
from tvmsep.targets import load_target

Array = np.ndarray[Any, Any]
TINY = float(np.finfo(np.float32).tiny)
LENGTH = 4096
OTHERS = {
    *("memcpy", "memset", "TVMFFIErrorSetRaisedFromCStrParts", "TVMFFIErrorSetRaisedFromCStr"),
    *("pthread_create", "pthread_join", "sched_yield", "syscall", "clock_gettime"),
    *("posix_memalign", "free"),
}
"""What every library may leave to others: C's memory functions and threads, and TVM's errors."""

REFERENCE: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[float]),
}
LIMIT_ULP = {"exp": 2.0, "sigmoid": 3.0, "tanh": 3.0, "erf": 2.0}


def kernel(value: Callable[[Any], Any], length: int = LENGTH) -> Callable[[Array], Array]:
    """A vectorised and unrolled kernel of one scalar function."""
    import tvm
    from tvm import s_tir, te

    x = te.placeholder((length,), name="x")
    func = te.create_prim_func([x, te.compute((length,), lambda i: value(x[i]), name="out")])
    sch = s_tir.Schedule(func)
    _, pair, lanes = sch.split(sch.get_loops(sch.get_sblock("out"))[0], [None, 2, 8])
    sch.unroll(pair)
    sch.vectorize(lanes)
    lib = tvm.compile(without_libm(sch.mod["main"]), target="llvm")

    def run(values: Array) -> Array:
        out = tvm.runtime.tensor(np.zeros(length, np.float32))
        lib["main"](tvm.runtime.tensor(values), out)
        return out.numpy()

    return run


def error_ulp(got: Array, want: Array) -> Array:
    """Distance in fp32 units of the last place; of the smallest normal number below it."""
    size = np.clip(np.abs(want), TINY, np.finfo(np.float32).max).astype(np.float32)
    return np.abs(got - want) / np.spacing(size).astype(float)


@pytest.mark.parametrize("name", REFERENCE)
def test_within_the_stated_error_over_all_floats(name: str) -> None:
    run = kernel(getattr(vector_math, name))

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1), st.sampled_from((1, 2**20 - 1, 2**20 + 1)))
    @example(0xFF800000 - LENGTH // 2, 1)  # around -inf, and its neighbours that are NaN
    @example(0x7F800000 - LENGTH // 2, 1)
    @example(0x80000000 - LENGTH // 2, 1)  # around -0
    @example(0x42B17218 - LENGTH // 2, 1)  # around ln(largest float)
    @example(0x3F6E147B - LENGTH // 2, 1)  # around erf's cut
    def prop(start: int, step: int) -> None:
        bits = (start + step * np.arange(LENGTH, dtype=np.uint64)) % 2**32
        x = bits.astype(np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            want = REFERENCE[name](x.astype(np.float64))
            rounded = want.astype(np.float32)
        got = run(x)
        assert (np.isnan(got) == np.isnan(x)).all()
        assert (np.isinf(got) == np.isinf(rounded)).all()
        finite = np.isfinite(rounded)
        if name == "sigmoid":  # denormal results may be zero
            denormal = finite & (want < TINY)
            assert (np.abs(got[denormal] - want[denormal]) < TINY).all()
            finite &= ~denormal
        error = error_ulp(got[finite], want[finite])
        worst = int(error.argmax()) if error.size else 0
        assert not error.size or error[worst] < LIMIT_ULP[name], (x[finite][worst], error[worst])

    prop()


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_and_exact_at_zero(name: str) -> None:
    run = kernel(getattr(vector_math, name))
    x = np.geomspace(1e-45, 20, LENGTH).astype(np.float32)
    x[0] = 0
    assert (run(-x).view(np.int32) == (-run(x)).view(np.int32)).all()
    assert run(x)[0] == 0


def test_limits() -> None:
    x = np.zeros(LENGTH, np.float32)
    x[:4] = np.inf, -np.inf, 3e38, -3e38
    assert list(kernel(vector_math.exp)(x)[:4]) == [np.inf, 0, np.inf, 0]
    assert list(kernel(vector_math.sigmoid)(x)[:4]) == [1, 0, 1, 0]
    assert list(kernel(vector_math.tanh)(x)[:4]) == [1, -1, 1, -1]
    assert list(kernel(vector_math.erf)(x)[:4]) == [1, -1, 1, -1]


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.5, 1.0, 2.0, 3.0])
def test_powers_with_a_simple_form(exponent: float) -> None:
    from tvm import tirx

    x = np.geomspace(1e-6, 1e6, LENGTH).astype(np.float32)
    run = kernel(lambda v: tirx.power(v, tirx.const(exponent, "float32")))
    want = x.astype(np.float64) ** exponent
    np.testing.assert_allclose(run(x), want, rtol=3e-7)


def test_activations_in_a_row() -> None:
    """A second activation reads the first one's result more than once."""
    steps = ["silu", "hard_swish", "leaky_relu:0.1"]
    x = np.linspace(-20, 20, LENGTH, dtype=np.float32)
    got = kernel(lambda v: finish(steps, v, None, None))(x)
    want = finish_numpy(steps, x.astype(np.float64), None, None)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_a_function_of_another_one_compiles() -> None:
    from tvm import tirx

    x = np.linspace(-3, 3, LENGTH, dtype=np.float32)
    got = kernel(lambda v: tirx.sigmoid(tirx.tanh(tirx.exp(v))))(x)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-np.tanh(np.exp(x)))), rtol=1e-6)


def undefined(so: bytes) -> set[str]:
    """What a library asks of others when it is loaded."""
    table = ELFFile(io.BytesIO(so)).get_section_by_name(".dynsym")
    return {s.name for s in table.iter_symbols() if s.name and s["st_shndx"] == "SHN_UNDEF"}


def network(activation: str, blocked: bool) -> Any:
    """A network with an activation where a template takes it, or where the fallback does."""
    net = Net()
    if blocked:
        x = net.conv(net.input(1, 16, 9, 7), 24)
        for name in ("silu", "sigmoid", "silu") if activation == "chain" else (activation,):
            x = net.act(x, name)
        return net.proto(net.conv(x, 8))
    x = net.input(3, 50, 7)
    if activation == "chain":
        for name in ("silu", "tanh", "gelu", "sigmoid"):
            x = net.act(x, name)
        return net.proto(x)
    if activation == "softmax":
        return net.proto(net.op("Softmax", x, axis=1), net.op("Softmax", x, axis=2))
    if activation == "square":
        return net.proto(net.op("Pow", x, net.const(2.0)))
    return net.proto(net.act(x, activation))


def asked_for(proto: Any, target: Target) -> set[str]:
    plan = plan_of(load_model(proto), target, 2)
    return undefined(compile_plan(plan, target)[1])


@pytest.mark.parametrize("activation", ["silu", "sigmoid", "gelu", "tanh", "erf", "elu", "chain"])
@pytest.mark.parametrize("blocked", [True, False])
def test_activations_call_no_libm(activation: str, blocked: bool) -> None:
    proto, target = network(activation, blocked), load_target("x86-avx2")
    assert asked_for(proto, target) <= OTHERS
    assert pipeline_error(proto, load_target("local"), 2) < 1e-6


@pytest.mark.parametrize("name", ["softmax", "square"])
def test_operators_call_no_libm(name: str) -> None:
    proto = network(name, False)
    assert asked_for(proto, load_target("x86-avx512")) <= OTHERS
    assert pipeline_error(proto, load_target("local"), 2) < 1e-6


def test_what_still_calls_libm_is_seen() -> None:
    assert "logf" in asked_for(network("softplus", False), load_target("x86-avx2")) - OTHERS
