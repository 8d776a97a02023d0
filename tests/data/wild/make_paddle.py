"""Makes the networks `pp_*.onnx` as Paddle's users do: paddle.nn, then paddle2onnx.

    pip install paddlepaddle==3.3.1 paddle2onnx==2.1.0 packaging onnx && python make_paddle.py

Weights are random; batch norms have the statistics of one random batch, so that every layer is
alive.
"""

import numpy as np
import paddle
from paddle import nn

SIZE = 64
ACTS = {"hard_swish": nn.Hardswish, "relu": nn.ReLU, "relu6": nn.ReLU6, "": nn.Identity}


def conv(i, o, k, stride=1, groups=1, act="hard_swish"):
    layer = nn.Conv2D(i, o, k, stride, k // 2, groups=groups, bias_attr=False)
    return nn.Sequential(layer, nn.BatchNorm2D(o, momentum=0.0), ACTS[act]())


class SqueezeExcite(nn.Layer):
    def __init__(self, c):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2D(1), nn.Conv2D(c, c // 4, 1), nn.ReLU(), nn.Conv2D(c // 4, c, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x):
        return paddle.multiply(x, self.gate(x))


def lcnet_block(i, o, k, stride, se):
    middle = SqueezeExcite(i) if se else nn.Identity()
    return nn.Sequential(conv(i, i, k, stride, i), middle, conv(i, o, 1))


def pp_lcnet():
    """PP-LCNet x0.25 with fewer repeats and a narrower head."""
    rows = [(4, 8, 3, 1, 0), (8, 16, 3, 2, 0), (16, 32, 3, 2, 0), (32, 32, 3, 1, 0)]
    rows += [(32, 64, 3, 2, 0), (64, 64, 5, 1, 0), (64, 128, 5, 2, 1), (128, 128, 5, 1, 1)]
    return nn.Sequential(
        conv(3, 4, 3, 2), *(lcnet_block(*row) for row in rows), nn.AdaptiveAvgPool2D(1),
        nn.Conv2D(128, 64, 1, bias_attr=False), nn.Hardswish(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip


class Residual(nn.Layer):
    def __init__(self, i, wide, o, k, stride, se, act):
        super().__init__()
        middle = SqueezeExcite(wide) if se else nn.Identity()
        self.body = nn.Sequential(
            conv(i, wide, 1, act=act), conv(wide, wide, k, stride, wide, act), middle,
            conv(wide, o, 1, act=""),
        )  # fmt: skip
        self.adds = stride == 1 and i == o

    def forward(self, x):
        return paddle.add(x, self.body(x)) if self.adds else self.body(x)


class MobileNetV3(nn.Layer):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 8, 3, 2), Residual(8, 16, 8, 3, 2, 1, "relu"),
            Residual(8, 24, 8, 3, 1, 0, "relu6"), Residual(8, 32, 16, 5, 2, 1, "hard_swish"),
            Residual(16, 64, 16, 5, 1, 1, "hard_swish"), conv(16, 64, 1),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        pooled = paddle.mean(self.body(x), axis=[2, 3], keepdim=True)
        return nn.functional.softmax(self.head(paddle.squeeze(pooled, axis=[2, 3])))


def revive(model, rng):
    """Weights that keep the signal's size, and statistics of a random batch."""
    for name, p in model.state_dict().items():
        if len(p.shape) > 1:
            fan = np.prod(p.shape[1:] if len(p.shape) == 4 else p.shape[:1])
            p.set_value(rng.normal(0, (2 / fan) ** 0.5, p.shape).astype("float32"))
        elif not name.split(".")[-1].startswith("_"):
            mean = 1.0 if name.endswith("weight") else 0.0
            p.set_value(rng.normal(mean, 0.2, p.shape).astype("float32"))
    model.train()
    model(paddle.to_tensor(rng.normal(0, 1, (32, 3, SIZE, SIZE)).astype("float32")))
    model.eval()


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    for name, make, opset in (("lcnet", pp_lcnet, 11), ("v3", MobileNetV3, 16)):
        model = make()
        revive(model, rng)
        spec = paddle.static.InputSpec([-1, 3, SIZE, SIZE], "float32", "x")
        paddle.onnx.export(model, f"pp_{name}", input_spec=[spec], opset_version=opset)
