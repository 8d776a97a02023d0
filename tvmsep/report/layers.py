"""A plan as rows: one a layer, and one a separable block with the arithmetic behind it."""

from __future__ import annotations

import msgspec

from tvmsep.contracts import Workload
from tvmsep.graph import Plan


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the network. Bytes are those that must move at least once, fp32."""

    name: str
    op: str
    kernel: str
    stride: str
    groups: int
    input: tuple[int, int, int, int]
    """n, c, h, w."""
    output: tuple[int, int, int, int]
    epilogue: str
    macs: int
    params: int
    bytes: int
    flop_per_byte: float
    template: str


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A depthwise convolution and the pointwise one that reads it, against a standard one.

    With M input and N output channels, a Dk x Dk kernel and Dp x Dp outputs, a standard
    convolution costs N Dp^2 Dk^2 M multiplications, the pair M Dp^2 (Dk^2 + N): the ratio is
    1 / N + 1 / Dk^2 (Howard et al., MobileNets, 2017).
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    output: tuple[int, int]
    standard: int
    """Multiplications of the standard convolution."""
    separable: int
    """Multiplications of the pair."""

    @property
    def saving(self) -> float:
        """How many times fewer multiplications."""
        return self.standard / self.separable


def layers(plan: Plan) -> list[Layer]:
    """Every step of the plan, in order."""
    rows = []
    shapes = {**(plan.head.shapes if plan.head else {}), **plan.shapes}
    for step in plan.all_steps:
        w = step.workload
        if w is None:
            shape = shapes[step.output]
            dims = tuple(shape) + (1,) * (4 - len(shape)) if len(shape) <= 4 else (1, 1, 1, 1)
            n, c, h, width = dims
            rows.append(
                Layer(
                    name=step.output, op=step.node.op if step.node else "", kernel="", stride="",
                    groups=1, input=(n, c, h, width), output=(n, c, h, width), epilogue="", macs=0,
                    params=0, bytes=0, flop_per_byte=0.0, template="fallback",
                )
            )  # fmt: skip
            continue
        windowed = w.op in ("conv", "depthwise", "pointwise", "dwpw", "pool")
        rows.append(
            Layer(
                name=step.output,
                op=f"{w.op}:{w.kind}" if w.kind else w.op,
                kernel=f"{w.kh}x{w.kw}" if windowed else "",
                stride=f"{w.sh}x{w.sw}" if windowed else "",
                groups=w.groups,
                input=(w.n, w.ic, w.ih, w.iw),
                output=(w.n, w.oc, w.oh, w.ow),
                epilogue=" ".join(w.epilogue),
                macs=w.macs,
                params=w.params,
                bytes=w.bytes_moved,
                flop_per_byte=w.flops / w.bytes_moved,
                template=step.template,
            )
        )
    return rows


def pairs(plan: Plan) -> list[tuple[str, Workload, Workload]]:
    """Depthwise steps with the pointwise step that reads them, squeeze-and-excite or not."""
    made = {s.output: s for s in plan.steps}
    found = []
    for step in plan.steps:
        w = step.workload
        if w is None or w.op not in ("pointwise", "dense") or not step.inputs:
            continue
        before = made.get(step.inputs[0])
        while (
            before is not None and before.workload is not None and before.workload.op == "eltwise"
        ):
            before = made.get(before.inputs[0])
        if before is None or before.workload is None or before.workload.op != "depthwise":
            continue
        if before.workload.kh * before.workload.kw > 1:
            found.append((step.output, before.workload, w))
    return found


def block_of(name: str, dw: Workload, pw: Workload) -> Block:
    """The arithmetic of one depthwise + pointwise pair."""
    pixels = dw.n * dw.oh * dw.ow
    taps = dw.kh * dw.kw
    m, n = dw.ic, pw.oc
    return Block(
        name=name, in_channels=m, out_channels=n, kernel=(dw.kh, dw.kw), output=(dw.oh, dw.ow),
        standard=n * pixels * taps * m, separable=dw.macs + pw.macs,
    )  # fmt: skip


def blocks(plan: Plan) -> list[Block]:
    """Every separable block of the network."""
    return [block_of(*pair) for pair in pairs(plan)]
