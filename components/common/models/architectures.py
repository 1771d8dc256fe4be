"""The architectures that `train` and `init_model` build: those of the original testbed, and `keras.applications`.

Every model takes float32 images in [0, 1], NHWC, and ends in `Softmax` over separate logits, so that an attack can
compute its loss from logits. Those of `keras.applications` contain their own preprocessing. The layers are all
built-in, so plain Keras loads a saved file. Keras is imported only when a model is built.
"""

import csv
import dataclasses
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from evasion.components.common.data.sources import fetch_file
from evasion.components.common.models import applications
from evasion.components.common.models.applications import APPLICATIONS, Application
from evasion.components.common.models.ranges import RANGES


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The definition of a model.

    Attributes:
        input_shape: (height, width, channels) of one image.
        layers: Takes a Keras input tensor, the number of classes and weights; returns the logits tensor.
        application: Its entry in `keras.applications`; None for a model that has no pretrained weights.
    """

    input_shape: tuple[int, int, int]
    layers: Callable[[Any, int, str], Any]
    application: Application | None = None


def _shallow_net(x: Any, classes: int, weights: str) -> Any:
    from keras import layers

    x = layers.Flatten()(x)
    x = layers.Dense(32, activation="sigmoid")(x)
    return layers.Dense(classes, name="logits")(x)


def _le_net(x: Any, classes: int, weights: str) -> Any:
    """LeNet as in the original testbed; LeCun et al. 1998, "Gradient-based learning applied to documents"."""
    from keras import layers

    x = layers.Conv2D(32, 3, activation="relu")(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(0.25)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    return layers.Dense(classes, name="logits")(x)


def _alex_net(x: Any, classes: int, weights: str) -> Any:
    """Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks"."""
    from keras import layers

    for filters, kernel, stride in ((96, 11, 4), (256, 5, 1)):
        x = layers.Conv2D(filters, kernel, strides=stride, activation="relu")(x)
        x = layers.MaxPooling2D(3, strides=2)(x)
        x = layers.BatchNormalization()(x)
    for filters in (256, 384, 384):
        x = layers.Conv2D(filters, 3, activation="relu")(x)
    x = layers.MaxPooling2D(3, strides=2)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.Dense(4096, activation="tanh")(x)
        x = layers.Dropout(0.5)(x)
    return layers.Dense(classes, name="logits")(x)


def _transfer(application: Application) -> Callable[[Any, int, str], Any]:
    """Return the layers that `train` uses: a frozen base without its top, and a new head."""

    def head(x: Any, classes: int, weights: str) -> Any:
        from keras import layers

        base = applications.build(application, weights, include_top=False)
        base.trainable = False
        x = RANGES[application.input_range].layer(x)
        x = base(x, training=False)  # BatchNormalization keeps its ImageNet statistics
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(1024, activation="relu")(x)
        return layers.Dense(classes, name="logits")(x)

    return head


ARCHITECTURES = {
    "shallow_net": Architecture((28, 28, 1), _shallow_net),
    "le_net": Architecture((28, 28, 1), _le_net),
    "alex_net": Architecture((224, 224, 1), _alex_net),
    **{
        name: Architecture((application.side, application.side, 3), _transfer(application), application)
        for name, application in APPLICATIONS.items()
    },
}
PRETRAINED = tuple(APPLICATIONS)


def build(name: str, classes: int, weights: str, weights_sha256: str, seed: int) -> Any:
    """Return the `keras.Model` that `train` fits.

    Args:
        name: A key of `ARCHITECTURES`.
        classes: Number of classes.
        weights: For a pretrained architecture `imagenet`, `none` or a weights file of the base without its top
            (local or gs://). The other architectures start from Keras's default initialisers and take no weights.
        weights_sha256: The hash that the file must have, or `""`.
        seed: Seed of Keras's random numbers. It is set after the download of a file, which may draw random numbers for
            its pauses.
    """
    import keras

    architecture = ARCHITECTURES[name]
    with tempfile.TemporaryDirectory() as folder:
        local = _local(weights, weights_sha256, Path(folder))
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(architecture.input_shape)
        logits = architecture.layers(inputs, classes, local)
    return keras.Model(inputs, keras.layers.Softmax()(logits), name=name)


def build_imagenet(name: str, weights: str, weights_sha256: str, seed: int) -> Any:
    """Return the complete 1,000-class ImageNet `keras.Model`. See `build`; a weights file must include the top."""
    import keras

    application = APPLICATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        local = _local(weights, weights_sha256, Path(folder))
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(ARCHITECTURES[name].input_shape)
        base = applications.build(application, local, include_top=True)
    logits = base(RANGES[application.input_range].layer(inputs))
    return keras.Model(inputs, keras.layers.Softmax()(logits), name=name)


def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of the 1,000 ImageNet classes in index order, as ImageNet folders are named."""
    table = resources.files("evasion.components.common").joinpath("imagenet_classes.csv")
    return tuple(row["wordnet_id"] for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def _local(weights: str, sha256: str, folder: Path) -> str:
    """Return `weights` as Keras takes them: imagenet, none, or the path of a local copy with a verified hash."""
    if weights in ("imagenet", "none"):
        return weights
    return str(fetch_file(weights, folder / Path(weights).name, sha256=sha256))
