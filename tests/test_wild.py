"""Networks as TensorFlow's and Paddle's converters write them (tests/data/wild)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tvmsep import api
from tvmsep.bundle import Bundle
from tvmsep.check import relative_errors
from tvmsep.graph import evaluate

DATA = Path(__file__).parent / "data/wild"
LEFT = {
    "tf_v2": ["permute_dims", "nn.softmax"],  # the image that comes in NHWC, and the last operator
    "tf_v2_nchw": ["nn.softmax"],
    "tf_v3": ["permute_dims", "nn.softmax"],
    "tf_slim": ["permute_dims", "nn.softmax"],
    "pp_lcnet": [],
    "pp_v3": ["nn.softmax"],
}
"""What no template computes."""


def test_every_file_is_tried() -> None:
    assert {p.stem for p in DATA.glob("*.onnx")} == set(LEFT)
    assert all(p.stat().st_size <= 300_000 for p in DATA.glob("*.onnx"))


@pytest.mark.parametrize("name", LEFT)
def test_a_wild_network(name: str, tmp_path: Path) -> None:
    path = DATA / f"{name}.onnx"
    (given,) = onnx.load(path).graph.input
    dims = [d.dim_value if d.dim_value > 0 else 2 for d in given.type.tensor_type.shape.dim]
    shapes = {given.name: dims}
    assert dims[0] == 2  # the batch is open
    prepared = api.prepare(path, threads=[2], shapes=shapes)
    (plan,) = prepared.plans.values()
    left = [s.node.op for s in plan.all_steps if s.node]
    assert [op for op in left if op != "view"] == LEFT[name]  # which moves nothing

    x = np.random.default_rng(5).standard_normal(dims).astype("float32")
    if name == "tf_v3":  # which scales pixels itself
        x = np.clip(x * 60 + 128, 0, 255)
    api.build(path, out=tmp_path / "net.tvmsep", threads=[2], shapes=shapes, logs=())
    with Bundle.load(tmp_path / "net.tvmsep") as net:
        ours = [net(x)]
    exact = evaluate(prepared.graph, {given.name: x})
    assert prepared.imported.reference is not None
    theirs = relative_errors(prepared.imported.reference([x]), exact)
    assert relative_errors(ours, exact) <= max(2 * theirs, 1e-6)
    assert theirs < 1e-5  # so float64 is of the same network
    assert relative_errors([exact[0][:1]], [exact[0][1:]]) > 1e-2  # pictures differ
