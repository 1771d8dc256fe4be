"""A model as an attack computes it: the same outputs, and the same gradients but for float rounding, sooner on a CPU.

- Batch normalization with fixed statistics multiplies each channel by a factor. On the way back the kernel of the
  convolution before it takes that factor in, which spares a pass over all outputs. (On the way forth it would move
  outputs by their rounding, and those about zero to the other side of the ReLU.)
- The gradient by an image of few channels is found by blocks. TensorFlow's kernels fill vectors with channels: for the
  one or three channels of an image, most of a vector is empty, and the first layer takes as long as one with many.
"""

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

_FEW = 4  # channels of an image
_VECTOR = 12  # channels that fill most of a vector of 16 floats


def optimized(model: Any, *, fixed: bool = True) -> Any:
    """Return a `keras.Model` that computes what `model` does, for inference and for gradients by the images alone.

    It shares the layers of `model` and their weights. A model of a class of its own is returned as it is.

    Args:
        model: The model; what is made quicker are convolutions whose channels come last.
        fixed: Whether the weights stay as they are. If they do not, batch normalization is left alone.
    """
    if not _is_graph(model):
        return model
    convolved: dict[int, tuple[Any, Any, Any]] = {}  # by the output's id: layer, input, and that output, to keep its id

    def call(layer: Any, *arguments: Any, **named: Any) -> Any:
        x: Any = arguments[0] if arguments else None
        if _is_graph(layer):
            return optimized(layer, fixed=fixed)(*arguments, **named)
        if type(layer) is keras.layers.Conv2D and _can_be_replaced(layer, x.shape):
            y = _Convolution(layer, x.shape)(x) if _is_of_images(layer, x.shape) else layer(x)
            if fixed and layer.activation is keras.activations.linear:
                convolved[id(y)] = layer, x, y
            return y
        if type(layer) is keras.layers.BatchNormalization and id(x) in convolved and not named.get("training"):
            convolution, before, _ = convolved[id(x)]
            return _Convolution(convolution, before.shape, layer)(before)
        return layer(*arguments, **named)

    graph = keras.Model(model.inputs, model.outputs)
    return keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)


def _is_graph(layer: Any) -> bool:
    """Return whether a layer is one of Keras's own models, not of a class whose `call` may do anything."""
    return isinstance(layer, keras.Model) and type(layer).__module__.startswith("keras.")


def _can_be_replaced(layer: Any, shape: Any) -> bool:
    plain = layer.groups == 1 and set(layer.dilation_rate) == {1} and len(set(layer.strides)) == 1
    return plain and layer.data_format == "channels_last" and layer.compute_dtype == "float32" and None not in shape[1:]


def _is_of_images(layer: Any, shape: Any) -> bool:
    return shape[-1] <= _FEW and max(layer.kernel_size) > 1 and not tf.config.list_physical_devices("GPU")


class _Convolution(keras.layers.Layer):  # type: ignore[misc]
    """A `Conv2D`, or one with the `BatchNormalization` after it, whose gradient by the input takes less time.

    Args:
        layer: The `Conv2D`.
        shape: Of its input, (None, height, width, channels).
        normalization: The `BatchNormalization`, whose weights and the kernel's stay as they are, or None.
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
                found = self._gradient(upstream, tf.convert_to_tensor(self._kernel), tf.shape(images))
                return (found, [None] * len(variables)) if variables else found

            y = tf.nn.conv2d(images, tf.convert_to_tensor(layer.kernel), layer.strides, layer.padding.upper())
            y = y + tf.convert_to_tensor(layer.bias) if layer.use_bias else y
            return self._normalization(y, training=False) if self._normalization else y, gradient

        y = convolved(x)
        return y if self._normalization else layer.activation(y)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the output's shape, which Keras would otherwise find by tracing `call`."""
        return self._layer.compute_output_shape(input_shape)


_Gradient = Callable[[Any, Any, Any], Any]  # of the gradient by the outputs, the kernel and the input's shape


def _as_tensorflow(layer: Any) -> _Gradient:
    """Return the gradient by the input of a convolution."""
    stride, padding = layer.strides[0], layer.padding.upper()
    return lambda upstream, kernel, shape: tf.nn.conv2d_transpose(upstream, kernel, shape, stride, padding)


def _by_blocks(layer: Any, shape: Any) -> _Gradient:
    """Return the same, found for blocks of pixels at once.

    The pixels of a block are channels of an ordinary convolution of the gradient by the outputs, which are laid out
    side by side afterwards.
    """
    stride, (height, width, channels) = layer.strides[0], shape[1:]
    block = next(size for size in itertools.count(stride, stride) if size * size * channels >= _VECTOR)
    rows, columns = (
        _Side(size, taps, stride, block, layer.padding)
        for size, taps in zip((height, width), layer.kernel_size, strict=True)
    )
    taps_shape = len(rows.taken), len(columns.taken), layer.filters, block * block * channels

    def gradient(upstream: Any, kernel: Any, _: Any) -> Any:
        taps = tf.reshape(tf.einsum("apk,bql,klcd->abdpqc", rows.taken, columns.taken, kernel), taps_shape)
        padded = tf.pad(upstream, [(0, 0), rows.padding, columns.padding, (0, 0)])
        found = tf.nn.depth_to_space(tf.nn.conv2d(padded, taps, block // stride, "VALID"), block)
        return found[:, rows.first : rows.first + height, columns.first : columns.first + width]

    return gradient


class _Side:
    """How the gradient by blocks goes along rows or columns.

    Pixel p of block r lies at r * block + p and took part, by tap k of the kernel, in output i where
    r * block + p = i * stride + k. So the block needs the outputs from r * block / stride - reach on.

    Args:
        size: Pixels of an image.
        extent: Taps of the kernel.
        stride: Of the convolution.
        block: Pixels of a block, a multiple of the stride.
        padding: `valid` or `same`.

    Attributes:
        taken: Ones, shape (outputs a block needs, pixels, taps): by which tap a pixel took part in an output.
        padding: Zeros to add before and after the gradient by the outputs.
        first: Where in the blocks the image begins, which the convolution padded.
    """

    def __init__(self, size: int, extent: int, stride: int, block: int, padding: str) -> None:
        outputs = -(-size // stride) if padding == "same" else (size - extent) // stride + 1
        self.first = max((outputs - 1) * stride + extent - size, 0) // 2 if padding == "same" else 0
        reach = (extent - 1) // stride
        blocks = -(-max(self.first + size, (outputs - 1) * stride + extent) // block)
        self.padding = reach, blocks * block // stride - outputs
        self.taken: npt.NDArray[np.float32] = np.zeros((block // stride + reach, block, extent), np.float32)
        for pixel in range(block):
            for tap in range(extent):
                if (pixel - tap) % stride == 0:
                    self.taken[(pixel - tap) // stride + reach, pixel, tap] = 1
