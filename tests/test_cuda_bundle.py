"""Bundles for CUDA targets: built, refused, looked into, run by TVM's runtime on the emulator."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_kit import arm
from graph_kit import Net

from tvmsep import api, emulator
from tvmsep.bundle import Bundle, Package, device
from tvmsep.cli.resource_table import show_resources
from tvmsep.compiler import SYSTEM_LIB, compile_object, emit, lower
from tvmsep.contracts import BundleError, InputError, TargetError
from tvmsep.targets import load_target

pytestmark = pytest.mark.skipif(arm() or sys.platform != "linux", reason="needs an x86 Linux host")


def small(size: int = 16) -> onnx.ModelProto:
    net = Net(1)
    x = net.op(
        "Relu", net.conv(net.input(1, 3, size, size), 8, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    )
    y = net.conv(net.op("Relu", net.depthwise(x)), 12)
    z = net.op("Add", net.conv(net.depthwise(y), 12), y)
    return net.proto(net.op("GlobalAveragePool", z))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(small(), path)
    return path


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    """For a T4, by NVRTC."""
    out = model.with_name("t4.tvmsep")
    report = api.build(str(model), out=out, target="t4", logs=())
    assert (report.check is None) == (device.device_misfit(load_target("t4").gpu) is not None)
    return out


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forget() -> None:
        for name in ("_runtime", "_cudart", "load_cuda"):
            getattr(device, name).cache_clear()

    monkeypatch.setattr(device, "_DRIVER", "libcuda-that-is-not-there.so.1")
    forget()
    yield
    monkeypatch.undo()
    forget()


def tvmsep(*words: object, arch: str = "sm_75", fails: bool = False) -> str:
    """Run the command where the emulator stands in for driver and device; what it printed."""
    chosen = {"TVMSEP_CUDA_COMPILER": "emulator", "TVMSEP_EMULATOR_ARCH": arch}
    env = {**os.environ, **chosen, "LD_LIBRARY_PATH": str(emulator.stand_in())}
    done = subprocess.run(
        [sys.executable, "-m", "tvmsep.cli", *map(str, words)],
        capture_output=True, text=True, timeout=200, env=env,
    )  # fmt: skip
    assert done.returncode == (2 if fails else 0), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.parametrize(
    ("target", "options"), [("t4", []), ("cuda", ["--dtype", "float16", "--layout", "nhwc"])]
)
def test_a_bundle_runs_by_tvms_cuda_runtime(
    target: str, options: list[str], model: Path, tmp_path: Path
) -> None:
    import onnxruntime

    out, array, result = (tmp_path / n for n in ("e.tvmsep", "x.npy", "y.npy"))
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
    np.save(array, x)
    said = tvmsep("build", model, "--target", target, "-o", out, "--json", *options)
    assert json.loads(said)["check"] is not None, said
    tvmsep("run", out, "--input", array, "--output", result)
    (want,) = onnxruntime.InferenceSession(model).run(None, {"input0": x})
    limit = 2e-3 if options else 1e-5
    assert np.abs(np.load(result) - want).max() <= limit * np.abs(want).max()
    timed = json.loads(tvmsep("bench", out, "--runs", 4, "--json"))
    assert len(timed["results"][0]["times_s"]) == 4
    # A device of another kind: machine code does not run there, PTX does.
    if target == "t4":
        text = tvmsep("run", out, "--input", array, arch="sm_87", fails=True)
        assert "it is for sm_75, the device here is sm_87" in text
        assert "emulator" in tvmsep("inspect", out, "--resources", fails=True)
    else:
        tvmsep("run", out, "--input", array, arch="sm_87")


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_one_sentence_says_what_is_missing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match=r"t4.*libcuda.*driver 580.*install"):
        Bundle.load(bundle)
    with pytest.raises(BundleError, match="libcuda"):
        api.verify(bundle, "mobilenet_v1")


@pytest.mark.parametrize(
    ("status", "count", "words"),
    [(35, 0, "too old.*580"), (100, 0, "no CUDA device.*100"), (0, 0, "no CUDA device")],
)
def test_a_driver_without_a_device_is_told(
    status: int, count: int, words: str, no_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def cudaGetDeviceCount(self, out: Any) -> int:  # noqa: N802
            ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = count
            return status

    monkeypatch.setattr(device, "_runtime", Library)
    with pytest.raises(BundleError, match=words):
        device.load_cuda()


def test_resources_of_a_bundle(
    bundle: Path, affine_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_resources(bundle, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["arch"] == "sm_75"
    kernels = {k["name"]: k for k in found["kernels"]}
    assert {"conv_0_kernel", "depthwise_1_kernel", "pointwise_2_kernel"} <= kernels.keys()
    for k in kernels.values():
        assert 0 < k["registers"] <= 255 and k["spill_bytes"] == 0 < k["occupancy"] <= 1
        assert k["shared_bytes"] <= 49152 and k["threads"] <= 1024
    assert kernels["conv_0_kernel"]["shared_bytes"] > 0
    show_resources(bundle, as_json=False)
    assert "0 of them spill" in capsys.readouterr().out
    with pytest.raises(InputError, match="a CPU: --resources is for CUDA targets"):
        show_resources(affine_path, as_json=False)


def test_a_library_for_a_device_has_no_source(bundle: Path) -> None:
    with Package(bundle) as package:
        (variant,) = package.manifest.variants
        library = package.read(variant.library)
        assert package.manifest.target == load_target("t4")
    assert b"__global__" not in library and b"\x7fELF" in library[4:]


def test_an_object_for_a_device_has_its_code_under_the_prefix() -> None:
    prepared = api.prepare(small(), target="jetson-orin", threads=[1])
    (plan,) = prepared.plans.values()
    configs = api.building.choose_configs(prepared, plan, {})[0]
    module = emit(plan, prepared.target, configs).with_attr(SYSTEM_LIB, "mine_")
    made = compile_object(lower(module, prepared.target), prepared.target, {"a.b": b"x"})
    assert b"mine___tvm_ffi__library_bin" in made and b"__global__" not in made


@pytest.mark.parametrize("fault", ["failed:*", "address:*"])
def test_a_failed_device_is_one_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """CUDA refuses even to free memory then, which TVM's destructors do not survive."""
    out, data = tmp_path / "e.tvmsep", tmp_path / "x.npy"
    tvmsep("build", model, "--target", "t4", "-o", out)
    np.save(data, np.zeros((1, 3, 16, 16), np.float32))
    monkeypatch.setenv("TVMSEP_EMULATOR_FAULT", fault)
    for verb in (("run", out, "-i", data), ("bench", out, "--runs", "4")):
        said = tvmsep(*verb, fails=True)
        assert [line for line in said.splitlines() if line.startswith("error: ")], said
        assert "terminate called" not in said


@pytest.mark.parametrize(
    ("fact", "value", "says"),
    [
        ("sms = 40", "sms = -3", r"\[gpu\] sms is -3"),
        ('arch = "sm_75"', 'arch = "sm_7x"', r"\[gpu\] arch is 'sm_7x'"),
        ("clock_ghz = 1.59", "clock_ghz = nan", "clock_ghz is nan"),
        ("sms = 40", "sms = 40\nwarp = 64", "warp is 64"),
        ("lanes = 4 ", "lanes = 0 ", "lanes is 0"),
    ],
)
def test_facts_that_no_device_has(tmp_path: Path, fact: str, value: str, says: str) -> None:
    text = Path("targets/t4.toml").read_text()
    assert fact in text
    (tmp_path / "x.toml").write_text(text.replace(fact, value))
    with pytest.raises(TargetError, match=f"x.toml.*{says}"):
        load_target(str(tmp_path / "x.toml"))
