"""Bundles in programs: onnxruntime's interface, DLPack, event loops, several input shapes."""

import asyncio
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_kit import WEIGHTS, compile_to, expected, noise, write
from stress import stress

import tvmsep
from tvmsep.bundle import Bundle, Package, TensorInfo, load_picture
from tvmsep.bundle.weights import empty_aligned
from tvmsep.contracts import BundleError, InputError, Target


def close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


class Foreign:
    """Another library's tensor: it speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **how: Any) -> Any:
        if self.device[0] != 1:
            raise BufferError("not in this machine's memory")
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


# Zero-copy


def bound_to(net: Bundle, array: np.ndarray) -> int:
    """Where the tensor lies that the network would read."""
    return int(
        net._networks.do(lambda n: np.from_dlpack(n[0].bind([array])[0]).ctypes.data)
    )  # fmt: skip


def test_inputs_are_read_where_they_lie(net: Bundle) -> None:
    mine = np.empty(net.manifest.inputs[0].shape, np.float32)
    mine[...] = noise(0)
    assert bound_to(net, mine) == mine.ctypes.data
    close(net(mine), expected(mine))
    odd = np.frombuffer(bytearray(mine.nbytes + 4), np.float32, offset=4).reshape(mine.shape)
    odd[...] = noise(1)
    turned = empty_aligned(mine.shape[::-1], np.float32).transpose()
    turned[...] = noise(2)
    frozen = mine.copy()
    frozen.flags.writeable = False
    assert bound_to(net, odd) == odd.ctypes.data
    close(net(odd), expected(odd))
    for other in (turned, frozen):
        assert bound_to(net, other) != other.ctypes.data
        close(net(other), expected(other))


def test_dlpack_in_and_out(net: Bundle) -> None:
    x = noise(3)
    got = net(Foreign(x))
    close(got, expected(x))
    assert np.shares_memory(np.from_dlpack(got), got)
    with pytest.raises(InputError, match="'x', a Foreign, cannot be read.*detached"):
        net(Foreign(x, device=(2, 0)))
    with pytest.raises(InputError, match="'x' is float64"):
        net(Foreign(x.astype(np.float64)))


def test_torch_tensors(net: Bundle) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(noise(4)).clone()
    assert bound_to(net, np.from_dlpack(x)) == x.data_ptr()
    got = torch.from_dlpack(net(x))
    close(got.numpy(), expected(noise(4)))
    with pytest.raises(InputError, match="detached from gradients"):
        net(x.requires_grad_())


def test_outputs_outlive_the_bundle_and_each_other(affine_path: Path) -> None:
    with Bundle.load(affine_path, threads=1) as net:
        kept = [net(noise(i)) for i in range(20)]
        assert len({a.ctypes.data for a in kept}) == 20
    with Bundle.load(affine_path, threads=1) as other:
        other(noise(99))
    for i, array in enumerate(kept):
        close(array, expected(noise(i)))


def views(builder: Any) -> None:
    """Outputs that are views of an input, of a weight, and of each other."""
    from tvm import relax

    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    w = relax.Var("w", relax.TensorType((4,), "float32"))
    with builder.function("main", [x, w], attrs={"num_input": 1}):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, (6,)))
            double = builder.emit(relax.op.add(w, w))
            out = builder.emit_output(relax.Tuple([flat, w, w, double]))
        builder.emit_func_output(out)


def test_outputs_never_share_memory(built: Path, target: Target, tmp_path: Path) -> None:
    def info(name: str, *shape: int) -> TensorInfo:
        return TensorInfo(name=name, shape=shape, dtype="float32")

    path = write(
        tmp_path / "views.tvmsep", built, target,
        inputs=[info("x", 2, 3)], outputs=[info("a", 6), *(info(name, 4) for name in "bcd")],
        libraries={1: compile_to(tmp_path, "views", views, target)},
        weights={"w": np.arange(4, dtype=np.float32)}, relax={1: ""}, peak_ram_bytes={1: 0},
    )  # fmt: skip
    with Bundle.load(path, threads=1) as net:
        for given in (empty_aligned((2, 3), np.float32), np.empty((2, 3), np.float32)):
            given[...] = 7
            first = net(given)
            for array in first:
                array += 100
            assert (given == 7).all()
            again = net(given)
            assert (again[0] == 7).all() and (first[0] == 107).all()
            np.testing.assert_array_equal(again[1], [0, 1, 2, 3])
            np.testing.assert_array_equal(first[2], [100, 101, 102, 103])


# Event loops


def test_the_event_loop_goes_on(net: Bundle) -> None:
    async def main() -> None:
        gate, beats = threading.Event(), 0
        net._networks.submit(lambda _: gate.wait(30))  # a long run before ours
        await asyncio.sleep(0.05)  # it has begun
        calls = [asyncio.ensure_future(net.acall(noise(i))) for i in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)
            beats += 1
        assert beats == 20 and not any(c.done() for c in calls)
        calls[3].cancel()
        await asyncio.sleep(0)
        gate.set()
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(got.pop(3), asyncio.CancelledError)
        for i, array in zip((0, 1, 2, 4), got, strict=True):
            close(array, expected(noise(i)))
        with pytest.raises(InputError, match="got 2"):
            await net.acall(noise(0), noise(1))
        net.close()
        with pytest.raises(BundleError, match="closed"):
            await net.acall(noise(0))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_executor_does_too(net: Bundle) -> None:
    async def main() -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, net, noise(5))

    close(asyncio.run(main()), expected(noise(5)))


# Load, and what stays behind


def test_two_bundles_from_several_threads(affine_path: Path, pair_path: Path) -> None:
    with Bundle.load(affine_path) as one, Bundle.load(pair_path, threads=1) as two:
        result = stress([one, two], calls=2000, callers=3)
    assert (result.calls, result.wrong, result.errors) == (1998, 0, [])
    assert result.grown_bytes < 1 << 20


def state_of_process() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "finders": list(sys.meta_path),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "folder": os.getcwd(),
        "warnings": list(warnings.filters),
        "thread names": {t.name for t in threading.enumerate()},
        "float errors": np.geterr(),
        "path": list(sys.path),
        "affinity": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
    }


def test_nothing_is_left_behind(affine_path: Path) -> None:
    before = state_of_process()
    with Bundle.load(affine_path) as net:
        net(noise(0))
        asyncio.run(net.acall(noise(0)))
    assert state_of_process() == before


# onnxruntime's interface


@pytest.fixture
def session(pair_path: Path) -> Iterator[tvmsep.InferenceSession]:
    made = tvmsep.InferenceSession(pair_path, providers=["CPUExecutionProvider"])
    yield made
    made.bundle.close()


def test_session_is_used_like_onnxruntimes(session: tvmsep.InferenceSession) -> None:
    assert [(n.name, n.shape, n.type) for n in session.get_inputs()] == [
        ("x", [2, 3], "tensor(float)"),
        ("n", [4], "tensor(int32)"),
    ]
    assert [n.name for n in session.get_outputs()] == ["double", "sum"]
    assert session.get_providers() == ["CPUExecutionProvider"]
    feed = {"n": np.array([4, 3, 2, 1], np.int32), "x": np.ones((2, 3), np.float32)}
    double, total = session.run(None, feed)
    assert (double == 2).all() and (total == 4).all()
    assert [a.shape for a in session.run(["sum", "double"], feed)] == [(4,), (2, 3)]
    (alone,) = asyncio.run(session.run_async(["sum"], feed))
    assert (alone == 4).all()


def test_session_answers_as_onnxruntimes_does(affine_path: Path, tmp_path: Path) -> None:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(WEIGHTS["w"], "w"),
         numpy_helper.from_array(WEIGHTS["b"] + WEIGHTS["odd"].sum(), "b")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(proto, tmp_path / "affine.onnx")
    answers = []
    for ort, path in ((onnxruntime, tmp_path / "affine.onnx"), (tvmsep, affine_path)):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        name, out = session.get_inputs()[0].name, session.get_outputs()[0]
        assert (out.name, out.type, out.shape) == ("scores", "tensor(float)", [1, 10])
        answers.append(session.run([out.name], {name: noise(0)})[0])
    close(answers[0], answers[1])


def test_session_says_what_is_wrong(session: tvmsep.InferenceSession, pair_path: Path) -> None:
    x, n = np.ones((2, 3), np.float32), np.ones(4, np.int32)
    with pytest.raises(InputError, match="pair has no inputs m: it has x, n"):
        session.run(None, {"x": x, "m": n})
    with pytest.raises(InputError, match="needs the inputs n too"):
        session.run(None, {"x": x})
    with pytest.raises(InputError, match="no outputs product: it has double, sum"):
        session.run(["product"], {"x": x, "n": n})
    with pytest.raises(InputError, match="CUDAExecutionProvider: a bundle runs on the CPU"):
        tvmsep.InferenceSession(pair_path, providers=[("CUDAExecutionProvider", {})])
    with pytest.raises(AttributeError, match="inter_op"):
        tvmsep.SessionOptions().inter_op_num_threads = 2  # type: ignore[attr-defined]


# Several input shapes in one bundle


def test_the_shape_picks_the_network(shapes_path: Path) -> None:
    with Bundle.load(shapes_path, threads=2) as net:
        close(net(noise(0)), expected(noise(0)))
        close(net(noise(1, 4)), expected(noise(1, 4)) + 1)  # its bias is another one
        assert net.noise(0, shapes=1)[0].shape == (4, 3, 16, 16)
        assert len(net.time(3, inputs=net.noise(0, shapes=1))) == 3
        with pytest.raises(
            InputError,
            match=r"affine was not built for the shapes x \(2, 3, 16, 16\); it has "
            r"x \(1, 3, 16, 16\); x \(4, 3, 16, 16\): give one of these",
        ):
            net(noise(0, 2))
        with pytest.raises(InputError, match="astype"):
            net(noise(0, 4).astype(np.float64))
    session = tvmsep.InferenceSession(shapes_path)
    assert session.get_inputs()[0].shape == [None, 3, 16, 16]
    assert session.run(None, {"x": noise(2, 4)})[0].shape == (4, 10)
    session.bundle.close()


def test_weights_are_shared_between_shapes(shapes_path: Path, affine_path: Path) -> None:
    with Package(shapes_path) as package, Package(affine_path) as one:
        first, second = package.manifest.specialisations
        assert first.weights == ("odd", "w", "b") and second.weights == ("odd", "w", "b@2")
        assert list(package.weights()) == ["odd", "w", "b"]
        assert set(package.all_weights()) == {"odd", "w", "b", "b@2"}
        assert (package.manifest.format, one.manifest.format) == (2, 1)
        assert b"further" not in one.read("manifest.json")
        assert second.variants[1].library == "lib/shape2-threads2.so"


def test_a_picture_goes_to_the_first_shapes(shapes_path: Path, tmp_path: Path) -> None:
    from bundle_kit import picture

    path = picture(tmp_path / "p.png", np.zeros((16, 16, 3), np.uint8))
    with Package(shapes_path) as package:
        assert load_picture(path, package.manifest).shape == (1, 3, 16, 16)


def test_unfit_specialisations(
    shapes_path: Path, built: Path, target: Target, tmp_path: Path
) -> None:
    import json

    from test_bundle_file import edited, repack

    with Package(shapes_path) as package:
        further = json.loads(package.read("manifest.json"))["further"]
    for change, message in (
        ({"inputs": [{"name": "x", "shape": [1, 3, 16, 16], "dtype": "float32"}]}, "same input"),
        ({"inputs": [{"name": "y", "shape": [4, 3, 16, 16], "dtype": "float32"}]}, "more than"),
        ({"variants": further[0]["variants"][:1]}, "more than their shapes"),
        ({"weights": ["odd", "w", "none"]}, "differ in b@2, none"),
    ):
        text = edited(shapes_path, further=[{**further[0], **change}])
        path = repack(shapes_path, tmp_path / "odd.tvmsep", **{"manifest.json": text})
        with pytest.raises(BundleError, match=message):
            Bundle.load(path)
    text = edited(shapes_path, format=1)
    path = repack(shapes_path, tmp_path / "odd.tvmsep", **{"manifest.json": text})
    with pytest.raises(BundleError, match="do not fit together"):
        Bundle.load(path)
