"""Damaged files, and what reading one came to, in worker processes; see `benchmarks/fuzz.py`."""

from __future__ import annotations

import math
import os
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tvmsep.contracts import TvmsepError

if TYPE_CHECKING:
    from tvmsep.frontends import Imported

MEMORY_BYTES = 2 << 30
"""Address space that a file may take beyond what the libraries have."""
LIMIT_S = 60.0
TOLERANCE = 1e-3
"""Of the largest output: damaged weights may well cancel each other."""
FAR = 1e20
"""An output beyond it, or none, says that float32 may not hold what lies between."""
MOST_ELEMENTS = 1 << 24
"""Inputs that are worth an evaluation in float64."""
_EDGES = (0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_SIGNS = "()[]{}<>,.;:=%@#\"'\\/*-+_ \n\t0123456789eEfinaNTrueé\0"

Seeds = dict[str, bytes]
"""The files of a sound case by their names; the first is the one to open."""


def _position(rng: random.Random, size: int) -> int:
    """Anywhere, but mostly in the first few kilobytes or at the end, where structure is."""
    zone = rng.random()
    if zone < 0.6:
        return rng.randrange(min(size, 6000))
    return rng.randrange(max(0, size - 600), size) if zone < 0.8 else rng.randrange(size)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to five changes: bits, numbers, pieces cut, doubled or moved, signs, the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        if not out:
            break
        at = _position(rng, len(out))
        length = min(len(out) - at, rng.choice((1, 2, 4, 8, 20, 100, 1000)))
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                width = rng.choice((1, 2, 4, 8))
                value = rng.choice(_EDGES) & ((1 << 8 * width) - 1)
                out[at : at + width] = struct.pack("<Q", value)[:width]
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[at : at + length] * rng.choice((1, 1, 1, 50))
            case 5:
                other = _position(rng, len(out))
                out[at : at + length] = out[other : other + length]
            case 6:
                out[at : at + rng.choice((0, 1))] = rng.choice(_SIGNS).encode()
            case _:
                if rng.random() < 0.3:
                    del out[at:]
                else:
                    out[at:at] = str(rng.choice((-1, 0, 10**9, 10**30, 1e308))).encode()
    return bytes(out)


def mutate_member(bundle: Path, rng: random.Random) -> bytes:
    """A bundle with one member damaged and everything around it made to fit again."""
    from tvmsep.bundle.archive import Archive, write_archive

    with Archive(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.members}
    name = rng.choice(("manifest.json", "manifest.json", "log.jsonl", "weights.safetensors"))
    contents[name] = mutate(contents[name], rng)
    out = bundle.with_name("rewritten")
    write_archive(out, contents)
    data = out.read_bytes()
    out.unlink()
    return data


def open_model(path: Path) -> None:
    """As `inspect` does; what is accepted must compute what onnxruntime makes of the file."""
    from tvmsep import api

    params = path.with_suffix(".params")
    prepared = api.prepare(
        path, target="x86-avx2", threads=1, params=params if params.is_file() else None
    )
    if path.suffix == ".onnx":
        _check_numbers(prepared.imported)


def _check_numbers(imported: Imported) -> None:
    """Raises AssertionError if the import, in float64, is not what onnxruntime computes."""
    import numpy as np

    from tvmsep.graph import evaluate, from_relax

    if sum(math.prod(i.shape) for i in imported.inputs) > MOST_ELEMENTS:
        return
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(i.shape).astype(i.dtype) for i in imported.inputs]
    assert imported.reference is not None
    graph = from_relax(imported.module)
    try:
        theirs = imported.reference(inputs)
        ours = evaluate(graph, dict(zip(graph.inputs, inputs, strict=True)))
    except TvmsepError:
        return  # onnxruntime refuses what could be read, or an operator has no NumPy form
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise AssertionError(f"an output of {a.shape}, onnxruntime's has {b.shape}")
        if not (np.abs([a, b]) < FAR).all():
            return
        if np.abs(a - b).max(initial=0.0) > TOLERANCE * np.abs(b).max(initial=1.0):
            raise AssertionError("an output is not onnxruntime's")


def open_bundle(path: Path) -> None:
    """Everything but running its code, which is for whoever made it."""
    from tvmsep.bundle import Package
    from tvmsep.logs import best_trials, read_log

    with Package(path) as package:
        package.weights()
        package.check_members()
    best_trials(read_log(path))


def open_log(path: Path) -> None:
    """As `build --log` does."""
    from tvmsep.logs import best_trials, read_log

    best_trials(read_log(path))


def open_toml(path: Path) -> None:
    """As a target, and as a picture's preprocessing."""
    from tvmsep.bundle import read_preprocess
    from tvmsep.targets import load_target

    try:
        read_preprocess(path)
    except TvmsepError as error:
        _one_line(error)
    load_target(str(path))


OPENERS: dict[str, Callable[[Path], None]] = {
    ".onnx": open_model,
    ".relay": open_model,
    ".tvmsep": open_bundle,
    ".jsonl": open_log,
    ".toml": open_toml,
}


def _one_line(error: TvmsepError) -> None:
    if "\n" in str(error) or not str(error):
        raise AssertionError(f"a message of several lines: {error}")


def warm() -> None:
    """Import what reading takes, then limit the memory of this process."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    import tvmsep.frontends.onnx_import  # noqa: F401

    status = Path("/proc/self/status").read_text()
    used = int(status.partition("VmSize:")[2].split()[0]) * 1024
    limit = used + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def attempt(path: str) -> bool:
    """Read a file; True if it was accepted, False if it was refused by one message.

    Raises:
        Exception: whatever else reading raised: a fault.
    """
    os.chdir(Path(path).parent)
    try:
        OPENERS[Path(path).suffix](Path(path))
    except TvmsepError as error:
        _one_line(error)
        return False
    return True
