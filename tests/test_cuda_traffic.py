"""What CUDA kernels move is counted as it happens: against a count pixel by pixel."""

from __future__ import annotations

import msgspec
import pytest

from tvmsep.contracts import Config, Workload
from tvmsep.schedules.cuda import TEMPLATES
from tvmsep.schedules.cuda.traffic import pair_traffic, traffic
from tvmsep.targets import load_target

TARGET = load_target("t4")


def pair(size: int, ic: int, oc: int, stride: int = 1) -> Workload:
    return Workload(
        op="dwpw", ic=ic, oc=oc, ih=size, iw=size, kh=3, kw=3, sh=stride, sw=stride,
        pads=(1, 1, 1, 1), groups=ic, in_block=4, out_block=4, epilogue=("bias",),
        mid_epilogue=("bias", "relu6"),
    )  # fmt: skip


def by_hand(w: Workload, span: int) -> int:
    """Distinct input pixels of each run of `span` outputs, added up."""
    total = 0
    for first in range(0, w.oh * w.ow, span):
        seen = set()
        for p in range(first, min(first + span, w.oh * w.ow)):
            for i in range(w.kh):
                for j in range(w.kw):
                    row = p // w.ow * w.sh + i * w.dh - w.pads[0]
                    col = p % w.ow * w.sw + j * w.dw - w.pads[1]
                    if 0 <= row < w.ih and 0 <= col < w.iw:
                        seen.add((row, col))
        total += len(seen)
    return total


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("threads_p", [4, 7, 16])
def test_fused_counts_halos_and_repeated_weights(threads_p: int, stride: int) -> None:
    w = pair(13, 8, 16, stride)
    config = Config(
        tile_p=2, tile_oc=1, threads_p=threads_p, threads_oc=2, split_k=1, step_k=2, pipeline="none"
    )
    got = traffic(w, TARGET, config)
    runs = -(-w.oh * w.ow // (2 * threads_p))
    channel_tiles = 2
    assert got.activations == 4 * 8 * by_hand(w, 2 * threads_p) * channel_tiles
    assert got.written == 4 * 16 * w.oh * w.ow
    assert got.weights == 4 * runs * (16 * 8 + 16 + channel_tiles * (8 * 9 + 8))
    assert got.repeated == got.activations - 4 * 8 * 13 * 13 + got.weights - 4 * (
        16 * 8 + 16 + 8 * 9 + 8
    )


def test_what_is_between_is_not_moved() -> None:
    """The separate kernels write and read it: the best tilings of both sides tell."""
    w = pair(28, 192, 32)
    first, last = w.parts
    _, separate = pair_traffic(w, TARGET)
    assert separate.total > 2 * 4 * 192 * 28 * 28 + 4 * 32 * 28 * 28

    def least(name: str, part: Workload) -> int:
        configs = TEMPLATES[name].space(part, TARGET, 1).configs()
        return min(traffic(part, TARGET, c).total for c in configs)

    depthwise = traffic(first, TARGET, TEMPLATES["cuda_depthwise"].default(first, TARGET, 1)).total
    assert least("cuda_dwpw", w) < 0.5 * (depthwise + least("cuda_pointwise", last))


def test_a_pointwise_kernel_reads_pixels_for_every_tile_of_channels() -> None:
    w = pair(14, 32, 64).parts[1]
    config = Config(
        tile_p=1, tile_oc=2, threads_p=28, threads_oc=4, split_k=1, step_k=4, pipeline="none"
    )
    got = traffic(w, TARGET, config)
    assert got.activations == 4 * 32 * 14 * 14 * (64 // (2 * 4 * 4))
    assert got.weights == 4 * (64 * 32 + 64) * 7
    residual = msgspec.structs.replace(w, epilogue=("bias", "add"))
    assert traffic(residual, TARGET, config).activations == got.activations + got.written


def test_other_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="pool"):
        traffic(Workload(op="pool", ic=4, oc=4, in_block=4, out_block=4), TARGET, Config())
