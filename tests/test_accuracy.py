"""`verify`: recordings, reports on own data, and the layer at which two networks part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundle_kit import picture
from graph_kit import Net
from onnx import numpy_helper
from test_cli import refused
from test_cli import tvmsep as command

import tvmsep
from tvmsep.accuracy import compare_data
from tvmsep.check import check_expected
from tvmsep.contracts import InputError, TvmsepError
from tvmsep.frontends import builtin_proto, load_model

SMALL = "mobilenet_v1:width=0.25,resolution=32,classes=10"
X = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its bundle, a copy of the model with one layer changed, data and a recording."""
    place = tmp_path_factory.mktemp("verify")
    proto = builtin_proto(SMALL)
    onnx.save(proto, place / "net.onnx")
    rule = load_model(SMALL).preprocess
    tvmsep.build(place / "net.onnx", out=place / "net.tvmsep", threads=1, logs=(), preprocess=rule)
    weight = next(t for t in proto.graph.initializer if t.name == "features.5.conv.1.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(proto, place / "changed.onnx")
    rng = np.random.default_rng(3)
    data = place / "data"
    data.mkdir()
    stack = rng.standard_normal((3, *X[1:])).astype("float32")
    np.save(data / "stack.npy", stack)
    np.savez(data / "one.npz", input=stack[:1] + 1)
    picture(data / "p.png", rng.integers(0, 256, (60, 50, 3), dtype=np.uint8))
    (data / "notes.txt").write_text("not data")
    with tvmsep.Bundle.load(place / "net.tvmsep") as net:
        np.savez(place / "recorded.npz", input_input=stack[:1], output_0=net(stack[:1]))
    return place


def test_recorded_outputs(folder: Path, tmp_path: Path) -> None:
    bundle, recorded = folder / "net.tvmsep", folder / "recorded.npz"
    found = check_expected(bundle, recorded, tolerance=1e-6)
    assert found.errors["logits"] <= 1e-6 and found.threads == (1,)
    with np.load(recorded) as file:
        arrays = dict(file)

    def saved(**changes: np.ndarray) -> Path:
        np.savez(tmp_path / "x.npz", **{**arrays, **changes})
        return tmp_path / "x.npz"

    off = arrays["output_0"] + 2e-4 * np.abs(arrays["output_0"]).max()
    with pytest.raises(TvmsepError, match=r"differs from .* by 2.0e-04 .*allowed: 1e-04"):
        check_expected(bundle, saved(output_0=off))
    assert check_expected(bundle, saved(output_0=off), tolerance=1e-3).errors["logits"] > 1e-4
    with pytest.raises(InputError, match=r"output_0 in .* is float64"):
        check_expected(bundle, saved(output_0=off.astype("float64")))
    with pytest.raises(InputError, match=r"input_input in .* needed is input: float32\[1, 3, 32"):
        check_expected(bundle, saved(input_input=np.zeros((1, 3, 31, 32), "float32")))
    with pytest.raises(InputError, match="takes .* bytes, .* at most"):
        check_expected(bundle, saved(input_input=np.zeros((1000, 1000), "float32")))
    with pytest.raises(InputError, match="holds output_1, which .* has not"):
        check_expected(bundle, saved(output_1=off))
    with pytest.raises(InputError, match="NaN"):
        check_expected(bundle, saved(output_0=off * np.nan))
    np.savez(tmp_path / "x.npz", output_0=off)
    with pytest.raises(InputError, match="has no array input_input: it holds output_0"):
        check_expected(bundle, tmp_path / "x.npz")
    whole = recorded.read_bytes()
    for data in (b"", b"hello", whole[:50], whole[:-40], whole[:3000] + b"xx" + whole[3002:]):
        (tmp_path / "x.npz").write_bytes(data)
        with pytest.raises(InputError, match="x.npz"):
            check_expected(bundle, tmp_path / "x.npz")
    with pytest.raises(InputError, match="tolerance is 0"):
        check_expected(bundle, recorded, tolerance=0)


def test_own_data(folder: Path) -> None:
    report = compare_data(folder / "net.tvmsep", folder / "net.onnx", folder / "data")
    assert report.samples == 5 and report.reference == "the model in its own framework"
    (logits,) = report.outputs
    assert 0 < logits.mean <= logits.worst < 5e-5
    assert logits.scored == logits.agreed == 5
    assert report.layers > 25 and report.parts_at is None
    assert report.furthest is not None and 0 < report.furthest.error < 1e-5
    report.check()


def test_the_layer_at_which_they_part(folder: Path) -> None:
    report = compare_data(folder / "net.tvmsep", folder / "changed.onnx", folder / "data")
    assert report.parts_at is not None
    assert report.parts_at.name.startswith("features_5_conv")
    assert 1e-3 < report.parts_at.error < 2e-2
    with pytest.raises(TvmsepError, match="they part at layer features_5_conv"):
        report.check()


def test_data_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    def report(**arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        compare_data(folder / "net.tvmsep", folder / "net.onnx", tmp_path)

    with pytest.raises(InputError, match=r"holds no .npy, .npz"):
        report()
    with pytest.raises(InputError, match=r"a.npy is float64 \(1, 3, 32, 32\); input"):
        report(a=np.zeros(X))
    with pytest.raises(InputError, match=r"a.npy is float32 \(3, 32, 32\); input"):
        report(a=np.zeros(X[1:], "float32"))
    (tmp_path / "a.npy").unlink()
    np.savez(tmp_path / "a.npz", nosuch=np.zeros(X, "float32"))
    with pytest.raises(InputError, match="has no array input: it holds nosuch"):
        report()
    with pytest.raises(InputError, match="is no folder"):
        compare_data(folder / "net.tvmsep", folder / "net.onnx", tmp_path / "a.npz")


def test_verify_as_a_command(folder: Path, tmp_path: Path) -> None:
    bundle, model = str(folder / "net.tvmsep"), str(folder / "net.onnx")
    recorded = str(folder / "recorded.npz")
    done = command("verify", bundle, "--expected", recorded, "--tolerance", "1e-6", cwd=tmp_path)
    assert done.returncode == 0 and "logits: error against the recording" in done.stdout
    done = command("verify", bundle, model, "--data", str(folder / "data"), "--expected", recorded,
                   "--json", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["data"]["samples"] == 5 and found["expected"]["threads"] == [1]
    changed = str(folder / "changed.onnx")
    done = command("verify", bundle, changed, "--data", str(folder / "data"), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1
    assert "5 samples of" in done.stdout and "they part at layer features_5" in done.stdout
    refused("verify", bundle, cwd=tmp_path, says=["give MODEL", "--expected"])
    refused("verify", bundle, "--data", "d", cwd=tmp_path, says=["give MODEL"])
    refused("verify", bundle, "--data", "d", "--expected", recorded, cwd=tmp_path,
            says=["--data belongs to a model"])  # fmt: skip
    refused("verify", bundle, "--expected", "nosuch.npz", cwd=tmp_path, says=["nosuch.npz"])


def test_layers_are_looked_at_as_the_bundle_has_them(tmp_path: Path) -> None:
    """Blocks narrowed around a shuffle, a scale inside a pointwise kernel: looking changes none."""
    net = Net(4)
    x = net.act(net.conv(net.input(1, 3, 12, 12), 48), "relu")
    n, c, h, w = net.shapes[x]
    x = net.op("Reshape", x, net.ints(n, 2, c // 2, h, w))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(n, c, h, w))
    x = net.act(net.conv(x, 48, 3, pads=[1] * 4), "relu6")
    x = net.act(net.conv(net.squeeze_excite(x), 32), "hs_op")
    model, data = tmp_path / "net.onnx", tmp_path / "data"
    onnx.save(net.proto(net.conv(x, 10)), model)
    tvmsep.build(model, out=tmp_path / "net.tvmsep", threads=1, logs=())
    data.mkdir()
    np.save(data / "a.npy", np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32))
    report = compare_data(tmp_path / "net.tvmsep", model, data)
    assert report.layers >= 5 and report.parts_at is None
    assert report.furthest is not None and 0 < report.furthest.error < 1e-5
