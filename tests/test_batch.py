"""Batches as images: which networks have one, and that each image comes out as it would alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from graph_kit import (
    Net,
    compile_plan,
    defaults,
    noise_for,
    pipeline_error,
    plan_of,
    random_network,
    relative,
    run_tensors,
)

from tvmsep import api
from tvmsep.bundle import Bundle
from tvmsep.compiler import emit, parts, read_relax
from tvmsep.contracts import Workload
from tvmsep.frontends import load_model
from tvmsep.graph import Plan, from_relax, normalise, one_image, split_head
from tvmsep.report.layers import layers
from tvmsep.report.sources import read_sources
from tvmsep.report.story import tell
from tvmsep.targets import load_target

TARGET = load_target("local")
AVX2 = load_target("x86-avx2")


def planned(proto: onnx.ModelProto, threads: int = 2) -> Plan:
    return plan_of(load_model(proto), TARGET, threads)


def worst(proto: onnx.ModelProto, threads: int) -> float:
    """Largest relative error of a network at its default configs, against onnxruntime."""
    return pipeline_error(proto, TARGET, threads)


def small(batch: int, tail: Callable[[Net, str], str] | None = None) -> onnx.ModelProto:
    """A stem, an inverted residual with squeeze-and-excite, and what is asked for behind it."""
    net = Net(5)
    x = net.input(batch, 3, 19, 17)
    x = net.act(net.bn(net.conv(x, 16, 3, strides=[2, 2], pads=[1] * 4)), "hs_op")
    y = net.act(net.depthwise(net.act(net.conv(x, 40), "relu6")), "relu")
    x = net.op("Add", x, net.conv(net.squeeze_excite(y), 16))
    return net.proto(tail(net, x) if tail else x)


def classifier(net: Net, x: str) -> str:
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.op("Softmax", net.gemm(net.act(net.gemm(x, 33), "hs_op"), 10), axis=-1)


@pytest.mark.parametrize(
    ("batch", "threads", "images", "turns"),
    [(1, 2, 1, 1), (2, 1, 1, 2), (2, 2, 2, 1), (3, 2, 1, 3), (4, 2, 2, 2), (6, 3, 3, 2)],
)
def test_images_are_shared_evenly_or_not_at_all(
    batch: int, threads: int, images: int, turns: int
) -> None:
    """A thread without an image would wait for the others: then all of them share each image."""
    plan = planned(small(batch, classifier), threads)
    assert (plan.images, plan.turns) == (images, turns)
    assert plan.threads == (1 if images > 1 else threads)
    assert plan.flops == batch * planned(small(1, classifier), threads).flops
    assert plan.input_shapes == {"input0": (batch, 3, 19, 17)}
    assert (plan.head is not None) == (batch > 1)


def test_the_kernels_of_a_batch_are_those_of_one_image() -> None:
    """So that a log of single images at one thread serves every batch."""
    one = {t.workload: t.count for t in planned(small(1), 1).tasks(TARGET)}
    for batch, threads in ((2, 2), (8, 2), (5, 1)):
        plan = planned(small(batch), threads)
        assert {t.workload: t.count for t in plan.tasks(TARGET)} == {
            w: n * plan.turns for w, n in one.items()
        }
        assert {t.threads for t in plan.tasks(TARGET)} == {1}


def test_the_head_reads_its_weights_once_for_all_images() -> None:
    plan = planned(small(8, classifier), 2)
    assert plan.head is not None
    heads = plan.head.tasks(TARGET)
    assert [t.workload.op for t in heads[:2]] == ["dense", "dense"]
    assert {(t.workload.n, t.threads, t.count) for t in heads} == {(8, 2, 1)}
    body = [s.workload for s in plan.steps if s.workload]
    assert {w.n for w in body} == {1}
    gates = [w for w in body if w.op == "dense"]  # of squeeze-and-excite: read by the body again
    assert len(gates) == 2


@pytest.mark.parametrize(
    ("batch", "threads", "tail"),
    [(2, 1, classifier), (2, 2, None), (2, 2, classifier), (3, 2, classifier), (6, 3, None)],
)
def test_each_image_of_a_batch(batch: int, threads: int, tail: Any) -> None:
    assert worst(small(batch, tail), threads) < 1e-5


@pytest.mark.parametrize("seed", range(9))
def test_random_networks_of_several_images(seed: int) -> None:
    proto = random_network(seed, batch=(2, 3, 4)[seed % 3])
    assert planned(proto, 1 + seed % 2).batch > 1
    assert worst(proto, 1 + seed % 2) < 2e-5


def over_images(net: Net, x: str) -> str:
    return net.op("Sub", x, net.op("ReduceMean", x, net.ints(0), keepdims=1))


def next_image(net: Net, x: str) -> str:
    last = net.op("Slice", x, net.ints(-1), net.ints(net.shapes[x][0]), net.ints(0))
    rest = net.op("Slice", x, net.ints(0), net.ints(net.shapes[x][0] - 1), net.ints(0))
    return net.op("Concat", last, rest, axis=0)


def images_in_channels(net: Net, x: str) -> str:
    n, c, h, w = net.shapes[x]
    mixed = net.op("Reshape", x, net.ints(1, n * c, h, w))
    return net.op("Reshape", net.op("Softmax", mixed, axis=1), net.ints(n, c, h, w))


def turned(net: Net, x: str) -> str:
    """A batch as large as its channels, and then the two changed: no shape tells."""
    n = net.shapes[x][0]
    return net.op("Transpose", net.conv(x, n), perm=[1, 0, 2, 3])


def one_constant_an_image(net: Net, x: str) -> str:
    return net.op("Add", x, net.noise(net.shapes[x][0], 1, 1, 1))


def a_constant_without_the_batch(net: Net, x: str) -> str:
    return net.op("Mul", x, net.noise(1, 1, *net.shapes[x][2:]))


def along_the_batch(net: Net, x: str) -> str:
    return net.op("Softmax", net.op("Flatten", net.op("GlobalMaxPool", x)), axis=0)


@pytest.mark.parametrize(
    ("tail", "apart"),
    [
        (over_images, False), (next_image, False), (images_in_channels, False), (turned, False),
        (one_constant_an_image, False), (a_constant_without_the_batch, True),
        (along_the_batch, False),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)  # fmt: skip
def test_networks_whose_images_know_each_other(
    tail: Callable[[Net, str], str], apart: bool
) -> None:
    proto = small(4, tail)
    graph = normalise(from_relax(load_model(proto).module))
    body, _ = split_head(graph)
    assert (one_image(body) is not None) == apart
    plan = planned(proto)
    assert (plan.batch > 1) == apart
    assert worst(proto, 2) < 1e-5


def test_what_follows_the_images_may_mix_them() -> None:
    """A head is of the whole batch anyway."""

    def centred(net: Net, x: str) -> str:
        x = net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), 9)
        return net.op("Sub", x, net.op("ReduceMean", x, net.ints(0), keepdims=1))

    plan = planned(small(4, centred))
    assert plan.batch == 4
    assert plan.head is not None
    assert worst(small(4, centred), 2) < 1e-5


def test_outputs_from_before_and_behind_the_cut_keep_their_order() -> None:
    net = Net(2)
    x = net.input(4, 3, 12, 12)
    image = net.act(net.conv(x, 8, 3), "relu")
    pooled = net.op("GlobalAveragePool", image)
    flat = net.op("Flatten", pooled)
    scores = net.gemm(flat, 5)
    for outputs in ((scores, image, pooled), (pooled, scores, flat), (image, scores, image)):
        proto = net.proto(*outputs)
        plan = planned(proto)
        assert (plan.batch, len(plan.order)) == (4, len(proto.graph.output))
        assert worst(proto, 2) < 1e-5


def test_two_inputs_are_cut_alike() -> None:
    net = Net(3)
    a, b = net.input(6, 3, 9, 9), net.input(6, 5, 9, 9)
    x = net.op("Add", net.conv(a, 8), net.conv(b, 8, 3, pads=[1] * 4))
    proto = net.proto(x)
    assert planned(proto).turns == 3
    assert worst(proto, 2) < 1e-5
    net = Net(3)
    a, b = net.input(6, 3, 9, 9), net.input(1, 3, 9, 9)  # shared by all images
    proto = net.proto(net.op("Add", net.conv(a, 8), net.conv(b, 8)))
    assert planned(proto).batch == 1
    assert worst(proto, 2) < 1e-5


def test_on_a_gpu_kernels_compute_whole_batches() -> None:
    plan = plan_of(load_model(small(8, classifier)), load_target("cuda"), 1)
    assert (plan.batch, plan.head) == (1, None)


def test_one_thread_too_many_for_a_batch() -> None:
    """Three images on four threads: kernels of the whole batch share out its rows."""
    assert planned(small(3), 4).batch == 1
    assert planned(small(4), 4).images == 4


def branching(batch: int) -> onnx.ModelProto:
    """A classifier in the middle of the file, of the same weights' shape as the layer behind it."""
    net = Net(1)
    a = net.conv(net.input(batch, 3, 12, 12), 8, 3)
    s = net.gemm(net.op("Flatten", net.op("GlobalAveragePool", a)), 8)
    return net.proto(s, net.conv(a, 8))


@pytest.mark.parametrize("make", [branching, lambda n: small(n, exponents)])
def test_variants_share_their_parameters(
    make: Callable[[int], onnx.ModelProto], tmp_path: Path
) -> None:
    """Whether a thread has an image, or several share one: the same weights in the same order."""
    model, out = tmp_path / "net.onnx", tmp_path / "net.tvmsep"
    onnx.save(make(2), model)
    wide = msgspec.structs.replace(TARGET, cores=4)
    api.build(str(model), out=out, target=wide, threads=[1, 2, 4], logs=[])
    imported = load_model(str(model))
    inputs = noise_for(imported, 3)
    assert imported.reference is not None
    want = imported.reference(inputs)
    for threads in (1, 2, 4):
        with Bundle.load(out, threads=threads) as net:
            got = net(*inputs)
        assert relative(list(got) if isinstance(got, tuple) else [got], want) < 1e-5
        assert len(
            layers(api.prepare(str(model), target=wide, threads=[threads]).plans[threads])
        ) == (len(layers(api.prepare(str(model), target=wide, threads=[1]).plans[1])))


def test_vectors_are_no_images() -> None:
    """Each would read all weights."""
    net = Net(1)
    x = net.input(4, 12)
    proto = net.proto(net.gemm(net.act(net.gemm(x, 20), "relu"), 5))
    assert planned(proto, 2).batch == 1
    assert worst(proto, 2) < 1e-5


def squeezed(net: Net, x: str) -> str:
    """All axes of length 1, of which the batch is none."""
    y = net.op("Squeeze", net.conv(x, 1))
    return net.op("ReduceMax", y, net.ints(2), keepdims=0)


def side_input(net: Net, x: str) -> str:
    side = net.input(net.shapes[x][0], 5)
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.op("Add", net.gemm(net.op("Concat", flat, side, axis=1), 7), net.gemm(side, 7))


def exponents(net: Net, x: str) -> str:
    vector = net.const(net.rng.uniform(0.5, 1.5, 9))
    x = net.op("Pow", net.op("Abs", net.conv(x, 4, (2, 1))), vector)
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.op("Pow", net.op("Abs", net.gemm(flat, 9)), vector)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tail", [squeezed, side_input, exponents])
def test_what_a_cut_has_to_mind(
    tail: Callable[[Net, str], str], threads: int, tmp_path: Path
) -> None:
    proto = small(4, tail)
    assert planned(proto, threads).batch == 4
    onnx.save(proto, tmp_path / "net.onnx")
    out = tmp_path / "net.tvmsep"
    api.build(str(tmp_path / "net.onnx"), out=out, threads=[threads], logs=[])
    assert api.verify(out, str(tmp_path / "net.onnx")).framework < 1e-5


def test_outputs_that_are_one_value_have_memory_of_their_own() -> None:
    """A caller may write to what it is given."""
    net = Net(2)
    x = net.input(4, 3, 12, 12)
    image = net.act(net.conv(x, 8, 3), "relu")
    twice = net.op("Identity", image)
    scores = net.gemm(net.op("Flatten", net.op("GlobalAveragePool", image)), 5)
    again = net.op("Identity", scores)
    proto = net.proto(image, scores, twice, again)
    for threads in (1, 2):
        imported = load_model(proto)
        plan = plan_of(imported, TARGET, threads)
        _, library = compile_plan(plan, TARGET)
        _, outputs = run_tensors(library, plan, noise_for(imported, 3))
        arrays = [np.from_dlpack(o) for o in outputs]
        assert [a.shape[0] for a in arrays] == [4] * 4
        assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    proto = net.proto(image, twice)  # no head, and one turn
    assert worst(proto, 4) < 1e-5


def test_a_report_adds_a_batch_up(tmp_path: Path) -> None:
    onnx.save(small(4, classifier), tmp_path / "net.onnx")
    out, log = tmp_path / "net.tvmsep", tmp_path / "net.jsonl"
    made = api.tune(
        str(tmp_path / "net.onnx"), out=out, threads=[2], strategy="default", budget_s=60.0
    )
    state = made.results[0].state
    assert state.thread_counts == [2]
    assert 0 < state.network_s(2) < 1
    assert state.network_s(2) == pytest.approx(state.network_s())
    sources = read_sources([log], bundle=out)
    assert sources.counts is not None
    assert {n for _, n in sources.counts[2]} == {1, 2}
    assert {c for (_, n), c in sources.counts[2].items() if n == 1} >= {2}
    (card,) = tell(sources.trials, counts=sources.counts, target=sources.target).networks
    assert (card.threads, card.counted, card.missing) == (2, True, 0)
    (variant,) = made.manifest.variants
    assert card.after_s == pytest.approx(variant.estimate_s)


def test_readings_only_go_into_one_turn() -> None:
    plan = planned(small(4))
    with pytest.raises(ValueError, match="one turn"):
        emit(plan, TARGET, defaults(plan, TARGET), stamped_runs=3)


def test_the_text_of_a_batch_is_read_back_in_line() -> None:
    plan = planned(small(4, classifier))
    text = emit(plan, TARGET, defaults(plan, TARGET)).script(show_meta=False)
    found = [p for p in parts(read_relax(text, "net", "")) if p.workload]
    steps = [s for s in plan.steps if s.workload]
    assert plan.head is not None
    behind = [s for s in plan.head.steps if s.workload]
    assert len(found) == plan.turns * len(steps) + len(behind)
    assert {p.workload.n for p in found if p.workload} == {plan.images, 4}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Of one image and of six, with a variant for one thread, two and four."""
    folder, found = tmp_path_factory.mktemp("batch"), {}
    wide = msgspec.structs.replace(TARGET, cores=4)
    for batch in (1, 6):
        found[batch] = folder / f"{batch}.tvmsep"
        model = folder / f"{batch}.onnx"
        onnx.save(small(batch, classifier), model)
        api.build(str(model), out=found[batch], target=wide, threads=[1, 2, 4], logs=[])
    return found


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_bundle_of_a_batch(bundles: dict[int, Path], threads: int) -> None:
    """Inputs at odd addresses too: each part of the batch is read where the caller has it."""
    rng = np.random.default_rng(0)
    shape = (6, 3, 19, 17)
    size = math.prod(shape)
    raw = rng.standard_normal(size + 1, dtype=np.float32)
    with (
        Bundle.load(bundles[1], threads=threads) as one,
        Bundle.load(bundles[6], threads=threads) as six,
    ):
        for begin in (0, 1):
            x = raw[begin : begin + size].reshape(shape)
            want = np.concatenate([one(x[i : i + 1]) for i in range(6)])
            assert relative([six(x)], [want]) < 1e-5
            assert relative([six(x[::-1].copy())], [want[::-1]]) < 1e-5


def test_the_ram_of_a_batch_is_that_of_what_runs_at_once(bundles: dict[int, Path]) -> None:
    with Bundle.load(bundles[1]) as one, Bundle.load(bundles[6]) as six:
        ram = [{v.threads: v.peak_ram_bytes for v in b.manifest.variants} for b in (one, six)]
        flops = [b.manifest.flops for b in (one, six)]
    assert ram[1][1] < 1.1 * ram[0][1]
    assert flops[1] == 6 * flops[0]


def test_one_image_is_what_a_batch_tunes(tmp_path: Path) -> None:
    """A log of single images is a batch's, and the heads are tasks of their own."""

    def tasks(batch: int, threads: int) -> set[tuple[Workload, int]]:
        model = f"mobilenet_v3_small:resolution=64,batch={batch}"
        found = api.prepare(model, target=AVX2, threads=[threads]).tasks()
        return {(t.workload, t.threads) for t in found}

    more = tasks(4, 2) - tasks(1, 1)
    assert {(w.op, w.n, n) for w, n in more if w.macs} == {("dense", 4, 2)}
    several = api.prepare("mobilenet_v3_small:resolution=64,batch=4", target=AVX2, threads=[1, 2])
    assert {p.threads for p in several.networks()} == {1}
