"""What users do with a bundle: pictures, bench, export, the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bundle_kit import FLOPS, RNG, X, expected, noise, picture

from tvmsep.bundle import (
    Bundle,
    Package,
    bench,
    export,
    load_picture,
    read_preprocess,
)
from tvmsep.contracts import BundleError, InputError
from tvmsep.contracts.preprocess import Preprocess

# Export, bench


def test_export(affine_path: Path, built: Path, tmp_path: Path) -> None:
    import tarfile

    names = export(affine_path, tmp_path / "d", "dir")
    with Package(affine_path) as package:
        for name in names:
            assert (tmp_path / "d" / name).read_bytes() == package.read(name)
        assert names == package.members()
    with pytest.raises(InputError, match="something in it"):
        export(affine_path, tmp_path / "d", "dir")
    export(affine_path, tmp_path / "net.tar", "tar")
    export(affine_path, tmp_path / "net2.tar", "tar")
    with tarfile.open(tmp_path / "net.tar") as tar:
        assert tar.getnames() == [f"net/{n}" for n in names]
        member = tar.extractfile("net/lib/threads1.so")
        assert member is not None and member.read() == (built / "affine.so").read_bytes()
    assert export(affine_path, tmp_path / "net.so", "so", threads=1) == ["lib/threads1.so"]
    assert (tmp_path / "net.so").read_bytes() == (built / "affine.so").read_bytes()
    with pytest.raises(InputError, match="has libraries for 1, 2 threads, none for 4"):
        export(affine_path, tmp_path / "4.so", "so", threads=4)
    with pytest.raises(InputError, match="--threads is for so"):
        export(affine_path, tmp_path / "t.tar", "tar", threads=1)
    with pytest.raises(BundleError, match="cannot write"):
        export(affine_path, tmp_path / "none/d", "dir")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "net.so", "net.tar", "net2.tar"]


def test_bench(affine_path: Path) -> None:
    with Bundle.load(affine_path, threads=1) as net:
        (result,) = bench([net], runs=23)
        assert result.runs == len(result.times_s) == 23
        assert 0 < result.min_s <= result.q1_s <= result.median_s <= result.q3_s < 0.1
        assert result.gflops == pytest.approx(FLOPS / result.median_s / 1e9)
        assert result.peak_share == pytest.approx(FLOPS / result.median_s / 1e11)
        with pytest.raises(InputError, match="at least 4"):
            bench([net], runs=3)
        with pytest.raises(InputError):
            net.time(0)


# Pictures


def test_picture_is_normalised(tmp_path: Path, manifest: Any) -> None:
    pixels = RNG.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    path = picture(tmp_path / "p.png", pixels)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    rule = Preprocess(crop=16, mean=mean, std=std)
    got = load_picture(path, msgspec.structs.replace(manifest, preprocess=rule))
    want = (pixels[:, 2:18] / 255 - mean) / std
    np.testing.assert_allclose(got[0], want.transpose(2, 0, 1), atol=1e-5)
    bgr = msgspec.structs.replace(rule, channel_order="BGR")
    got = load_picture(path, msgspec.structs.replace(manifest, preprocess=bgr))
    want = (pixels[:, 2:18, ::-1] / 255 - mean) / std
    np.testing.assert_allclose(got[0], want.transpose(2, 0, 1), atol=1e-5)
    assert got.dtype == np.float32 and got.shape == X.shape


def test_picture_is_resized_by_its_shorter_side(tmp_path: Path, manifest: Any) -> None:
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the middle 40 columns are what a centre crop keeps
    got = load_picture(picture(tmp_path / "w.png", wide), manifest)
    np.testing.assert_allclose(got[0, :, :, 2:-2], 200 / 255, atol=1e-6)
    tall = load_picture(picture(tmp_path / "t.png", wide.transpose(1, 0, 2)), manifest)
    np.testing.assert_allclose(tall, got.transpose(0, 1, 3, 2), atol=1e-6)


def test_picture_modes(tmp_path: Path, manifest: Any) -> None:
    grey = RNG.integers(0, 256, (16, 16), dtype=np.uint8)
    got = load_picture(picture(tmp_path / "g.png", grey), manifest)
    np.testing.assert_allclose(got[0], np.stack([grey / 255] * 3), atol=1e-6)
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:8, :, 3] = 255
    got = load_picture(picture(tmp_path / "a.png", clear), manifest)
    assert got[0, :, :8].max() == 0 and got[0, :, 8:].min() == 1


def test_picture_is_turned_upright(tmp_path: Path, manifest: Any) -> None:
    from PIL import Image

    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    path = picture(tmp_path / "e.png", pixels, exif=exif)
    got = load_picture(path, manifest)
    np.testing.assert_allclose(got[0, 0], np.rot90(pixels[..., 0] / 255, -1), atol=1e-6)


def test_picture_mistakes(tmp_path: Path, manifest: Any) -> None:
    ok = picture(tmp_path / "p.png", np.zeros((20, 20, 3), np.uint8))
    bare = msgspec.structs.replace(manifest, preprocess=None)
    with pytest.raises(InputError, match="doesn't say how a picture.*--preprocess"):
        load_picture(ok, bare)
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no picture"):
        load_picture(tmp_path / "bad.jpg", manifest)
    full = picture(tmp_path / "full.png", RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes(full.read_bytes()[:600])
    with pytest.raises(InputError, match="cannot read the picture"):
        load_picture(tmp_path / "cut.png", manifest)
    with pytest.raises(InputError, match="cannot read"):
        load_picture(tmp_path / "none.png", manifest)
    small = msgspec.structs.replace(manifest, preprocess=Preprocess(crop=64))
    with pytest.raises(InputError, match="20x20 .* cropped to 64"):
        load_picture(ok, small)
    unfit = msgspec.structs.replace(manifest, preprocess=Preprocess())
    with pytest.raises(InputError, match="needs resize and crop"):
        load_picture(ok, unfit)


def test_preprocess_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('resize = 256\ncrop = 224\nmean = [0.5, 0.4, 0.3]\nchannel_order = "BGR"\n')
    assert read_preprocess(path) == Preprocess(
        resize=256, crop=224, mean=(0.5, 0.4, 0.3), channel_order="BGR"
    )
    for text in ("resize = -1", "sie = 3", "std = [0.0, 1.0, 1.0]", "=", "mean = [1.0]"):
        path.write_text(text)
        with pytest.raises(InputError, match="malformed"):
            read_preprocess(path)
    with pytest.raises(InputError, match="cannot read"):
        read_preprocess(tmp_path / "none.toml")


# The command line, as a user runs it


def tvmsep(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tvmsep.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_cli_run(affine_path: Path, tmp_path: Path) -> None:
    x = tmp_path / "x.npy"
    np.save(x, noise(5))
    out = tmp_path / "y.npy"
    done = tvmsep("run", affine_path, "--input", x, "--top", 3, "-o", out, "--json")
    answer = json.loads(done.stdout)
    scores = expected(noise(5))[0]
    np.testing.assert_allclose(np.load(out)[0], scores, rtol=1e-4, atol=1e-4)
    order = np.argsort(-scores)[:3]
    assert [t["class"] for t in answer["top"]] == order.tolist()
    assert answer["top"][0]["label"] == f"class {order[0]}"
    share = np.exp(scores - scores.max())
    assert answer["top"][0]["probability"] == pytest.approx(1 / share.sum(), rel=1e-3)
    table = tvmsep("run", affine_path, "-i", f"x={x}", "--top", 2).stdout.splitlines()
    assert table[0].startswith("affine: ") and table[1].split() == ["class", "label", "probability"]
    assert table[2].split()[:3] == [str(order[0]), "class", str(order[0])] and len(table) == 4


def test_cli_run_on_a_picture(affine_path: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "cat.png", RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    answer = json.loads(tvmsep("run", affine_path, "-i", path, "--json").stdout)
    with Package(affine_path) as package:
        scores = expected(load_picture(path, package.manifest))[0]
    assert [t["class"] for t in answer["top"]] == np.argsort(-scores)[:5].tolist()


def test_cli_several_inputs(pair_path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    np.save(tmp_path / "n.npy", np.ones(4, np.int32))
    both = ["--input", f"n={tmp_path}/n.npy", "--input", f"x={tmp_path}/x.npy"]
    out = tmp_path / "y.npz"
    text = tvmsep("run", pair_path, *both, "-o", out).stdout
    assert "double" in text and "2x3" in text
    np.testing.assert_array_equal(np.load(out)["sum"], [1, 2, 3, 4])
    error = tvmsep("run", pair_path, "--input", f"{tmp_path}/x.npy", code=2).stderr
    assert error == "error: pair has 2 inputs and n was not given: add --input n=FILE\n"
    error = tvmsep("run", pair_path, *both, "-o", "y.npy", code=2).stderr
    assert error == "error: --output y.npy: for 2 output(s), name a .npz file\n"


def test_cli_bench_and_show(affine_path: Path) -> None:
    answer = json.loads(
        tvmsep("bench", affine_path, "--threads", "1,2", "--runs", 20, "--json").stdout
    )
    assert [r["threads"] for r in answer["results"]] == [1, 2]
    assert [r["peak_ram_bytes"] for r in answer["results"]] == [40_000, 50_000]
    assert all(r["median_s"] > 0 and r["runs"] == 20 for r in answer["results"])
    assert 20e6 < answer["process_peak_rss_bytes"] < 300e6
    table = tvmsep("bench", affine_path, "--threads", "1", "--runs", 20).stdout.splitlines()
    assert table[0].split()[:2] == ["threads", "median"] and "20 runs each" in table[2]
    error = tvmsep("bench", affine_path, "--threads", "3", "--runs", 4).stderr
    assert f"\nwarning: {affine_path} was tuned for 1, 2 threads and runs on 3" in f"\n{error}"
    error = tvmsep("bench", affine_path, "--threads", "1,x", code=2).stderr
    assert error.startswith("error: --threads 1,x: give different counts")
    assert error.count("\n") == 1
    text = tvmsep("show", affine_path).stdout
    assert "2 of 9 lines used" in text and "SHA-256 of all members is right" in text
    assert json.loads(tvmsep("show", affine_path, "--json").stdout)["name"] == "affine"


def test_cli_mistakes(affine_path: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.tvmsep"
    for verb in (["show"], ["bench"], ["run", "-i", "x.npy"]):
        error = tvmsep(verb[0], missing, *verb[1:], code=2).stderr
        assert error == f"error: cannot read {missing}: No such file or directory\n"
    error = tvmsep("run", affine_path, "-i", "foo=x.npy", code=2).stderr
    assert error == (
        "error: --input foo=x.npy: affine has no input 'foo', and there is no file of that name: "
        "it takes --input x=FILE\n"
    )
    (tmp_path / "x.npy").write_bytes(b"junk")
    error = tvmsep("run", affine_path, "-i", tmp_path / "x.npy", code=2).stderr
    assert error.startswith(f"error: {tmp_path}/x.npy is no array") and error.count("\n") == 1
    error = tvmsep("export", affine_path, "--format", "zip", "-o", "x", code=2).stderr
    assert "'zip' is not one of" in error
    out = tvmsep("export", affine_path, "--format", "so", "-o", tmp_path / "n.so").stdout
    assert "weights.safetensors" in out and (tmp_path / "n.so").exists()
    assert tvmsep("--version").stdout.startswith("tvmsep ")


def test_cli_refuses_windows() -> None:
    code = """
import sys
sys.platform = "win32"
from tvmsep.cli import main
try:
    main()
except SystemExit as stop:
    print(stop.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "2\n" and "WSL2" in done.stderr
