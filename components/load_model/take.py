"""Take a model from MLflow or a file, and write it as a model artifact."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evasion.components.common import tracking
from evasion.components.common.data.resizing import Resizing
from evasion.components.common.data.sources import fetch_file
from evasion.components.common.files import sha256_of
from evasion.components.common.models import architectures, artifact, class_names, imported
from evasion.components.common.models.architectures import ARCHITECTURES
from evasion.components.common.models.artifact import CARD, FILE, FOLDERS, GIVEN, IMAGENET, Card, ModelError, size_of
from evasion.components.common.models.ranges import RANGES
from evasion.components.common.validate import ParameterError
from evasion.components.load_model.task import OF_OWN_MODELS, is_file

_GENERIC_NAMES = ("sequential", "functional", "model")


def take(parameters: Mapping[str, Any], temporary: Path, target: Path) -> Card:
    """Write the artifact of a model into a folder.

    Args:
        parameters: Those of the step.
        temporary: A folder for what is downloaded.
        target: The folder to write into.

    Returns:
        Its description.

    Raises:
        ModelError: The model is damaged, unsuitable, or another one than the parameters say.
        ParameterError: A parameter does not suit the model.
    """
    name: str = parameters["name"]
    if is_file(name):
        file = fetch_file(name, temporary / Path(name).name, sha256=parameters["sha256"])
        return _imported(file, parameters, target, own_name=Path(name).stem, registered=("", ""))
    downloaded = tracking.download_model(name, temporary)
    if parameters["sha256"] and (actual := sha256_of(downloaded.file)) != parameters["sha256"].lower():
        raise ModelError(f"The model's file must have sha256 {parameters['sha256'].lower()}. Received: {actual}")
    registered = downloaded.name, downloaded.version
    if downloaded.card is None:
        return _imported(downloaded.file, parameters, target, own_name=downloaded.name, registered=registered)
    shutil.copyfile(downloaded.file, target / FILE)
    shutil.copyfile(downloaded.card, target / CARD)
    return _described(parameters, target, registered)


def _described(parameters: Mapping[str, Any], folder: Path, registered: tuple[str, str]) -> Card:
    """Return the description of a model that has one, with MLflow's name and version and how to resize images."""
    card = Card.read(folder)
    name, version = registered
    if parameters["model_architecture"]:
        card.require_architecture(parameters["model_architecture"])
    useless = [
        "model_package" if key == "package" else key
        for key, default in OF_OWN_MODELS.items()
        if parameters[key] not in (default, card.package if key == "package" else default)
    ]
    if useless:
        raise ParameterError(
            f"{', '.join(useless)} must be omitted: the model {name or card.title} has a description that says it.",
            *useless,
        )
    if card.package != parameters["package"]:
        raise ParameterError(
            f"model_package must be {card.package}, the package with the model's own classes, which is imported: "
            f"install it and name it. Received: model_package={parameters['package']!r}",
            "model_package",
        )
    card = dataclasses.replace(card, name=name, version=version, **_resizing(parameters, card.resizing).to_json())
    card.write(folder)
    return card


def _resizing(parameters: Mapping[str, Any], own: Resizing) -> Resizing:
    """Return how to resize images: as the parameters say, or as the model's description does if they are defaults."""
    given = Resizing.of(parameters)
    return own if given == Resizing() else given


def _imported(
    file: Path, parameters: Mapping[str, Any], target: Path, *, own_name: str, registered: tuple[str, str]
) -> Card:
    """Bring a model that others made into the form of this package and write it."""
    original = artifact.load_file(file, parameters["package"])
    model, outputs, shape = imported.imported(
        original, RANGES[parameters["input_range"]], imported.size_from(parameters["image_size"])
    )
    _check_architecture(parameters["model_architecture"], shape)
    classes = int(model.output_shape[-1])
    names, origin = _class_names(parameters["class_names"], classes)
    title = str(original.name)
    if own_name and (is_file(parameters["name"]) or title.rstrip("_0123456789") in _GENERIC_NAMES):
        title = own_name
    return artifact.save(
        model,
        target,
        architecture=title,
        input_shape=shape,
        class_names=names,
        class_names_origin=origin,
        weights=parameters["name"],
        name=registered[0],
        version=registered[1],
        input_range=parameters["input_range"],
        outputs=outputs,
        package=parameters["package"],
        source_sha256=sha256_of(file),
        **_resizing(parameters, Resizing()).to_json(),
    )


def _check_architecture(model_architecture: str, shape: tuple[int, int, int]) -> None:
    """Require that a model which others made could be of the architecture that the user says."""
    if model_architecture and ARCHITECTURES[model_architecture].input_shape != shape:
        expected = ARCHITECTURES[model_architecture].input_shape
        raise ParameterError(
            f"model_architecture must be blank or that of the model: {model_architecture} takes images of "
            f"{size_of(expected)}, the model {size_of(shape)}. Received: model_architecture={model_architecture!r}",
            "model_architecture",
        )


def _class_names(given: str, classes: int) -> tuple[tuple[str, ...], str]:
    """Return the names of a model's outputs and where they come from; only numbers if they are a dataset's folders."""
    if given.strip():
        return class_names.read(given, classes), GIVEN
    if classes == len(imagenet := architectures.imagenet_classes()):
        return imagenet, IMAGENET
    return tuple(str(index) for index in range(classes)), FOLDERS
