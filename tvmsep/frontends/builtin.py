"""Built-in networks to try things with: defined once, as ONNX, for any width and resolution.

The architectures are TensorFlow's own (MobileNetV1 and EfficientNet-Lite0) and torchvision's (V2,
V3, MNASNet), channel rounding, padding and last layers included; all end in logits. Batch norms
are left unfolded, as exporters leave them.

Weights are random but seeded, made so that the signal lives from input to output (`weights`), or
come from a torchvision state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tvmsep.contracts import InputError
from tvmsep.contracts.preprocess import Preprocess

if TYPE_CHECKING:
    import onnx

    from tvmsep.frontends.model import Array

OPSET = 17
MIN_RESOLUTION = 32


@dataclass(frozen=True)
class Block:
    """One row of a network's table: a depthwise-separable or inverted-residual block.

    The 1x1 convolution that comes first, if any, widens to `expand` channels (of the network at
    width 1) or else `factor` times. `gate` is squeeze-and-excitation.
    """

    out: int
    stride: int
    expand: int = 0
    factor: int = 1
    kernel: int = 3
    gate: bool = False
    act: str = "relu6"


@dataclass(frozen=True)
class Network:
    """One architecture.

    `last` is the width of the convolution before the pooling: 0 means none, or V3's six times the
    last block's. `head` is the width of V3's extra layer in the classifier. `widths` are the
    smallest and largest width multipliers.
    """

    stem: int
    blocks: tuple[Block, ...]
    widths: tuple[float, float]
    last: int = 0
    head: int = 0
    act: str = "relu6"
    stem_act: str = "relu6"
    eps: float = 1e-5
    same: Literal["torch", "tf"] = "torch"
    """Padding: symmetric, or TensorFlow's "same" (the odd pixel goes bottom and right)."""
    linear_out: bool = True
    """Whether a block's last 1x1 convolution has no activation (and may have a residual)."""
    preprocess: Preprocess = Preprocess()


def _repeat(rows: list[tuple[int, int, int, int, int]], act: str = "relu6") -> tuple[Block, ...]:
    """Rows of (expansion factor, out, repeats, first stride, kernel) as blocks."""
    return tuple(
        Block(out, stride if n == 0 else 1, factor=factor, kernel=kernel, act=act)
        for factor, out, repeats, stride, kernel in rows
        for n in range(repeats)
    )


def _v3(rows: str) -> tuple[Block, ...]:
    """Rows as the paper prints them: kernel, expansion, out, SE, non-linearity, stride."""
    blocks = []
    for row in rows.strip().splitlines():
        kernel, expand, out, gate, act, stride = row.split()
        name = {"RE": "relu", "HS": "hard_swish"}[act]
        blocks.append(
            Block(
                int(out), int(stride), int(expand), kernel=int(kernel), gate=gate == "SE", act=name
            )
        )
    return tuple(blocks)


_TORCH = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_NETWORKS: dict[str, Network] = {
    "mobilenet_v1": Network(
        stem=32,
        blocks=tuple(
            Block(out, stride)
            for out, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
            + [(512, 1)] * 5
            + [(1024, 2), (1024, 1)]
        ),
        widths=(0.25, 1.0),
        eps=1e-3,
        same="tf",
        linear_out=False,
        preprocess=Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    "mobilenet_v2": Network(
        stem=32,
        blocks=_repeat(
            [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)]
            + [(6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)],
        ),
        widths=(0.25, 1.4),
        last=1280,
        preprocess=_TORCH,
    ),
    "mobilenet_v3_small": Network(
        stem=16,
        blocks=_v3(
            """
            3  16 16 SE RE 2
            3  72 24 -  RE 2
            3  88 24 -  RE 1
            5  96 40 SE HS 2
            5 240 40 SE HS 1
            5 240 40 SE HS 1
            5 120 48 SE HS 1
            5 144 48 SE HS 1
            5 288 96 SE HS 2
            5 576 96 SE HS 1
            5 576 96 SE HS 1
            """
        ),
        widths=(0.25, 1.4),
        head=1024,
        act="hard_swish",
        stem_act="hard_swish",
        eps=1e-3,
        preprocess=_TORCH,
    ),
    "mobilenet_v3_large": Network(
        stem=16,
        blocks=_v3(
            """
            3  16  16 -  RE 1
            3  64  24 -  RE 2
            3  72  24 -  RE 1
            5  72  40 SE RE 2
            5 120  40 SE RE 1
            5 120  40 SE RE 1
            3 240  80 -  HS 2
            3 200  80 -  HS 1
            3 184  80 -  HS 1
            3 184  80 -  HS 1
            3 480 112 SE HS 1
            3 672 112 SE HS 1
            5 672 160 SE HS 2
            5 960 160 SE HS 1
            5 960 160 SE HS 1
            """
        ),
        widths=(0.25, 1.4),
        head=1280,
        act="hard_swish",
        stem_act="hard_swish",
        eps=1e-3,
        preprocess=_TORCH,
    ),
    "mnasnet_1_0": Network(
        stem=32,
        blocks=_repeat(
            [(1, 16, 1, 1, 3), (3, 24, 3, 2, 3), (3, 40, 3, 2, 5), (6, 80, 3, 2, 5)]
            + [(6, 96, 2, 1, 3), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)],
            act="relu",
        ),
        widths=(1.0, 1.0),
        last=1280,
        act="relu",
        stem_act="relu",
        preprocess=_TORCH,
    ),
    "efficientnet_lite0": Network(
        stem=32,
        blocks=_repeat(
            [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)]
            + [(6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)],
        ),
        widths=(1.0, 1.0),
        last=1280,
        eps=1e-3,
        same="tf",
        preprocess=Preprocess(mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
    ),
}


@dataclass(frozen=True)
class BuiltinSpec:
    """A parsed spec string, such as `mobilenet_v1:width=0.75,resolution=192`."""

    network: str
    width: float = 1.0
    resolution: int = 224
    seed: int = 0
    classes: int = 1000
    batch: int = 1

    @property
    def title(self) -> str:
        """What tables and manifests call it when its weights are random."""
        return f"{self.network} {self.width}/{self.resolution} (random weights)"

    @property
    def preprocess(self) -> Preprocess:
        """How the original network was fed, at this resolution."""
        base = _NETWORKS[self.network].preprocess
        return Preprocess(
            resize=round(self.resolution / 0.875),
            crop=self.resolution,
            mean=base.mean,
            std=base.std,
        )


def list_builtins() -> tuple[str, ...]:
    """The names of the built-in networks."""
    return tuple(_NETWORKS)


def is_builtin(spec: str) -> bool:
    """Whether `spec` names a built-in network, with or without options."""
    return spec.partition(":")[0] in _NETWORKS


def parse_spec(spec: str) -> BuiltinSpec:
    """Read `name` or `name:key=value,...`; keys: width, resolution, seed, classes, batch.

    Raises:
        InputError: the name, a key or a value is not one of these.
    """
    name, _, options = spec.partition(":")
    if name not in _NETWORKS:
        raise InputError(f"no built-in network {name}: there are {', '.join(_NETWORKS)}")
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, _, text = (part.strip() for part in option.partition("="))
        kinds: dict[str, type[int] | type[float]] = {
            "width": float, "resolution": int, "seed": int, "classes": int, "batch": int
        }  # fmt: skip
        if key not in kinds:
            raise InputError(f"{name} has no option {key}: there are {', '.join(kinds)}")
        try:
            values[key] = kinds[key](text)
        except ValueError as error:
            raise InputError(
                f"{name}: {key}={text} is not {'a number' if key == 'width' else 'an integer'}"
            ) from error
    parsed = BuiltinSpec(name, **values)
    low, high = _NETWORKS[name].widths
    if not low <= parsed.width <= high:
        raise InputError(f"{name}: width={parsed.width:g} is outside {low:g} to {high:g}")
    for key, least in (("resolution", MIN_RESOLUTION), ("classes", 1), ("batch", 1), ("seed", 0)):
        if getattr(parsed, key) < least:
            raise InputError(f"{name}: {key}={getattr(parsed, key)} is below {least}")
    return parsed


def builtin_proto(
    spec: str | BuiltinSpec, state: Mapping[str, Array] | None = None
) -> onnx.ModelProto:
    """The network as an ONNX model with input `input` [batch,3,r,r] and output `logits`.

    Args:
        spec: which network, or its spec string.
        state: weights under torchvision's names (MobileNetV2 and V3); random and seeded without.

    Raises:
        InputError: the spec is malformed.
        ModelError: `state` lacks a weight, or one has another shape.
    """
    from tvmsep.frontends.builder import build

    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    return build(parsed, _NETWORKS[parsed.network], state)
