"""Networks as exporters write them: both of torch's, and the ONNX of 2018."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_frontends_helpers import assert_matches_reference, floats, model, node

from tvmsep import api
from tvmsep.frontends import load_model


def torch_network() -> Any:
    """Inverted residuals, squeeze and excite, a channel shuffle, a decoder's resize."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, i: int, o: int, stride: int, act: Any) -> None:
            super().__init__()
            self.same = stride == 1 and i == o
            self.body = nn.Sequential(
                nn.Conv2d(i, 4 * i, 1, bias=False), nn.BatchNorm2d(4 * i), act(),
                nn.Conv2d(4 * i, 4 * i, 3, stride, 1, groups=4 * i, bias=False),
                nn.BatchNorm2d(4 * i), act(), nn.Conv2d(4 * i, o, 1, bias=False), nn.BatchNorm2d(o),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.same else self.body(x)

    class Excite(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, c: int) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)

        def forward(self, x: Any) -> Any:
            y = nn.functional.relu(self.down(nn.functional.adaptive_avg_pool2d(x, 1)))
            return x * nn.functional.hardsigmoid(self.up(y))

    class Network(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
                Block(16, 16, 1, nn.ReLU6), Block(16, 24, 2, nn.SiLU), Excite(24),
                Block(24, 24, 1, nn.Hardswish), nn.Conv2d(24, 40, 1), nn.GELU(),
            )  # fmt: skip
            self.head = nn.Linear(40, 10)

        def forward(self, x: Any) -> Any:
            y = self.body(x)
            left, right = y.chunk(2, 1)
            n, c, h, w = y.shape
            y = torch.cat([right, left], 1).view(n, 2, c // 2, h, w)
            y = y.transpose(1, 2).reshape(n, c, h, w)
            large = nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear")
            return self.head(torch.flatten(y.mean((2, 3)), 1)), large

    torch.manual_seed(0)
    net = Network().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("how", ["torchscript 11", "torchscript 17", "dynamo"])
def test_torch_onnx_export(how: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    path, example = tmp_path / "net.onnx", (torch.randn(1, 3, 32, 32),)
    options: dict[str, Any] = {"dynamo": True}
    if how != "dynamo":
        options = {"dynamo": False, "opset_version": int(how.split()[1])}
    torch.onnx.export(torch_network(), example, str(path), **options)
    report = api.build(path, out=tmp_path / "net.tvmsep", threads=[1])
    assert report.check is not None and report.check.framework is not None


def test_a_program_for_engines_that_read_onnx(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from tvmsep.frontends.torch_import import export_onnx

    program = torch.export.export(torch_network(), (torch.randn(1, 3, 32, 32),))
    torch.export.save(program, tmp_path / "net.pt2")
    export_onnx(tmp_path / "net.pt2", tmp_path / "net.onnx")
    done = api.compare(
        ["default", "torch", "onnxruntime"], model=str(tmp_path / "net.pt2"), threads=[1], rounds=1
    )
    assert [e.name for e in done.entrants] == ["default", "torch", "onnxruntime"]
    assert done.largest_difference is not None and done.largest_difference < 1e-4


def opset_7() -> onnx.ModelProto:
    """What changed since: attributes that became inputs, Upsample, statistics of a batch norm."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "w0": floats(8, 3, 3, 3) / 4, "w1": floats(8, 1, 3, 3, seed=1) / 2,
        "w2": floats(12, 8, 1, 1, seed=2) / 2, "fc": floats(10, 12, seed=3), "fcb": floats(10),
        "shape": np.array([0, -1], np.int64), "three": np.float32(3), "sixth": np.float32(1 / 6),
    }  # fmt: skip
    for n, c in (("a", 8), ("b", 8), ("c", 12)):
        constants |= {f"{n}{k}": rng.uniform(0.5, 1.5, c).astype("float32") for k in "smbv"}

    def norm(x: str, n: str, out: str) -> onnx.NodeProto:
        return node(
            "BatchNormalization", f"{x} {n}s {n}b {n}m {n}v", out, epsilon=1e-3, momentum=0.9
        )

    nodes = [
        node("Pad", "x", "p", pads=[0, 0, 0, 0, 0, 0, 1, 1], mode="constant", value=0.0),
        node("Conv", "p w0", "c0", kernel_shape=[3, 3], strides=[2, 2]),
        norm("c0", "a", "n0"),
        node("Clip", "n0", "r0", min=0.0, max=6.0),
        node("Conv", "r0 w1", "c1", auto_pad="SAME_UPPER", group=8, kernel_shape=[3, 3]),
        norm("c1", "b", "n1"),
        node("Add", "n1 three", "h0"),
        node("Clip", "h0", "h1", min=0.0, max=6.0),
        node("Mul", "h1 sixth", "h2"),
        node("Mul", "n1 h2", "hs"),
        node("Add", "hs r0", "res"),
        node("Conv", "res w2", "c2", kernel_shape=[1, 1]),
        norm("c2", "c", "n2"),
        node("Dropout", "n2", "d", ratio=0.3),
        node("Upsample", "d", "large", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
        node("AveragePool", "d", "ap", kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1),
        node("GlobalAveragePool", "ap", "gap"),
        node("Reshape", "gap shape", "flat"),
        node("Gemm", "flat fc fcb", "logits", transB=1, alpha=1.0, beta=1.0),
        node("Softmax", "logits", "y", axis=1),
    ]
    return model(nodes, {"x": (1, 3, 16, 16)}, constants, "y large", opset=7)


def test_opset_7(tmp_path: Path) -> None:
    imported = load_model(opset_7())
    assert_matches_reference(imported)
    report = api.build(opset_7(), out=tmp_path / "net.tvmsep", threads=[2])
    assert report.check is not None and report.check.framework is not None
    assert report.check.framework < 2e-5
