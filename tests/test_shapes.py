"""Several sets of input shapes in one bundle, from `--shape` to the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_cli import refused, tvmsep

from tvmsep import api
from tvmsep.bundle import Bundle, Package
from tvmsep.cli.options import shape_sets, shapes
from tvmsep.contracts import InputError
from tvmsep.frontends import builtin
from tvmsep.logs import read_log

ONE, FOUR = {"input": (1, 3, 32, 32)}, {"input": (4, 3, 32, 32)}


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose batch is open."""
    spec = builtin.parse_spec("mobilenet_v1:width=0.25,resolution=32")
    proto = builtin.builtin_proto(spec)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    path = tmp_path_factory.mktemp("dynamic") / "dynamic.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def both(dynamic: Path) -> Path:
    path = dynamic.parent / "both.tvmsep"
    report = api.build(dynamic, out=path, threads=[1], shapes=[ONE, FOUR])
    assert report.check is not None and report.check.float64 is not None
    return path


def test_shape_sets() -> None:
    assert shape_sets(None) is None
    assert shape_sets(["a=1,2"]) == [{"a": (1, 2)}] == [shapes(["a=1,2"])]
    words = ["a=1,2", "b=3", "a=4,2", "b=5", "c=9"]
    assert shape_sets(words) == [
        {"a": (1, 2), "b": (3,), "c": (9,)},
        {"a": (4, 2), "b": (5,), "c": (9,)},
    ]
    with pytest.raises(InputError, match="a has 2, b has 3: give each input one shape"):
        shape_sets(["a=1", "a=2", "b=1", "b=2", "b=3"])
    with pytest.raises(InputError, match="takes one shape"):
        shapes(["a=1", "a=2"])


def test_each_shape_is_its_network(dynamic: Path, both: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 32, 32)).astype(np.float32)
    with Bundle.load(both, threads=1) as net:
        together = net(x)
        alone = [net(x[i : i + 1]) for i in range(4)]
        with pytest.raises(InputError, match=r"it has input \(1, 3, 32, 32\); input \(4, 3"):
            net(x[:2])
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-5)
    single = dynamic.parent / "one.tvmsep"
    api.build(dynamic, out=single, threads=[1], shapes=ONE)
    with Package(both) as package, Package(single) as first:
        members = package.manifest.members
        assert members["lib/threads1.so"] == first.manifest.members["lib/threads1.so"]
        assert "lib/shape2-threads1.so" in members and first.manifest.format == 1
    # Weights are shared: a second shape costs its library and its texts.
    assert both.stat().st_size < 1.5 * single.stat().st_size


def test_equal_models_make_equal_bundles(dynamic: Path, both: Path) -> None:
    again = dynamic.parent / "again.tvmsep"
    api.build(dynamic, out=again, threads=[1], shapes=[ONE, FOUR])
    assert again.read_bytes() == both.read_bytes()


def test_verbs_take_all_shapes(dynamic: Path, both: Path, tmp_path: Path) -> None:
    shown = tvmsep("show", str(both), cwd=tmp_path).stdout
    assert "float32[1, 3, 32, 32]" in shown and "float32[4, 3, 32, 32]" in shown
    timed = tvmsep("bench", str(both), "--runs", "4", "--json", cwd=tmp_path)
    rows = json.loads(timed.stdout)["results"]
    assert [r["inputs"] for r in rows] == [
        "input: float32[1, 3, 32, 32]",
        "input: float32[4, 3, 32, 32]",
    ]
    assert rows[1]["peak_ram_bytes"] > rows[0]["peak_ram_bytes"]
    table = tvmsep("bench", str(both), "--runs", "4", cwd=tmp_path).stdout
    assert "float32[4, 3, 32, 32]" in table
    done = tvmsep("verify", str(both), str(dynamic), cwd=tmp_path)
    assert done.returncode == 0 and "computes what" in done.stdout, done.stderr
    assert "at input: float32[1, 3, 32, 32] and input: float32[4" in done.stdout
    x = np.zeros((4, 3, 32, 32), np.float32)
    np.save(tmp_path / "four.npy", x)
    done = tvmsep("run", str(both), "-i", "four.npy", "-o", "y.npy", cwd=tmp_path)
    assert done.returncode == 0 and np.load(tmp_path / "y.npy").shape[0] == 4
    np.save(tmp_path / "two.npy", x[:2])
    refused(
        "run", str(both), "-i", "two.npy", cwd=tmp_path,
        says=["not built for the shapes input (2, 3, 32, 32)", "input (4, 3, 32, 32)"],
    )  # fmt: skip


def test_recordings_of_either_shape(both: Path, tmp_path: Path) -> None:
    with Bundle.load(both, threads=1) as net:
        for n in (0, 1):
            (x,) = net.noise(shapes=n)
            np.savez(tmp_path / f"{n}.npz", input_input=x, output_0=net(x))
    for n in (0, 1):
        done = tvmsep("verify", str(both), "--expected", f"{n}.npz", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"recorded at input: float32[{(1, 4)[n]}, 3, 32, 32]\n" in done.stdout
    words = ("verify", str(both), "--expected")
    assert tvmsep(*words, "1.npz", *FOURTH, cwd=tmp_path).returncode == 0
    refused(*words, "0.npz", *FOURTH, cwd=tmp_path, says=["input_input in 0.npz", "(1, 3, 32"])
    refused(*words, "0.npz", *OTHER, cwd=tmp_path, says=[HAS])
    np.savez(tmp_path / "odd.npz", input_input=x[:3], output_0=x)
    refused(*words, "odd.npz", cwd=tmp_path, says=["odd.npz", "none of the shapes", "float32[4, 3"])


FOURTH = ("--shape", "input=4,3,32,32")
OTHER = ("--shape", "input=2,3,32,32")
HAS = "it has --shape input=1,3,32,32; --shape input=4,3,32,32"


def test_verbs_take_a_shape(dynamic: Path, both: Path, tmp_path: Path) -> None:
    """Each verb with one of the shapes, and the error for one that the bundle has not."""
    net = str(both)
    rows = json.loads(tvmsep("bench", net, *FOURTH, "--runs", "4", "--json", cwd=tmp_path).stdout)
    assert [r["inputs"] for r in rows["results"]] == ["input: float32[4, 3, 32, 32]"]
    done = tvmsep("verify", net, str(dynamic), *FOURTH, cwd=tmp_path)
    assert done.returncode == 0 and "at input: float32[4, 3, 32, 32]\n" in done.stdout, done.stderr
    told = tvmsep("export", net, "--format", "so", *FOURTH, "-o", "x.so", cwd=tmp_path)
    assert "lib/shape2-threads1.so, for input: float32[4, 3, 32, 32]" in told.stdout
    first = tvmsep("export", net, "--format", "so", "-o", "x.so", cwd=tmp_path)
    assert "lib/threads1.so, for input: float32[1, 3, 32, 32]" in first.stdout
    header = tvmsep("export", net, "--format", "header", *FOURTH, "-o", "x.h", cwd=tmp_path)
    assert "of 2 shapes, first input: float32[4" in header.stdout
    for words in (
        ("bench", net),
        ("verify", net, str(dynamic)),
        ("export", net, "--format", "object", "-o", "y.o"),
        ("export", net, "--format", "header", "-o", "y.h"),
        ("profile", net),
        ("compare", net, "default", "--model", str(dynamic)),
    ):
        says = ["input=2,3,32,32", HAS] if words[0] != "compare" else ["float32[2, 3", "float32[4"]
        refused(*words, *OTHER, cwd=tmp_path, says=says)
    refused("bench", net, "--shape", "data=4,3,32,32", cwd=tmp_path, says=["data=4,3,32,32", HAS])


def test_verify_takes_an_open_model_as_the_bundle_has_it(dynamic: Path, tmp_path: Path) -> None:
    done = tvmsep("build", str(dynamic), *FOURTH, "-o", "one.tvmsep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = tvmsep("verify", "one.tvmsep", str(dynamic), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused("build", str(dynamic), "-o", "two.tvmsep", cwd=tmp_path, says=["dynamic shape"])


def test_profile_takes_a_shape(both: Path, tmp_path: Path) -> None:
    for words, batch in (((), 1), (FOURTH, 4)):
        done = tvmsep("profile", str(both), *words, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["shapes"] == f"input: float32[{batch}, 3, 32, 32]"
        assert batch == 1 or any("n4 " in row["layer"] for row in found["layers"])


def test_compare_takes_a_shape(dynamic: Path, both: Path, tmp_path: Path) -> None:
    words = ("compare", str(both), "onnxruntime", "--model", str(dynamic), "--rounds", "1",
             "--threads", "1", "--json")  # fmt: skip
    for more, batch in (((), 1), (FOURTH, 4)):
        done = tvmsep(*words, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["subject"].endswith(f"input: float32[{batch}, 3, 32, 32]")
        assert found["largest_difference"] < 1e-4


def test_data_chooses_the_shape(dynamic: Path, both: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, batch in (("a", 8), ("b", 3)):
        np.save(folder / f"{name}.npy", rng.standard_normal((batch, 3, 32, 32)).astype("float32"))
    words = ("verify", str(both), str(dynamic), "--data", "data", "--json")
    done = tvmsep(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["data"]
    assert report["shapes"] == {
        "input: float32[1, 3, 32, 32]": 3,
        "input: float32[4, 3, 32, 32]": 2,
    }
    assert report["outputs"][0]["scored"] == 11 and report["layers"] > 20
    table = tvmsep(*words[:-1], cwd=tmp_path).stdout
    assert "samples by shape: input: float32[1, 3, 32, 32]: 3; input: float32[4" in table
    one = tvmsep(*words, "--shape", "input=1,3,32,32", cwd=tmp_path)
    assert json.loads(one.stdout)["data"]["samples"] == 11
    refused(*words[:-1], *FOURTH, cwd=tmp_path, says=["b.npy", "(3, 3, 32, 32)", "is needed"])
    refused(*words[:-1], *OTHER, cwd=tmp_path, says=[HAS])


def test_tuning_several_shapes(dynamic: Path, tmp_path: Path) -> None:
    words = ["tune", str(dynamic), "--shape", "input=1,3,32,32", "--shape", "input=4,3,32,32",
             "--threads", "1", "--trials", "6", "--budget", "60s", "-o", "net.tvmsep"]  # fmt: skip
    done = tvmsep(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [s["inputs"][0]["shape"][0] for s in answer["shapes"]] == [1, 4]
    assert "of input float32[4,3,32,32] for" in done.stderr
    assert {t.workload.n for t in read_log(tmp_path / "net.jsonl")} == {1, 4}


def test_shape_mistakes(dynamic: Path, tmp_path: Path) -> None:
    twice = ["--shape", "input=1,3,32,32"] * 2
    refused("build", str(dynamic), *twice, cwd=tmp_path, says=["given twice"])
    refused("inspect", str(dynamic), *twice, cwd=tmp_path, says=["takes one shape"])
