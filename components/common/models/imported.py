"""Models that others made, brought into the form of this package: from pixels in [0, 1] to probabilities.

The original becomes a layer of a new `keras.Model`. Before it stands at most one built-in layer that converts [0, 1] to
the range that the original takes; behind it `Softmax` over logits, wherever these can be had. So every later stage
knows one form, and an attack takes its loss from logits.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from evasion.components.common.data.pixels import Floats
from evasion.components.common.models.artifact import ModelError, size_of
from evasion.components.common.models.endings import (
    LOG_SOFTMAX,
    OTHER,
    SIGMOID,
    SOFTMAX,
    Ending,
    ending_of,
)
from evasion.components.common.models.ranges import InputRange
from evasion.components.common.validate import ParameterError

PROBABILITIES, LOGITS, LOG_PROBABILITIES = "probabilities", "logits", "log-probabilities"
ONE_PROBABILITY, ONE_LOGIT = "one probability", "one logit"
OUTPUTS = (PROBABILITIES, LOGITS, LOG_PROBABILITIES, ONE_PROBABILITY, ONE_LOGIT)
"""What outputs can be: of each class, or one number for the second of two classes (a sigmoid, or its logit)."""

IMAGES = 8
"""How many random images outputs are recognised on."""

TOLERANCE = 1e-3
"""How far probabilities may be from a sum of 1, and the new model's from the original's: 16-bit models round."""


class Imported(NamedTuple):
    """A model in the form of this package.

    Attributes:
        model: The `keras.Model`.
        outputs: What the original's outputs are, of `OUTPUTS`.
        input_shape: (height, width, channels) of one image.
    """

    model: Any
    outputs: str
    input_shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Size:
    """Height and width of images, and the number of channels or None, from the parameter `image_size`."""

    height: int
    width: int
    channels: int | None = None


def size_from(image_size: str) -> Size | None:
    """Return what `image_size` says: one side, height and width, or height, width and channels; None if blank.

    Raises:
        ParameterError: If it says anything else.
    """
    if not image_size.strip():
        return None
    parts = image_size.replace("x", ",").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2, 3) or min(numbers) < 1 or numbers[2:] not in ([], [1], [3]):
        raise ParameterError(
            "image_size must be one side, height,width or height,width,channels with 1 or 3 channels, in pixels. "
            f"Received: image_size={image_size!r}",
            "image_size",
        )
    return Size(*(numbers * 2 if len(numbers) == 1 else numbers))


def imported(original: Any, input_range: InputRange, size: Size | None) -> Imported:
    """Return a model that others made in the form of this package.

    Args:
        original: The `keras.Model`.
        input_range: The range of values that it takes.
        size: The size of images, for a model that takes any.

    Raises:
        ModelError: If it is not a classifier of single images with 1 or 3 channels.
        ParameterError: If the size is missing, or is not the model's.
    """
    import keras

    shape = _input_shape(original, size)
    if input_range.of_colours and shape[2] != 3:
        raise ParameterError(
            "input_range must be 0,1 or 0,255 or -1,1 or tf for gray images: caffe and torch are of three channels. "
            f"The model takes {size_of(shape)}.",
            "input_range",
        )
    pixels = np.random.default_rng(0).random((IMAGES, *shape), dtype=np.float32)
    expected = _outputs_of(original, input_range.convert(pixels))
    ending = ending_of(original)
    outputs = _recognised(ending, expected)
    inputs = keras.Input(shape)
    values = input_range.layer(inputs)
    with_logits = not (ending.activation == OTHER and outputs in (PROBABILITIES, ONE_PROBABILITY))
    raw = _single((ending.before if with_logits else original)(values))
    model = keras.Model(inputs, _probabilities(raw, outputs, with_logits))
    _compare(np.asarray(model(pixels, training=False)), _as_probabilities(expected, outputs))
    return Imported(model, outputs, shape)


def _input_shape(model: Any, size: Size | None) -> tuple[int, int, int]:
    """Return (height, width, channels) of the images that a model takes."""
    shapes = _declared_shapes(model)
    if len(shapes) > 1:
        raise ModelError(f"The model must have one input, of images. It has {len(shapes)}.")
    if not shapes:
        if size is None or size.channels is None:
            raise ParameterError(
                "image_size must be given as height,width,channels, for the model does not say what it takes: a "
                "subclassed model that was never called, or whose file does not keep its shape.",
                "image_size",
            )
        return size.height, size.width, size.channels
    shape = shapes[0]
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ModelError(
            "The model must take images of shape (images, height, width, channels), with 1 or 3 channels, the last "
            f"axis. It takes {size_of(shape[1:])} for each image: put it behind a Reshape or Permute layer that makes "
            "that of height, width and channels."
        )
    wanted = (size.height, size.width, size.channels or shape[3]) if size else (None, None, shape[3])
    differing = [own is not None and given is not None and own != given
                 for own, given in zip(shape[1:], wanted, strict=True)]  # fmt: skip
    if any(differing):
        raise ParameterError(
            f"image_size must be that of the model, {size_of(shape[1:])}, or blank. Received: {size_of(wanted)}",
            "image_size",
        )
    height, width = (own or given for own, given in zip(shape[1:3], wanted[:2], strict=True))
    if height is None or width is None:
        raise ParameterError(
            f"image_size must be given, for the model takes images of any size ({size_of(shape[1:])}): the size that "
            "it was trained with.",
            "image_size",
        )
    return height, width, shape[3]


def _declared_shapes(model: Any) -> list[tuple[int | None, ...]]:
    """Return the shapes of a model's inputs, as far as it knows them; a list of none if it does not."""
    import keras

    if inputs := getattr(model, "inputs", None):
        if any(not keras.backend.is_float_dtype(tensor.dtype) for tensor in inputs):
            raise ModelError(
                f"The model must take floats, so that it has gradients. It takes {inputs[0].dtype}: build it on "
                'keras.Input(..., dtype="float32") and load the weights.'
            )
        return [tuple(tensor.shape) for tensor in inputs]
    # What a subclassed model keeps of the shape that it was built with.
    config = (model.get_build_config() if hasattr(model, "get_build_config") else None) or {}
    shape = config.get("input_shape")
    if isinstance(shape, list | tuple) and shape and all(side is None or isinstance(side, int) for side in shape):
        return [tuple(shape)]
    return []


def _single(outputs: Any) -> Any:
    """Return the one output of a model's call."""
    import keras

    flat = keras.tree.flatten(outputs)
    if len(flat) != 1:
        raise ModelError(f"The model must have one output, a number for each class. It has {len(flat)}.")
    return flat[0]


def _outputs_of(model: Any, values: Floats) -> Floats:
    """Return a model's outputs on a batch, shape (images, classes)."""
    try:
        called = model(values, training=False)
    except Exception as error:  # layers raise almost any exception for a shape that does not suit them
        text = " ".join(str(error).split())
        raise ModelError(
            f"The model must take images of {size_of(values.shape[1:])}, but cannot be called on them: {text[:500]}"
        ) from error
    outputs = np.asarray(_single(called), np.float32)
    if outputs.ndim != 2 or len(outputs) != len(values):
        raise ModelError(
            "The model must return a number for each class, shape (images, classes). It returns "
            f"{size_of(outputs.shape)} for {len(values)} images."
        )
    if not np.isfinite(outputs).all():
        raise ModelError("The model's outputs must be finite numbers, but those of random images are not.")
    return outputs


def _recognised(ending: Ending, outputs: Floats) -> str:
    """Return what outputs are: by the model's last activation if that is known, else by their values."""
    classes = outputs.shape[1]
    shares = bool((outputs >= 0).all() and (outputs <= 1 + TOLERANCE).all())
    sums_to_one = shares and bool(np.allclose(outputs.sum(axis=1), 1, atol=TOLERANCE * max(1, classes / 100)))
    if classes == 1:
        return ONE_PROBABILITY if ending.activation == SIGMOID or (ending.activation == OTHER and shares) else ONE_LOGIT
    if ending.activation == SIGMOID or (ending.activation == OTHER and shares and not sums_to_one):
        raise ModelError(
            f"The model must choose one of its classes, but its {classes} outputs are a sigmoid each (multi-label): "
            "such a model is not supported. If it was trained with one class for each image, replace the sigmoids by a "
            "softmax."
        )
    if ending.activation == SOFTMAX or (ending.activation == OTHER and sums_to_one):
        return PROBABILITIES
    negative = bool((outputs <= TOLERANCE).all())
    exponentials = np.exp(np.minimum(outputs, 0)).sum(axis=1)
    if ending.activation == LOG_SOFTMAX or (negative and np.allclose(exponentials, 1, atol=TOLERANCE)):
        return LOG_PROBABILITIES
    return LOGITS


def _probabilities(raw: Any, outputs: str, with_logits: bool) -> Any:
    """Return the tensor of probabilities that built-in layers make of a model's outputs, or of what is before them."""
    from keras import layers

    if outputs in (ONE_PROBABILITY, ONE_LOGIT):
        # For a logit z the logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)); for a probability p (1-p, p).
        offset = [0.0, 0.0] if with_logits else [1.0, 0.0]
        raw = _frozen_dense([0.0 if with_logits else -1.0, 1.0], offset)(raw)
    return layers.Softmax(dtype="float32")(raw) if with_logits else raw


def _frozen_dense(kernel: list[float], bias: list[float]) -> Any:
    from keras import initializers, layers

    return layers.Dense(
        2,
        kernel_initializer=initializers.Constant([kernel]),
        bias_initializer=initializers.Constant(bias),
        trainable=False,
        dtype="float32",
        name="two_classes",
    )


def _as_probabilities(outputs: Floats, kind: str) -> Floats:
    """Return the probabilities of a model's own outputs, computed without Keras."""
    from scipy.special import expit, softmax

    if kind in (ONE_PROBABILITY, ONE_LOGIT):
        second = outputs if kind == ONE_PROBABILITY else expit(outputs)
        return np.concatenate([1 - second, second], axis=1)
    return outputs if kind == PROBABILITIES else np.asarray(softmax(outputs, axis=1))


def _compare(actual: Floats, expected: Floats) -> None:
    """Require that the new model says the same as the original on the same images."""
    distance = float(np.abs(actual - expected).max())
    if distance > TOLERANCE:
        raise ModelError(
            f"The model cannot be brought into the form of this package: its probabilities change by {distance:.3g}. "
            "Please report it with the model's summary()."
        )
