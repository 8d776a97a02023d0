"""Makes the networks `tf_*.onnx` as TensorFlow's users do: Keras, then tf2onnx.

    pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0 && python make_tf.py

Weights are random; batch norms have the statistics of one random batch, so that every layer is
alive.
"""

import numpy as np
import tensorflow as tf
import tf2onnx

SIZE = 64
layers, ops = tf.keras.layers, tf.keras.ops


def relu6(x):  # as code that was ported from TF 1 spells it
    return tf.minimum(tf.maximum(x, 0.0), 6.0)


def norm(x):
    return layers.BatchNormalization(momentum=0.0)(x)


def squeeze_excite(x, reduced):
    """Dense layers on a pooled vector, then a reshape."""
    c = x.shape[-1]
    y = layers.GlobalAveragePooling2D()(x)
    y = layers.Dense(reduced, activation="relu")(y)
    y = layers.Dense(c, activation="hard_sigmoid")(y)
    return layers.Multiply()([x, layers.Reshape((1, 1, c))(y)])


def mobilenet_v2_like():
    """Keras's own blocks: a pad before each stride-2 convolution, ReLU(6), a dense head."""
    x = inputs = layers.Input((SIZE, SIZE, 3))
    x = layers.ReLU(6.0)(norm(layers.Conv2D(8, 3, 2, "same", use_bias=False)(x)))
    for n, (wide, c, stride) in enumerate([(24, 8, 1), (48, 16, 2), (96, 16, 1), (96, 24, 2)]):
        block = x
        x = layers.ReLU(6.0)(norm(layers.Conv2D(wide, 1, use_bias=False)(x)))
        if stride == 2:
            x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
        pad = "valid" if stride == 2 else "same"
        x = layers.ReLU(6.0)(norm(layers.DepthwiseConv2D(3, stride, pad, use_bias=False)(x)))
        x = norm(layers.Conv2D(c, 1, use_bias=False, name=f"project{n}")(x))
        if block.shape == x.shape:
            x = layers.Add()([block, x])
    x = layers.ReLU(6.0)(norm(layers.Conv2D(64, 1, use_bias=False)(x)))
    x = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return tf.keras.Model(inputs, x)


def mobilenet_v3_like():
    """Rescaling inside, hard-swish by hand, squeeze-and-excite from dense layers, a conv head."""
    x = inputs = layers.Input((SIZE, SIZE, 3))

    def hard_swish(x):
        return x * layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)

    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    x = hard_swish(norm(layers.Conv2D(8, 3, 2, "same", use_bias=False)(x)))
    for k, wide, c, stride, se in [(3, 16, 8, 2, 1), (3, 32, 12, 1, 0), (5, 48, 12, 1, 1)]:
        block = x
        x = hard_swish(norm(layers.Conv2D(wide, 1, use_bias=False)(x)))
        x = hard_swish(norm(layers.DepthwiseConv2D(k, stride, "same", use_bias=False)(x)))
        x = squeeze_excite(x, 8) if se else x
        x = norm(layers.Conv2D(c, 1, use_bias=False)(x))
        if block.shape == x.shape:
            x = layers.Add()([block, x])
    x = layers.GlobalAveragePooling2D(keepdims=True)(hard_swish(norm(layers.Conv2D(48, 1)(x))))
    x = layers.Conv2D(10, 1)(hard_swish(layers.Conv2D(64, 1)(x)))
    return tf.keras.Model(inputs, layers.Softmax()(layers.Flatten()(x)))


class Slim(tf.Module):
    """A frozen graph's operators without Keras: ReLU6 as min(max), mean over H and W, squeeze."""

    def __init__(self, rng):
        super().__init__()
        self.w = [rng.normal(0, (2 / np.prod(s[:-1])) ** 0.5, s).astype("f") for s in (
            (3, 3, 3, 8), (1, 1, 8, 16), (1, 1, 16, 10))]  # fmt: skip
        self.dw = rng.normal(0, 0.4, (3, 3, 8, 1)).astype("f")
        self.gamma, self.beta, self.mean = (rng.normal(1, 0.2, 8).astype("f") for _ in range(3))
        self.prelu = rng.uniform(0.1, 0.4, 16).astype("f")

    def __call__(self, x):
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = relu6(tf.nn.conv2d(x, self.w[0], 2, "VALID"))
        x = tf.nn.depthwise_conv2d(x, self.dw, (1, 2, 2, 1), "SAME")
        x = tf.nn.batch_normalization(x, self.mean, self.gamma**2, self.beta, self.gamma, 1e-3)
        x = tf.nn.conv2d(relu6(x), self.w[1], 1, "SAME")
        x = tf.maximum(x, 0.0) + self.prelu * tf.minimum(x, 0.0)
        x = tf.nn.conv2d(tf.reduce_mean(x, (1, 2), keepdims=True), self.w[2], 1, "SAME")
        return tf.nn.softmax(tf.squeeze(x, (1, 2)))


def revive(model, rng):
    """Weights that keep the signal's size, and statistics of a random batch."""
    for layer in model.layers:
        fresh = []
        for w in layer.get_weights():
            taps = w.shape[0] * w.shape[1] if layer.name.startswith("depthwise") else w.size
            fan = taps if layer.name.startswith("depthwise") else w.size // w.shape[-1]
            scale = (2 / fan) ** 0.5 if w.ndim > 1 else 0.2
            fresh.append(rng.normal(0 if w.ndim > 1 else 1, scale, w.shape))
        layer.set_weights(fresh)
    pixels = rng.uniform(0, 255, (16, SIZE, SIZE, 3))
    model((pixels if "rescaling" in str(model.layers[1].name) else pixels / 128 - 1), training=True)


def save(name, run, opset, **options):
    spec = [tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="image")]
    function = tf.function(run, input_signature=spec)
    tf2onnx.convert.from_function(
        function, input_signature=spec, opset=opset, output_path=f"tf_{name}.onnx", **options
    )


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    for name, make, opset in (("v2", mobilenet_v2_like, 13), ("v3", mobilenet_v3_like, 18)):
        model = make()
        revive(model, rng)
        save(name, lambda x, model=model: model(x, training=False), opset)
        if name == "v2":
            save("v2_nchw", lambda x, m=model: m(x, training=False), 15, inputs_as_nchw=["image"])
    save("slim", Slim(rng), 11)
