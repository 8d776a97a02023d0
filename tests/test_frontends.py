"""Models in: files good and bad, shapes, constants in disguise, torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_frontends_helpers import assert_matches_reference, floats, model, node, operators

from tvmsep.contracts import InputError, ModelError, TvmsepError
from tvmsep.frontends import TensorSpec, load_model

X = {"x": (1, 8, 9, 10)}


def conv_relu(batch: int | str = 1, opset: int = 13) -> onnx.ModelProto:
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Relu", "c")]
    return model(nodes, {"x": (batch, 8, 9, 10)}, {"w": floats(4, 8, 3, 3)}, opset=opset)


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = "import sys, tvmsep.frontends; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"tvm", "onnx", "torch", "numpy", "onnxruntime"} & set(done.stdout.split())


def test_names_shapes_and_source_are_the_models_own(tmp_path: Path) -> None:
    proto = model(
        [node("Sub", "in.b in:a", "out/1"), node("Relu", "in.b", "2")],
        {"in:a": (2, 3), "in.b": (2, 3)},
        outputs="out/1 2",
    )
    onnx.save(proto, tmp_path / "two.onnx")
    imported = load_model(tmp_path / "two.onnx")
    assert imported.name == "two"
    assert imported.inputs == (
        TensorSpec("in:a", (2, 3), "float32"),
        TensorSpec("in.b", (2, 3), "float32"),
    )
    assert [o.name for o in imported.outputs] == ["out/1", "2"]
    assert imported.source["kind"] == "onnx" and len(imported.source["sha256"]) == 64
    assert_matches_reference(imported)
    main = imported.module["main"]
    assert [p.name for p in main.params] == ["in_a", "in_b"]
    assert not main.attrs or "num_input" not in main.attrs


def test_the_callers_proto_is_left_alone() -> None:
    proto = conv_relu()
    before = proto.SerializeToString(deterministic=True)
    load_model(proto)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 18, 21, 23])
def test_opsets(opset: int) -> None:
    imported = load_model(conv_relu(opset=opset))
    assert operators(imported) == ["nn.conv2d", "nn.relu"]
    assert_matches_reference(imported)


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(conv_relu(), path, save_as_external_data=True, location="big.data", size_threshold=0)
    assert_matches_reference(load_model(path))
    (tmp_path / "big.data").unlink()
    with pytest.raises(ModelError, match="put those files next to the model"):
        load_model(path)


def test_dynamic_batch_is_fixed_by_shapes() -> None:
    with pytest.raises(ModelError, match=r"input x has the dynamic shape \[batch,8,9,10\].*"
                       r"--shape x=1,8,9,10"):  # fmt: skip
        load_model(conv_relu("batch"))
    imported = load_model(conv_relu("batch"), shapes={"x": (2, 8, 9, 10)})
    assert imported.outputs[0].shape == (2, 4, 9, 10)
    assert_matches_reference(imported)


def test_a_shared_symbol_is_fixed_everywhere() -> None:
    proto = model([node("Add", "a b")], {"a": ("n", 3), "b": ("n", 3)})
    imported = load_model(proto, shapes={"b": (5, 3)})
    assert [i.shape for i in imported.inputs] == [(5, 3), (5, 3)]
    with pytest.raises(InputError, match="n would be 5 and 4 at once"):
        load_model(proto, shapes={"a": (5, 3), "b": (4, 3)})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1, 8, 9, 10)}, "no input y: its inputs are x"),
        ({"x": (1, 8, 9)}, "give 4 positive dimensions"),
        ({"x": (0, 8, 9, 10)}, "give 4 positive dimensions"),
        ({"x": (1, 3, 9, 10)}, "contradicts input x"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(conv_relu("n"), shapes=shapes)


def test_an_input_of_unknown_rank_suggests_a_picture() -> None:
    with pytest.raises(ModelError, match="--shape x=1,3,224,224"):
        load_model(model([node("Relu", "x")], {"x": None}))


def test_shape_arithmetic_becomes_constant() -> None:
    """What exporters write for `x.view(x.size(0), -1)`."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n axes", "n1"),
        node("Concat", "n1 minus", "target", axis=0),
        node("Reshape", "x target"),
    ]
    constants = {"zero": np.int64(0), "axes": np.array([0]), "minus": np.array([-1])}
    imported = load_model(
        model(nodes, {"x": ("n", 8, 9, 10)}, constants), shapes={"x": (2, 8, 9, 10)}
    )
    assert operators(imported) == ["reshape"]
    assert_matches_reference(imported)


def test_weights_in_disguise_are_constants() -> None:
    """Constant nodes, Identity, half-precision storage with a Cast and a scale, int8 storage."""
    value = numpy_helper.from_array(floats(4))
    nodes = [
        helper.make_node("Constant", [], ["bias"], value=value),
        node("Identity", "stored", "alias"),
        node("Cast", "alias", "wide", to=TensorProto.FLOAT),
        node("Mul", "wide scale", "w"),
        node("Identity", "x", "x1"),
        node("Conv", "x1 w bias", "c"),
        node("DequantizeLinear", "small step", "gain"),
        node("Mul", "c gain"),
    ]
    constants = {
        "stored": floats(4, 8, 1, 1).astype("float16"),
        "scale": np.float32(0.5),
        "small": np.array([3], "int8"),
        "step": np.float32(0.25),
    }
    imported = load_model(model(nodes, X, constants))
    assert operators(imported) == ["nn.conv2d", "add", "multiply"]
    assert_matches_reference(imported)


def test_initializers_that_are_inputs_too() -> None:
    proto = conv_relu()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 8, 3, 3)))
    imported = load_model(proto)
    assert [i.name for i in imported.inputs] == ["x"]
    assert_matches_reference(imported)


def test_a_branch_on_a_constant_is_taken() -> None:
    """Exporters wrap `squeeze` in an If on a shape."""

    def branch(op: str, name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        return helper.make_graph([node(op, "x", f"{name}_y")], name, [], [out])

    taken, other = branch("Relu", "yes"), branch("Sigmoid", "no")
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "c", axis=0),
        node("Equal", "c eight", "is8"),
        node("If", "is8", then_branch=taken, else_branch=other),
    ]
    imported = load_model(model(nodes, X, {"one": np.int64(1), "eight": np.int64(8)}))
    assert operators(imported) == ["nn.relu"]
    assert_matches_reference(imported)


def test_local_functions_are_inlined() -> None:
    opsets = [helper.make_opsetid("", 13)]
    twice = helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], opsets)
    proto = model([helper.make_node("Twice", ["x"], ["y"], domain="mine")], X)
    proto.functions.append(twice)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    imported = load_model(proto)
    assert operators(imported) == ["add"]
    assert_matches_reference(imported)


def test_a_shared_tensor_is_computed_once() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "a"), node("Sigmoid", "c", "b")]
    nodes += [node("Add", "a b")]
    imported = load_model(model(nodes, X, {"w": floats(8, 8, 1, 1)}))
    assert operators(imported) == ["nn.conv2d", "nn.relu", "sigmoid", "add"]


def test_bindings_are_named_after_nodes() -> None:
    proto = conv_relu()
    proto.graph.node[0].name = "/features.0/Conv"
    (block,) = load_model(proto).module["main"].body.blocks
    names = [binding.var.name for binding in block.bindings]
    assert "features_0_Conv" in names


@pytest.mark.parametrize("size", [0, 1, 7, 100, 1000, -1])
def test_a_file_cut_off_anywhere(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(conv_relu().SerializeToString()[:size])
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_is_refused_or_read(data: st.DataObject) -> None:
    """Whatever bytes change, nothing but a TvmsepError comes out."""
    good = bytearray(conv_relu().SerializeToString())
    at = st.integers(0, len(good) - 1)
    for place in data.draw(st.lists(at, min_size=1, max_size=4)):
        good[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.onnx"
        path.write_bytes(good)
        try:
            imported = load_model(path)
        except TvmsepError as error:
            assert str(error)
        else:
            assert len(imported.inputs) == len(imported.module["main"].params)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("text.onnx", b"hello, I am no model", "not an ONNX model"),
        ("noise.onnx", bytes(range(256)) * 8, "not an ONNX model"),
        ("lfs.onnx", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("weights.pth", b"", "pickle"),
        ("weights.pt", b"", "torch.export.save"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_names_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model file .*none.onnx"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="built-ins are mobilenet_v1, .*zoo:mobilenet_v2"):
        load_model("mobilenet_v9")
    with pytest.raises(InputError, match="cannot load a builtins.int"):
        load_model(3)  # type: ignore[arg-type]


def half(dtype: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    nodes = [node("Cast", "x", "h", to=dtype), node("Relu", "h", "r")]
    return model([*nodes, node("Cast", "r", to=TensorProto.FLOAT)], X)


def foreign() -> onnx.ModelProto:
    proto = model([helper.make_node("FusedConv", ["x"], ["y"], "f1", domain="com.microsoft")], X)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def dangling() -> onnx.ModelProto:
    return model([node("Relu", "nowhere")], X)


def quantised() -> onnx.ModelProto:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")]
    return model(nodes, X, {"s": np.float32(0.1), "z": np.uint8(128)})


QLINEAR = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.zeros((1, 8, 1, 1), "uint8")}


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (half(), "computes in float16: only float32"),
        (half(TensorProto.DOUBLE), "computes in double: only float32"),
        (model([node("Relu", "x")], X, dtype=TensorProto.FLOAT16), "input x is float16"),
        (
            model([node("Cast", "x", to=1)], X, dtype=TensorProto.UINT8),
            "input x is uint8: only float32",
        ),
        (foreign(), "node f1 uses com.microsoft.FusedConv"),
        (dangling(), "reads nowhere, which nothing before it provides"),
        (
            model([node("QLinearConv", "x s z w s z s z")], X, QLINEAR),
            "QLinearConv.* quantises: integer models",
        ),
        (quantised(), "quantises: integer models are not supported"),
        (conv_relu(opset=6), "uses opset 6; opset 7 and later"),
        (
            model([node("Conv", "x w", group=3)], X, {"w": np.zeros((6, 2, 1, 1), "float32")}),
            r"its kernel \[6, 2, 1, 1\] in 3 groups does not fit an input of",
        ),
        (
            model([node("ConvTranspose", "x w")], X, {"w": np.zeros((5, 2, 1, 1), "float32")}),
            "in 1 groups does not fit an input of",
        ),
        (
            model([helper.make_node("Transpose", ["x"], ["y"], perm=[0, -9, 1, 2])], X),
            r"has the perm \[0, -9, 1, 2\], which is no order",
        ),
        (
            model([helper.make_node("Concat", ["x", ""], ["y"], axis=1)], X),
            r"leaves out an input that it needs \(x, nothing\)",
        ),
    ],
    ids=lambda v: v[:20] if isinstance(v, str) else "",
)
def test_what_is_not_supported(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(proto)


def test_a_loop_is_refused() -> None:
    body = helper.make_graph(
        [node("Identity", "go", "still"), node("Relu", "v", "v2")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    proto = model([node("Loop", "n _ x", body=body)], X, {"n": np.int64(3)})
    with pytest.raises(ModelError, match="uses operator Loop"):
        load_model(proto)


def test_a_refusal_prints_nothing() -> None:
    """TVM's importer prints to stdout and its C++ side to stderr; users see one message."""
    code = """
from onnx import helper, TensorProto as T
from tvmsep.contracts import ModelError
from tvmsep.frontends import load_model
value = lambda name, shape: helper.make_tensor_value_info(name, T.FLOAT, shape)
nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MaxPool", ["r"], ["y", "z"], kernel_shape=[2, 2])]
outs = [value("y", None), helper.make_tensor_value_info("z", T.INT64, None)]
graph = helper.make_graph(nodes, "g", [value("x", (1, 1, 4, 4))], outs)
try:
    load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
except ModelError:
    raise SystemExit(7)
"""  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


class TestTorch:
    @pytest.fixture()
    def net(self) -> Any:
        torch = pytest.importorskip("torch")
        nn = torch.nn
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8, 5),
            nn.Hardsigmoid(),
        )
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 1.5)
        return net

    def test_module(self, net: Any) -> None:
        import torch

        net.train()
        imported = load_model(net, example_inputs=(torch.randn(1, 3, 16, 16),))
        assert net.training and net[1].training
        assert imported.source["kind"] == "torch"
        assert [i.shape for i in imported.inputs] == [(1, 3, 16, 16)]
        assert operators(imported) == [
            "nn.conv2d", "nn.batch_norm", "clip", "nn.conv2d", "add", "add", "clip", "divide",
            "multiply", "mean", "reshape", "matmul", "add", "add", "clip", "divide",
        ]  # fmt: skip
        assert_matches_reference(imported)

    def test_exported_program_and_pt2(self, net: Any, tmp_path: Path) -> None:
        import torch

        program = torch.export.export(net.eval(), (torch.randn(1, 3, 16, 16),))
        assert_matches_reference(load_model(program))
        torch.export.save(program, tmp_path / "net.pt2")
        imported = load_model(tmp_path / "net.pt2")
        assert imported.name == "net" and len(imported.source["sha256"]) == 64
        assert_matches_reference(imported)
        (tmp_path / "cut.pt2").write_bytes((tmp_path / "net.pt2").read_bytes()[:999])
        with pytest.raises(ModelError, match="cut off"):
            load_model(tmp_path / "cut.pt2")

    @pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
    def test_interpolation_is_torchs(self, mode: str) -> None:
        torch = pytest.importorskip("torch")

        class Resize(torch.nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self, **how: Any) -> None:
                super().__init__()
                self.conv, self.how = torch.nn.Conv2d(3, 4, 1), how

            def forward(self, x: Any) -> Any:
                return torch.nn.functional.interpolate(self.conv(x), mode=mode, **self.how)

        example = (torch.randn(1, 3, 9, 7),)
        cases: list[dict[str, Any]] = [{"size": (5, 11)}, {"size": (18, 13)}, {"scale_factor": 2}]
        if mode != "nearest":
            cases += [{**case, "align_corners": True} for case in cases]
        for how in cases:
            assert_matches_reference(load_model(Resize(**how), example_inputs=example))
        with pytest.raises(ModelError, match=r"scale_factor 1.5 makes 13.5 of 9 pixels: give"):
            load_model(Resize(scale_factor=1.5), example_inputs=example)

    def test_mistakes(self, net: Any) -> None:
        import torch

        with pytest.raises(InputError, match="needs an example input"):
            load_model(net)
        with pytest.raises(InputError, match="takes its shapes from example_inputs"):
            load_model(net, shapes={"x": (1, 3, 8, 8)}, example_inputs=(torch.randn(1, 3, 8, 8),))
        with pytest.raises(ModelError, match="float64: only float32"):
            load_model(net.double(), example_inputs=(torch.randn(1, 3, 8, 8).double(),))
        pool = torch.nn.AvgPool2d(2, divisor_override=3)
        with pytest.raises(ModelError, match="divisor_override"):
            load_model(pool, example_inputs=(torch.randn(1, 3, 8, 8),))


def test_torch_missing_is_said(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
from tvmsep.frontends import load_model
try:
    load_model({str(tmp_path / "a.pt2")!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("ModelError") and "tvmsep[torch]" in done.stdout, done.stderr
    assert issubclass(ModelError, TvmsepError)


def test_names_that_would_break_the_message_are_escaped() -> None:
    proto = model([node("Det", "x")], {"x": (1, 4, 4)})
    proto.graph.node[0].name = "a\nb\x07"
    with pytest.raises(ModelError, match=r"node a\\nb\\x07 ") as caught:
        load_model(proto)
    assert "\n" not in str(caught.value)
