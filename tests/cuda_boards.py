"""What tests of CUDA boards share: the emulated device, a small network, kernels with faults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from farm_kit import BoardServer, Tracker
from graph_kit import Net

from tvmsep.contracts import Target
from tvmsep.targets import load_target

ARCH = "sm_75"
TARGET = "t4"
"""Its host is any x86-64 and its device of `ARCH`."""


def target() -> Target:
    return load_target(TARGET)


@contextmanager
def emulated(faults: str = "") -> Iterator[None]:
    """Candidates are compiled for the emulator, and new servers see its device."""
    from tvmsep.emulator import stand_in

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVMSEP_CUDA_COMPILER", "emulator")
        patch.setenv("TVMSEP_EMULATOR_ARCH", ARCH)
        patch.setenv("TVMSEP_EMULATOR_FAULT", faults)
        paths = [str(stand_in()), os.environ.get("LD_LIBRARY_PATH", "")]
        patch.setenv("LD_LIBRARY_PATH", os.pathsep.join(filter(None, paths)))
        yield


@contextmanager
def board() -> Iterator[tuple[Tracker, BoardServer]]:
    """A tracker and one board, whose device is emulated if `emulated` holds."""
    tracker = Tracker()
    server = BoardServer(tracker, 1)
    try:
        yield tracker, server
    finally:
        server.close()
        tracker.close()


def small(path: Path) -> Path:
    """Depthwise, pointwise with an activation, and pointwise: three tasks and the boundary's."""
    net = Net()
    x = net.input(1, 8, 6, 6)

    def conv(x: str, out: int, per_group: int, size: int, groups: int) -> str:
        w = net.noise(out, per_group, size, size, scale=(2 / per_group / size**2) ** 0.5)
        return net.op("Conv", x, w, net.noise(out), group=groups, pads=[size // 2] * 4)

    x = net.op("Relu", conv(x, 8, 1, 3, 8))
    x = net.op("Relu", conv(x, 16, 8, 1, 1))
    onnx.save(net.proto(conv(x, 8, 16, 1, 1)), path)
    return path
