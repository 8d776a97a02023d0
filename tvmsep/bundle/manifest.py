"""What a bundle says about itself: `manifest.json`, typed, versioned and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from tvmsep.contracts import BundleError, InputError, Target
from tvmsep.contracts.preprocess import Preprocess

FORMAT = 1
"""Version of the bundle format. 1: the first."""
FORMAT_SHAPES = 2
"""With several specialisations. Bundles of one stay at 1, which every tvmsep reads."""

MANIFEST, WEIGHTS, LOG = "manifest.json", "weights.safetensors", "log.jsonl"
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_MAX_TENSOR_BYTES = 1 << 31

Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output as the model itself names it."""

    name: str
    shape: tuple[Count, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network compiled for one thread count."""

    threads: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    library: str
    """Member that holds the shared library."""
    relax: str
    """Member that holds the Relax text it was compiled from."""
    peak_ram_bytes: Bytes
    """Weights plus the most that activations take at any time."""
    estimate_s: float | None = None
    """Sum of the tasks' measured times; None when nothing was measured."""


class Specialisation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network compiled for one set of input shapes; fields as in `Manifest`."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    variants: tuple[Variant, ...]
    weights: tuple[str, ...]
    flops: Bytes = 0

    @property
    def title(self) -> str:
        """`input: float32[1, 3, 224, 224]`, all inputs."""
        return ", ".join(map(str, self.inputs))

    @property
    def options(self) -> str:
        """`--shape input=1,3,224,224`, all inputs."""
        return " ".join(f"--shape {t.name}={','.join(map(str, t.shape))}" for t in self.inputs)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of `manifest.json`.

    `members` maps every other member to its SHA-256 in hexadecimal. `weights` names the
    parameters in the order in which the library's `main` takes them, after the inputs.
    """

    format: int = FORMAT
    name: str
    tvmsep: str
    tvm: str
    """Version of apache-tvm that compiled the libraries, and must run them."""
    target: Target
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    variants: tuple[Variant, ...]
    weights: tuple[str, ...]
    members: dict[str, str]
    source: dict[str, str] = {}
    """Where the model came from: its kind, path or spec, SHA-256."""
    licence: str = "unknown"
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    log_lines: Bytes = 0
    """Lines of the tuning log that decided this build; they are in `log.jsonl`."""
    log_total: Bytes = 0
    """Lines of the log they were taken from."""
    flops: Bytes = 0
    """Floating-point operations of one run, two a multiply-accumulate; 0 when not counted."""
    peak_gflops_per_core: float | None = None
    """FMA peak of one core of the machine that built the bundle, as measured there."""
    layout: str | msgspec.UnsetType = msgspec.UNSET
    """Of activations: `nchw4c`, `nhwc`, ...; none where it is a CPU's default."""
    dtype: Literal["float16"] | msgspec.UnsetType = msgspec.UNSET
    """Of weights and of activations between kernels, where it is not float32."""
    further: tuple[Specialisation, ...] | msgspec.UnsetType = msgspec.UNSET
    """Format 2: the network for other input shapes. What stands above is for the first ones."""

    @property
    def precision(self) -> str:
        """Dtype of weights and of activations between kernels."""
        return self.dtype or "float32"

    @property
    def specialisations(self) -> tuple[Specialisation, ...]:
        """All sets of input shapes that the bundle has the network for, the first one first."""
        first = Specialisation(
            inputs=self.inputs, outputs=self.outputs, variants=self.variants, weights=self.weights,
            flops=self.flops,
        )  # fmt: skip
        return (first, *(self.further or ()))

    def find(self, shapes: Mapping[str, Sequence[int]] | None) -> int:
        """Which of `specialisations` is for these input shapes; the first one for None.

        Args:
            shapes: by the input's name; an input that is left out may have any.

        Raises:
            InputError: none is, or several are.
        """
        several = self.specialisations
        if shapes is None:
            return 0
        fits = [
            at
            for at, one in enumerate(several)
            if {n: tuple(s) for n, s in shapes.items()}.items()
            <= {t.name: t.shape for t in one.inputs}.items()
        ]
        if len(fits) == 1:
            return fits[0]
        asked = ", ".join(f"{n}={','.join(map(str, s))}" for n, s in shapes.items())
        has = "; ".join(one.options for one in several)
        if fits:
            raise InputError(f"{asked} fits several of {self.name}'s shapes: give one of: {has}")
        raise InputError(
            f"{self.name} was not built for the shape {asked}: it has {has}; give one of these, or "
            "build it with another --shape"
        )

    def led_by(self, which: int) -> Manifest:
        """The same with another of its sets of shapes as the first one."""
        if which == 0:
            return self
        rest = list(self.specialisations)
        first = rest.pop(which)
        return msgspec.structs.replace(
            self, inputs=first.inputs, outputs=first.outputs, variants=first.variants,
            weights=first.weights, flops=first.flops, further=tuple(rest),
        )  # fmt: skip

    def shape_note(self, which: int) -> str:
        """`input: float32[4, 3, 224, 224]` where it has several; empty where there is one."""
        return self.specialisations[which].title if self.further else ""

    @property
    def weight_names(self) -> set[str]:
        """Of all specialisations."""
        return {name for s in self.specialisations for name in s.weights}

    def check(self) -> None:
        """Check what types alone cannot say.

        Raises:
            ValueError: what is wrong, and where.
        """
        if (self.format == FORMAT_SHAPES) != bool(self.further):
            raise ValueError(f"format {self.format} and further shapes do not fit together")
        needed = {WEIGHTS, LOG}
        for one in self.specialisations:
            _check(one)
            for variant in one.variants:
                needed |= {variant.library, variant.relax}
        _check_together(self.specialisations)
        missing = needed - set(self.members)
        if missing or MANIFEST in self.members:
            raise ValueError(f"members lacks {', '.join(sorted(missing)) or 'nothing'}")

    def to_json(self) -> bytes:
        """Indented JSON with a newline at its end; equal manifests give equal bytes."""
        encoded = msgspec.json.encode(self, order="deterministic")
        return msgspec.json.format(encoded, indent=2) + b"\n"


def _check(one: Specialisation) -> None:
    if not one.inputs or not one.outputs or not one.variants:
        raise ValueError("inputs, outputs and variants must not be empty")
    threads = [v.threads for v in one.variants]
    if threads != sorted(set(threads)):
        raise ValueError(f"variants have the thread counts {threads}: not rising")
    for tensor in (*one.inputs, *one.outputs):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{tensor.name} has the unknown dtype {tensor.dtype!r}")
        if 8 * math.prod(tensor.shape) > _MAX_TENSOR_BYTES:
            raise ValueError(f"{tensor.name} is too large: {tensor.shape}")
    for names, what in (
        ([t.name for t in one.inputs], "inputs"),
        (list(one.weights), "weights"),
    ):
        if len(set(names)) != len(names):
            raise ValueError(f"two {what} have the same name")


def _check_together(several: tuple[Specialisation, ...]) -> None:
    def alike(one: Specialisation) -> object:
        tensors = [[(t.name, t.dtype) for t in side] for side in (one.inputs, one.outputs)]
        return tensors, [v.threads for v in one.variants]

    for one in several[1:]:
        if alike(one) != alike(several[0]):
            raise ValueError(
                f"{one.title} and {several[0].title} differ in more than their shapes: tensors "
                "and thread counts must be the same"
            )
    shapes = [tuple(t.shape for t in one.inputs) for one in several]
    if len(set(shapes)) != len(shapes):
        raise ValueError("two specialisations are for the same input shapes")


class _Format(msgspec.Struct):
    format: int


def parse_manifest(text: bytes, path: object) -> Manifest:
    """Read `manifest.json`; `path` names the bundle in messages.

    Raises:
        BundleError: another format version, or not a manifest.
    """
    try:
        version = msgspec.json.decode(text, type=_Format).format
        if version not in (FORMAT, FORMAT_SHAPES):
            raise BundleError(
                f"{path} has bundle format {version}, this tvmsep reads formats {FORMAT} and "
                f"{FORMAT_SHAPES}: "
                f"rebuild from the log inside: tvmsep build MODEL --log {path}"
            )
        manifest = msgspec.json.decode(text, type=Manifest)
        manifest.check()
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BundleError(f"the manifest of {path} is malformed: {error}") from error
    return manifest
