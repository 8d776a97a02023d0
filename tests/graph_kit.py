"""Small ONNX networks, made by hand or at random, and the whole pipeline that runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmsep.compiler import compile_library, emit, lower
from tvmsep.contracts import Config, Target, Workload
from tvmsep.frontends import Imported, load_model
from tvmsep.graph import Plan, from_relax, make_plan, normalise
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target

OPSET = 18
Array = np.ndarray[Any, Any]


class Net:
    """An ONNX network that grows node by node and knows every value's shape."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, Array] = {}
        self.inputs: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def input(self, *shape: int) -> str:
        name = f"input{len(self.inputs)}"
        self.inputs.append(name)
        self.shapes[name] = shape
        return name

    def const(self, array: Any, dtype: str = "float32") -> str:
        name = f"w{len(self.tensors)}"
        self.tensors[name] = np.asarray(array, dtype)
        self.shapes[name] = self.tensors[name].shape
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, "int64")

    def noise(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        return self.const(self.rng.standard_normal(shape) * scale + shift)

    def ops(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> list[str]:
        """Append a node; the names of its outputs."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        node = helper.make_node(op, inputs, names, name=f"{op}{len(self.nodes)}", **attrs)
        self.nodes.append(node)
        known = [self._info(i) for i in dict.fromkeys(inputs) if i and i not in self.tensors]
        weights = [i for i in dict.fromkeys(inputs) if i in self.tensors]
        graph = helper.make_graph(
            [node],
            "one",
            known,
            [helper.make_empty_tensor_value_info(n) for n in names],
            [numpy_helper.from_array(self.tensors[i], i) for i in weights],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        for info in [*model.graph.output, *model.graph.value_info]:
            dims = info.type.tensor_type.shape.dim
            self.shapes[info.name] = tuple(d.dim_value for d in dims)
        return names

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Append a node of one output; its name."""
        return self.ops(op, *inputs, **attrs)[0]

    def _info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, self.shapes[name])

    def proto(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [self._info(i) for i in self.inputs],
            [self._info(o) for o in dict.fromkeys(outputs)],
            [numpy_helper.from_array(a, n) for n, a in self.tensors.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 8
        return model

    # Layers

    def channels(self, x: str) -> int:
        return self.shapes[x][1]

    def conv(
        self,
        x: str,
        oc: int,
        k: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        **attrs: Any,
    ) -> str:
        kh, kw = (k, k) if isinstance(k, int) else k
        icg = self.channels(x) // groups
        weights = [self.noise(oc, icg, kh, kw, scale=(1.5 / (icg * kh * kw)) ** 0.5)]
        if bias:
            weights.append(self.noise(oc, scale=0.3))
        return self.op("Conv", x, *weights, group=groups, **attrs)

    def depthwise(self, x: str, k: int | tuple[int, int] = 3, mult: int = 1, **attrs: Any) -> str:
        c = self.channels(x)
        kh, kw = (k, k) if isinstance(k, int) else k
        attrs.setdefault("pads", [kh // 2, kw // 2] * 2)
        return self.conv(x, c * mult, k, groups=c, **attrs)

    def bn(self, x: str) -> str:
        c = self.channels(x)
        stats = [self.noise(c, scale=0.2, shift=1.0), self.noise(c, scale=0.3)]
        stats += [self.noise(c, scale=0.3), self.const(self.rng.uniform(0.5, 2.0, c))]
        return self.op("BatchNormalization", x, *stats)

    def gemm(self, x: str, oc: int, bias: bool = True, transposed: bool = True) -> str:
        ic = self.shapes[x][1]
        shape = (oc, ic) if transposed else (ic, oc)
        weights = [self.noise(*shape, scale=(1.5 / ic) ** 0.5)]
        if bias:
            weights.append(self.noise(oc, scale=0.3))
        return self.op("Gemm", x, *weights, transB=int(transposed))

    def act(self, x: str, name: str) -> str:
        """One activation, in one spelling."""
        return ACTIVATIONS[name](self, x)

    def squeeze_excite(self, x: str, spelling: int = 0, gate: str = "hard_sigmoid") -> str:
        n, c = self.shapes[x][:2]
        mid = max(4, c // 4)
        if spelling % 2:
            squeezed = self.op("ReduceMean", x, self.ints(2, 3), keepdims=1)
        else:
            squeezed = self.op("GlobalAveragePool", x)
        if spelling >= 4:
            flat = self.op("Reshape", squeezed, self.ints(n, c))
            hidden = self.act(self.gemm(flat, mid), "relu")
            factor = self.act(self.gemm(hidden, c), gate)
            factor = self.op("Reshape", factor, self.ints(n, c, 1, 1))
        else:
            hidden = self.act(self.conv(squeezed, mid), "relu")
            factor = self.act(self.conv(hidden, c), gate)
        pair = (factor, x) if spelling & 2 else (x, factor)
        return self.op("Mul", *pair)


def _clip(low: float | None, high: float | None) -> Callable[[Net, str], str]:
    def make(net: Net, x: str) -> str:
        bounds = ["" if b is None else net.const(b) for b in (low, high)]
        return net.op("Clip", x, *(bounds if high is not None else bounds[:1]))

    return make


def _relu6_of(net: Net, x: str) -> str:
    return _clip(0, 6)(net, net.op("Add", x, net.const(3)))


def _erf_gelu(net: Net, x: str) -> str:
    inner = net.op("Erf", net.op("Div", x, net.const(2**0.5)))
    return net.op("Mul", net.op("Mul", x, net.op("Add", inner, net.const(1))), net.const(0.5))


HARD_SWISH: dict[str, Callable[[Net, str], str]] = {
    "hs_op": lambda n, x: n.op("HardSwish", x),
    "hs_gate": lambda n, x: n.op("Mul", x, n.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
    "hs_div": lambda n, x: n.op("Div", n.op("Mul", x, _relu6_of(n, x)), n.const(6)),
    "hs_mul": lambda n, x: n.op("Mul", n.op("Mul", x, _relu6_of(n, x)), n.const(1 / 6)),
    "hs_inner": lambda n, x: n.op("Mul", x, n.op("Div", _relu6_of(n, x), n.const(6))),
    "hs_flip": lambda n, x: n.op("Mul", n.op("Mul", n.const(1 / 6), _relu6_of(n, x)), x),
    "hs_minmax": lambda n, x: n.op(
        "Mul",
        x,
        n.op(
            "Mul",
            n.op("Max", n.op("Min", n.op("Add", n.const(3), x), n.const(6)), n.const(0)),
            n.const(1 / 6),
        ),
    ),
}

ACTIVATIONS: dict[str, Callable[[Net, str], str]] = {
    **HARD_SWISH,
    "relu": lambda n, x: n.op("Relu", x),
    "relu6": _clip(0, 6),
    "clip": _clip(-0.7654321, 1.2345678),
    "clip_min": _clip(-0.25, None),
    "clip_max": _clip(None, 0.5),
    "clip_above": _clip(0.25, 2.0),
    "max_of_min": lambda n, x: n.op("Max", n.op("Min", x, n.const(0.1)), n.const(0.2)),
    "hard_sigmoid": lambda n, x: n.op("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    "hard_sigmoid_0.2": lambda n, x: n.op("HardSigmoid", x),
    "hs_0.2": lambda n, x: n.op("Mul", x, n.op("HardSigmoid", x)),
    "sigmoid": lambda n, x: n.op("Sigmoid", x),
    "silu": lambda n, x: n.op("Mul", x, n.op("Sigmoid", x)),
    "leaky": lambda n, x: n.op("LeakyRelu", x, alpha=0.1),
    "prelu": lambda n, x: n.op("PRelu", x, n.noise(n.channels(x), 1, 1, scale=0.2)),
    "prelu_one": lambda n, x: n.op("PRelu", x, n.const([0.15])),
    "tanh": lambda n, x: n.op("Tanh", x),
    "erf": lambda n, x: n.op("Erf", x),
    "gelu": _erf_gelu,
    "exp": lambda n, x: n.op("Exp", n.op("Clip", x, n.const(-3), n.const(1))),
    "elu": lambda n, x: n.op("Elu", x, alpha=0.7),
    "softplus": lambda n, x: n.op("Softplus", x),
}


# Random networks


def _conv_any(net: Net, x: str) -> str:
    rng, c = net.rng, net.channels(x)
    pick = rng.integers(9)
    bias = bool(rng.integers(2))
    oc = int(rng.choice(CHANNELS))
    high, wide = net.shapes[x][2:]
    if pick == 0:
        return net.conv(x, oc, bias=bias)
    if pick == 1:
        return net.conv(x, oc, bias=bias, strides=[2, 2])
    if pick == 2:
        return net.conv(x, oc, 1, bias=bias, pads=[1, 0, 1, 2])
    if pick == 3:
        k = ((5, 5), (7, 7), (1, 3), (3, 1), (3, 3))[rng.integers(5)]
        strides = ([1, 1], [2, 1], [2, 2], [1, 2])[rng.integers(4)]
        return net.depthwise(x, k, bias=bias, strides=strides)
    if pick == 4:
        return net.depthwise(x, 3, mult=2 if c <= 24 else 1, bias=bias, pads=[0, 1, 2, 1])
    if pick == 5:
        return net.depthwise(x, 3, dilations=[2, 2], pads=[2, 2, 2, 2], bias=bias)
    if pick == 6:
        groups = [g for g in (2, 3, 4, 5) if c % g == 0]
        if groups:
            g = int(rng.choice(groups))
            per = int(rng.choice([1, 2, 3, 5, 8]))
            return net.conv(x, g * per, 3, groups=g, bias=bias, pads=[1] * 4)
    pads = [int(p) for p in rng.integers(0, 3, 4)]
    if high + pads[0] + pads[2] < 3 or wide + pads[1] + pads[3] < 3:
        pads = [1] * 4
    return net.conv(x, oc, 3, bias=bias, pads=pads, strides=[int(s) for s in rng.integers(1, 3, 2)])


def _act_any(net: Net, x: str) -> str:
    return net.act(x, str(net.rng.choice(list(ACTIVATIONS))))


def _conv_block(net: Net, x: str) -> str:
    x = _conv_any(net, x)
    if net.rng.integers(2):
        x = net.bn(x)
    return _act_any(net, x) if net.rng.integers(3) else x


def _residual(net: Net, x: str) -> str:
    """Adds in many shapes, the operands with other readers or without."""
    c, pick = net.channels(x), net.rng.integers(7)
    branch = net.bn(net.conv(x, c, bias=False))
    if pick == 0:
        return net.op("Add", x, branch)
    if pick == 1:
        return net.act(net.op("Add", branch, x), "relu")
    if pick == 2:
        return net.op("Sum", x, branch, net.depthwise(x, 3))
    if pick == 3:
        return net.op("Add", x, x)
    if pick == 4:
        other = net.op("Add", branch, x)
        return net.op("Add", net.op("Add", other, net.conv(other, c)), branch)
    if pick == 5:
        return net.bn(net.op("Add", net.act(branch, "relu6"), net.act(net.conv(x, c), "hs_op")))
    return net.op("Mul", net.op("Sub", branch, x), net.op("Add", x, branch))


def _broadcast(net: Net, x: str) -> str:
    n, c = net.shapes[x][:2]
    pick = net.rng.integers(6)
    pooled = net.op("GlobalMaxPool" if pick % 2 else "GlobalAveragePool", x)
    if pick == 0:
        return net.op("Add", x, pooled)
    if pick == 1:
        return net.op("Sub", pooled, x)
    if pick == 2:
        return net.op("Mul", net.op("Add", x, net.const(0.5)), net.const(-0.75))
    if pick == 3:
        return net.op("Div", x, net.op("Add", net.op("Abs", pooled), net.const(1)))
    if pick == 4:
        return net.op("Add", net.noise(1, c, 1, 1), net.op("Mul", net.noise(c, 1, 1), x))
    row = net.noise(1, 1, *net.shapes[x][2:])
    return net.op("Mul", x, row)


def _pool_any(net: Net, x: str) -> str:
    rng = net.rng
    if min(net.shapes[x][2:]) < 3:
        return net.op("GlobalAveragePool", x)
    pick = rng.integers(3)
    k = [int(v) for v in rng.integers(2, 4, 2)]
    attrs: dict[str, Any] = {
        "kernel_shape": k, "strides": [int(s) for s in rng.integers(1, 3, 2)],
        "pads": [int(p) for p in rng.integers(0, 2, 4)], "ceil_mode": int(rng.integers(2)),
    }  # fmt: skip
    if pick == 0:
        return net.op("MaxPool", x, **attrs)
    return net.op("AveragePool", x, count_include_pad=int(pick == 1), **attrs)


def _shuffle(net: Net, x: str) -> str:
    """Rearrangements that no template computes."""
    n, c, h, w = net.shapes[x]
    pick = net.rng.integers(10)
    if pick == 0:
        return net.op("Concat", x, net.conv(x, 5), x, axis=1)
    if pick == 1:
        left, right = net.ops("Split", x, net.ints(c // 2, c - c // 2), outputs=2, axis=1)
        return net.op("Concat", net.act(right, "relu"), left, axis=1)
    if pick == 2 and c > 3:
        return net.op("Slice", x, net.ints(1, 0), net.ints(c - 1, h), net.ints(1, 2))
    if pick == 3:
        return net.op("Transpose", x, perm=[0, 1, 3, 2])
    if pick == 4:
        mode = str(net.rng.choice(["nearest", "linear"]))
        return net.op("Resize", x, "", net.const([1, 1, 2, 2]), mode=mode)
    if pick == 5:
        g = next(g for g in (4, 3, 2, 5, 1) if c % g == 0)
        split = net.op("Reshape", x, net.ints(n, g, c // g, h, w))
        turned = net.op("Transpose", split, perm=[0, 2, 1, 3, 4])
        return net.op("Reshape", turned, net.ints(n, c, h, w))
    if pick == 6:
        return net.op("Pad", x, net.ints(0, 1, 1, 0, 0, 2, 0, 1))
    if pick == 7 and h > 3 and w > 3:
        return net.op("Pad", x, net.ints(0, 0, -1, 1, 0, 0, 1, -1))
    if pick == 8:
        return net.op("Softmax", x, axis=int(net.rng.integers(1, 4)))
    padded = net.op("Pad", x, net.ints(0, 0, 1, 2, 0, 0, 0, 1))
    return net.conv(padded, 8, 3, pads=[0, 0, 1, 1])


def _gate(net: Net, x: str) -> str:
    return net.squeeze_excite(
        x, int(net.rng.integers(8)), str(net.rng.choice(["hard_sigmoid_0.2", "sigmoid", "hs_op"]))
    )


def _shared(net: Net, x: str) -> str:
    """Several convolutions, one weight."""
    c = net.channels(x)
    weight = net.noise(c, c, 1, 1, scale=(1 / c) ** 0.5)
    y = net.op("Relu", net.op("Conv", x, weight))
    return net.op("Add", net.op("Conv", y, weight), net.op("Conv", x, weight))


CHANNELS = (3, 5, 8, 10, 12, 17, 24, 40)
_LAYERS = (
    (_conv_block, 8), (_act_any, 2), (_residual, 3), (_broadcast, 2), (_pool_any, 1),
    (_shuffle, 3), (_gate, 2), (_shared, 1), (lambda n, x: n.bn(x), 1),
)  # fmt: skip


def random_network(seed: int, depth: int = 6, batch: int | None = None) -> onnx.ModelProto:
    """A small network that holds most of what real ones do; the same for the same seed."""
    net = Net(seed)
    rng = net.rng
    drawn, c = int(rng.choice([1, 1, 2, 3])), int(rng.choice(CHANNELS))
    batch = batch or drawn
    size = [int(s) for s in rng.integers(5, 21, 2)]
    start = x = net.input(batch, c, *size)
    outputs: list[str] = []
    weights = np.array([w for _, w in _LAYERS], float)
    if rng.integers(4) == 0:
        x = net.bn(x)
    if rng.integers(6) == 0:
        x = net.op("Add", x, net.input(batch, c, *size))
    for _ in range(depth):
        if net.channels(x) > 60:
            x = net.conv(x, int(rng.choice(CHANNELS)))
        if max(net.shapes[x][2:]) > 24:
            x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        layer = _LAYERS[rng.choice(len(_LAYERS), p=weights / weights.sum())][0]
        x = layer(net, x)
        if rng.integers(8) == 0:
            outputs.append(x)
        if rng.integers(10) == 0:
            net.op("Relu", x)  # nothing reads it
    tail = rng.integers(5)
    if tail == 0:
        x = net.gemm(net.op("Flatten", x), 10, transposed=bool(rng.integers(2)))
    elif tail == 1:
        x = net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), 17)
        x = net.op("Softmax", x, axis=-1)
    elif tail == 2:
        x = net.op("ReduceMean", x, net.ints(2, 3), keepdims=0)
    extra = rng.integers(12)
    if extra == 0:
        outputs.append(net.op("Identity", start))
    elif extra == 1:
        outputs.append(net.op("Identity", net.noise(3, 4)))
    elif extra == 2:
        outputs.append(net.op("Identity", x))
    return net.proto(*outputs, x)


# The pipeline


def defaults(plan: Plan, target: Target) -> dict[Workload, tuple[str, Config]]:
    """The analytic config of every workload."""
    return {
        t.workload: (t.template, TEMPLATES[t.template].default(t.workload, target, t.threads))
        for t in plan.tasks(target)
    }


def plan_of(imported: Imported, target: Target, threads: int, **form: str) -> Plan:
    """With the default configs; `form` is the plan's layout and dtype."""
    return make_plan(normalise(from_relax(imported.module)), target, threads, **form)


def labels(proto: onnx.ModelProto, target: Target | None = None, threads: int = 2) -> list[str]:
    """What each step of a network's plan is: a workload's label, or a Relax operator's name."""
    target = target or load_target("local")
    plan = plan_of(load_model(proto), target, threads)
    return [s.workload.label if s.workload else s.node.op for s in plan.all_steps]  # type: ignore[union-attr]


def compile_plan(plan: Plan, target: Target) -> tuple[Any, bytes]:
    """The lowered module and the library."""
    lowered = lower(emit(plan, target, defaults(plan, target)), target)
    return lowered, compile_library(lowered, target)


def run_library(library: bytes, plan: Plan, inputs: Sequence[Array]) -> list[Array]:
    """Load a library in this process and run it once."""
    _, results = run_tensors(library, plan, inputs)
    return [np.array(r.numpy()) for r in results]


def run_tensors(library: bytes, plan: Plan, inputs: Sequence[Array]) -> tuple[list[Any], list[Any]]:
    """The tensors that went into one run, and those that came out."""
    import tvm
    from tvm import relax

    with tempfile.TemporaryDirectory(prefix="tvmsep-test-") as folder:
        path = Path(folder) / "lib.so"
        path.write_bytes(library)
        vm = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        arguments = [*inputs, *plan.all_params.values()]
        given = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments]
        result = vm["main"](*given)
    return given, [result] if hasattr(result, "numpy") else list(result)


def noise_for(imported: Imported, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(t.shape, dtype=np.float32) for t in imported.inputs]


def relative(got: Sequence[Array], want: Sequence[Array]) -> float:
    """The largest error over all outputs, each against its own largest value."""
    worst = 0.0
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape, (g.shape, w.shape)
        if not np.isfinite(g).all():
            return float("inf")
        scale = float(np.abs(w).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(g.astype(np.float64) - w).max(initial=0.0)) / scale)
    return worst


def pipeline_error(proto: onnx.ModelProto, target: Target, threads: int) -> float:
    """Compile, run, and compare with onnxruntime; the largest relative difference."""
    imported = load_model(proto)
    plan = plan_of(imported, target, threads)
    _, library = compile_plan(plan, target)
    inputs = noise_for(imported, 1)
    assert imported.reference is not None
    return relative(run_library(library, plan, inputs), imported.reference(inputs))
