"""The classifiers of `keras.applications`: the image size and the range of input values of each, and their layers."""

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Application:
    """A classifier of `keras.applications`.

    Attributes:
        name: Its name there.
        side: Height and width of the images that its weights were made for.
        input_range: What its `preprocess_input` converts to, a key of `RANGES`; `0,255` if the model itself does that.
    """

    name: str
    side: int
    input_range: str


_SIDES: dict[str, dict[int, tuple[str, ...]]] = {
    "caffe": {224: ("ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19")},
    "tf": {
        224: ("MobileNet", "MobileNetV2", "NASNetMobile", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
        299: ("InceptionResNetV2", "InceptionV3", "Xception"),
        331: ("NASNetLarge",),
    },
    "torch": {224: ("DenseNet121", "DenseNet169", "DenseNet201")},
    "0,255": {
        224: (
            *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
            *("EfficientNetB0", "EfficientNetV2B0", "MobileNetV3Small", "MobileNetV3Large"),
        ),
        240: ("EfficientNetB1", "EfficientNetV2B1"),
        260: ("EfficientNetB2", "EfficientNetV2B2"),
        300: ("EfficientNetB3", "EfficientNetV2B3"),
        380: ("EfficientNetB4",),
        384: ("EfficientNetV2S",),
        456: ("EfficientNetB5",),
        480: ("EfficientNetV2M", "EfficientNetV2L"),
        528: ("EfficientNetB6",),
        600: ("EfficientNetB7",),
    },
}
APPLICATIONS = {
    name.lower(): Application(name, side, input_range)
    for input_range, sides in _SIDES.items()
    for side, names in sides.items()
    for name in names
}
"""The classifiers by their names in lowercase letters."""


def build(application: Application, weights: str, *, include_top: bool) -> Any:
    """Return the `keras.Model` with logits of 1,000 classes, or without its top.

    Args:
        application: The classifier.
        weights: `imagenet`, `none` or the path of a weights file.
        include_top: Whether the model classifies ImageNet.

    Raises:
        ValueError: The file does not hold weights of this model.
    """
    import keras

    function = getattr(keras.applications, application.name)
    shape = (application.side, application.side, 3)
    arguments: dict[str, Any] = {"classifier_activation": None} if include_top else {}
    try:
        return function(
            include_top=include_top, weights=None if weights == "none" else weights, input_shape=shape, **arguments
        )
    except (ValueError, OSError) as error:
        if weights in ("imagenet", "none"):
            raise
        raise ValueError(
            f"weights must be a .weights.h5 or .h5 file of Keras's {application.name}, "
            f"{'with' if include_top else 'without'} its top. Received: {Path(weights).name!r}. "
            f"Error of Keras: {str(error).partition(chr(10))[0]}"
        ) from error
