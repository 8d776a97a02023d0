"""What a file is that is no model which can be read here, and how it becomes one.

Told by its first bytes, which do not lie, then by its name, for formats without any. Nothing in it
is parsed but a zip file's list of names.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from tvmsep.contracts import ModelError

_PICTURE = "a picture: give a model here; pictures go to tvmsep run BUNDLE --input PICTURE"
_ARRAYS = "NumPy arrays: give a model here; arrays go to tvmsep run BUNDLE --input FILE"
_KERAS = (
    "a Keras model: load it with keras.saving.load_model, then "
    "model.export('model.onnx', format='onnx')"
)
_TORCH = (
    "torch.export.save(torch.export.export(model, example_inputs), 'model.pt2'), or export it to "
    "ONNX"
)
_CHECKPOINT = (
    f"a checkpoint, a pickle that may run code and holds no graph: save the model with {_TORCH}"
)
_SCRIPT = f"TorchScript, which is not read: save the model that it was made from with {_TORCH}"
_PADDLE = (
    "a Paddle model: convert it with paddle2onnx --model_dir FOLDER --model_filename FILE "
    "--params_filename FILE --save_file model.onnx"
)
_GRAPH = (
    "a TensorFlow graph: convert it with python -m tf2onnx.convert --graphdef FILE "
    "--inputs NAME:0 --outputs NAME:0 --output model.onnx"
)
_SAVED = (
    "a TensorFlow SavedModel: convert it with python -m tf2onnx.convert --saved-model FOLDER "
    "--output model.onnx"
)
_WEIGHTS = "weights without a graph: load them into the model's code and export that to ONNX"
_PROGRAM = "a torch program: let its name end in .pt2"
_BUNDLE = "a bundle, which is built already: tvmsep run, bench and show take it"

_BEGINNINGS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n", _PICTURE),
    (0, b"\xff\xd8\xff", _PICTURE),
    (0, b"GIF8", _PICTURE),
    (0, b"RIFF", _PICTURE),
    (0, b"\x93NUMPY", _ARRAYS),
    (4, b"TFL3", "a TensorFlow Lite model: convert it with python -m tf2onnx.convert --tflite FILE "
     "--output model.onnx; quantised ones are not supported"),
    (0, b"\x89HDF\r\n", _KERAS),
    (0, b"\x1f\x8b", "compressed with gzip: unpack it (gunzip, tar xzf) and give the model in it"),
    (0, b"\x7fELF", "a compiled program or library: give the model that it was made from"),
    (0, b"%PDF", "a PDF document: give a model"),
    (0, b"<?xml", "XML; an OpenVINO model, perhaps: give the ONNX model that it was made from"),
    (0, b"\x80\x02", _CHECKPOINT),
    (0, b"\x80\x03", _CHECKPOINT),
    (0, b"\x80\x04", _CHECKPOINT),
    (0, b"\x80\x05", _CHECKPOINT),
    (4, b"\0\0\0\0{", "safetensors, " + _WEIGHTS),
)  # fmt: skip
"""Offset, bytes, what it is; no ONNX file begins so."""
_SUFFIXES = {
    ".pt": _CHECKPOINT, ".pth": _CHECKPOINT, ".ckpt": _CHECKPOINT, ".pb": _GRAPH,
    ".pdmodel": _PADDLE, ".pdiparams": _PADDLE,
    ".caffemodel": "a Caffe model: export the network to ONNX from a framework that reads it",
    ".mlmodel": "a Core ML model: give the ONNX model that it was made from",
    ".param": "ncnn's: give the ONNX model that it was made from",
    ".params": "weights of a Relay program: give NET.relay --params FILE",
    ".jsonl": "a tuning log: give the model, and the log with --log",
}  # fmt: skip
_BEGINNING_BYTES = 16


def refuse(path: Path, *, by_name: bool = False, but_programs: bool = False) -> None:
    """Say what a file is if it is known to be no ONNX model; return if it may be one.

    Args:
        path: a file or folder that is there.
        by_name: go by the name too, for a file that could not be read as ONNX.
        but_programs: a torch program is what is wanted.

    Raises:
        ModelError: what it is, and what to do.
    """
    what = _what(path, by_name)
    if what is not None and not (but_programs and what == _PROGRAM):
        raise ModelError(f"{path} is {what}")


def _what(path: Path, by_name: bool) -> str | None:
    if path.is_dir():
        return _SAVED if (path / "saved_model.pb").is_file() else None
    try:
        with path.open("rb") as file:
            head = file.read(_BEGINNING_BYTES)
    except OSError:
        return None  # who reads it says why it cannot be
    if head.startswith(b"PK\3\4"):
        return _in_zip(path)
    for at, magic, what in _BEGINNINGS:
        if head[at:].startswith(magic):
            return what
    if not by_name:
        return None
    if path.name == "saved_model.pb":
        return _SAVED
    if head.startswith(b"7767517"):
        return _SUFFIXES[".param"]
    return _SUFFIXES.get(path.suffix.lower())


def _in_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return "a zip file that is cut off or damaged: fetch it again"
    tails = {n.rpartition("/")[2] for n in names}
    if {"manifest.json", "weights.safetensors"} <= {*names}:
        return _BUNDLE
    if {"config.json", "model.weights.h5"} <= tails:
        return _KERAS
    if "data.pkl" in tails:
        return _SCRIPT if any("/code/" in n for n in names) else _CHECKPOINT
    if any("archive_format" in n for n in names):
        return _PROGRAM
    if inside := sorted(n for n in names if n.endswith(".onnx")):
        return f"a zip file: unpack it and give {inside[0]}"
    if names and all(n.endswith(".npy") for n in names):
        return _ARRAYS
    return "a zip file without an .onnx file in it: give a model"
