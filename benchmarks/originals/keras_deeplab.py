"""A small DeepLabV3+ of Keras, in all forms in which people have one, with what it gives.

    python keras_deeplab.py FOLDER

needs TensorFlow and tf2onnx, and nothing of segbatch. Random weights, always the same. Writes

    saved_model/     logits of images from -1 to 1 of any size
    softmax.onnx     probabilities, by tf2onnx, of images of 97×129 from -1 to 1
    frozen.pb        as research/deeplab exports: bytes in, brought to -1 to 1 inside, label map out
    float.tflite     logits of images of 97×129 from 0 to 255, normalised inside
    expected.npz     the images, and what TensorFlow gives for each
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf2onnx
from tensorflow import keras
from tensorflow.keras import layers
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

NUM_CLASSES = 5
FIXED = (97, 129)  # height and width
SIZES = (FIXED, (64, 96))


def block(x, filters, stride=1, dilation=1):
    """A separable convolution with TensorFlow's SAME padding, norm and activation."""
    x = layers.DepthwiseConv2D(
        3, strides=stride, dilation_rate=dilation, padding="same", use_bias=False
    )(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(filters, 1, use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU(6.0)(x)


def deeplab() -> keras.Model:
    """Logits at a quarter of the image's size."""
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    low = block(x, 12, stride=2)
    x = block(low, 16, stride=2)
    x = block(x, 24, stride=2)
    x = block(x, 24, dilation=2)
    branches = [layers.Conv2D(8, 1)(x), block(x, 8, dilation=2), block(x, 8, dilation=3)]
    pooled = layers.Conv2D(8, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    branches.append(Resize()([pooled, x]))
    x = layers.Conv2D(16, 1)(layers.Concatenate()(branches))
    x = Resize()([x, low])
    x = layers.Concatenate()([x, layers.Conv2D(8, 1)(low)])
    x = block(x, 16)
    return keras.Model(image, layers.Conv2D(NUM_CLASSES, 1, name="logits")(x))


class Resize(layers.Layer):
    """Bilinear, to the size of another tensor."""

    def call(self, inputs):
        x, like = inputs
        return tf.compat.v1.image.resize_bilinear(x, tf.shape(like)[1:3], align_corners=True)


def fill(model: keras.Model) -> None:
    random = np.random.default_rng(3)
    for weight in model.weights:
        shape, name = weight.shape, weight.path
        if "variance" in name:
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = random.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        elif "gamma" in name:
            value = random.uniform(0.75, 1.25, shape)
        else:
            value = random.normal(0, 0.1, shape)
        weight.assign(value.astype(np.float32))
    # So that each class wins somewhere.
    kernel, bias = model.get_layer("logits").weights
    image = random.uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    for _ in range(2):
        logits = model(image).numpy()
        kernel.assign(kernel.numpy() / logits.std((0, 1, 2)))
        bias.assign((bias.numpy() - logits.mean((0, 1, 2))) / logits.std((0, 1, 2)))


def main(folder: Path) -> None:
    model = deeplab()
    fill(model)
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (1, *size, 3), np.uint8) for size in SIZES]
    scaled = [image.astype(np.float32) / 127.5 - 1 for image in pixels]
    expected = {f"pixels{i}": image for i, image in enumerate(pixels)}

    model.export(folder / "saved_model")
    expected |= {f"logits{i}": model(image).numpy() for i, image in enumerate(scaled)}

    softmax = keras.Model(model.input, layers.Softmax()(model.output))
    tf2onnx.convert.from_keras(
        softmax,
        [tf.TensorSpec((None, *FIXED, 3), tf.float32, name="image")],
        opset=17,
        output_path=str(folder / "softmax.onnx"),
    )
    expected["softmax0"] = softmax(scaled[0]).numpy()

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8, name="ImageTensor")])
    def predictions(image):
        logits = model(tf.cast(image, tf.float32) * (2.0 / 255.0) - 1.0)
        full = tf.compat.v1.image.resize_bilinear(logits, tf.shape(image)[1:3], align_corners=True)
        return tf.identity(tf.argmax(full, 3), name="SemanticPredictions")

    frozen = convert_variables_to_constants_v2(predictions.get_concrete_function())
    tf.io.write_graph(frozen.graph, str(folder), "frozen.pb", as_text=False)
    expected |= {f"labels{i}": predictions(image).numpy() for i, image in enumerate(pixels)}

    fixed = keras.Input((*FIXED, 3), batch_size=1)
    inside = keras.Model(fixed, model(layers.Rescaling(1 / 127.5, -1)(fixed)))
    converter = tf.lite.TFLiteConverter.from_keras_model(inside)
    (folder / "float.tflite").write_bytes(converter.convert())
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
