"""Small bundles, compiled once a run, and what they must answer."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmsep.bundle import (
    Bundle,
    Compiled,
    Package,
    TensorInfo,
    write_bundle,
)
from tvmsep.contracts import Target
from tvmsep.contracts.preprocess import Preprocess
from tvmsep.targets import load_target

RNG = np.random.default_rng(7)
WEIGHTS = {
    "odd": RNG.standard_normal(5).astype(np.float32),  # 20 bytes: not a multiple of 64
    "w": RNG.standard_normal((768, 10)).astype(np.float32),
    "b": RNG.standard_normal(10).astype(np.float32),
}
X = TensorInfo(name="x", shape=(1, 3, 16, 16), dtype="float32")
Y = TensorInfo(name="scores", shape=(1, 10), dtype="float32")
FLOPS = 2 * 768 * 10
LOG = ['{"a": 1}', '{"b": 2}']


def expected(x: np.ndarray) -> np.ndarray:
    w = {k: v.astype(np.float64) for k, v in WEIGHTS.items()}
    return x.reshape(len(x), 768).astype(np.float64) @ w["w"] + w["b"] + w["odd"].sum()


def compile_to(folder: Path, name: str, make: Callable[[Any], None], target: Target) -> Path:
    """A Relax module made by `make(block_builder)`, compiled and linked as bundles have it."""
    from tvm import relax

    from tvmsep.compiler.compile import compile_library, lower

    builder = relax.BlockBuilder()
    make(builder)
    path = folder / f"{name}.so"
    path.write_bytes(compile_library(lower(builder.get(), target), target))
    return path


def affine(builder: Any, batch: int = 1) -> None:
    from tvm import relax

    def var(name: str, *shape: int) -> Any:
        return relax.Var(name, relax.TensorType(shape, "float32"))

    x, odd, w, b = var("x", batch, 3, 16, 16), var("odd", 5), var("w", 768, 10), var("b", 10)
    with builder.function("main", [x, odd, w, b], attrs={"num_input": 1}):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, (batch, 768)))
            y = builder.emit(relax.op.add(relax.op.matmul(flat, w), b))
            out = builder.emit_output(relax.op.add(y, relax.op.sum(odd)))
        builder.emit_func_output(out)


def two_by_two(builder: Any) -> None:
    from tvm import relax

    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    n = relax.Var("n", relax.TensorType((4,), "int32"))
    k = relax.Var("k", relax.TensorType((4,), "int32"))
    with builder.function("main", [x, n, k], attrs={"num_input": 2}):
        with builder.dataflow():
            doubled = builder.emit(relax.op.add(x, x))
            out = builder.emit_output(relax.Tuple([doubled, relax.op.add(n, k)]))
        builder.emit_func_output(out)


@pytest.fixture(scope="session")
def target() -> Target:
    return load_target()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    compile_to(folder, "affine", affine, target)
    compile_to(folder, "affine4", lambda builder: affine(builder, 4), target)
    compile_to(folder, "pair", two_by_two, target)
    return folder


def write(path: Path, built: Path, target: Target, **changes: Any) -> Path:
    library = built / "affine.so"
    parts: dict[str, Any] = dict(
        name="affine",
        target=target,
        inputs=[X],
        outputs=[Y],
        libraries={1: library, 2: library.read_bytes()},
        weights=WEIGHTS,
        relax={1: "one", 2: "two"},
        peak_ram_bytes={1: 40_000, 2: 50_000},
        log_lines=LOG,
        log_total=9,
        labels=[f"class {i}" for i in range(10)],
        preprocess=Preprocess(resize=16, crop=16),
        flops=FLOPS,
        peak_gflops_per_core=100.0,
        source={"kind": "test"},
        licence="Apache-2.0",
    )
    write_bundle(path, **{**parts, **changes})
    return path


@pytest.fixture(scope="session")
def affine_path(built: Path, target: Target) -> Path:
    return write(built / "affine.tvmsep", built, target)


@pytest.fixture(scope="session")
def pair_path(built: Path, target: Target) -> Path:
    return write(
        built / "pair.tvmsep",
        built,
        target,
        name="pair",
        inputs=[
            TensorInfo(name="x", shape=(2, 3), dtype="float32"),
            TensorInfo(name="n", shape=(4,), dtype="int32"),
        ],
        outputs=[
            TensorInfo(name="double", shape=(2, 3), dtype="float32"),
            TensorInfo(name="sum", shape=(4,), dtype="int32"),
        ],
        libraries={1: built / "pair.so"},
        weights={"k": np.arange(4, dtype=np.int32)},
        relax={1: ""},
        peak_ram_bytes={1: 100},
        labels=None,
        preprocess=None,
    )


@pytest.fixture(scope="session")
def shapes_path(built: Path, target: Target) -> Path:
    """The network for one picture and for four, whose bias is another one."""
    library = built / "affine4.so"
    four = Compiled(
        inputs=[TensorInfo(name="x", shape=(4, 3, 16, 16), dtype="float32")],
        outputs=[TensorInfo(name="scores", shape=(4, 10), dtype="float32")],
        libraries={1: library, 2: library},
        weights={**WEIGHTS, "b": WEIGHTS["b"] + 1},
        relax={1: "one of four", 2: "two of four"},
        peak_ram_bytes={1: 45_000, 2: 55_000},
        estimate_s={},
        flops=4 * FLOPS,
    )
    return write(built / "shapes.tvmsep", built, target, further=[four])


@pytest.fixture
def net(affine_path: Path) -> Iterator[Bundle]:
    with Bundle.load(affine_path, threads=1) as bundle:
        yield bundle


def noise(seed: int, batch: int = 1) -> np.ndarray:
    shape = (batch, *X.shape[1:])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def picture(path: Path, array: np.ndarray, **options: Any) -> Path:
    from PIL import Image

    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture(scope="session")
def manifest(affine_path: Path) -> Any:
    with Package(affine_path) as package:
        return package.manifest


def python(code: str, *args: object, timeout_s: float = 60, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
