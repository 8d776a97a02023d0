"""The arithmetic behind separable blocks, and the table of layers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tvmsep import api
from tvmsep.contracts import Workload
from tvmsep.report import blocks, layers
from tvmsep.report.layers import block_of


def test_the_textbook_example() -> None:
    """8x8x3 input, 5x5 kernel, 256 outputs, same padding: 22.8 times fewer multiplications."""
    dw = Workload(
        op="depthwise", ic=3, ih=8, iw=8, oc=3, kh=5, kw=5, pads=(2, 2, 2, 2), groups=3,
        in_block=8, out_block=8,
    )  # fmt: skip
    pw = Workload(op="pointwise", ic=3, ih=8, iw=8, oc=256, in_block=8, out_block=16)
    block = block_of("b", dw, pw)
    assert block.standard == 1_228_800
    assert (dw.macs, pw.macs) == (4_800, 49_152)
    assert block.separable == 53_952
    assert block.saving == pytest.approx(22.8, abs=0.05)
    assert block.saving == pytest.approx(1 / (1 / 256 + 1 / 25))


def test_mobilenet_v1_has_its_published_size() -> None:
    (plan,) = api.prepare("mobilenet_v1", threads=[1]).plans.values()
    rows = layers(plan)
    assert sum(r.macs for r in rows) == pytest.approx(569e6, rel=0.01)
    assert len(blocks(plan)) == 13
    assert all(r.template != "fallback" for r in rows)


def test_squeeze_and_excite_does_not_hide_a_block() -> None:
    (plan,) = api.prepare("mobilenet_v3_large:resolution=64", threads=[1]).plans.values()
    assert len(blocks(plan)) == 15


def test_savings_are_measured() -> None:
    command = [
        sys.executable, "-m", "tvmsep.cli", "inspect", "mobilenet_v1:width=0.25,resolution=64",
        "--savings", "--threads", "1", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["savings"]
    assert len(rows) >= 8
    for row in rows:
        assert row["standard_s"] > 0 and row["separable_s"] > 0
        assert row["theory"] == pytest.approx(row["block"]["standard"] / row["block"]["separable"])


def test_savings_on_a_gpu_that_is_not_here_are_modelled() -> None:
    command = [
        sys.executable, "-m", "tvmsep.cli", "inspect", "mobilenet_v1:width=0.25,resolution=32",
        "--savings", "--target", "t4", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("times are modelled, not measured: board local")
    found = json.loads(done.stdout)
    assert found["modelled"] and len(found["savings"]) >= 8
    refused = subprocess.run(
        [*command, "--budget", "5s"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2 and "no CUDA device" in refused.stderr
