"""The Python verbs: what is checked before a bundle is written, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from graph_kit import Net

import tvmsep
from tvmsep import api
from tvmsep.api import planning
from tvmsep.contracts import BoardError, InputError, ModelError, TvmsepError
from tvmsep.targets import load_target
from tvmsep.tuner import TuneResult
from tvmsep.tuner.state import TuneState

SMALL = "mobilenet_v1:width=0.25,resolution=32,classes=10"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "net.tvmsep"
    report = tvmsep.build(SMALL, out=path, threads=[1, 2], logs=())
    assert report.check is not None
    assert report.check.threads == (1, 2)
    assert report.check.float64 is not None and report.check.float64 < 3e-5
    assert report.check.varies > 0.1
    return path


def test_every_variant_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the second thread count's code alone must be noticed."""
    real = api.prepare

    def bent(*args: Any, **how: Any) -> api.Prepared:
        prepared = real(*args, **how)
        for step in prepared.plans[2].steps:
            w = step.workload
            if w is not None and w.op == "pointwise":
                kept = tuple(e for e in w.epilogue if e == "bias")
                step.workload = msgspec.structs.replace(w, epilogue=kept)
        return prepared

    monkeypatch.setattr(planning, "prepare", bent)
    with pytest.raises(TvmsepError, match="differs"):
        tvmsep.build(SMALL, out=tmp_path / "x.tvmsep", threads=[1, 2], logs=())
    assert os.listdir(tmp_path) == []


def test_a_wrong_import_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit must not grow with the framework's distance from what was imported."""
    real = api.prepare

    def bent(*args: Any, **how: Any) -> api.Prepared:
        prepared = real(*args, **how)
        reference = prepared.imported.reference
        assert reference is not None
        wrong = replace(prepared.imported, reference=lambda x: [0.7 - y for y in reference(x)])
        return replace(prepared, imported=wrong)

    monkeypatch.setattr(planning, "prepare", bent)
    with pytest.raises(TvmsepError, match="as imported differs"):
        tvmsep.build(SMALL, out=tmp_path / "x.tvmsep", threads=[1], logs=())


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.ones((4, 3, 1, 1), np.float32)
    weight[1] = np.nan
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "nan",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    with pytest.raises(ModelError, match="NaN"):
        tvmsep.build(proto, out=tmp_path / "x.tvmsep", threads=[1], logs=())


def test_verify_says_so_when_it_is_another_network(bundle: Path) -> None:
    assert tvmsep.verify(bundle, SMALL).threads == (1, 2)
    with pytest.raises(TvmsepError, match="differs"):
        tvmsep.verify(bundle, SMALL + ",seed=1")
    with pytest.raises(InputError, match="not the same network"):
        tvmsep.verify(bundle, SMALL.replace("classes=10", "classes=11"))
    with pytest.raises(InputError, match="not the same network"):
        tvmsep.verify(bundle, SMALL.replace("resolution=32", "resolution=64"))


def test_a_target_that_this_host_is_not_is_built_unchecked(tmp_path: Path) -> None:
    foreign = msgspec.structs.replace(
        load_target("x86-avx2"), name="other", requires=("no_such_flag",), cores=64
    )
    said: list[str] = []
    path = tmp_path / "x.tvmsep"
    report = tvmsep.build(SMALL, out=path, target=foreign, threads=[1], logs=(), say=said.append)
    assert report.check is None and path.exists()
    assert any("not checked" in line and "no_such_flag" in line for line in said)
    with pytest.raises(TvmsepError, match="no_such_flag"):
        tvmsep.Bundle.load(path)


def test_outputs_depend_on_threads_only_in_rounding(bundle: Path) -> None:
    with tvmsep.Bundle.load(bundle, 1) as one, tvmsep.Bundle.load(bundle, 2) as two:
        x = one.noise(5)
        np.testing.assert_allclose(one(*x), two(*x), rtol=2e-4, atol=1e-5)


def test_nothing_else_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    from tvmsep.bundle import export

    other = tmp_path / "keep.onnx"
    other.write_bytes(b"somebody's model")
    with pytest.raises(TvmsepError, match="is no bundle"):
        tvmsep.build(SMALL, out=other, threads=1, logs=())
    assert other.read_bytes() == b"somebody's model"
    copy = tmp_path / "net.tvmsep"
    copy.write_bytes(bundle.read_bytes())
    with pytest.raises(InputError, match="both a log"):
        tvmsep.build(SMALL, out=copy, threads=1, logs=[copy])
    with pytest.raises(InputError, match="the bundle itself"):
        export(copy, copy, "so")
    assert copy.read_bytes() == bundle.read_bytes()


@pytest.mark.parametrize("threads", ["2", [], [1.5], [True]])
def test_thread_counts_that_are_none(threads: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threads is"):
        tvmsep.build(SMALL, out=tmp_path / "x.tvmsep", threads=threads, logs=())


def test_labels_are_counted_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "x.tvmsep"
    for verb in (tvmsep.build, tvmsep.tune):
        with pytest.raises(InputError, match="3 labels were given, the model has 10"):
            verb(SMALL, out=path, threads=1, labels=["a", "b", "c"])
    assert os.listdir(tmp_path) == []


def test_labels_are_for_classes(tmp_path: Path) -> None:
    net = Net(0)
    onnx.save(net.proto(net.conv(net.input(1, 3, 8, 6), 5)), tmp_path / "picture.onnx")
    with pytest.raises(InputError, match=r"one number a class: this one's is .*\[1,5,8,6\]"):
        tvmsep.build(tmp_path / "picture.onnx", out=tmp_path / "x", labels=["a"] * 5)


def test_an_import_that_differs_is_refused_for_any_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this host cannot run is compared as far as it was imported."""
    said: list[str] = []
    made = tvmsep.build(
        SMALL, out=tmp_path / "a.tvmsep", target="rpi4", threads=1, logs=(), say=said.append
    )
    assert made.check is None
    assert any("the import differs from the model's framework by" in line for line in said)
    assert any("compiled code is not checked: it is for aarch64" in line for line in said)
    whole = planning.prepare_all

    def off(*args: Any, **how: Any) -> Any:
        several = whole(*args, **how)
        for one in several:
            reference = one.imported.reference
            assert reference is not None
            shifted = [lambda x, run=reference: [1.001 * o for o in run(x)]]
            one.imported.reference = shifted[0]
        return several

    monkeypatch.setattr(api.building, "prepare_all", off)
    with pytest.raises(TvmsepError, match="differs from its own framework by 1.0e-03"):
        tvmsep.build(SMALL, out=tmp_path / "b.tvmsep", target="rpi4", threads=1, logs=())
    assert os.listdir(tmp_path) == ["a.tvmsep"]


@pytest.mark.parametrize(
    ("reason", "error"), [("interrupted", KeyboardInterrupt), ("board_lost", BoardError)]
)
def test_a_run_that_measured_nothing_leaves_the_bundle_that_is_there(
    reason: Any, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*args: Any, **how: Any) -> TuneResult:
        return TuneResult({}, reason, TuneState([], 0.0, None, None))

    out = tmp_path / "x.tvmsep"
    out.write_bytes(b"PK a good one")
    monkeypatch.setattr("tvmsep.tuner.tune_tasks", nothing)
    with pytest.raises(error):
        tvmsep.tune(SMALL, out=out, threads=[1])
    assert out.read_bytes() == b"PK a good one"


def test_a_log_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(TvmsepError, match="is no file"):
        tvmsep.build(SMALL, out=tmp_path / "x.tvmsep", threads=[1], logs=[pipe])
    with pytest.raises(TvmsepError, match="is no file"):
        tvmsep.tune(SMALL, out=tmp_path / "x.tvmsep", threads=[1], log=pipe)
