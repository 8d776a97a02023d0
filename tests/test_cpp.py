"""Bundles without Python: the C++ example, the C header, the object for static linking."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundle_kit import noise, picture
from test_bundle_file import edited, repack

from tvmsep import api
from tvmsep.bundle import Bundle, Manifest, Package, export, load_picture
from tvmsep.bundle.header import c_header
from tvmsep.contracts import BundleError, InputError
from tvmsep.targets import load_target

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF and POSIX")

EXAMPLES = Path(__file__).parents[1] / "examples/cpp"
BUILD_TIMEOUT_S = 400
"""zig compiles its C++ library at its first use: a minute or two."""
MODEL = "mobilenet_v1:width=0.25,resolution=32"


def build(*words: str | Path) -> None:
    command = [sys.executable, str(EXAMPLES / "build.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert done.returncode == 0 and not done.stderr, done.stderr


def run(*words: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(list(map(str, words)), capture_output=True, timeout=60, input=given)


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("cpp") / "classify"
    build("-o", program, "--bundle-libs")
    assert (program.parent / "libtvm_runtime.so").is_file()
    return program


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.tvmsep"
    api.build(MODEL, out=path, threads=[1, 2])
    return path


def top(done: subprocess.CompletedProcess[bytes]) -> list[tuple[int, float, str]]:
    assert done.returncode == 0, done.stderr.decode()
    lines = [line.split(" ", 2) for line in done.stdout.decode().splitlines() if ":" not in line]
    return [(int(i), float(score), label) for i, score, label in lines]


def best(net: Bundle, x: np.ndarray) -> list[tuple[int, float, str]]:
    scores, labels = net(x)[0], net.manifest.labels or [""] * 1000
    order = np.argsort(-scores, kind="stable")[:5]
    return [(int(i), float(f"{scores[i]:.6g}"), labels[i]) for i in order]


@pytest.mark.parametrize("threads", [1, 2])
def test_top_5_is_pythons(classify: Path, affine_path: Path, tmp_path: Path, threads: int) -> None:
    noise(8).tofile(tmp_path / "x.f32")
    done = run(classify, affine_path, tmp_path / "x.f32", "--threads", str(threads), "--runs", "5")
    assert b"median of 5 runs: " in done.stdout
    with Bundle.load(affine_path, threads) as net:
        assert top(done) == best(net, noise(8))


@pytest.mark.parametrize("size", [(47, 61), (16, 16), (20, 90), (7, 5)])
def test_pictures_are_made_inputs_as_in_python(
    classify: Path, affine_path: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = picture(tmp_path / "p.ppm", pixels)
    with Bundle.load(affine_path, 1) as net:
        want = best(net, load_picture(path, net.manifest))
    assert top(run(classify, affine_path, path, "--threads", "1")) == want


def test_mobilenet_in_cpp(classify: Path, mobilenet: Path, tmp_path: Path) -> None:
    with Bundle.load(mobilenet, 2) as net:
        (x,) = net.noise(4)
        x.tofile(tmp_path / "x.f32")
        want = best(net, x)
    got = top(run(classify, mobilenet, tmp_path / "x.f32", "--threads", "2"))
    assert [(i, label) for i, _, label in got] == [(i, label.strip()) for i, _, label in want]
    np.testing.assert_allclose([s for _, s, _ in got], [s for _, s, _ in want], rtol=1e-5)


def test_bundles_of_several_shapes(classify: Path, shapes_path: Path, tmp_path: Path) -> None:
    noise(8).tofile(tmp_path / "x.f32")
    with Bundle.load(shapes_path, 1) as net:
        want = best(net, noise(8))
        want4 = best(net, noise(9, batch=4))
    words = (classify, shapes_path, tmp_path / "x.f32", "--threads", "1")
    assert top(run(*words)) == top(run(*words, "--shape", "1,3,16,16")) == want
    noise(9, batch=4).tofile(tmp_path / "x.f32")
    assert top(run(*words)) == top(run(*words, "--shape", "4,3,16,16")) == want4
    for given, text in (
        (words[:3], b"values of shape 1,3,16,16 or 4,3,16,16"),
        ((*words, "--shape", "2,3,16,16"), b"not built for --shape 2,3,16,16: it has 1,3,16,16 or"),
        ((*words, "--shape", "1,3,16,16"), b"neither a P6 picture nor"),
    ):
        noise(9, batch=2 if len(given) == 3 else 4).tofile(tmp_path / "x.f32")
        done = run(*given)
        assert done.returncode == 2 and text in done.stderr, done.stderr
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = picture(tmp_path / "p.ppm", pixels)
    with Bundle.load(shapes_path, 1) as net:
        one, four = (load_picture(path, net.manifest, n) for n in (0, 1))
        assert one.shape[0] == 1 and four.shape[0] == 4
        assert top(run(classify, shapes_path, path, "--threads", "1")) == best(net, one)
        done = run(classify, shapes_path, path, "--threads", "1", "--shape", "4,3,16,16")
        assert top(done) == best(net, four)


def test_damage_is_noticed(classify: Path, affine_path: Path, tmp_path: Path) -> None:
    noise(8).tofile(tmp_path / "x.f32")
    data = affine_path.read_bytes()
    path = tmp_path / "damaged.tvmsep"
    rng = np.random.default_rng(1)
    for _ in range(40):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        done = run(classify, path, tmp_path / "x.f32")
        # A bit that means nothing, such as a date, may turn: then the answer is right.
        if done.returncode == 0:
            assert top(done) == top(run(classify, affine_path, tmp_path / "x.f32"))
        else:
            assert (done.returncode, done.stderr[:7]) == (2, b"error: "), done
    for size in (0, 21, 22, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert run(classify, path, tmp_path / "x.f32").returncode == 2


def test_mistakes_are_named(classify: Path, affine_path: Path, tmp_path: Path) -> None:
    x = tmp_path / "x.f32"
    noise(8).tofile(x)

    def says(path: Path, text: str, given: Path = x) -> None:
        done = run(classify, path, given)
        assert done.returncode == 2 and text in done.stderr.decode(), done.stderr

    for change, text in (
        ({"format": 9}, "another bundle format"),
        ({"tvm": "0.1"}, "needs TVM 0.1"),
        ({"weights": ["w", "b"]}, "parameters"),
    ):
        manifest = edited(affine_path, **change)
        path = repack(affine_path, tmp_path / "odd.tvmsep", **{"manifest.json": manifest})
        says(path, text)
    with Package(affine_path) as package:
        target = msgspec.to_builtins(package.manifest.target)
    manifest = edited(affine_path, target={**target, "requires": ["amx_9"], "vendor": ""})
    path = repack(affine_path, tmp_path / "odd.tvmsep", **{"manifest.json": manifest})
    says(path, "this CPU, which lacks amx_9")
    gpu = msgspec.to_builtins(load_target("t4").gpu)
    manifest = edited(affine_path, target={**target, "gpu": gpu})
    path = repack(affine_path, tmp_path / "odd.tvmsep", **{"manifest.json": manifest})
    says(path, "is for a CUDA device")
    says(repack(affine_path, path, **{"lib/threads2.so": b"no library"}), "error: ")
    says(affine_path, "neither a P6 picture nor", given=Path(__file__))
    says(tmp_path / "none", "cannot be read")
    assert b"usage: classify BUNDLE PICTURE" in run(classify).stderr


# Header and object


PRINT = """
#include <stdio.h>
#include "net.h"
#include "net.h"
int main(void) {
  static const int64_t shape[NET_INPUT0_RANK] = NET_INPUT0_SHAPE;
  static const float mean[3] = NET_MEAN;
  static const char *const labels[NET_LABELS] = NET_LABEL_LIST;
  NET_INPUT0_TYPE value = 0;
  (void)value;
  printf("%s|%s|%d|%d|%d|%.3f|%s|%s|%d|%d", NET_MODEL, NET_INPUT0_NAME, (int)shape[2],
         NET_INPUT0_BYTES, NET_SHAPE2_INPUT0_ELEMENTS, mean[1], labels[0], labels[1], NET_RESIZE,
         NET_CROP);
  return 0;
}
"""


def test_header_is_c(shapes_path: Path, manifest: Manifest, tmp_path: Path) -> None:
    from tvmsep.contracts.preprocess import Preprocess

    with Package(shapes_path) as package:
        manifest = package.manifest
    odd = ['a "b" ??/ \\ \x01', "größer */"]
    text = c_header(
        msgspec.structs.replace(
            manifest, name='a*/"b"', labels=odd, preprocess=Preprocess(resize=20, mean=(0, 0.25, 1))
        ),
        "net",
    )
    (tmp_path / "net.h").write_text(text)
    (tmp_path / "main.c").write_text(PRINT)
    command = [sys.executable, "-m", "ziglang", "cc", "-std=c99", "-pedantic", "-Wall", "-Wextra",
               "-Werror", "main.c", "-o", "main"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode()
    want = ['a*/"b"', "x", "16", "3072", "3072", "0.250", *odd, "20", "0"]
    assert run(tmp_path / "main").stdout.decode().split("|") == want


def test_header_names(affine_path: Path, tmp_path: Path) -> None:
    assert export(affine_path, tmp_path / "my-net.2.h", "header") == ["manifest.json"]
    assert "#define MY_NET_2_INPUT0_BYTES 3072\n" in (tmp_path / "my-net.2.h").read_text()
    with pytest.raises(InputError, match="cannot begin a name in C"):
        export(affine_path, tmp_path / "2.h", "header")


def test_object_is_the_bundles_network(mobilenet: Path, tmp_path: Path) -> None:
    api.export_object(mobilenet, tmp_path / "net.o", threads=2)
    export(mobilenet, tmp_path / "net.h", "header")
    source = EXAMPLES / "embedded.cpp"
    build(source, tmp_path / "net.o", f"-I{tmp_path}", "-o", tmp_path / "embedded")
    with Bundle.load(mobilenet, 2) as net:
        (x,) = net.noise(5)
        want = net(x)
    done = run(tmp_path / "embedded", "2", given=x.tobytes())
    assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), want.ravel())
    assert b"less than input" in run(tmp_path / "embedded").stderr


def test_object_of_another_shape(tmp_path: Path) -> None:
    import onnx

    from tvmsep.frontends import builtin_proto

    proto = builtin_proto(MODEL)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(proto, tmp_path / "net.onnx")
    path, two = tmp_path / "net.tvmsep", {"input": (2, 3, 32, 32)}
    shapes = [{"input": (1, 3, 32, 32)}, two]
    api.build(tmp_path / "net.onnx", out=path, threads=[1], shapes=shapes)
    api.export_object(path, tmp_path / "net.o", shapes=two)
    export(path, tmp_path / "net.h", "header", shapes=two)
    text = (tmp_path / "net.h").read_text()
    assert "#define NET_INPUT0_SHAPE {2, 3, 32, 32}\n" in text
    assert "#define NET_SHAPE2_INPUT0_SHAPE {1, 3, 32, 32}\n" in text
    source = EXAMPLES / "embedded.cpp"
    build(source, tmp_path / "net.o", f"-I{tmp_path}", "-o", tmp_path / "embedded")
    with Bundle.load(path, 1) as net:
        (x,) = net.noise(5, shapes=1)
        want = net(x)
    done = run(tmp_path / "embedded", "1", given=x.tobytes())
    assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), want.ravel())
    export(path, tmp_path / "net.so", "so", shapes=two)
    with Package(path) as package:
        assert (tmp_path / "net.so").read_bytes() == package.read("lib/shape2-threads1.so")
    for format in ("tar", "dir"):
        with pytest.raises(InputError, match="holds every shape"):
            export(path, tmp_path / format, format, shapes=two)
    with pytest.raises(InputError, match=r"it has --shape input=1,3,32,32; --shape input=2,3,32"):
        api.export_object(path, tmp_path / "n.o", shapes={"input": (3, 3, 32, 32)})


def test_object_mistakes(affine_path: Path, mobilenet: Path, tmp_path: Path) -> None:
    for path, name, threads, message in (
        (affine_path, "net.o", None, "Relax text.*build it again"),
        (mobilenet, "net.o", 4, "variants for 1, 2 threads, none for 4"),
        (mobilenet, "1.o", None, "cannot begin a name in C"),
    ):
        with pytest.raises((BundleError, InputError), match=message):
            api.export_object(path, tmp_path / name, threads=threads)
    assert not list(tmp_path.iterdir())
