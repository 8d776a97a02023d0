"""Relay programs: recorded outputs, the language, the operators, and every way to be wrong."""

from __future__ import annotations

import base64
import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_frontends_helpers import floats, run

import tvmsep
from tvmsep.check import check_expected
from tvmsep.contracts import InputError, ModelError, TvmsepError
from tvmsep.frontends import load_model
from tvmsep.frontends.relay.params import read_params
from tvmsep.graph import evaluate, from_relax, make_plan, normalise
from tvmsep.targets import load_target

DATA = Path(__file__).parent / "data" / "relay"
SAMPLES = ("mobilenet_v1_025_64", "mini_v3_48", "nhwc_let_33")
HEAD = '#[version = "0.0.5"]\n'
X = "%x: Tensor[(1, 4, 6, 6), float32]"


def load(text: str, tmp_path: Path, params: dict[str, np.ndarray] | None = None, **how):  # type: ignore[no-untyped-def]
    path = tmp_path / "net.relay"
    path.write_text(text if text.startswith("#[") else HEAD + text)
    if params is None:
        return load_model(path, **how)
    (tmp_path / "net.params").write_bytes(encode(params))
    return load_model(path, params=tmp_path / "net.params", **how)


def encode_array(array: np.ndarray) -> bytes:
    """As TVM's `SaveDLTensor` writes one."""
    kind = {"i": 0, "u": 1, "f": 2}[array.dtype.kind]
    head = struct.pack(
        "<QQiiiBBH", 0xDD5E40F096B4A13F, 0, 1, 0, array.ndim, kind, array.itemsize * 8, 1
    )
    return head + struct.pack(f"<{array.ndim}qq", *array.shape, array.nbytes) + array.tobytes()


def encode(params: dict[str, np.ndarray]) -> bytes:
    names = b"".join(struct.pack("<Q", len(n)) + n.encode() for n in params)
    arrays = b"".join(encode_array(a) for a in params.values())
    count = struct.pack("<Q", len(params))
    return struct.pack("<QQ", 0xF7E58D4F05049CB7, 0) + count + names + count + arrays


def outputs(text: str, tmp_path: Path, *arrays: np.ndarray, **params: np.ndarray):  # type: ignore[no-untyped-def]
    """What a program computes: in float64 by our interpreter, and compiled; they must agree."""
    imported = load(text, tmp_path, params or None)
    graph = from_relax(imported.module)
    exact = evaluate(graph, dict(zip(graph.inputs, arrays, strict=True)))
    normal = normalise(from_relax(imported.module))
    make_plan(normal, load_target("x86-avx2"), 1)
    for e, got in zip(exact, run(imported.module, arrays), strict=True):
        np.testing.assert_allclose(got, e, rtol=1e-4, atol=1e-5)
    return exact


# Samples


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_give_their_recorded_outputs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.tvmsep"
    report = tvmsep.build(
        DATA / f"{name}.relay", params=DATA / f"{name}.params", out=path, threads=[1, 2], logs=()
    )
    assert report.check is not None
    assert report.check.framework is None and report.check.float64 is not None
    assert report.check.varies > 1e-2
    recorded = check_expected(path, DATA / f"{name}.npz", tolerance=1e-5)
    assert recorded.threads == (1, 2) and max(recorded.errors.values()) < 1e-5
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    arrays["output_0"] = arrays["output_0"][..., ::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(TvmsepError, match="different networks or weights"):
        check_expected(path, tmp_path / "other.npz")


def test_source_names_both_files(tmp_path: Path) -> None:
    imported = load_model(DATA / "mini_v3_48.relay", params=DATA / "mini_v3_48.params")
    assert imported.source["kind"] == "relay" and len(imported.source["params_sha256"]) == 64
    assert [str(i) for i in imported.inputs] == ["input float32[1,3,48,48]"]
    assert [str(o) for o in imported.outputs] == ["output_0 float32[1,10]"]


def test_nhwc_runs_as_nchw() -> None:
    imported = load_model(DATA / "nhwc_let_33.relay")
    plan = make_plan(normalise(from_relax(imported.module)), load_target("x86-avx2"), 2)
    steps = [s.template or (s.node.op if s.node else "") for s in plan.steps]
    assert steps.count("permute_dims") == 1 and "nn.pad" not in steps
    assert steps[1:4] == ["conv", "depthwise", "pointwise"]


# The language


CALLS = {
    "let": "let %a = nn.relu(%x); let %b: Tensor[(1, 4, 6, 6), float32] = negative(%a); %b",
    "graph variables": "%0 = nn.relu(%x); %1 = negative(%0); %1",
    "one inside the other": "negative(nn.relu(%x))",
    "tuple": "%0 = (nn.relu(%x), %x); negative(%0.0)",
    "tuple of tuples": "%0 = (%x, (nn.relu(%x),)); %1 = %0.1; negative(%1.0)",
    "function": "%0 = fn (%y: Tensor[(1, 4, 6, 6), float32], Primitive=1, hash=\"1f\") -> "
    "Tensor[(1, 4, 6, 6), float32] { nn.relu(%y) }; %1 = %0(%x); negative(%1)",
    "closure": "let %s = nn.relu(%x); let %f = fn (%y) { multiply(%y, %s) }; %f(-1f)",
    "scope in parentheses": "%2 = (let %t = nn.relu(%x); %1 = negative(%t); add(%1, 0f)); %2",
    "global": "@g(%x)",
    "infix": "-nn.relu(%x) * 2f / 2f + 1f - 1f",
    "comments": "/* ty=(a, \"b\") */ negative(nn.relu(%x)) // end\n",
    "scalar literals": "multiply(nn.relu(%x), -1.0e+00f /* ty=float32 */)",
    "attributes": "clip(negative(nn.relu(%x)), a_min=-1e30f, a_max=0f)",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_language(name: str, tmp_path: Path) -> None:
    text = f"def @main({X}) {{ {CALLS[name]} }}\n"
    text += "def @g(%z: Tensor[(1, 4, 6, 6), float32]) { %0 = nn.relu(%z); negative(%0) }\n"
    x = floats(1, 4, 6, 6)
    (got,) = outputs(text, tmp_path, x)
    np.testing.assert_allclose(got, -np.maximum(x, 0), rtol=1e-6)


def test_a_function_printed_alone_and_several_outputs(tmp_path: Path) -> None:
    x = floats(1, 4, 6, 6)
    got = outputs(f"fn ({X}) {{ (nn.relu(%x), negative(%x)) }}", tmp_path, x)
    np.testing.assert_allclose(got[0], np.maximum(x, 0))
    np.testing.assert_allclose(got[1], -x)


def test_names_that_exporters_give(tmp_path: Path) -> None:
    text = (
        "def @main(%input.1: Tensor[(2, 3), float32], %v193: Tensor[(3), float32], "
        "%onnx::Add_7: Tensor[(3), float32]) { add(add(%input.1, %v193), %onnx::Add_7) }"
    )
    x, weights = floats(2, 3), {"193": floats(3, seed=1), "onnx::Add_7": floats(3, seed=2)}
    (got,) = outputs(text, tmp_path, x, **weights)
    np.testing.assert_allclose(got, x + weights["193"] + weights["onnx::Add_7"], rtol=1e-6)
    assert load(text, tmp_path, weights).inputs[0].name == "input.1"


def test_constants_in_the_metadata(tmp_path: Path) -> None:
    w = floats(4, 1, 1)
    section = {
        "root": 1,
        "nodes": [
            {"type_key": ""},
            {"type_key": "Map", "keys": ["relay.Constant"], "data": [2]},
            {"type_key": "Array", "data": [3]},
            {"type_key": "relay.Constant", "attrs": {"data": "0", "span": "0"}},
        ],
        "b64ndarrays": [base64.b64encode(encode_array(w)).decode()],
    }
    body = f"def @main({X}) {{ add(%x, meta[relay.Constant][0]) }}\n\n#[metadata]\n"
    x = floats(1, 4, 6, 6)
    (got,) = outputs(body + json.dumps(section), tmp_path, x)
    np.testing.assert_allclose(got, x + w, rtol=1e-6)
    with pytest.raises(ModelError, match=r"line 2, column \d+: constant 0 is not in the metadata"):
        load(body.partition("#[meta")[0], tmp_path)
    for damage in ('"root": 9', '"root": "x"', '"root": -1'):
        with pytest.raises(ModelError, match="the metadata of .* is damaged"):
            load(body + json.dumps(section).replace('"root": 1', damage), tmp_path)
    for change in ("!!!!", base64.b64encode(encode_array(w)[:-4]).decode()):
        broken = json.dumps({**section, "b64ndarrays": [change]})
        with pytest.raises(ModelError, match="damaged"):
            load(body + broken, tmp_path)


def test_a_dynamic_dimension_is_fixed_by_shapes(tmp_path: Path) -> None:
    text = "def @main(%x: Tensor[(?, 3), float32]) -> Tensor[(?, 3), float32] { nn.relu(%x) }"
    with pytest.raises(ModelError, match=r"line 2, .*--shape x=1,3"):
        load(text, tmp_path)
    assert load(text, tmp_path, shapes={"x": (5, 3)}).outputs[0].shape == (5, 3)
    with pytest.raises(InputError, match="contradicts input x"):
        load(text, tmp_path, shapes={"x": (5, 4)})
    with pytest.raises(InputError, match="no input y"):
        load(text, tmp_path, shapes={"y": (5, 4)})


# Operators


def conv(x: np.ndarray, w: np.ndarray, groups: int, pads: int = 0, stride: int = 1) -> np.ndarray:
    """NCHW, OIHW, in float64, one output at a time."""
    x = np.pad(x.astype(float), ((0, 0), (0, 0), (pads, pads), (pads, pads)))
    n, _, h, wd = x.shape
    oc, icg, kh, kw = w.shape
    oh, ow = (h - kh) // stride + 1, (wd - kw) // stride + 1
    out = np.zeros((n, oc, oh, ow))
    for o in range(oc):
        part = x[:, o // (oc // groups) * icg :][:, :icg]
        for i in range(oh):
            for j in range(ow):
                window = part[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw]
                out[:, o, i, j] = (window * w[o]).sum((1, 2, 3))
    return out


@pytest.mark.parametrize("data", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kernel", ["OIHW", "HWIO"])
def test_conv_layouts(data: str, kernel: str, tmp_path: Path) -> None:
    x, w = floats(1, 4, 7, 7), floats(6, 2, 3, 3)
    want = conv(x, w, 2, pads=1, stride=2)
    given = x.transpose(["NCHW".index(c) for c in data])
    stored = np.ascontiguousarray(w.transpose(["OIHW".index(c) for c in kernel]))
    shapes = [", ".join(map(str, a.shape)) for a in (given, stored)]
    text = (
        f"def @main(%x: Tensor[({shapes[0]}), float32], %w: Tensor[({shapes[1]}), float32]) {{ "
        f"nn.conv2d(%x, %w, strides=[2, 2], padding=[1, 1], groups=2, channels=6, "
        f'kernel_size=[3, 3], data_layout="{data}", kernel_layout="{kernel}") }}'
    )
    (got,) = outputs(text, tmp_path, np.ascontiguousarray(given), w=stored)
    np.testing.assert_allclose(got.transpose([data.index(c) for c in "NCHW"]), want, atol=1e-5)


@pytest.mark.parametrize("layout", ["OIHW", "HWOI"])
def test_a_depthwise_multiplier(layout: str, tmp_path: Path) -> None:
    """O is the input's channels and I the multiplier, whatever the layout is called."""
    x, w = floats(1, 4, 6, 6), floats(4, 2, 3, 3)
    want = conv(x, w.reshape(8, 1, 3, 3), 4)
    stored = np.ascontiguousarray(w.transpose(["OIHW".index(c) for c in layout]))
    shape = ", ".join(map(str, stored.shape))
    text = (
        f"def @main({X}, %w: Tensor[({shape}), float32]) {{ nn.conv2d(%x, %w, padding=[0, 0, 0, 0],"
        f' groups=4, channels=8, kernel_size=[3, 3], kernel_layout="{layout}") }}'
    )
    (got,) = outputs(text, tmp_path, x, w=stored)
    np.testing.assert_allclose(got, want, atol=1e-5)


def spread(v: np.ndarray) -> np.ndarray:
    return v.reshape(1, -1, 1, 1)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def windows(x: np.ndarray) -> np.ndarray:
    return x.reshape(1, 4, 3, 2, 3, 2)


V = floats(4, seed=5)
OPERATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nn.bias_add(%x, %v)": lambda x: x + spread(V),
    "nn.bias_add(transpose(%x, axes=[0, 2, 3, 1]), %v, axis=-1)": lambda x: x.transpose(
        0, 2, 3, 1
    ) + V,
    "%0 = nn.batch_norm(%x, %v, %v, %v, abs(%v), epsilon=0.001f); %0.0": lambda x: (
        (x - spread(V)) / np.sqrt(np.abs(spread(V)) + 1e-3) * spread(V) + spread(V)
    ),
    "%0 = nn.batch_norm(%x, %v, %v, %v, abs(%v), scale=False, center=False); %0.0": lambda x: (
        (x - spread(V)) / np.sqrt(np.abs(spread(V)) + 1e-5)
    ),
    "nn.dense(nn.batch_flatten(nn.global_avg_pool2d(%x)), expand_dims(%v, axis=0))": lambda x: (
        (x.mean((2, 3)) @ V)[:, None]
    ),
    "nn.max_pool2d(%x, pool_size=[2, 2], strides=[2, 2])": lambda x: windows(x).max((3, 5)),
    "nn.avg_pool2d(%x, pool_size=[2, 2], strides=[2, 2])": lambda x: windows(x).mean((3, 5)),
    "nn.avg_pool2d(%x, pool_size=[4, 4], strides=[4, 4], ceil_mode=True)": lambda x: np.stack(
        [np.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in ((0, 4), (4, 6))], -1)
         for a, b in ((0, 4), (4, 6))], -2
    ),
    "nn.max_pool2d(%x, pool_size=[6, 6], padding=[1, 0, 1, 0])": lambda x: np.stack(
        [x[:, :, :5].max((2, 3)), x.max((2, 3)), x[:, :, 1:].max((2, 3))], -1
    )[..., None],
    "nn.global_max_pool2d(%x)": lambda x: x.max((2, 3), keepdims=True),
    "nn.adaptive_avg_pool2d(%x, output_size=[3, 3])": lambda x: windows(x).mean((3, 5)),
    "nn.adaptive_avg_pool2d(%x, output_size=[1])": lambda x: x.mean((2, 3), keepdims=True),
    "nn.upsampling(%x, scale_h=2f, scale_w=2f)": lambda x: x.repeat(2, 2).repeat(2, 3),
    'image.resize2d(%x, size=[12, 12], roi=[0f, 0f, 0f, 0f], method="nearest_neighbor", '
    'coordinate_transformation_mode="asymmetric", rounding_method="floor")': lambda x: x.repeat(
        2, 2
    ).repeat(2, 3),
    'nn.upsampling(%x, scale_h=11f, scale_w=1f, method="bilinear", align_corners=True)': (
        lambda x: np.apply_along_axis(
            lambda v: np.interp(np.linspace(0, 5, 66), np.arange(6), v), 2, x
        )
    ),
    "nn.pad(%x, 1f, pad_width=[[0, 0], [0, 0], [1, 0], [0, 2]])": lambda x: np.pad(
        x, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=1
    ),
    'nn.pad(%x, 0, pad_width=[[0, 0], [0, 0], [1, 1], [1, 1]], pad_mode="reflect")': (
        lambda x: np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    ),
    "nn.leaky_relu(%x, alpha=0.1f)": lambda x: np.where(x > 0, x, 0.1 * x),
    "nn.prelu(%x, %v)": lambda x: np.where(x > 0, x, spread(V) * x),
    "nn.softmax(%x, axis=1)": lambda x: softmax(x, 1),
    "nn.log_softmax(%x)": lambda x: np.log(softmax(x, -1)),
    "%0 = nn.dropout(%x, rate=0.1f); %0.0": lambda x: x,
    "reshape(%x, newshape=[0, -1])": lambda x: x.reshape(1, -1),
    "reshape(%x, newshape=[-3, -2])": lambda x: x.reshape(4, 6, 6),
    "reshape(%x, newshape=[0, -4, 2, -1, -2])": lambda x: x.reshape(1, 2, 2, 6, 6),
    "transpose(%x, axes=[0, 2, 3, 1])": lambda x: x.transpose(0, 2, 3, 1),
    "transpose(%x)": lambda x: x.transpose(),
    'layout_transform(%x, src_layout="NCHW", dst_layout="NHWC")': lambda x: x.transpose(0, 2, 3, 1),
    "squeeze(%x)": lambda x: x[0],
    "squeeze(%x, axis=[0])": lambda x: x[0],
    "expand_dims(%x, axis=-1, num_newaxis=2)": lambda x: x[..., None, None],
    "%0 = (%x, %x); concatenate(%0, axis=1)": lambda x: np.concatenate([x, x], 1),
    "%0 = split(%x, indices_or_sections=[1, 3], axis=1); %1 = %0.1; add(%0.0, %1)": lambda x: (
        x[:, :1] + x[:, 1:3]
    ),
    "%0 = split(%x, indices_or_sections=2, axis=1); subtract(%0.0, %0.1)": lambda x: (
        x[:, :2] - x[:, 2:]
    ),
    "strided_slice(%x, begin=[0, 1], end=[1, 4], strides=[1, 2])": lambda x: x[:, 1:4:2],
    'strided_slice(%x, begin=[2], end=[3], strides=[1], slice_mode="size", axes=[2])': lambda x: (
        x[:, :, 2:5]
    ),
    "mean(%x, axis=[1, 2])": lambda x: x.mean((1, 2)),
    "sum(%x, axis=[1], exclude=True, keepdims=True)": lambda x: x.sum((0, 2, 3), keepdims=True),
    "max(%x)": lambda x: x.max(),
    "maximum(minimum(%x, 1f), -1f)": lambda x: np.clip(x, -1, 1),
    "power(abs(%x), 2f)": lambda x: x**2,
    "multiply(sigmoid(%x), tanh(exp(%x)))": lambda x: np.tanh(np.exp(x)) / (1 + np.exp(-x)),
    "sqrt(add(rsqrt(add(abs(%x), 1f)), log(add(abs(%x), 1f))))": lambda x: np.sqrt(
        1 / np.sqrt(np.abs(x) + 1) + np.log(np.abs(x) + 1)
    ),
    'cast(cast(copy(%x), dtype="int32"), dtype="float32")': np.trunc,
}  # fmt: skip


@pytest.mark.parametrize("body", OPERATORS)
def test_operators(body: str, tmp_path: Path) -> None:
    text = f"def @main({X}, %v: Tensor[(4), float32]) {{ {body} }}"
    x = floats(1, 4, 6, 6)
    (got,) = outputs(text, tmp_path, x, v=V)
    want = OPERATORS[body](x.astype(np.float64))
    assert got.shape == np.shape(want)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_conv2d_transpose(tmp_path: Path) -> None:
    x, w = floats(1, 4, 3, 3), floats(4, 5, 2, 2)
    want = np.einsum("nihw,ioab->nohawb", x.astype(float), w).reshape(1, 5, 6, 6)
    text = (
        "def @main(%x: Tensor[(1, 4, 3, 3), float32], %w: Tensor[(4, 5, 2, 2), float32]) { "
        "nn.conv2d_transpose(%x, %w, strides=[2, 2], channels=5, kernel_size=[2, 2]) }"
    )
    (got,) = outputs(text, tmp_path, x, w=w)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_kernels_that_an_optimised_program_computes(tmp_path: Path) -> None:
    x, w, v = floats(1, 4, 6, 6), floats(3, 4, 1, 1), floats(3, seed=5)
    text = (
        f"def @main({X}, %w: Tensor[(3, 4, 1, 1), float32], %v: Tensor[(3), float32]) {{ "
        "%0 = expand_dims(rsqrt(multiply(%v, %v)), axis=1, num_newaxis=3); "
        "nn.conv2d(%x, multiply(%w, %0), channels=3, kernel_size=[1, 1]) }"
    )
    (got,) = outputs(text, tmp_path, x, w=w, v=v)
    np.testing.assert_allclose(got, conv(x, w / np.abs(v)[:, None, None, None], 1), atol=1e-5)


# What is refused

REFUSED = {
    "nn.lrn(%x)": r"line 2, column 48: operator nn.lrn is not supported",
    "%0 = nn.relu(%x);\n  nn.lrn(%0)": r"line 3, column 3: operator nn.lrn",
    "qnn.quantize(%x)": "is quantised: integer models are not supported; give the float32",
    "nn.contrib_conv2d_NCHWc(%x, %x)": "of an optimised program: save the program before",
    "nn.relu(%y)": r"line 2, column 56: %y is not defined before it is used",
    "@nosuch(%x)": "there is no function @nosuch",
    "@main(%x)": "nested more than 100 deep",
    "nn.relu(%x, %x)": "nn.relu takes 1 arguments, not 2",
    "nn.relu(%x, slope=1)": "nn.relu has the attribute slope: unknown here",
    "nn.relu((%x, %x))": "an argument of nn.relu is a tuple",
    "%0 = (%x, %x); %0.2": "field 2 is taken of a tuple of 2",
    "%0 = nn.dropout(%x); %0.1": "dropout's mask",
    "%x.0": "field 0 is taken of something that is no tuple",
    "nn.relu": "is used as a value",
    "%x(%x)": "something that is no function is called",
    "if (True) { %x } else { %x }": "control flow",
    "match (%x) { }": "control flow",
    "meta[Target][0]": r"meta\[Target\] is not supported",
    "let %a: Tensor[(1, 4, 6, 7), float32] = %x; %a": r"%a is declared float32\[1,4,6,7\]",
    'cast(%x, dtype="float16")': "computes in float16: only float32",
    'cast(%x, dtype="nosuch")': r"line 2, column 48: cast cannot be imported",
    "nn.conv2d(%x, %x, strides=[0, 0])": "its kernel is computed while running",
    "nn.max_pool2d(%x, pool_size=[0, 0])": r"its pool_size is \[0, 0\]: 2 integers from 1",
    'nn.max_pool2d(%x, pool_size=[1, 1], layout="NCHW4c")': "its layout is NCHW4c",
    "nn.max_pool2d(%x)": "its pool_size is None",
    "reshape(%x, newshape=[7, -1])": "the sizes do not agree",
    "reshape(%x, newshape=[-1, -1])": "the sizes do not agree",
    "concatenate((%x, %x), axis=7)": r"its axis is \[7\]",
    "split(%x, indices_or_sections=3, axis=1)": "they do not divide",
    "strided_slice(%x, begin=[5], end=[1], axes=[2])": "it keeps nothing",
    "strided_slice(%x, begin=[5], end=[1], strides=[-1], axes=[2])": "only forward slices",
    "nn.upsampling(%x, scale_h=100000f, scale_w=100000f)": "",
    "add(%x, 1000000000000000000000)": "no int32",
    "add(%x, 1f": "unexpected|too early",
    "add(%x, 1f) junk": "unexpected 'junk'",
    "%0 = add(%x, §); %0": "unexpected '§'",
}


@pytest.mark.parametrize("body", REFUSED)
def test_refusals_say_where(body: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=REFUSED[body]) as caught:
        load(f"def @main({X}) {{ {body} }}", tmp_path)
    assert "net.relay" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("hello", 'does not begin with #\\[version = "0.0.5"\\]'),
        (HEAD, "too early"),
        (HEAD + "def @f(%x: Tensor[(1), float32]) { %x }", "no function @main"),
        (HEAD + "def @main(%x: Tensor[(1), float32]) { %x }" * 2, "defined twice"),
        (HEAD + "def @main(%x: Tensor[(1), int8]) { %x }", "only float32 inputs"),
        (HEAD + "def @main(%x) { %x }", "input %x has no tensor type"),
        (HEAD + "def @main(%x: (float32, float32)) { %x.0 }", "no tensor type"),
        (HEAD + "def @main() { 1f }", "takes no input"),
        (HEAD + "def @main(%x: Tensor[(99999, 99999), float32]) { %x }", "fix its shape"),
        (HEAD + "type List[A] { }", "`type` is not supported"),
        (HEAD + "def @main[A](%x: A) { %x }", "type parameters"),
        (HEAD + f"def @main({X}) {{ {'(' * 5000}%x{')' * 5000} }}", ""),
        (HEAD + f"def @main({X}) {{ {'nn.relu(' * 500}%x{')' * 500} }}", "nested more than"),
    ],
)
def test_files_that_are_no_programs(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.relay").write_text(text)
    if message:
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / "net.relay")
    else:
        load_model(tmp_path / "net.relay")


def test_a_program_that_grows_without_end(tmp_path: Path) -> None:
    """Each function calls the next one twice: 2^20 operators from twenty lines."""
    lines = [f"def @f{n}(%x) {{ add(@f{n + 1}(%x), @f{n + 1}(%x)) }}" for n in range(20)]
    text = f"def @main({X}) {{ @f0(%x) }}\n" + "\n".join(lines) + "\ndef @f20(%x) { nn.relu(%x) }"
    with pytest.raises(ModelError, match="more than 20000 calls"):
        load(text, tmp_path)


# Params files


def test_params_round_trip(tmp_path: Path) -> None:
    arrays = {"a": floats(2, 3), "b": np.arange(4), "c": np.zeros((), "uint8")}
    (tmp_path / "p").write_bytes(encode(arrays))
    got = read_params(tmp_path / "p")
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype


def test_params_that_do_not_fit(tmp_path: Path) -> None:
    text = f"def @main({X}, %w: Tensor[(4, 4, 1, 1), float32]) {{ nn.conv2d(%x, %w) }}"
    with pytest.raises(ModelError, match=r"net.params holds w as \[4,5,1,1\], the program takes"):
        load(text, tmp_path, {"w": floats(4, 5, 1, 1)})
    with pytest.raises(ModelError, match=r"%w is declared float32"):
        load(text, tmp_path, {"w": np.zeros((4, 4, 1, 1))})
    with pytest.raises(ModelError, match="holds none of the program's 2 parameters .but q"):
        load(text, tmp_path, {"q": floats(4)})
    with pytest.raises(ModelError, match="saved with the program"):
        load(text, tmp_path, {})
    with pytest.raises(ModelError, match="its kernel is computed while running"):
        load(text, tmp_path)
    with pytest.raises(ModelError, match="takes 31 parameters .*--params FILE"):
        load_model(DATA / "mini_v3_48.relay")
    with pytest.raises(InputError, match="give a .relay file"):
        load_model("mobilenet_v1", params=tmp_path / "net.params")
    with pytest.raises(ModelError, match="cannot read the params file"):
        load_model(DATA / "mini_v3_48.relay", params=tmp_path / "nosuch")


@pytest.mark.parametrize("params", ["mobilenet_v1_025_64", "nhwc_let_33"])
def test_params_of_another_program(params: str) -> None:
    """One line, and none of TVM's."""
    command = [sys.executable, "-m", "tvmsep.cli", "inspect", str(DATA / "mini_v3_48.relay"),
               "--params", str(DATA / f"{params}.params")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "none of the program's 31 parameters" in done.stderr


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.relay").write_text(
        '#[version = "0.0.5"]\n' + f"def @main({X}) {{ nosuch(nn.relu(%x)) }}\n"
    )
    command = [sys.executable, "-m", "tvmsep.cli", "inspect", str(tmp_path / "net.relay")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "nosuch" in done.stderr


def test_damaged_params(tmp_path: Path) -> None:
    """Cut anywhere, or with any field changed: one error, at once, whatever sizes it claims."""
    whole = encode({"w": floats(2, 3), "bias": floats(3)})
    path = tmp_path / "p"
    damaged = [whole[:n] for n in range(len(whole))] + [whole + b"x"]
    for at in range(0, 120, 4):
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x40000000):
            damaged.append(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])
    for data in damaged:
        path.write_bytes(data)
        try:
            arrays = read_params(path)
        except ModelError as error:
            assert str(path) in str(error)
        else:  # a reserved field, a device or a letter of a name
            assert len(arrays) == 2 and sum(a.nbytes for a in arrays.values()) == 36


@pytest.mark.parametrize("seed", range(3))
def test_mutated_programs_give_a_program_or_one_error(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    whole = (DATA / "nhwc_let_33.relay").read_text()
    words = whole[: whole.index("#[metadata]")].split()
    path = tmp_path / "net.relay"
    for _ in range(40):
        text = list(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(2500 if rng.random() < 0.8 else len(text))
            size = rng.choice((0, 1, 1, 5, 50))
            text[at : at + size] = rng.choice(
                (rng.choice(words), rng.choice('()[]{}%.,;-9"/*'), "")
            )
        path.write_text("".join(text))
        try:
            load_model(path)
        except TvmsepError as error:
            assert "\n" not in str(error)
