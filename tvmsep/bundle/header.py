"""What a network takes and gives, as a C header: for programs that link it or load its library."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from tvmsep.bundle.manifest import Manifest, Specialisation, TensorInfo
from tvmsep.contracts import InputError

_C_TYPES = {
    "float32": "float", "float64": "double", "float16": "uint16_t", "bool": "uint8_t",
}  # fmt: skip
"""C has neither a half nor a byte-wide boolean; integers are named `int64_t` and so on."""


def symbol(stem: str) -> str:
    """What names in C begin with, from a file's name without its suffix.

    Raises:
        InputError: it begins like no name in C.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", stem)
    if not name or not name[0].isalpha():
        raise InputError(f"{stem!r} cannot begin a name in C: let the output begin with a letter")
    return name


def c_header(manifest: Manifest, stem: str) -> str:
    """A C99 header whose names begin with `stem`.

    Raises:
        InputError: `stem` cannot begin a name.
    """
    name = symbol(stem)
    upper = name.upper()
    lines = [
        f"/* {_comment(manifest.name)}, compiled by tvmsep {manifest.tvmsep} for"
        f" {_comment(manifest.target.name)}.",
        "   Tensors are dense, in row-major order. Sizes are in bytes. */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "#include <stdint.h>",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"#define {upper}_MODEL {_string(manifest.name)}",
        f"#define {upper}_TVM_VERSION {_string(manifest.tvm)}",
        f"#define {upper}_TARGET {_string(manifest.target.triple + ' ' + manifest.target.mcpu)}",
        f"#define {upper}_LICENCE {_string(manifest.licence)}",
        "",
        f"/* Shapes that the network was compiled for. */\n#define {upper}_SHAPES "
        f"{len(manifest.specialisations)}",
    ]
    for number, one in enumerate(manifest.specialisations):
        prefix = f"{upper}_SHAPE{number + 1}" if number else upper
        lines += _tensors(prefix, one)
    if manifest.preprocess is not None:
        rule = manifest.preprocess
        lines += [
            "",
            "/* A picture: its shorter side is resized, its centre cropped (0: not done), then",
            "   each value p of 0 to 255 becomes (p * scale - mean) / std, by channel. */",
            f"#define {upper}_RESIZE {rule.resize or 0}",
            f"#define {upper}_CROP {rule.crop or 0}",
            f"#define {upper}_SCALE {rule.scale!r}",
            f"#define {upper}_MEAN {_braces(rule.mean)}",
            f"#define {upper}_STD {_braces(rule.std)}",
            f"#define {upper}_CHANNEL_ORDER {_string(rule.channel_order)}",
            f"#define {upper}_LAYOUT {_string(rule.layout)}",
        ]
    if manifest.labels is not None:
        lines += [
            "",
            f"#define {upper}_LABELS {len(manifest.labels)}",
            f"#define {upper}_LABEL_LIST {{ \\",
            *(f"    {_string(label)}, \\" for label in manifest.labels),
            "}",
        ]
    lines += [
        "",
        "/* In the object file that `tvmsep export --format object` makes under the same name:",
        "   the prefix of its functions (for ffi.SystemLib), its manifest and its weights. */",
        f"#define {upper}_PREFIX {_string(name + '_')}",
        *(
            f"extern const char _binary_{name}_{what}_start[], _binary_{name}_{what}_end[];"
            for what in ("manifest_json", "weights_safetensors")
        ),
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _tensors(prefix: str, one: Specialisation) -> list[str]:
    lines = [f"#define {prefix}_INPUTS {len(one.inputs)}"]
    lines += [line for n, t in enumerate(one.inputs) for line in _tensor(f"{prefix}_INPUT{n}", t)]
    lines.append(f"#define {prefix}_OUTPUTS {len(one.outputs)}")
    lines += [line for n, t in enumerate(one.outputs) for line in _tensor(f"{prefix}_OUTPUT{n}", t)]
    return lines


def _tensor(prefix: str, tensor: TensorInfo) -> list[str]:
    elements = math.prod(tensor.shape)
    return [
        f"#define {prefix}_NAME {_string(tensor.name)}",
        f"#define {prefix}_DTYPE {_string(tensor.dtype)}",
        f"#define {prefix}_TYPE {_C_TYPES.get(tensor.dtype, tensor.dtype + '_t')}",
        f"#define {prefix}_RANK {len(tensor.shape)}",
        f"#define {prefix}_SHAPE {_braces(tensor.shape or (1,))}",
        f"#define {prefix}_ELEMENTS {elements}",
        f"#define {prefix}_BYTES {elements * np.dtype(tensor.dtype).itemsize}",
    ]


def _braces(values: Sequence[float] | Iterable[int]) -> str:
    return "{" + ", ".join(repr(v) for v in values) + "}"


def _string(text: str) -> str:
    """A C string literal; bytes outside printable ASCII in octal, which ends after three digits."""
    plain = {*range(32, 127)} - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text).replace("*/", "* /")
