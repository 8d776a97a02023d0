"""A workload is one operator with everything that changes its code: shapes, layout, epilogue."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from tvmsep.contracts.target import Target

Op = Literal[
    "conv", "pointwise", "depthwise", "dwpw", "dense", "pool", "eltwise", "resample", "channels",
    "pack", "unpack",
]  # fmt: skip
Split = Literal["rows", "channels"]
SPLITS: tuple[Split, ...] = ("rows", "channels")
ITEM_BYTES = {"float32": 4, "float16": 2}
"""Bytes of one element, by dtype."""
TOLERANCE = {"float32": 1e-4, "float16": 2e-3}
"""Largest error accepted, relative to the largest output, by the dtype of what lies in memory."""
HALF_TOLERANCE = 1e-2
"""The same for float16 where a CPU also multiplies and adds in it, in sums of some 64 products."""
HALF_MOST = 0.2
"""More is accepted of no network in half precision, whatever it makes of a rounding."""


class Workload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One operator, frozen and hashable.

    Activations are channel-blocked: `[n, ceil(c / block), h * w, block]`, channels past `c` are
    padding that every consumer multiplies by zero. `in_block == 0` means plain `[n, c, h * w]`.
    Packed weights depend on the blocks alone, never on a config, so that variants share them.

    `epilogue` runs on the accumulator in order: "bias", an activation of
    `tvmsep.schedules.epilogue` ("relu6", "hard_swish", ...), "add" (a residual of the output's
    shape and layout, one more input).

    "dwpw" is a depthwise convolution and the pointwise one that reads it, in one kernel: kernel,
    stride, dilation, pads and `mid_epilogue` are the former's, `oc` and `epilogue` the latter's.
    """

    op: Op
    n: int = 1
    ic: int
    ih: int = 1
    iw: int = 1
    oc: int
    kh: int = 1
    kw: int = 1
    sh: int = 1
    sw: int = 1
    dh: int = 1
    dw: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right."""
    groups: int = 1
    in_block: int
    out_block: int
    epilogue: tuple[str, ...] = ()
    mid_epilogue: tuple[str, ...] = ()
    """Only of "dwpw": what happens to the depthwise part's accumulator; never "add"."""
    scaled: bool = False
    """Only of "pointwise": its input is multiplied by one factor a channel, the last parameter."""
    kind: str = ""
    """Pool: "max", "avg" (padding counts), "avg_valid", "global_avg"; eltwise, resample,
    channels: see their files."""
    size: tuple[int, ...] = ()
    """Only of "resample": output rows and columns; of "shuffle" `pads` is where they begin."""
    sources: tuple[tuple[int, int], ...] = ()
    """Only of "channels" that are joined: each input's channels and block; `ic` is their sum."""
    dtype: str = "float32"
    """Of blocked activations and weights; plain activations, biases and sums are float32."""
    in_run: int = 1
    """Vectors that a block of the input is made of: a CPU's kernels take each for itself."""
    out_run: int = 1
    """The same of the output (and of a residual)."""
    in_split: Split = "rows"
    """How the producer of the input divides it over threads: part of the layout."""
    out_split: Split = "rows"

    @property
    def kernel(self) -> Workload:
        """Without what leaves its code as it is: who wrote its input, and a split it ignores.

        Workloads with equal ones are computed by equal code.
        """
        whole = self.op in ("channels", "pack", "unpack")  # always divide blocks of channels
        after: Split = "rows" if whole else self.out_split
        return msgspec.structs.replace(self, in_split="rows", out_split=after)

    @property
    def same_code(self) -> list[Workload]:
        """All workloads with this one's `kernel`."""
        ways = [
            msgspec.structs.replace(self, in_split=a, out_split=b) for a in SPLITS for b in SPLITS
        ]
        return [way for way in ways if way.kernel == self.kernel]

    @property
    def oh(self) -> int:
        """Output rows."""
        if self.size:
            return self.size[0]
        return (self.ih + self.pads[0] + self.pads[2] - (self.kh - 1) * self.dh - 1) // self.sh + 1

    @property
    def ow(self) -> int:
        """Output columns."""
        if self.size:
            return self.size[1]
        return (self.iw + self.pads[1] + self.pads[3] - (self.kw - 1) * self.dw - 1) // self.sw + 1

    @property
    def in_dtype(self) -> str:
        """Of the activation that comes in: the model's boundary stays float32."""
        return self.dtype if self.in_block else "float32"

    @property
    def out_dtype(self) -> str:
        """Of the activation that goes out."""
        return self.dtype if self.out_block else "float32"

    @property
    def in_blocks(self) -> int:
        """Channel blocks of the input; its channels where it is plain."""
        return -(-self.ic // self.in_block) if self.in_block else self.ic

    @property
    def out_blocks(self) -> int:
        """Channel blocks of the output; its channels where it is plain."""
        return -(-self.oc // self.out_block) if self.out_block else self.oc

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the activation that comes in."""
        p = self.ih * self.iw
        return (self.n, self.in_blocks, p, self.in_block) if self.in_block else (self.n, self.ic, p)

    @property
    def source_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the activations that are joined; of the one that comes in, elsewhere."""
        if not self.sources:
            return (self.in_shape,)
        p = self.ih * self.iw
        return tuple((self.n, -(-c // b), p, b) for c, b in self.sources)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the activation that goes out."""
        p = self.oh * self.ow
        if self.out_block:
            return (self.n, self.out_blocks, p, self.out_block)
        return (self.n, self.oc, p)

    @property
    def vectors(self) -> Workload:
        """As a CPU's templates see it: each vector a block, `in_run` of them lying together.

        Weights and biases are packed by vectors, so that no layout of activations changes them.
        """
        if self.in_run == self.out_run == 1:
            return self
        return msgspec.structs.replace(
            self, in_block=self.in_block // self.in_run, out_block=self.out_block // self.out_run
        )

    @property
    def parts(self) -> tuple[Workload, Workload]:
        """The depthwise and the pointwise workload that a "dwpw" stands for."""
        replace = msgspec.structs.replace
        depthwise = replace(
            self, op="depthwise", oc=self.ic, out_block=self.in_block, out_run=self.in_run,
            epilogue=self.mid_epilogue, mid_epilogue=(),
        )  # fmt: skip
        pointwise = Workload(
            op="pointwise", n=self.n, ic=self.ic, ih=self.oh, iw=self.ow, oc=self.oc,
            in_block=self.in_block, out_block=self.out_block, in_run=self.in_run,
            out_run=self.out_run, epilogue=self.epilogue,
            dtype=self.dtype, in_split=self.out_split, out_split=self.out_split,
        )  # fmt: skip
        return depthwise, pointwise

    @classmethod
    def joined(cls, depthwise: Workload, pointwise: Workload) -> Workload:
        """The "dwpw" of both. They fit each other if they are its `parts`."""
        return msgspec.structs.replace(
            depthwise, op="dwpw", oc=pointwise.oc, out_block=pointwise.out_block,
            out_run=pointwise.out_run, epilogue=pointwise.epilogue, mid_epilogue=depthwise.epilogue,
        )  # fmt: skip

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run, padding channels left out."""
        if self.op == "dwpw":
            return sum(part.macs for part in self.parts)
        pixels = self.n * self.oh * self.ow
        if self.op in ("conv", "pointwise", "depthwise"):
            return pixels * self.oc * (self.ic // self.groups) * self.kh * self.kw
        if self.op == "dense":
            return self.n * self.oc * self.ic
        return 0

    @property
    def flops(self) -> int:
        """Floating-point operations of one run: two a multiply-accumulate."""
        return 2 * self.macs

    @property
    def params(self) -> int:
        """Weights and biases."""
        if self.op == "dwpw":
            return sum(part.params for part in self.parts)
        if self.op not in ("conv", "pointwise", "depthwise", "dense"):
            return 0
        return self.oc * (self.ic // self.groups) * self.kh * self.kw + (
            self.oc if "bias" in self.epilogue else 0
        )

    @property
    def weight_bytes(self) -> int:
        """Of weights and biases: what a run of the network finds where the last one left it."""
        return ITEM_BYTES[self.dtype] * self.params

    @property
    def bytes_moved(self) -> int:
        """Bytes that must move once: all inputs, weights, and the output."""
        out = self.n * self.oc * self.oh * self.ow
        res = out * self.epilogue.count("add")
        if self.op == "eltwise" and self.kind in ("add", "mul"):
            res += out
        elif self.op == "eltwise" and self.kind == "scale":
            res += self.n * self.oc
        res += self.n * self.ic * self.scaled
        inner = (self.in_dtype, self.n * self.ic * self.ih * self.iw), (self.out_dtype, out)
        images = sum(ITEM_BYTES[d] * n for d, n in inner) + ITEM_BYTES[self.dtype] * res
        return images + self.weight_bytes

    @property
    def key(self) -> str:
        """A stable identity: equal workloads, and only they, have equal keys.

        Defaults are left out by value: msgspec tells a tuple from its default by identity.
        """
        said = {f: v for f, default in _DEFAULTS.items() if (v := getattr(self, f)) != default}
        return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A short name for tables: `pointwise 14x14 512>512`."""
        kernel = f" {self.kh}x{self.kw}" if (self.kh, self.kw) != (1, 1) else ""
        stride = f" s{self.sh}" if self.sh == self.sw else f" s{self.sh},{self.sw}"
        step = stride if (self.sh, self.sw) != (1, 1) else ""
        batch = f" n{self.n}" if self.n != 1 else ""
        chans = f"{self.ic}>{self.oc}" if self.ic != self.oc else f"{self.oc}"
        tail = "".join(f"+{e}" for e in self.epilogue if e != "bias")
        name = f"{self.op}:{self.kind}" if self.kind else self.op
        kernel += "*scale" * self.scaled
        kernel += "".join(f"+{e}" for e in self.mid_epilogue if e != "bias")
        image = f"{self.ih}x{self.iw}" + (f">{self.oh}x{self.ow}" if self.size else "")
        form = f" {self.dtype}" if self.dtype != "float32" else ""
        return f"{name}{kernel}{step}{batch} {image} {chans}{tail}{form}"


def tolerance(dtype: str, target: Target) -> float:
    """Largest error accepted of a kernel or a network, relative to the largest output."""
    half = dtype == "float16" and target.gpu is None
    return HALF_TOLERANCE if half else TOLERANCE[dtype]


_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Workload)}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on a target at a thread count, and how often the network runs it."""

    workload: Workload
    target: str
    threads: int
    template: str
    count: int = 1

    @property
    def key(self) -> str:
        """What a log line must match to be reused: `count` plays no part."""
        return f"{self.workload.key}/{self.template}/{self.target}/{self.threads}"
