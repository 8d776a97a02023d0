"""The steps of a plan, in a walk over a normalised graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from tvmsep.contracts import ModelError, Target, Workload
from tvmsep.graph.ir import Array, Graph, Node
from tvmsep.graph.packing import pack_bias, pack_weight, phase_weights, specialise, spread_groups
from tvmsep.graph.plan import Layout, Plan, Step, choose_block, choose_split, vectors_of
from tvmsep.schedules import template_for

_PACKED = 0.75
"""Share of the channels below which phases are packed, not each padded to whole blocks."""
_WIDEST_TILE = 9
_INTERLEAVED = 8
"""Lanes of a block up to which LLVM makes shuffles of interleaved channels."""


class Planner:
    """Walks the graph once, choosing layouts and inserting repacking at the boundary.

    Arguments as for `tvmsep.graph.make_plan`.
    """

    def __init__(
        self, graph: Graph, target: Target, threads: int, returned: Sequence[str] | None,
        layout: str, dtype: str,
    ) -> None:  # fmt: skip
        self.layout, self.dtype = layout, dtype
        self.graph, self.target, self.threads = graph, target, threads
        self.returned = graph.outputs if returned is None else returned
        self.alias: dict[str, str] = {}
        self.scaled: dict[str, list[str]] = {}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes.values():
            for name in node.inputs:
                self.readers[name].append(node)
        self.plan = Plan(
            [], {}, dict(graph.inputs), [], {}, {}, dict(graph.constants), threads,
            dict(graph.input_dtypes),
        )  # fmt: skip
        for name, shape in graph.inputs.items():
            self._define(name, shape, Layout())

    def run(self) -> Plan:
        """The plan.

        Raises:
            ModelError: an operator that neither a template nor Relax can compute.
        """
        for node in self.graph.nodes.values():
            match node.op:
                case "conv":
                    self._conv(node)
                case "conv_transposed":
                    self._conv_transposed(node)
                case "pool":
                    self._pool(node)
                case "resample":
                    self._resample(node.name, node.inputs[0], node.shape, epilogue=node.epilogue,
                                   kind=node.attrs["kind"])  # fmt: skip
                case "channels":
                    self._channels(node)
                case "eltwise":
                    self._eltwise(node)
                case "view" if self._layout(node.inputs[0]).block:
                    self._view(node)
                case _:
                    self._opaque(node)
        self.plan.outputs = [self._plain(o) for o in self.returned]
        return self.plan

    # Values and layouts

    def _define(self, name: str, shape: tuple[int, ...], layout: Layout) -> None:
        self.plan.shapes[name], self.plan.layouts[name] = shape, layout

    def _layout(self, value: str) -> Layout:
        return self.plan.layouts.get(value, Layout())

    def _image(self, value: str) -> tuple[int, int, int, int]:
        shape = self.plan.shapes.get(value) or self.graph.shape(value)
        if len(shape) == 2:
            return (*shape, 1, 1)
        return shape  # type: ignore[return-value]

    def _split(self, h: int, w: int, *, scaled: bool = False) -> Any:
        return choose_split(h, w, self.threads, scaled=scaled)

    def _block(self, channels: int) -> int:
        return choose_block(channels, self.target, self.layout, self.dtype)

    def _in_vectors(self, w: Workload) -> Workload:
        if w.op == "channels":  # moves parts of blocks, whatever they are made of
            return w
        in_run, out_run = (
            vectors_of(block, self.target, self.dtype) for block in (w.in_block, w.out_block)
        )
        return msgspec.structs.replace(w, in_run=in_run, out_run=out_run)

    def _kernel(
        self, w: Workload, out: str, inputs: list[str], params: list[str], shape: tuple[int, ...]
    ) -> None:
        w = self._in_vectors(msgspec.structs.replace(w, dtype=self.dtype))
        template = template_for(w, self.target)
        if template is None:
            form = f" in {self.dtype}" if self.dtype != "float32" else ""
            form += f" and layout {self.layout}" if self.layout else ""
            raise ModelError(f"{out}: no template of {self.target.name} takes {w.label}{form}")
        inputs = [self.alias.get(i, i) for i in inputs]
        self.plan.steps.append(Step(out, inputs, params, w, template.name))
        self._define(out, shape, Layout(w.out_block, w.out_split))

    def _blocked(self, value: str) -> str:
        """The value in blocked layout, repacked if it isn't."""
        if self._layout(value).block:
            return value
        name = f"{value}.blocked"
        if name in self.plan.shapes:
            return name
        n, c, h, w = self._image(value)
        work = Workload(
            op="pack", n=n, ic=c, ih=h, iw=w, oc=c, in_block=0,
            out_block=self._block(c),
            in_split=self._split(h, w), out_split=self._split(h, w),
        )  # fmt: skip
        self._kernel(work, name, [value], [], self.graph.shape(value))
        return name

    def _plain(self, value: str) -> str:
        """The value with its logical shape, unpacked if it is blocked."""
        layout = self._layout(value)
        if not layout.block:
            return value
        name = f"{value}.plain"
        if name in self.plan.shapes:
            return name
        n, c, h, w = self._image(value)
        split: Any = layout.split
        work = Workload(
            op="unpack", n=n, ic=c, ih=h, iw=w, oc=c, in_block=layout.block, out_block=0,
            in_split=split, out_split=split,
        )  # fmt: skip
        self._kernel(work, name, [value], [], self.plan.shapes[value])
        return name

    # Operators

    def _conv(self, node: Node) -> None:
        a, x = node.attrs, node.inputs[0]
        factors = self.scaled.get(x)
        if factors is not None:
            x = factors[0]
        n, ic, ih, iw = self._image(x)
        weight: Array = a["weight"]
        oc, _, kh, kw = weight.shape
        groups = a["groups"]
        sh, sw = a["strides"]
        plain_input = not self._layout(x).block
        direct = plain_input and ic <= 4 and groups == 1 and factors is None
        if not direct:
            x = self._blocked(x)
        in_block = 0 if direct else self._layout(x).block
        out_block = a.get("out_block") or self._block(oc)
        epilogue = tuple(node.epilogue)
        if a["bias"] is not None:
            epilogue = ("bias", *epilogue)
        base = Workload(
            op="conv", n=n, ic=ic, ih=ih, iw=iw, oc=oc, kh=kh, kw=kw, sh=sh, sw=sw,
            dh=a["dilation"][0], dw=a["dilation"][1], pads=a["pads"], groups=groups,
            in_block=in_block, out_block=out_block, epilogue=epilogue, dtype=self.dtype,
        )  # fmt: skip
        in_split: Any = self._layout(x).split if self.threads > 1 else "rows"
        out_split = self._split(base.oh, base.ow, scaled=factors is not None)
        base = msgspec.structs.replace(base, in_split=in_split, out_split=out_split)
        w, weight = specialise(self._in_vectors(base), weight)
        if factors is not None:
            w = msgspec.structs.replace(w, scaled=True)
        params = [self._param(f"{node.name}.weight", pack_weight(weight, w))]
        if a["bias"] is not None:
            params.append(self._param(f"{node.name}.bias", pack_bias(a["bias"], w)))
        inputs = [x]
        if "add" in epilogue:
            inputs.append(self._blocked(node.inputs[1]))
        if factors is not None:
            inputs.append(self._blocked(factors[1]))
        self._kernel(w, node.name, inputs, params, node.shape)

    def _conv_transposed(self, node: Node) -> None:
        """A convolution between two shapes of image: arXiv 1603.07285, 1609.05158.

        With strides and few groups: one stride-1 convolution computes all phases of the output,
        which are then shuffled into place. Else zeros are put between the input's pixels first.
        """
        a = node.attrs
        weight: Array = a["weight"]
        n, _, ih, iw = self._image(node.inputs[0])
        (sh, sw), (dh, dw), (top, left, bottom, right) = a["strides"], a["dilation"], a["pads"]
        oh, ow = node.shape[2:]
        oc, _, kh, kw = weight.shape
        name = f"{node.name}.phases"
        # As many groups as phases: zeros between groups cost what zeros between pixels would.
        if 1 < sh * sw >= a["groups"] and (dh, dw) == (1, 1):
            weight = spread_groups(weight, a["groups"], 1)
            block = self._block(oc)
            padded, packed = -(-oc // block) * block, self._block(sh * sw * oc)
            if -(-sh * sw * oc // packed) * packed <= _PACKED * sh * sw * padded:
                padded, block = oc, packed
            taps = (-(-kh // sh), -(-kw // sw))
            reach = [max(ih, (oh - 1 + top) // sh + 1), max(iw, (ow - 1 + left) // sw + 1)]
            while reach[1] > _WIDEST_TILE and all(reach[1] % d for d in range(3, _WIDEST_TILE)):
                reach[1] += 1  # a row that no tile divides is computed pixel by pixel
            pads = (taps[0] - 1, taps[1] - 1, reach[0] - ih, reach[1] - iw)
            bias = a["bias"]
            if bias is not None:
                bias = np.tile(np.pad(bias, (0, padded - oc)), sh * sw)
            shape = (n, sh * sw * padded, *reach)
            attrs = {
                "weight": phase_weights(weight, (sh, sw), padded), "bias": bias, "pads": pads,
                "strides": (1, 1), "dilation": (1, 1), "groups": 1, "out_block": block,
            }  # fmt: skip
            self._conv(Node(name, "conv", node.inputs, shape, attrs=attrs, epilogue=node.epilogue))
            self._resample(node.name, name, node.shape, kind="shuffle", sh=sh, sw=sw,
                           pads=(top, left, 0, 0))  # fmt: skip
            return
        x = node.inputs[0]
        if (sh, sw) != (1, 1):
            grown = (oh + top + bottom - (kh - 1) * dh, ow + left + right - (kw - 1) * dw)
            self._resample(name, x, (*self._image(x)[:2], *grown), kind="zeros", sh=sh, sw=sw)
            x = name
        rows, columns = (kh - 1) * dh, (kw - 1) * dw
        attrs = {
            "weight": weight[:, :, ::-1, ::-1], "bias": a["bias"], "strides": (1, 1),
            "dilation": (dh, dw), "groups": a["groups"],
            "pads": (rows - top, columns - left, rows - bottom, columns - right),
        }  # fmt: skip
        self._conv(Node(node.name, "conv", [x], node.shape, attrs=attrs, epilogue=node.epilogue))

    def _resample(
        self, name: str, source: str, shape: tuple[int, ...], epilogue: Sequence[str] = (),
        **facts: Any,
    ) -> None:  # fmt: skip
        x = self._blocked(source)
        layout = self._layout(x)
        n, ic, ih, iw = self._image(source)
        in_split: Any = layout.split
        w = Workload(
            op="resample", n=n, ic=ic, ih=ih, iw=iw, oc=shape[1], size=shape[2:],
            in_block=layout.block, epilogue=tuple(epilogue),
            out_block=self._block(shape[1])
            if facts["kind"] == "shuffle" else layout.block,
            in_split=in_split, out_split=self._split(*shape[2:]), **facts,
        )  # fmt: skip
        self._kernel(w, name, [x], [], shape)

    def _channels(self, node: Node) -> None:
        inputs = [self._blocked(i) for i in node.inputs]
        images = [self._image(i) for i in node.inputs]
        n, _, h, w = images[0]
        layout = self._layout(inputs[0])
        blocks = [
            (image[1], self._layout(i).block) for image, i in zip(images, inputs, strict=True)
        ]
        split: Any = self._split(h, w)
        work = Workload(
            op="channels", kind=node.attrs["kind"], n=n, ic=sum(c for c, _ in blocks), ih=h, iw=w,
            oc=node.shape[1], in_block=layout.block,
            out_block=self._channels_block(node), epilogue=tuple(node.epilogue),
            sources=tuple(blocks) if node.attrs["kind"] == "concat" else (),
            in_split=layout.split, out_split=split,  # type: ignore[arg-type]
        )  # fmt: skip
        self._kernel(work, node.name, inputs, [], node.shape)

    def _channels_block(self, node: Node) -> int:
        """The block of joined or moved channels: narrower around a shuffle, where that can be.

        Operators of two images want both in the block that `choose_block` gives.
        """
        block = self._block(node.shape[1])
        readers = self.readers[node.name]
        one_image = all(
            r.op == "channels"
            or (r.op == "conv" and r.attrs["groups"] == 1 and node.name not in r.inputs[1:])
            for r in readers
        )
        around = [node.attrs["kind"], *(r.attrs.get("kind", "") for r in readers)]
        shuffled = (
            any(k.startswith("shuffle") for k in around) and node.name not in self.graph.outputs
        )
        if self.target.gpu is not None or self.layout:
            return block
        return min(block, _INTERLEAVED) if shuffled and one_image else block

    def _pool(self, node: Node) -> None:
        x = self._blocked(node.inputs[0])
        layout = self._layout(x)
        w: Workload = node.attrs["workload"]
        in_split: Any = layout.split
        w = msgspec.structs.replace(
            w, in_block=layout.block, out_block=layout.block, epilogue=tuple(node.epilogue),
            in_split=in_split, out_split=self._split(w.oh, w.ow),
        )  # fmt: skip
        self._kernel(w, node.name, [x], [], node.shape)

    def _eltwise(self, node: Node) -> None:
        if self._scales_a_pointwise(node):
            self.scaled[node.name] = node.inputs
            return
        inputs = [self._blocked(i) for i in node.inputs]
        n, c, h, w = self._image(node.inputs[0])
        layout = self._layout(inputs[0])
        split: Any = layout.split
        work = Workload(
            op="eltwise", kind=node.attrs["kind"], n=n, ic=c, ih=h, iw=w, oc=c,
            in_block=layout.block, out_block=layout.block, epilogue=tuple(node.epilogue),
            in_split=split, out_split=split,
        )  # fmt: skip
        self._kernel(work, node.name, inputs, [], node.shape)

    def _scales_a_pointwise(self, node: Node) -> bool:
        """The end of a squeeze-and-excite block, that a pointwise convolution alone reads."""
        readers = self.readers[node.name]
        if node.attrs["kind"] != "scale" or node.epilogue or node.name in self.graph.outputs:
            return False
        if [r.op for r in readers] != ["conv"] or readers[0].inputs.count(node.name) > 1:
            return False
        a, image = readers[0].attrs, self._image(node.inputs[0])
        plain = a["groups"] == 1 and a["weight"].shape[2:] == (1, 1) and not any(a["pads"])
        return readers[0].inputs[0] == node.name and plain and image[2] * image[3] > 1

    def _view(self, node: Node) -> None:
        """The same memory under another logical shape."""
        source = node.inputs[0]
        self.alias[node.name] = self.alias.get(source, source)
        self._define(node.name, node.shape, self._layout(source))

    def _opaque(self, node: Node) -> None:
        constants = self.graph.constants
        inputs = [i if i in constants else self._plain(i) for i in node.inputs]
        for name in inputs:
            # TVM's text of a module holds no array: it could not be read back.
            if name in constants and constants[name].ndim:
                self._param(name, constants[name])
        self.plan.steps.append(Step(node.name, inputs, node=node))
        self._define(node.name, node.shape, Layout())

    def _param(self, name: str, array: Array) -> str:
        self.plan.params[name] = array
        return name
