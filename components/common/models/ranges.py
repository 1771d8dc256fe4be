"""The ranges of input values that models take, and the built-in layers that convert pixels in [0, 1] to them."""

import dataclasses
from typing import Any

import numpy as np

from evasion.components.common.data.pixels import Floats


@dataclasses.dataclass(frozen=True)
class InputRange:
    """A range of input values, reached from [0, 1] by `scale * pixel + offset` in each channel.

    Attributes:
        scale: A factor for all channels, or one for each channel of the model's order.
        offset: Likewise.
        bgr: Whether the model takes blue, green and red in this order.
    """

    scale: float | tuple[float, float, float]
    offset: float | tuple[float, float, float]
    bgr: bool = False

    @property
    def of_colours(self) -> bool:
        """Whether the range is defined for three channels alone."""
        return self.bgr or isinstance(self.scale, tuple) or isinstance(self.offset, tuple)

    def convert(self, pixels: Floats) -> Floats:
        """Return pixels in [0, 1], any number of images, as values of this range."""
        ordered = pixels[..., ::-1] if self.bgr else pixels
        return np.asarray(ordered * _array(self.scale) + _array(self.offset), np.float32)

    def invert(self, values: Floats) -> Floats:
        """Return values of this range as pixels; the inverse of `convert`."""
        pixels = (values - _array(self.offset)) / _array(self.scale)
        return np.asarray(pixels[..., ::-1] if self.bgr else pixels, np.float32)

    def layer(self, x: Any) -> Any:
        """Return a Keras tensor of pixels in [0, 1] as a tensor of this range, by at most one built-in layer."""
        from keras import layers

        if self == RANGES["0,1"]:
            return x
        if not self.of_colours:
            return layers.Rescaling(self.scale, self.offset)(x)
        scale, offset = (np.broadcast_to(_array(each), 3) for each in (self.scale, self.offset))
        return _channelwise(x, scale, offset, self.bgr)


# The modes of `keras.applications.imagenet_utils.preprocess_input`, from its documentation: the means and deviations of
# ImageNet, in levels for `caffe` and as shares of the pixel range for `torch`.
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
_TORCH_MEAN, _TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RANGES = {
    "0,1": InputRange(1.0, 0.0),
    "0,255": InputRange(255.0, 0.0),
    "-1,1": InputRange(2.0, -1.0),
    "caffe": InputRange(255.0, tuple(-mean for mean in _CAFFE_MEAN_BGR), bgr=True),  # type: ignore[arg-type]
    "torch": InputRange(
        tuple(1 / std for std in _TORCH_STD),  # type: ignore[arg-type]
        tuple(-mean / std for mean, std in zip(_TORCH_MEAN, _TORCH_STD, strict=True)),  # type: ignore[arg-type]
    ),
    "tf": InputRange(2.0, -1.0),
}
"""The ranges by the names of the parameter `input_range`."""


def _array(value: float | tuple[float, float, float]) -> Floats:
    return np.asarray(value, np.float32)


def _channelwise(x: Any, scale: Any, offset: Any, bgr: bool) -> Any:
    """Convert three channels by one frozen 1x1 convolution, a built-in layer that can also change their order."""
    from keras import initializers, layers

    kernel = np.diag(scale)[::-1] if bgr else np.diag(scale)
    return layers.Conv2D(
        3,
        1,
        kernel_initializer=initializers.Constant(kernel.reshape(1, 1, 3, 3).tolist()),
        bias_initializer=initializers.Constant(np.asarray(offset).tolist()),
        trainable=False,
        dtype="float32",
        name="imagenet_preprocessing",
    )(x)
