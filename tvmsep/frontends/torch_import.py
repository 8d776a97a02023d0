"""PyTorch to Relax: modules and exported programs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import InputError, ModelError
from tvmsep.frontends.model import Array, Imported, Reference, TensorSpec

if TYPE_CHECKING:
    import torch


def require_torch() -> Any:
    """The `torch` package.

    Raises:
        ModelError: it isn't installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ModelError(
            'reading PyTorch models needs torch: pip install "tvmsep[torch]", '
            "or export the model to ONNX"
        ) from error
    return torch


def from_module(model: torch.nn.Module, example_inputs: tuple[Any, ...] | None) -> Imported:
    """Import a module by tracing it with `example_inputs`, in inference mode.

    The module's own training flag is restored afterwards.

    Raises:
        InputError: no example inputs.
        ModelError: torch cannot export it, or it holds something that is not supported.
    """
    torch = require_torch()
    name = type(model).__name__
    if not example_inputs:
        raise InputError(
            f"a torch module needs an example input: load_model({name.lower()}, "
            "example_inputs=(torch.randn(1, 3, 224, 224),))"
        )
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own deprecations
            program = torch.export.export(model, tuple(example_inputs))
    except Exception as error:  # torch raises whatever it likes: say whose failure it is
        raise ModelError(
            f"torch.export cannot export {name}: {_last_line(error)}; make its forward free of "
            "data-dependent Python control flow, or export it to ONNX"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    return from_program(program, name=name, source={"kind": "torch", "spec": name})


def from_pt2(path: Path) -> Imported:
    """Import a program that `torch.export.save` wrote.

    Raises:
        ModelError: the file is missing, damaged, or no exported program.
    """
    torch = require_torch()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; check the path") from error
    if not data:
        raise ModelError(f"{path} is empty (0 bytes): export it again")
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path} is cut off or no exported program ({len(data)} bytes): save it again with "
            "torch.export.save(program, path)"
        )
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises whatever it likes on a damaged file
        raise ModelError(
            f"{path} is not a program that torch {torch.__version__} can load: "
            f"{_last_line(error)}; save it again with torch.export.save(program, path)"
        ) from error
    source = {"kind": "pt2", "path": str(path), "sha256": hashlib.sha256(data).hexdigest()}
    return from_program(program, name=path.stem, source=source)


def export_onnx(path: Path, out: Path) -> None:
    """Write the program of a `.pt2` file as ONNX, for engines that read nothing else.

    Raises:
        InputError: torch's exporter is not installed, or cannot.
    """
    torch = require_torch()
    if importlib.util.find_spec("onnxscript") is None:
        raise InputError(
            f"what reads only ONNX needs {path} exported by torch, and that needs onnxscript: "
            "pip install 'tvmsep[exporters]', or give an .onnx file"
        )
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
            program = torch.export.load(path)
            torch.onnx.export(program, f=str(out), dynamo=True, external_data=False, verbose=False)
    except Exception as error:  # torch raises whatever it likes
        raise InputError(
            f"torch cannot export {path} to ONNX: {_last_line(error)}; give an .onnx file"
        ) from error


def from_program(
    program: torch.export.ExportedProgram, *, name: str, source: dict[str, str]
) -> Imported:
    """Import an exported program, its weights bound as constants.

    Raises:
        ModelError: an input is dynamic or not float32, or an operator is not supported.
    """
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    inputs = _input_specs(program)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and TVM warn of their own deprecations
            functional = _decompose(program)
            module = from_exported_program(
                functional, unwrap_unit_return_tuple=True, run_ep_decomposition=False,
                custom_convert_map=dict.fromkeys(_RESIZES, _resize),
            )  # fmt: skip
        _check_pools(functional)
        module = relax.transform.FoldConstant()(module)
        module = relax.transform.DeadCodeElimination()(module)
    except ModelError:
        raise
    except Exception as error:  # TVM raises whatever it likes: keep the cause, say what to do
        raise ModelError(
            f"{name} holds something that is not supported: {_last_line(error)}; "
            "export it to ONNX, or replace that part"
        ) from error
    returned = module["main"].ret_ty
    fields = list(returned.fields) if hasattr(returned, "fields") else [returned]
    outputs = tuple(
        TensorSpec(str(n), tuple(int(d) for d in f.shape), str(f.dtype))
        for n, f in zip(program.graph_signature.user_outputs, fields, strict=True)
    )
    if "sha256" not in source:
        source = {**source, "sha256": _weights_hash(program)}
    return Imported(name, module, inputs, outputs, source, _reference(program))


def _decompose(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Core operators and no in-place writes, but activations and pools stay whole."""
    aten = require_torch().ops.aten
    table = require_torch().export.default_decompositions()
    for whole in (aten.hardswish, aten.hardswish_, aten.hardsigmoid, aten.max_pool2d):
        table.pop(whole.default, None)
    for name in _RESIZES:
        operator = getattr(aten, name.partition(".")[0])
        for overload in operator.overloads():
            table.pop(getattr(operator, overload), None)
    return program.run_decompositions(table)


_RESIZES: dict[str, tuple[str, str]] = {
    "upsample_nearest2d.vec": ("nearest_neighbor", "asymmetric"),
    "upsample_bilinear2d.vec": ("linear", "half_pixel"),
    "upsample_bicubic2d.vec": ("cubic", "half_pixel"),
    "_upsample_bilinear2d_aa.default": ("", ""),
    "_upsample_bicubic2d_aa.default": ("", ""),
}
"""Operators of `torch.nn.functional.interpolate`: method and coordinates. TVM's importer takes
other coordinates, and passes over antialiasing."""


def _resize(node: torch.fx.Node, importer: Any) -> Any:
    """`interpolate` as torch computes it.

    Raises:
        ModelError: antialiasing, or a scale that gives no whole number of pixels, by which torch
            then places its samples.
    """
    from tvm import relax

    target: Any = node.target
    method, coordinates = _RESIZES[target.__name__]
    if not method:
        raise ModelError(f"node {node.name}: interpolate with antialias is not supported")
    arguments: list[Any] = list(node.args)
    x, size, *_, scales = arguments
    before, after = x.meta["val"].shape[2:], node.meta["val"].shape[2:]
    aligned = method != "nearest_neighbor" and bool(arguments[2])
    if size is None and not aligned:
        for size, scale, out in zip(before, scales, after, strict=True):
            if abs(size * scale - out) > 1e-6 * out:
                raise ModelError(
                    f"node {node.name}: interpolate with scale_factor {scale:g} makes "
                    f"{size * scale:g} of {size} pixels: give it size={tuple(after)}, or "
                    "recompute_scale_factor=True"
                )
    return importer.block_builder.emit(
        relax.op.image.resize2d(
            importer.env[x], tuple(map(int, after)), layout="NCHW", method=method,
            coordinate_transformation_mode="align_corners" if aligned else coordinates,
            rounding_method="floor" if method == "nearest_neighbor" else "", cubic_alpha=-0.75,
        )
    )  # fmt: skip


def _check_pools(program: torch.export.ExportedProgram) -> None:
    """Refuse what TVM's importer drops without a word: a pool's own divisor."""
    average = require_torch().ops.aten.avg_pool2d.default
    for node in program.graph.nodes:
        if node.target is average and (*node.args, *[None] * 7)[6] is not None:
            raise ModelError(
                f"node {node.name} (avg_pool2d) sets divisor_override, which is not supported: "
                "scale the result in the model instead"
            )


def _input_specs(program: torch.export.ExportedProgram) -> tuple[TensorSpec, ...]:
    torch = require_torch()
    metas = {node.name: node.meta.get("val") for node in program.graph.nodes}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = metas.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"input {name} is no tensor: wrap the model so that it takes tensors")
        if any(not isinstance(d, int) for d in value.shape):
            raise ModelError(
                f"input {name} has the dynamic shape {tuple(map(str, value.shape))}: export the "
                "program without dynamic_shapes"
            )
        if value.dtype != torch.float32:
            raise ModelError(
                f"input {name} is {str(value.dtype).removeprefix('torch.')}: only float32 inputs "
                "are supported; convert the model with model.float()"
            )
        specs.append(TensorSpec(str(name), tuple(int(d) for d in value.shape), "float32"))
    return tuple(specs)


def _weights_hash(program: torch.export.ExportedProgram) -> str:
    """SHA-256 of the graph's text and all weights: what identifies a model without a file."""
    digest = hashlib.sha256(str(program.graph).encode())
    for key, tensor in sorted(program.state_dict.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reference(program: torch.export.ExportedProgram) -> Reference:
    torch = require_torch()
    module: list[Any] = []

    def run(arrays: Sequence[Array]) -> list[Array]:
        if not module:
            module.append(program.module())
        with torch.no_grad():
            result = module[0](*(torch.from_numpy(a.copy()) for a in arrays))
        flat, _ = torch.utils._pytree.tree_flatten(result)
        return [t.numpy() for t in flat]

    return run


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
