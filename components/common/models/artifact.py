"""The model artifact: a folder of `model.keras`, which plain Keras loads, and `model.json`, which describes it.

The description is stored beside the model as well as in Kubeflow's artifact metadata, so that an artifact from MLflow
or a bucket has the same description as one that a step passes to the next.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evasion.components.common.files import replacing, sha256_of

FILE = "model.keras"
CARD = "model.json"


class ModelError(ValueError):
    """A model artifact is damaged or incomplete, or does not suit the data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The content of `model.json`.

    Attributes:
        architecture: A key of `ARCHITECTURES`.
        input_shape: (height, width, channels) of one image.
        class_names: In the order of the model's outputs.
        weights: The origin of the weights: `trained`, `imagenet`, `none` or a file.
        sha256: The hash of `model.keras`.
        name: MLflow's registered name, or `""`.
        version: MLflow's version of that name, or `""`.
    """

    architecture: str
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    weights: str
    sha256: str
    name: str = ""
    version: str = ""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the description of a model artifact and verify the hash of the model file.

        Raises:
            ModelError: If either file is missing or damaged.
        """
        try:
            content = json.loads((folder / CARD).read_text(encoding="utf-8"))
            height, width, channels = (int(side) for side in content["input_shape"])
            card = cls(
                **content
                | {"input_shape": (height, width, channels), "class_names": tuple(map(str, content["class_names"]))}
            )
        except FileNotFoundError as error:
            raise ModelError(
                f"The model has no {CARD} with its class names. Register it with `train` or `init_model`."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{CARD} does not have the expected form: {error!r}") from error
        if not (folder / FILE).is_file():
            raise ModelError(f"The model has no {FILE}.")
        if (sha256 := sha256_of(folder / FILE)) != card.sha256:
            raise ModelError(f"{FILE} has sha256 {sha256}, but {CARD} says {card.sha256}: it is damaged or replaced.")
        return card

    def write(self, folder: Path) -> None:
        """Write `model.json`."""
        with replacing(folder / CARD) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    def require_architecture(self, model_architecture: str) -> None:
        """Raise a `ModelError` if the model has another architecture."""
        if self.architecture != model_architecture:
            raise ModelError(
                f"model_architecture must be that of the model, {self.architecture}. "
                f"Received: model_architecture={model_architecture!r}"
            )

    def indices_of(self, class_names: Sequence[str], image_shape: tuple[int, int, int]) -> npt.NDArray[np.int32]:
        """Return the model's output index of each class of a dataset, matched by name.

        Raises:
            ModelError: If the images have another shape than the model takes, or a class that the model does not know.
        """
        if tuple(image_shape) != self.input_shape:
            raise ModelError(
                f"The dataset's images are {_size(image_shape)}, but the model {self.architecture} takes "
                f"{_size(self.input_shape)}: load them with model_architecture={self.architecture}."
            )
        indices = {name: index for index, name in enumerate(self.class_names)}
        if unknown := [name for name in class_names if name not in indices]:
            raise ModelError(
                f"The model does not know {len(unknown)} of the dataset's {len(class_names)} classes: "
                f"{', '.join(unknown[:5])}. It knows {', '.join(self.class_names[:5])}"
                f"{', …' if len(self.class_names) > 5 else ''}; class folders must have these names."
            )
        return np.array([indices[name] for name in class_names], dtype=np.int32)


def _size(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)


def save(model: Any, folder: Path, **card: Any) -> Card:
    """Write a Keras model and its description into `folder`. `card` are the fields of `Card` except the hash."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / FILE) as temporary:
        keras_file = temporary.with_suffix(".keras")  # Keras accepts no other extension
        try:
            model.save(keras_file)
            keras_file.replace(temporary)
        finally:
            keras_file.unlink(missing_ok=True)
    description = Card(sha256=sha256_of(folder / FILE), **card)
    description.write(folder)
    return description


def load(folder: Path) -> Any:
    """Return the `keras.Model` of a model artifact without running code that the file may contain."""
    import keras

    try:
        return keras.saving.load_model(folder / FILE, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(f"Keras cannot load {FILE}: {error}") from error
