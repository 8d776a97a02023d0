"""The network that all engines get: one ONNX file and two inputs; and how outputs are compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmsep.contracts import InputError, Target
from tvmsep.frontends.onnx_clean import fix_shapes, read_proto

MIN_CHANGE = 0.1
"""Two inputs must move the outputs by this share of their largest value, or an engine that
ignores its input would pass for right."""


def specs(text: str) -> list[str]:
    """Networks separated by commas, each with options that are separated by commas too.

    >>> specs("mobilenet_v1,mobilenet_v2:width=1.4,resolution=160,net.onnx")
    ['mobilenet_v1', 'mobilenet_v2:width=1.4,resolution=160', 'net.onnx']

    Raises:
        InputError: no network, or an option without one.
    """
    found: list[str] = []
    for part in (p.strip() for p in text.split(",")):
        if "=" in part and ":" not in part and found and ":" in found[-1]:
            found[-1] += f",{part}"
        elif not part or "=" in part.partition(":")[0]:
            raise InputError(
                f"--networks {text!r}: {part!r} is no network; write them as "
                "mobilenet_v1,mobilenet_v2:width=1.4,resolution=160,model.onnx"
            )
        else:
            found.append(part)
    return found


@dataclass(frozen=True)
class Network:
    """One network on disk."""

    spec: str
    model: Path
    inputs: Path
    """.npy, [2, n, c, h, w]."""
    shape: tuple[int, ...]
    sha256: str
    flops: int
    """Of one call: 2 for each multiply-add."""


def write_network(spec: str, batch: int, target: Target, folder: Path) -> Network:
    """Write the ONNX file and the inputs.

    Raises:
        TvmsepError: the network cannot be read, or has not one input and one output, or its batch
            is another.
    """
    import onnx

    from tvmsep.api import prepare
    from tvmsep.frontends import builtin, builtin_proto

    if builtin.is_builtin(spec):
        parsed = builtin.parse_spec(spec)
        if parsed.batch not in (1, batch):
            raise InputError(f"{spec} and --batch {batch} contradict each other: drop one")
        size = max(parsed.batch, batch)
        joint = "," if ":" in spec else ":"
        proto = builtin_proto(spec if parsed.batch == size else f"{spec}{joint}batch={size}")
    elif spec.endswith(".onnx"):
        proto = read_proto(Path(spec))
        _fix_batch(proto.graph, batch, spec)
    else:
        known = ", ".join(builtin.list_builtins())
        raise InputError(f"no network {spec}: give an .onnx file, or one of {known}")
    model = folder / "model.onnx"
    onnx.save(proto, model)
    prepared = prepare(str(model), target=target, threads=1)
    ins, outs = prepared.imported.inputs, prepared.imported.outputs
    if len(ins) != 1 or len(outs) != 1:
        raise InputError(
            f"{spec} has {len(ins)} inputs and {len(outs)} outputs: only networks with one of "
            "each are compared"
        )
    arrays = np.random.default_rng(7).standard_normal((2, *ins[0].shape), dtype=np.float32)
    np.save(folder / "inputs.npy", arrays)
    return Network(
        spec, model, folder / "inputs.npy", ins[0].shape,
        hashlib.sha256(model.read_bytes()).hexdigest(), prepared.plans[1].flops,
    )  # fmt: skip


def _fix_batch(graph: Any, batch: int, spec: str) -> None:
    weights = {t.name for t in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in weights or not dims:
            continue
        size = dims[0].dim_value
        if size not in (0, batch):
            raise InputError(f"{spec} has the fixed batch {size}: give --batch {size}")
        if not all(d.dim_value > 0 for d in dims[1:]):
            raise InputError(
                f"{spec}: input {value.name} has dynamic dimensions besides the batch; export it "
                "with fixed ones"
            )
        fix_shapes(graph, {value.name: (batch, *(d.dim_value for d in dims[1:]))})


def check_change(reference: np.ndarray, spec: str, least: float = MIN_CHANGE) -> float:
    """How far two inputs are apart at the output, as a share of its largest value.

    Args:
        reference: [2, outputs].
        spec: of the network, for the message.
        least: what it has to be.

    Raises:
        InputError: less than that.
    """
    change = float(np.abs(reference[0] - reference[1]).max() / np.abs(reference).max())
    if not change >= least:
        raise InputError(
            f"{spec}: two inputs change its output by {change:.1e} of its largest value, below "
            f"{least}: comparing outputs would prove nothing; use weights that let the "
            "signal through"
        )
    return change


def relative_error(outputs: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference relative to the reference's largest value; infinite for another shape."""
    if outputs.shape != reference.shape:
        return float("inf")
    return float(np.abs(outputs - reference).max() / np.abs(reference).max())
