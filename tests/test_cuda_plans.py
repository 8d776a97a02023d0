"""Layouts and half precision of networks for a GPU, up to the Relax module; refusals elsewhere."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from graph_kit import Net

from tvmsep import api, schedules
from tvmsep.codegen.reference import example_inputs, input_dtypes, reference
from tvmsep.contracts import InputError, ModelError, Target, Workload
from tvmsep.graph import LAYOUTS
from tvmsep.targets import load_target


@pytest.fixture(scope="module")
def orin() -> Target:
    return load_target("jetson-orin")


def small() -> onnx.ModelProto:
    net = Net(1)
    x = net.op("Relu", net.conv(net.input(1, 3, 16, 16), 8, 3, pads=[1, 1, 1, 1], strides=[2, 2]))
    y = net.conv(net.op("Relu", net.depthwise(x)), 12)
    z = net.op("Add", net.conv(net.depthwise(y), 12), y)
    return net.proto(net.op("GlobalAveragePool", z))


def workloads(prepared: api.Prepared) -> list[Workload]:
    (plan,) = prepared.plans.values()
    return [s.workload for s in plan.steps if s.workload is not None]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_a_block_of_every_tensor(orin: Target, layout: str) -> None:
    prepared = api.prepare(small(), target=orin, layout=layout)
    for w in workloads(prepared):
        for channels, block in ((w.ic, w.in_block), (w.oc, w.out_block)):
            assert block in (0, {"nchw4c": 4, "nchw": 1, "nhwc": channels}[layout])
    assert {w.in_split for w in workloads(prepared)} == {"rows"}
    assert prepared.layout == layout


def test_half_precision_ends_at_the_boundary(orin: Target) -> None:
    prepared = api.prepare(small(), target=orin, dtype="float16")
    first, *inner, last = workloads(prepared)
    assert (first.op, first.in_dtype, first.out_dtype) == ("conv", "float32", "float16")
    assert (last.op, last.in_dtype, last.out_dtype) == ("unpack", "float16", "float32")
    assert {(w.in_dtype, w.out_dtype) for w in inner} == {("float16", "float16")}
    (plan,) = prepared.plans.values()
    kinds = {n.rpartition(".")[2]: str(a.dtype) for n, a in plan.params.items()}
    assert kinds == {"weight": "float16", "bias": "float32"}
    for w in workloads(prepared):
        assert [str(a.dtype) for a in example_inputs(w, 0)] == input_dtypes(w)
        assert np.isfinite(reference(w, example_inputs(w, 0))).all()


def test_half_moves_half_the_bytes_and_is_another_task(orin: Target) -> None:
    full, half = (
        workloads(api.prepare(small(), target=orin, dtype=d)) for d in ("float32", "float16")
    )
    for a, b in zip(full, half, strict=True):
        assert a.key != b.key and "float16" in b.label
        if a.in_block and a.out_block:
            assert b.bytes_moved * 2 == a.bytes_moved
        else:
            assert a.bytes_moved / 2 < b.bytes_moved < a.bytes_moved


def test_a_weight_that_half_cannot_hold(orin: Target) -> None:
    net = Net()
    x = net.conv(net.input(1, 8, 8, 8), 8)
    name = next(n for n, a in net.tensors.items() if a.ndim == 4)
    net.tensors[name] = net.tensors[name] + np.float32(1e5)
    with pytest.raises(ModelError, match="largest float16"):
        api.prepare(net.proto(x), target=orin, dtype="float16")
    api.prepare(net.proto(x), target=orin)


def test_what_a_target_has_no_kernels_for() -> None:
    with pytest.raises(InputError, match="float32 or float16"):
        api.prepare("mobilenet_v1", target="jetson-orin", dtype="bfloat16")
    with pytest.raises(InputError, match="nchw4c, nchw, nhwc"):
        api.prepare("mobilenet_v1", target="jetson-orin", layout="chwn")
    with pytest.raises(InputError, match="leave threads out"):
        api.prepare("mobilenet_v1", target="jetson-orin", threads=2)


def test_a_gpu_without_templates_for_it(
    orin: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(schedules, "CUDA", {})
    with pytest.raises(ModelError, match="no template of jetson-orin takes conv.*nchw4c"):
        api.build(small(), target=orin, out=tmp_path / "x.tvmsep", logs=())
    assert not list(tmp_path.iterdir())


def test_cpu_manifests_are_what_they_were() -> None:
    from tvmsep.bundle import Manifest

    said = {f.name for f in msgspec.structs.fields(Manifest) if f.default is msgspec.UNSET}
    assert said == {"layout", "dtype", "further"}
