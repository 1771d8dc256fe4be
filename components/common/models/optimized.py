"""Makes a model faster on a CPU for attacks: the same outputs, and the same gradients except for float rounding.

- Batch normalization with fixed statistics multiplies each channel by a factor. In the backward pass, the kernel of the
  preceding convolution is multiplied by this factor, which saves a pass over all outputs. (In the forward pass this
  would change the rounding of outputs, and move those about zero to the other side of the ReLU.)
- The gradient with respect to an image of few channels is computed in blocks. TensorFlow's kernels fill vectors with
  channels: with the one or three channels of an image, most of a vector is empty, and the first layer takes as long as
  a layer with many channels.
"""

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from evasion.components.common.models.endings import is_graph

_FEW = 4  # channels of an image
_VECTOR = 12  # channels that fill most of a vector of 16 floats


def optimized(model: Any, *, fixed: bool = True) -> Any:
    """Return a `keras.Model` that computes the same as `model`, for inference and for gradients with respect to images.

    It shares the layers of `model` and their weights. A model of a custom class is returned unchanged.

    Args:
        model: The model. Convolutions with channels last become faster.
        fixed: Whether the weights do not change. If they do, batch normalization is not merged.
    """
    if not is_graph(model):
        return model
    convolved: dict[int, tuple[Any, Any, Any]] = {}  # by the output's id: layer, input, and that output, to keep its id

    def call(layer: Any, *arguments: Any, **options: Any) -> Any:
        x: Any = arguments[0] if arguments else None
        if is_graph(layer):
            return optimized(layer, fixed=fixed)(*arguments, **options)
        if type(layer) is keras.layers.Conv2D and _can_be_replaced(layer, x.shape):
            y = _Convolution(layer, x.shape)(x) if _is_of_images(layer, x.shape) else layer(x)
            if fixed and layer.activation is keras.activations.linear:
                convolved[id(y)] = layer, x, y
            return y
        if type(layer) is keras.layers.BatchNormalization and id(x) in convolved and not options.get("training"):
            convolution, before, _ = convolved[id(x)]
            return _Convolution(convolution, before.shape, layer)(before)
        return layer(*arguments, **options)

    graph = keras.Model(model.inputs, model.outputs)
    return keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)


def _can_be_replaced(layer: Any, shape: Any) -> bool:
    plain = layer.groups == 1 and set(layer.dilation_rate) == {1} and len(set(layer.strides)) == 1
    return plain and layer.data_format == "channels_last" and layer.compute_dtype == "float32" and None not in shape[1:]


def _is_of_images(layer: Any, shape: Any) -> bool:
    return shape[-1] <= _FEW and max(layer.kernel_size) > 1 and not tf.config.list_physical_devices("GPU")


class _Convolution(keras.layers.Layer):  # type: ignore[misc]
    """A `Conv2D`, optionally with the `BatchNormalization` after it, with a faster gradient with respect to its input.

    Args:
        layer: The `Conv2D`.
        shape: Shape of its input, (None, height, width, channels).
        normalization: The `BatchNormalization`, or None. Its weights and the kernel must not change.
    """

    def __init__(self, layer: Any, shape: Any, normalization: Any = None) -> None:
        super().__init__()
        self._layer, self._normalization = layer, normalization
        self._kernel = layer.kernel
        if normalization:
            scale = 1 if normalization.gamma is None else np.asarray(normalization.gamma)
            factor = scale / np.sqrt(np.asarray(normalization.moving_variance) + normalization.epsilon)
            self._kernel = tf.constant(np.asarray(layer.kernel) * factor)  # a tensor is not copied into each graph
        self._gradient = _by_blocks(layer, shape) if _is_of_images(layer, shape) else _as_tensorflow(layer)

    def call(self, x: Any) -> Any:
        """Return the output."""
        layer = self._layer

        @tf.custom_gradient
        def convolved(images: Any) -> tuple[Any, Any]:
            def gradient(upstream: Any, variables: Any = ()) -> Any:
                value = self._gradient(upstream, tf.convert_to_tensor(self._kernel), tf.shape(images))
                return (value, [None] * len(variables)) if variables else value

            y = tf.nn.conv2d(images, tf.convert_to_tensor(layer.kernel), layer.strides, layer.padding.upper())
            y = y + tf.convert_to_tensor(layer.bias) if layer.use_bias else y
            return self._normalization(y, training=False) if self._normalization else y, gradient

        y = convolved(x)
        return y if self._normalization else layer.activation(y)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the output's shape. Without this method Keras would trace `call`."""
        return self._layer.compute_output_shape(input_shape)


_Gradient = Callable[[Any, Any, Any], Any]  # takes the gradient of the outputs, the kernel and the input's shape


def _as_tensorflow(layer: Any) -> _Gradient:
    """Return the function that computes the gradient with respect to the input of a convolution."""
    stride, padding = layer.strides[0], layer.padding.upper()
    return lambda upstream, kernel, shape: tf.nn.conv2d_transpose(upstream, kernel, shape, stride, padding)


def _by_blocks(layer: Any, shape: Any) -> _Gradient:
    """Return the same function, computed for blocks of pixels at once.

    The pixels of a block are the channels of an ordinary convolution over the gradient of the outputs; they are then
    arranged side by side.
    """
    stride, (height, width, channels) = layer.strides[0], shape[1:]
    block = next(size for size in itertools.count(stride, stride) if size * size * channels >= _VECTOR)
    rows, columns = (
        _Side(size, taps, stride, block, layer.padding)
        for size, taps in zip((height, width), layer.kernel_size, strict=True)
    )
    taps_shape = len(rows.uses), len(columns.uses), layer.filters, block * block * channels

    def gradient(upstream: Any, kernel: Any, _: Any) -> Any:
        taps = tf.reshape(tf.einsum("apk,bql,klcd->abdpqc", rows.uses, columns.uses, kernel), taps_shape)
        padded = tf.pad(upstream, [(0, 0), rows.padding, columns.padding, (0, 0)])
        blocks = tf.nn.depth_to_space(tf.nn.conv2d(padded, taps, block // stride, "VALID"), block)
        return blocks[:, rows.first : rows.first + height, columns.first : columns.first + width]

    return gradient


class _Side:
    """The geometry of the gradient in blocks along rows or columns.

    Pixel p of block r is at r * block + p and contributes, by tap k of the kernel, to output i if
    r * block + p = i * stride + k. The block therefore needs the outputs from r * block / stride - reach on.

    Args:
        size: Number of pixels of an image.
        extent: Number of taps of the kernel.
        stride: Stride of the convolution.
        block: Number of pixels of a block, a multiple of the stride.
        padding: `valid` or `same`.

    Attributes:
        uses: Ones, shape (outputs a block needs, pixels, taps), where a pixel contributes to an output by a tap.
        padding: Zeros to add before and after the gradient of the outputs.
        first: Index of the first pixel of the image in the blocks, after the convolution's padding.
    """

    def __init__(self, size: int, extent: int, stride: int, block: int, padding: str) -> None:
        outputs = -(-size // stride) if padding == "same" else (size - extent) // stride + 1
        self.first = max((outputs - 1) * stride + extent - size, 0) // 2 if padding == "same" else 0
        reach = (extent - 1) // stride
        blocks = -(-max(self.first + size, (outputs - 1) * stride + extent) // block)
        self.padding = reach, blocks * block // stride - outputs
        self.uses: npt.NDArray[np.float32] = np.zeros((block // stride + reach, block, extent), np.float32)
        for pixel in range(block):
            for tap in range(extent):
                if (pixel - tap) % stride == 0:
                    self.uses[(pixel - tap) // stride + reach, pixel, tap] = 1
