"""The rest of the family, block by block as exporters write it, at any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from graph_kit import Net


def stem(net: Net, channels: int, side: int) -> str:
    return net.act(net.conv(net.input(1, 3, side, side), channels, 3, strides=[2, 2],
                            pads=[1] * 4), "relu")  # fmt: skip


def head(net: Net, x: str) -> onnx.ModelProto:
    return net.proto(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), 10))


def uib(net: Net, x: str, out: int, start: int, middle: int, stride: int = 1) -> str:
    """MobileNetV4's universal inverted bottleneck: a depthwise before or after the expansion."""
    y, c = x, net.channels(x)
    if start:
        y = net.bn(net.depthwise(y, start, bias=False))
    y = net.act(net.bn(net.conv(y, c * 4, bias=False)), "relu")
    if middle:
        y = net.act(net.bn(net.depthwise(y, middle, bias=False, strides=[stride] * 2)), "relu")
    y = net.bn(net.conv(y, out, bias=False))
    return net.op("Add", x, y) if stride == 1 and c == out else y


def mobilenet_v4(side: int) -> onnx.ModelProto:
    net = Net()
    x = uib(net, stem(net, 16, side), 24, 5, 5, 2)
    x = uib(net, x, 24, 0, 3)
    x = uib(net, x, 24, 3, 0)
    return head(net, uib(net, x, 24, 0, 0))


def mixnet(side: int) -> onnx.ModelProto:
    """Depthwise kernels of several sizes, each on its share of the channels."""
    net = Net()
    x = net.act(net.conv(stem(net, 12, side), 36), "silu")
    parts = net.ops("Split", x, net.ints(12, 12, 12), outputs=3, axis=1)
    x = net.op("Concat", *(net.depthwise(p, k) for p, k in zip(parts, (3, 5, 7), strict=True)),
               axis=1)  # fmt: skip
    x = net.squeeze_excite(net.act(net.bn(x), "silu"), 0, "sigmoid")
    parts = net.ops("Split", x, net.ints(18, 18), outputs=2, axis=1)
    return head(net, net.op("Concat", *(net.conv(p, 10) for p in parts), axis=1))


def shuffle(net: Net, x: str, groups: int = 2) -> str:
    n, c, h, w = net.shapes[x]
    x = net.op("Reshape", x, net.ints(n, groups, c // groups, h, w))
    x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", x, net.ints(n, -1, h, w))


def shufflenet_v2(side: int) -> onnx.ModelProto:
    net = Net()
    x = stem(net, 24, side)
    bypass = net.bn(net.depthwise(x, 3, strides=[2, 2]))
    bypass = net.act(net.conv(bypass, 24), "relu")
    main = net.depthwise(net.act(net.conv(x, 24), "relu"), 3, strides=[2, 2])
    x = shuffle(net, net.op("Concat", bypass, net.act(net.conv(main, 24), "relu"), axis=1))
    for _ in range(2):
        left, right = net.ops("Split", x, net.ints(24, 24), outputs=2, axis=1)
        right = net.depthwise(net.act(net.conv(right, 24), "relu"), 3)
        x = shuffle(net, net.op("Concat", left, net.act(net.conv(right, 24), "relu"), axis=1))
    return head(net, x)


def ghost(net: Net, x: str, out: int, act: bool) -> str:
    """Half of the channels by a pointwise convolution, the rest from these by a cheap one."""
    half = -(-out // 2)
    first = net.bn(net.conv(x, half, bias=False))
    first = net.act(first, "relu") if act else first
    cheap = net.bn(net.depthwise(first, 3, bias=False))
    cheap = net.act(cheap, "relu") if act else cheap
    both = net.op("Concat", first, cheap, axis=1)
    return net.op("Slice", both, net.ints(0), net.ints(out), net.ints(1))


def ghostnet(side: int) -> onnx.ModelProto:
    net = Net()
    x = stem(net, 16, side)
    y = net.squeeze_excite(ghost(net, x, 45, True), 2)
    x = net.op("Add", x, ghost(net, y, 16, False))
    return head(net, ghost(net, x, 24, True))


def pplcnet(side: int) -> onnx.ModelProto:
    net = Net()
    x = net.act(net.bn(net.depthwise(stem(net, 16, side), 3, strides=[2, 2])), "hs_gate")
    x = net.act(net.bn(net.conv(x, 32)), "hs_gate")
    x = net.squeeze_excite(net.act(net.bn(net.depthwise(x, 5)), "hs_gate"), 3)
    x = net.op("GlobalAveragePool", net.act(net.conv(x, 64), "hs_op"))
    x = net.act(net.conv(x, 80, bias=False), "hs_op")
    return net.proto(net.op("Softmax", net.gemm(net.op("Flatten", x), 10), axis=1))


def blazeface(side: int) -> onnx.ModelProto:
    """Residuals with a pool and padded channels; boxes and scores as rows from two sizes."""
    net = Net()
    x = stem(net, 24, side)
    y = net.conv(net.depthwise(x, 5, strides=[2, 2], pads=[1, 1, 2, 2]), 28)
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    pooled = net.op("Pad", pooled, net.ints(0, 0, 0, 0, 0, 4, 0, 0))
    x = net.act(net.op("Add", y, pooled), "relu")
    z = net.act(net.conv(net.depthwise(x, 5, strides=[2, 2]), 40), "prelu")
    rows = []
    for feature, anchors in ((x, 2), (z, 6)):
        boxes = net.op("Transpose", net.conv(feature, anchors * 4), perm=[0, 2, 3, 1])
        rows.append(net.op("Reshape", boxes, net.ints(1, -1, 4)))
    return net.proto(net.op("Concat", *rows, axis=1), net.op("Sigmoid", net.conv(z, 6)))


def lr_aspp(side: int) -> onnx.ModelProto:
    net = Net()
    low = stem(net, 16, side)
    high = net.act(net.conv(net.depthwise(low, 3, strides=[2, 2]), 40), "hs_op")
    high = net.depthwise(high, 3, dilations=[2, 2], pads=[2] * 4)
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", high), 32, bias=False))
    x = net.op("Mul", net.act(net.bn(net.conv(high, 32, bias=False)), "relu"), gate)
    x = net.op("Resize", x, "", "", net.ints(1, 32, *net.shapes[low][2:]), mode="linear")
    x = net.op("Add", net.conv(low, 5), net.conv(x, 5))
    return net.proto(net.op("Resize", x, "", "", net.ints(1, 5, side, side), mode="linear"))


def deeplab(side: int) -> onnx.ModelProto:
    """Atrous pyramid with a pooled branch that is resized back, then an argmax-free head."""
    net = Net()
    x = net.act(net.conv(net.depthwise(stem(net, 16, side), 3, strides=[2, 2]), 32), "relu6")
    branches = [net.act(net.bn(net.conv(x, 12, bias=False)), "relu")]
    for rate in (2, 3):
        y = net.depthwise(x, 3, dilations=[rate] * 2, pads=[rate] * 4, bias=False)
        branches.append(net.act(net.conv(net.act(net.bn(y), "relu"), 12), "relu"))
    pooled = net.act(net.conv(net.op("GlobalAveragePool", x), 12), "relu")
    target = net.ints(1, 12, *net.shapes[x][2:])
    branches.append(net.op("Resize", pooled, "", "", target, mode="linear",
                           coordinate_transformation_mode="align_corners"))  # fmt: skip
    x = net.conv(net.op("Concat", *branches, axis=1), 7)
    return net.proto(net.op("Resize", x, "", net.const([1, 1, 4, 4]), mode="linear",
                            coordinate_transformation_mode="pytorch_half_pixel"))  # fmt: skip


def unet(side: int) -> onnx.ModelProto:
    """A decoder: resize or transposed convolution, concatenate with the encoder's, convolve."""
    net = Net()
    a = stem(net, 12, side)
    b = net.act(net.conv(net.depthwise(a, 3, strides=[2, 2]), 24), "relu")
    c = net.act(net.conv(net.depthwise(b, 3, strides=[2, 2]), 40), "relu")
    up = net.op("Resize", c, "", net.const([1, 1, 2, 2]), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    x = net.op("Concat", up, b, axis=1)
    x = net.act(net.conv(net.depthwise(x, 3), 20), "relu")
    weight = net.noise(20, 12, 2, 2, scale=0.2)
    up = net.op("ConvTranspose", x, weight, net.noise(12), strides=[2, 2], kernel_shape=[2, 2])
    x = net.op("Concat", up, a, axis=1)
    weight = net.noise(24, 2, 3, 3, scale=0.2)
    return net.proto(net.op("ConvTranspose", x, weight, strides=[2, 2], pads=[1] * 4,
                            output_padding=[1, 1], group=2))  # fmt: skip


def nanodet(side: int) -> onnx.ModelProto:
    """A path-aggregation neck and one head over two sizes."""
    net = Net()
    a = net.act(net.conv(stem(net, 16, side), 24), "leaky")
    b = net.act(net.conv(net.depthwise(a, 5, strides=[2, 2]), 24), "leaky")
    up = net.op("Resize", b, "", net.const([1, 1, 2, 2]), mode="linear")
    top = net.op("Add", a, up)
    down = net.op("Resize", top, "", net.const([1, 1, 0.5, 0.5]), mode="linear")
    rows = []
    for feature in (top, net.op("Add", b, down)):
        y = net.act(net.conv(net.act(net.depthwise(feature, 3), "leaky"), 24), "leaky")
        left, right = net.ops("Split", net.conv(y, 12), net.ints(4, 8), outputs=2, axis=1)
        y = net.op("Concat", net.op("Sigmoid", left), right, axis=1)
        rows.append(net.op("Reshape", y, net.ints(1, 12, -1)))
    return net.proto(net.op("Transpose", net.op("Concat", *rows, axis=2), perm=[0, 2, 1]))


def weights_in_int8(side: int) -> onnx.ModelProto:
    """Kernels stored as int8: Cast and Mul, or DequantizeLinear by channel."""
    net = Net()
    x = stem(net, 16, side)
    small = net.const(net.rng.integers(-127, 128, (24, 16, 1, 1)), "int8")
    scale = net.const(np.full((24, 1, 1, 1), 0.002))
    wide = net.op("Mul", net.op("Cast", small, to=onnx.TensorProto.FLOAT), scale)
    x = net.act(net.op("Conv", x, wide), "relu")
    small = net.const(net.rng.integers(-127, 128, (24, 1, 3, 3)), "int8")
    scales = net.const(net.rng.uniform(0.001, 0.004, 24))
    wide = net.op("DequantizeLinear", small, scales, axis=0)
    return head(net, net.op("Conv", x, wide, group=24, pads=[1] * 4))


NETWORKS: dict[str, Callable[[int], onnx.ModelProto]] = {
    f.__name__: f
    for f in (mobilenet_v4, mixnet, shufflenet_v2, ghostnet, pplcnet, blazeface, lr_aspp, deeplab)
    + (unet, nanodet, weights_in_int8)
}
