"""The model artifact: a folder of `model.keras`, which plain Keras loads, and `model.json`, which describes it.

The description is stored beside the model as well as in Kubeflow's artifact metadata, so that an artifact from MLflow
or a bucket has the same description as one that a step passes to the next.
"""

import dataclasses
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, ValidationError

from evasion.components.common import strict_json
from evasion.components.common.data.header import Header
from evasion.components.common.data.resizing import Resizing
from evasion.components.common.files import replacing, sha256_of

FILE = "model.keras"
CARD = "model.json"


class ModelError(ValueError):
    """A model artifact is damaged or incomplete, or does not suit the data."""


FOLDERS = "folders"
GIVEN, TRAINING, IMAGENET = "given", "training", "imagenet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The content of `model.json`.

    Attributes:
        architecture: A key of `ARCHITECTURES`, or the own name of a model that others made.
        input_shape: (height, width, channels) of one image.
        class_names: In the order of the model's outputs.
        weights: The origin of the weights: `trained`, `imagenet`, `none` or a file.
        sha256: The hash of `model.keras`.
        name: MLflow's registered name, or `""`.
        version: MLflow's version of that name, or `""`.
        class_names_origin: Where the class names come from: `training`, `imagenet`, `given`, or `folders` if they are
            those of the dataset's folders, in sorted order; `class_names` are then only numbers.
        input_range: The range that the original model takes, a key of `RANGES`; `model.keras` itself takes [0, 1].
        outputs: What the original model's outputs are, a key of `imported.OUTPUTS`.
        package: The Python package with the model's own classes, or `""`.
        source_sha256: The hash of the original model's file, or `""`.
        interpolation: How images are resized; see `Resizing`.
        crop_to_aspect_ratio: Likewise.
        pad_to_aspect_ratio: Likewise.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    architecture: str
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    weights: str
    sha256: str
    name: str = ""
    version: str = ""
    class_names_origin: Literal["training", "imagenet", "given", "folders"] = "training"
    input_range: str = "0,1"
    outputs: str = "probabilities"
    package: str = ""
    source_sha256: str = ""
    interpolation: str = "bilinear"
    crop_to_aspect_ratio: bool = False
    pad_to_aspect_ratio: bool = False

    def __post_init__(self) -> None:
        _ = self.resizing  # which checks its fields
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names must be different names")
        if self.input_shape[2] not in (1, 3) or min(self.input_shape) < 1:
            raise ValueError("input_shape must be height, width and 1 or 3 channels")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the description of a model artifact and verify the hash of the model file.

        Raises:
            ModelError: If either file is missing or damaged.
        """
        try:
            card = strict_json.parse(cls, (folder / CARD).read_bytes())
        except FileNotFoundError as error:
            raise ModelError(
                f"The model has no {CARD} with its class names. Register it with `train` or `init_model`."
            ) from error
        except ValidationError as error:
            problems = [
                f"{'.'.join(ascii(part) for part in each['loc']) or 'the whole'}: {each['msg']}"
                for each in error.errors(include_url=False)
            ]
            raise ModelError(f"{CARD} does not have the expected form: {'; '.join(problems[:3])[:500]}") from error
        if not re.fullmatch("[0-9a-f]{64}", card.sha256):
            raise ModelError(f"{CARD} does not have the expected form: sha256 must be 64 hexadecimal digits")
        if not (folder / FILE).is_file():
            raise ModelError(f"The model has no {FILE}.")
        if (sha256 := sha256_of(folder / FILE)) != card.sha256:
            raise ModelError(f"{FILE} has sha256 {sha256}, but {CARD} says {card.sha256}: it is damaged or replaced.")
        return card

    @classmethod
    def read_for(cls, folder: Path, header: Header) -> Self:
        """Read a description for a dataset; see `read` and `named_by`.

        Raises:
            ModelError: Also if the dataset does not suit the model.
        """
        return cls.read(folder).suited_to(header.class_names, header.image_shape)

    def suited_to(self, class_names: Sequence[str], image_shape: tuple[int, int, int]) -> Self:
        """Return the description with the class names of a dataset, if it is assumed to have these.

        Raises:
            ModelError: If the dataset does not suit the model; see `named_by` and `indices_of`.
        """
        card = self.named_by(class_names)
        card.indices_of(class_names, image_shape)
        return card

    def named_by(self, class_names: Sequence[str]) -> Self:
        """Return the description with the class names of a dataset, if it is assumed to have these.

        Raises:
            ModelError: If the dataset has another number of classes than the model has outputs.
        """
        if self.class_names_origin != FOLDERS:
            return self
        if len(class_names) != len(self.class_names):
            raise ModelError(
                f"The model has {len(self.class_names)} outputs, but the dataset has {len(class_names)} class folders: "
                "give class_names, the name of each output in order."
            )
        return dataclasses.replace(self, class_names=tuple(class_names))

    @property
    def title(self) -> str:
        """What to call the model: its registered name, or else its own."""
        return self.name or self.architecture

    @property
    def resizing(self) -> Resizing:
        """How images are resized for the model."""
        return Resizing.of(vars(self))

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
                f"The dataset's images are {size_of(image_shape)}, but the model {self.title} takes "
                f"{size_of(self.input_shape)}: load the images for this model."
            )
        indices = {name: index for index, name in enumerate(self.class_names)}
        if unknown := [name for name in class_names if name not in indices]:
            raise ModelError(
                f"The model does not know {len(unknown)} of the dataset's {len(class_names)} classes: "
                f"{', '.join(unknown[:5])}. It knows {', '.join(self.class_names[:5])}"
                f"{', …' if len(self.class_names) > 5 else ''}; class folders must have these names."
            )
        return np.array([indices[name] for name in class_names], dtype=np.int32)


def size_of(shape: Sequence[int | None]) -> str:
    """Return a shape in words, such as 28×28×1."""
    return "×".join(str(side) for side in shape)


def save(model: Any, folder: Path, **card: Any) -> Card:
    """Write a Keras model and its description into `folder`, which appears when both are whole.

    `card` are the fields of `Card` except the hash.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        model.save(temporary / FILE)
        description = Card(sha256=sha256_of(temporary / FILE), **card)
        description.write(temporary)
    return description


def load(folder: Path) -> Any:
    """Return the `keras.Model` of a model artifact without running code that the file may contain.

    Raises:
        ModelError: If Keras cannot load it, or it does not take or return what its description says.
    """
    card = Card.read(folder)
    model = load_file(folder / FILE, card.package)
    expected = [(None, *card.input_shape)], [(None, len(card.class_names))]
    actual = [[tuple(tensor.shape) for tensor in tensors] for tensors in (model.inputs or [], model.outputs or [])]
    if tuple(actual) != expected:
        raise ModelError(
            f"{FILE} must take images of {size_of(card.input_shape)} and return {len(card.class_names)} "
            f"probabilities, as {CARD} says. It takes {_shapes(actual[0])} and returns {_shapes(actual[1])}."
        )
    return model


def load_file(path: Path, package: str) -> Any:
    """Return the `keras.Model` of a file, without running code that the file may contain.

    Args:
        path: A `.keras` or `.h5` file.
        package: A Python package that registers the model's own classes and functions with
            `keras.saving.register_keras_serializable`, or `""`. It is imported, so it must come from the user.

    Raises:
        ModelError: If the package cannot be imported, or Keras cannot load the file.
    """
    import keras

    if package:
        try:
            importlib.import_module(package)
        except Exception as error:  # any error of the user's own code
            raise ModelError(
                f"model_package must be installed and importable: {type(error).__name__}: {error}. "
                f"Received: model_package={package!r}"
            ) from error
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # damaged and hostile files raise almost any exception
        raise ModelError(_reason(path, package, error)) from error


def _reason(path: Path, package: str, error: Exception) -> str:
    """Return why Keras cannot load a file, and what to do."""
    text = " ".join(str(error).split())
    if "Lambda" in text or "safe_mode" in text:
        return (
            f"{path.name} contains code of its own, which is not run: replace Lambda and similar layers by built-in "
            "ones, or by a layer class of a package that you name with model_package."
        )
    if "Could not locate" in text or "Unknown layer" in text or "register_keras_serializable" in text:
        unknown = re.search(r"(?:Could not locate (?:class|function)|Unknown layer:) '?([\w.>]+)", text)
        return (
            f"{path.name} uses a class or function of its own{f', {unknown[1]}' if unknown else ''}: register it with "
            "keras.saving.register_keras_serializable in a Python package, install that where the model is loaded, and "
            f"name it with model_package. Received: model_package={package!r}"
        )
    return f"Keras cannot load {path.name}: {type(error).__name__}: {text[:500]}"


def _shapes(shapes: Sequence[Sequence[int | None]]) -> str:
    return " and ".join(size_of(shape[1:]) for shape in shapes) or "nothing"
