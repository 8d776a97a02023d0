"""Relay, TVM's graph language up to 0.19: text and params files become a Relax module.

`syntax.py` has the grammar, `params.py` and `metadata.py` read arrays, `ops.py` maps operators,
`lower.py` evaluates the program. No TVM that pip offers can run Relay, so there is no reference
here: a bundle is checked against float64, and against recorded outputs (`verify --expected`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvmsep.contracts import InputError, ModelError
from tvmsep.frontends.model import Imported, TensorSpec

if TYPE_CHECKING:
    from tvmsep.frontends.relay.params import Array
    from tvmsep.frontends.relay.tree import Function

_MAX_TEXT_BYTES = 1 << 30


def from_files(
    path: Path, params: Path | None, shapes: Mapping[str, Sequence[int]] | None = None
) -> Imported:
    """Import a Relay program.

    Args:
        path: its text, as `mod.astext(show_meta_data=True)` wrote it.
        params: its weights, as `relay.save_param_dict` wrote them; None where the text has all.
        shapes: of inputs whose types leave dimensions open, by name.

    Raises:
        ModelError: a file cannot be read or holds what is not supported; says line and column.
        InputError: `shapes` does not fit the program's inputs.
    """
    try:
        import lark  # noqa: F401
    except ImportError as error:
        raise ModelError(
            'reading Relay text needs the lark package: pip install "tvmsep[tune]"'
        ) from error
    from tvmsep.frontends.relay.lower import Lowering
    from tvmsep.frontends.relay.metadata import constants
    from tvmsep.frontends.relay.params import read_params
    from tvmsep.frontends.relay.syntax import parse

    data = _read(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is no Relay text: byte {error.start} is not UTF-8") from error
    program = parse(text, path)
    if "@main" not in program.functions:
        found = ", ".join(program.functions)
        raise ModelError(f"{path} has no function @main (it has {found}): rename the one to build")
    main = program.functions["@main"]
    arrays = read_params(params) if params is not None else {}
    values = _bind(main, arrays, params)
    lowering = Lowering(program, constants(program.metadata, path), path)
    free = _inputs(main, values, shapes or {}, path, params)
    module, results = lowering.run(values, free)
    inputs = tuple(TensorSpec(name[1:], shape, "float32") for name, shape in free.items())
    outputs = tuple(
        TensorSpec(f"output_{n}", tuple(int(d) for d in r.ty.shape), str(r.ty.dtype))
        for n, r in enumerate(results)
    )
    source = {"kind": "relay", "path": str(path), "sha256": hashlib.sha256(data).hexdigest()}
    if params is not None:
        digest = hashlib.sha256(params.read_bytes()).hexdigest()
        source |= {"params": str(params), "params_sha256": digest}
    return Imported(path.stem, module, inputs, outputs, source, None)


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"{path} is a directory: give the .relay file inside it")
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise ModelError(f"{path} has over {_MAX_TEXT_BYTES} bytes: keep weights in --params")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; check the path") from error
    if not data:
        raise ModelError(f"{path} is empty (0 bytes): save it again")
    return data


def _bind(main: Function, arrays: Mapping[str, Array], path: Path | None) -> dict[str, Array]:
    """The parameters that are weights, by the name they have in the text."""
    from tvmsep.frontends.relay.tree import TensorType

    values = {}
    names = {p.name.text for p in main.params}
    for name, array in arrays.items():
        printed = f"%{name}" if f"%{name}" in names else f"%v{name}"  # %v: a name like 193
        if printed in names:
            values[printed] = array
    for param in main.params:
        shape, kind = getattr(values.get(param.name.text), "shape", None), param.type
        if shape is not None and isinstance(kind, TensorType) and _differ(shape, kind.shape):
            raise ModelError(
                f"{path} holds {param.name.text[1:]} as {_dims(shape)}, the program takes "
                f"{_show(kind)}: {_SAVED_WITH_IT}"
            )
    missing = len(main.params) - len(values)
    if path is not None and missing > 1 and missing >= len(values):
        there = f"but {', '.join(list(arrays)[:3])}" if arrays else "and nothing else"
        raise ModelError(
            f"{path} holds {len(values) or 'none'} of the program's {len(main.params)} parameters "
            f"({there}): {_SAVED_WITH_IT}"
        )
    return values


_SAVED_WITH_IT = "give the params file that was saved with the program"


def _differ(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) != len(wanted) or any(
        w not in (None, s) for s, w in zip(shape, wanted, strict=True)
    )


def _inputs(
    main: Function,
    values: Mapping[str, Array],
    shapes: Mapping[str, Sequence[int]],
    path: Path,
    params: Path | None,
) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that are no weights."""
    from tvmsep.frontends.relay.syntax import at
    from tvmsep.frontends.relay.tree import TensorType

    found = {}
    free = [p for p in main.params if p.name.text not in values]
    unknown = [n for n in shapes if f"%{n}" not in {p.name.text for p in free}]
    if unknown:
        names = ", ".join(p.name.text[1:] for p in free)
        raise InputError(f"the model has no input {unknown[0]}: its inputs are {names}")
    if params is None and len(free) > 1:
        # Weights left as inputs would be refused one operator later, by a worse message.
        rest = ", ".join(p.name.text for p in free[1:4])
        kernels = [p for p in free[1:] if isinstance(p.type, TensorType)]
        if len(kernels) > 3:
            raise ModelError(
                f"{path} takes {len(free)} parameters ({rest}, ...): give their values with "
                "--params FILE, as relay.save_param_dict wrote it"
            )
    for param in free:
        place, name, kind = at(param.name.at), param.name.text, param.type
        if not isinstance(kind, TensorType):
            raise ModelError(f"{path}, {place}: input {name} has no tensor type")
        if kind.dtype != "float32":
            raise ModelError(
                f"{path}, {place}: input {name} is {kind.dtype}: only float32 inputs are "
                "supported; convert pixels in the preprocessing"
            )
        shape = tuple(shapes.get(name[1:], [0 if d is None else d for d in kind.shape]))
        fixed = list(zip(shape, kind.shape, strict=False))
        if len(shape) != len(kind.shape) or any(d not in (None, n) for n, d in fixed):
            raise InputError(
                f"shape {','.join(map(str, shape))} contradicts input {name[1:]}, which is "
                f"{_show(kind)}: only dynamic dimensions can be chosen"
            )
        if min(shape, default=1) < 1 or math.prod(shape) > 1 << 29:
            example = ",".join(str(d or 1) for d in kind.shape)
            raise ModelError(
                f"{path}, {place}: input {name} is {_show(kind)}: fix its shape with "
                f"--shape {name[1:]}={example}"
            )
        found[name] = shape
    if not found:
        raise ModelError(f"{path} takes no input: --params holds a value for all its parameters")
    return found


def _show(kind: object) -> str:
    return _dims(getattr(kind, "shape", ()))


def _dims(shape: Sequence[int | None]) -> str:
    return f"[{','.join('?' if d is None else str(d) for d in shape)}]"
