"""What normalisation and planning make of a network, and that whatever they make is right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graph_kit import (
    HARD_SWISH,
    Net,
    compile_plan,
    labels,
    noise_for,
    pipeline_error,
    plan_of,
    random_network,
    run_tensors,
)

from tvmsep.contracts import ModelError, Target
from tvmsep.frontends import load_model
from tvmsep.graph import evaluate, from_relax, make_plan, normalise
from tvmsep.targets import load_target

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def local() -> Target:
    return load_target("local")


def start(channels: int = 16, side: int = 8, seed: int = 0) -> tuple[Net, str]:
    """A network whose layout is blocked already: it begins with a pointwise convolution."""
    net = Net(seed)
    return net, net.conv(net.input(1, channels, side, side), channels)


HEAD, TAIL = ["pack 8x8 16", "pointwise 8x8 16"], ["unpack 8x8 16"]


# Activations


@pytest.mark.parametrize("spelling", HARD_SWISH)
def test_hard_swish_in_every_spelling(spelling: str) -> None:
    net, x = start()
    x = net.act(x, spelling)
    assert labels(net.proto(x)) == [HEAD[0], "pointwise 8x8 16+hard_swish", *TAIL]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("relu", "relu"),
        ("relu6", "relu6"),
        ("clip", "clip:-0.765432119:1.23456776"),
        ("clip_min", "clip:-0.25:3.4e+38"),
        ("clip_max", "clip:-3.4e+38:0.5"),
        ("max_of_min", "clip:0.200000003:0.200000003"),
        ("hard_sigmoid", "hard_sigmoid"),
        ("sigmoid", "sigmoid"),
        ("silu", "silu"),
        ("leaky", "leaky_relu:0.100000001"),
    ],
)
def test_activation_fuses_into_its_producer(name: str, step: str) -> None:
    net, x = start()
    assert labels(net.proto(net.act(x, name))) == [HEAD[0], f"pointwise 8x8 16+{step}", *TAIL]


def test_activation_that_has_other_readers_stays_right(local: Target) -> None:
    net, x = start()
    shifted = net.op("Add", x, net.const(3))
    y = net.op("Mul", x, net.op("Div", net.op("Clip", shifted, net.const(0), net.const(6)),
                                net.const(6)))  # fmt: skip
    proto = net.proto(y, shifted, x)
    assert sum("hard_swish" in label for label in labels(proto)) == 1
    assert pipeline_error(proto, local, 2) < TOLERANCE


# Batch norms, pads, residuals


def test_batch_norm_folds_into_the_conv_before_it() -> None:
    net, x = start()
    assert labels(net.proto(net.bn(net.conv(x, 16, bias=False)))) == [*HEAD, HEAD[1], *TAIL]


def test_batch_norm_without_a_conv_is_a_depthwise() -> None:
    net = Net()
    x = net.conv(net.bn(net.input(1, 16, 8, 8)), 16)
    assert labels(net.proto(x)) == [HEAD[0], "depthwise 8x8 16", HEAD[1], *TAIL]


def test_batch_norm_after_an_add_stays_blocked() -> None:
    net, x = start()
    y = net.bn(net.op("Add", x, net.conv(x, 16)))
    assert labels(net.proto(y)) == [*HEAD, "pointwise 8x8 16+add", "depthwise 8x8 16", *TAIL]


def test_pads_around_the_image_fold_even_two_in_a_row() -> None:
    net, x = start()
    x = net.op("Pad", net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 0, 0)),
               net.ints(0, 0, 0, 0, 0, 0, 1, 1))  # fmt: skip
    x = net.depthwise(x, 3, pads=[0, 0, 0, 0])
    assert labels(net.proto(x)) == [*HEAD, "depthwise 3x3 8x8 16", *TAIL]


@pytest.mark.parametrize("how", ["channels", "value", "mode"])
def test_pads_that_are_no_zeros_around_the_image_do_not_fold(how: str, local: Target) -> None:
    net, x = start()
    match how:
        case "channels":
            x = net.op("Pad", x, net.ints(0, 1, 1, 1, 0, 1, 1, 1))
        case "value":
            x = net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), net.const(1.5))
        case _:
            x = net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    proto = net.proto(net.conv(x, 8, 3))
    assert "nn.pad" in labels(proto)
    assert pipeline_error(proto, local, 2) < TOLERANCE


def test_residual_and_the_activation_after_it_fuse() -> None:
    net, x = start()
    y = net.act(net.op("Add", x, net.conv(x, 16)), "relu")
    assert labels(net.proto(y)) == [*HEAD, "pointwise 8x8 16+add+relu", *TAIL]


def test_add_of_a_tensor_with_itself_is_an_eltwise(local: Target) -> None:
    net, x = start()
    proto = net.proto(net.op("Add", x, x))
    assert labels(proto) == [*HEAD, "eltwise:add 8x8 16", *TAIL]
    assert pipeline_error(proto, local, 1) < TOLERANCE


def test_add_of_three_fuses_both_adds() -> None:
    net, x = start()
    y = net.op("Sum", net.conv(x, 16), x, net.conv(x, 16))
    assert labels(net.proto(y)).count("pointwise 8x8 16+add") == 2


def test_a_value_with_two_readers_is_not_swallowed(local: Target) -> None:
    net, x = start()
    y = net.conv(x, 16)
    z = net.op("Add", y, net.act(y, "relu"))
    proto = net.proto(z, y)
    assert pipeline_error(proto, local, 2) < TOLERANCE


@pytest.mark.parametrize("spelling", range(8))
def test_squeeze_and_excite_never_leaves_the_blocked_layout(spelling: int) -> None:
    net, x = start()
    x = net.squeeze_excite(net.depthwise(x), spelling)
    found = labels(net.proto(net.conv(x, 16)))
    assert [f.split()[0] for f in found] == [
        "pack", "pointwise", "depthwise", "pool:global_avg", "dense", "dense", "pointwise*scale",
        "unpack",
    ]  # fmt: skip


@pytest.mark.parametrize("reader", ["two", "depthwise", "output"])
def test_a_scale_that_no_pointwise_alone_reads_is_an_eltwise(reader: str, local: Target) -> None:
    net, x = start()
    x = net.squeeze_excite(net.depthwise(x), 0)
    outputs = {
        "two": lambda: [net.op("Add", net.conv(x, 16), net.conv(x, 16))],
        "depthwise": lambda: [net.depthwise(x)],
        "output": lambda: [net.conv(x, 16), x],
    }[reader]()
    proto = net.proto(*outputs)
    assert sum(label.startswith("eltwise:scale") for label in labels(proto)) == 1
    assert not any("*scale" in label for label in labels(proto))
    assert pipeline_error(proto, local, 2) < TOLERANCE


@pytest.mark.parametrize("threads", [1, 2])
def test_a_scaled_pointwise_computes_the_same(threads: int, local: Target) -> None:
    net, x = start()
    proto = net.proto(net.conv(net.squeeze_excite(net.depthwise(x), 0), 24))
    assert any("*scale" in label for label in labels(proto))
    assert pipeline_error(proto, local, threads) < TOLERANCE


def test_classifier_stays_blocked() -> None:
    net, x = start()
    y = net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), 10)
    assert [f.split()[0] for f in labels(net.proto(y))] == [
        "pack", "pointwise", "pool:global_avg", "dense", "unpack",
    ]  # fmt: skip


# The boundary


def _outputs_an_input(net: Net) -> list[str]:
    x = net.input(1, 8, 5, 5)
    return [x, net.op("Relu", x)]


def _only_identity(net: Net) -> list[str]:
    return [net.op("Identity", net.input(1, 8, 5, 5))]


def _only_reshape(net: Net) -> list[str]:
    return [net.op("Reshape", net.input(1, 8, 5, 5), net.ints(8, 25))]


def _constants(net: Net) -> list[str]:
    x = net.input(1, 8, 5, 5)
    return [net.op("Identity", net.noise(3, 2)), net.op("Relu", x)]


def _same_twice(net: Net) -> list[str]:
    x = net.conv(net.input(1, 8, 5, 5), 8)
    return [x, net.op("Identity", x), net.op("Flatten", x)]


def _intermediate(net: Net) -> list[str]:
    x = net.conv(net.input(1, 8, 5, 5), 8)
    return [x, net.conv(x, 5), net.op("GlobalMaxPool", x)]


def _two_inputs(net: Net) -> list[str]:
    a, b = net.input(2, 8, 5, 5), net.input(2, 8, 1, 1)
    return [net.op("Mul", net.op("Add", net.conv(a, 8), b), net.op("Sigmoid", b))]


def _functions(net: Net) -> list[str]:
    """What TVM's importer brings as TIR functions."""
    x = net.conv(net.input(1, 8, 5, 5), 8)
    tiled = net.op("Tile", x, net.ints(1, 1, 2, 1))
    return [net.conv(tiled, 5), net.op("Einsum", x, x, equation="nchw,nchw->nc")]


def _ranks(net: Net) -> list[str]:
    x = net.conv(net.input(1, 8, 5, 5), 8)
    flat = net.op("Reshape", x, net.ints(1, 8, 25))
    return [net.bn(flat), net.act(net.op("Reshape", x, net.ints(1, 2, 4, 5, 5)), "hs_div")]


def _sorted(net: Net) -> list[str]:
    x = net.input(2, 40)
    return [net.ops("TopK", x, net.ints(3), outputs=2)[0], net.op("CumSum", x, net.ints(1))]


def _ceil_pool(net: Net) -> list[str]:
    x = net.conv(net.input(1, 8, 7, 8), 10)
    attrs = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 0], "ceil_mode": 1}
    return [
        net.op("MaxPool", x, **attrs),
        net.op("AveragePool", x, count_include_pad=1, **attrs),
        net.op("AveragePool", x, count_include_pad=0, **attrs),
    ]


@pytest.mark.parametrize(
    "make",
    [
        _outputs_an_input, _only_identity, _only_reshape, _constants, _same_twice, _intermediate,
        _two_inputs, _functions, _ranks, _sorted, _ceil_pool,
    ],
)  # fmt: skip
def test_boundary_and_rare_operators(make: Callable[[Net], list[str]], local: Target) -> None:
    net = Net(1)
    assert pipeline_error(net.proto(*make(net)), local, 2) < TOLERANCE


def test_an_output_is_never_the_callers_own_memory(local: Target) -> None:
    net = Net()
    x = net.input(1, 8, 5, 5)
    y = net.conv(x, 8)
    proto = net.proto(x, net.op("Reshape", x, net.ints(8, 25)), y, net.op("Identity", y))
    imported = load_model(proto)
    plan = plan_of(imported, local, 1)
    _, library = compile_plan(plan, local)
    inputs = noise_for(imported, 0)
    given, results = run_tensors(library, plan, inputs)
    given[0].copyfrom(np.zeros_like(inputs[0]))
    assert (results[0].numpy() == inputs[0]).all()
    assert (results[1].numpy().reshape(inputs[0].shape) == inputs[0]).all()
    results[2].copyfrom(np.zeros((1, 8, 5, 5), np.float32))
    assert results[3].numpy().any()


def test_unsupported_operator_names_the_node(local: Target) -> None:
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    points = relax.Var("points", relax.TensorType((4, 1), "float32"))
    rows = relax.const(np.arange(4).reshape(4, 1), "int64")
    with builder.function("main", [x, points]):
        with builder.dataflow():
            call = relax.op.multinomial_from_uniform(x, points, rows)
            out = builder.emit_output(builder.emit(call, "dice"))
        builder.emit_func_output(out)
    plan = make_plan(normalise(from_relax(builder.get())), local, 1)
    with pytest.raises(ModelError, match=r"node dice.*multinomial_from_uniform.*not supported"):
        compile_plan(plan, local)


# The reference


def test_reference_pads_as_the_model_says(local: Target) -> None:
    net = Net()
    x = net.input(1, 8, 5, 6)
    pads = net.ints(0, 0, 1, 2, 0, 0, 2, 1)
    proto = net.proto(*(net.op("Pad", x, pads, mode=m) for m in ("reflect", "edge", "constant")))
    imported = load_model(proto)
    inputs = noise_for(imported, 0)
    assert imported.reference is not None
    for ours, theirs in zip(
        evaluate(from_relax(imported.module), {"input0": inputs[0]}),
        imported.reference(inputs),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.astype(np.float32), theirs)


# Random networks


@pytest.mark.parametrize("seed", range(40))
def test_random_network(seed: int, local: Target) -> None:
    assert pipeline_error(random_network(seed, depth=4), local, 1 + seed % 2) < TOLERANCE


def test_a_transpose_without_axes_is_no_identity(local: Target) -> None:
    """It reverses them, also where the shape does not show it."""
    net = Net()
    x = net.input(8, 8)
    assert pipeline_error(net.proto(net.op("Relu", net.op("Transpose", x))), local, 1) < TOLERANCE
