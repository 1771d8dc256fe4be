"""Take any Keras classifier, from MLflow or a file, and bring it into the form that later steps know."""

from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.models import class_names as names_of_classes
from evasion.components.common.models.architectures import ARCHITECTURES
from evasion.components.common.models.ranges import RANGES
from evasion.components.common.validate import ParameterError

SUFFIXES = (".keras", ".h5", ".hdf5")
OF_OWN_MODELS = {"input_range": "0,1", "image_size": "", "class_names": "", "package": ""}
"""The defaults of parameters that say how to use a model that others made."""


def check(
    *,
    name: str,
    model_architecture: str,
    sha256: str,
    input_range: str,
    image_size: str,
    class_names: str,
    package: str,
    interpolation: str,
    crop_to_aspect_ratio: bool,
    pad_to_aspect_ratio: bool,
    **_: object,
) -> None:
    """Validate the parameters."""
    from evasion.components.common.data.resizing import Resizing
    from evasion.components.common.models.imported import size_from

    validate.required("model", name, "as a name in MLflow, name/version, name@alias, models:/…, runs:/… or a file")
    if is_file(name):
        validate.existing_file("model", name)
    else:
        validate.no_path("model", name, "a .keras or .h5 file that Keras saved, or a model in MLflow")
    if model_architecture:
        validate.one_of("model_architecture", model_architecture, ARCHITECTURES)
    validate.sha256("model_sha256", sha256)
    validate.one_of("input_range", input_range, RANGES)
    size_from(image_size)
    if class_names and names_of_classes.is_file(class_names):
        validate.existing_file("class_names", class_names)
    if package and not all(part.isidentifier() for part in package.split(".")):
        raise ParameterError(
            f"model_package must be the name of an installed Python package. Received: model_package={package!r}",
            "model_package",
        )
    Resizing(
        interpolation=interpolation,
        crop_to_aspect_ratio=crop_to_aspect_ratio,
        pad_to_aspect_ratio=pad_to_aspect_ratio,
    )


def is_file(name: str) -> bool:
    """Return whether the parameter `name` is the path or the address of a file, rather than a name in MLflow."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(("models:/", "runs:/"))


def load_model(
    *,
    model: Path,
    name: str,
    model_architecture: str,
    sha256: str,
    input_range: str,
    image_size: str,
    class_names: str,
    package: str,
    interpolation: str,
    crop_to_aspect_ratio: bool,
    pad_to_aspect_ratio: bool,
) -> dict[str, Any]:
    """Load the model. The parameters are those of the step.

    Returns:
        The model's description.
    """
    parameters: dict[str, Any] = {
        "name": name,
        "model_architecture": model_architecture,
        "sha256": sha256,
        "input_range": input_range,
        "image_size": image_size,
        "class_names": class_names,
        "package": package,
        "interpolation": interpolation,
        "crop_to_aspect_ratio": crop_to_aspect_ratio,
        "pad_to_aspect_ratio": pad_to_aspect_ratio,
    }
    check(**parameters)

    import dataclasses
    import tempfile

    from evasion.components.common import tracking
    from evasion.components.common.files import replacing
    from evasion.components.load_model.take import take

    logged = {("model" if key == "name" else key): value for key, value in parameters.items()}
    with tracking.stage("load_model", logged) as stage_run, tempfile.TemporaryDirectory() as temporary:
        with replacing(model) as target:
            target.mkdir(parents=True)
            card = take(parameters, Path(temporary), target)
        _report(card)
        stage_run.log_parameters({"model_name": card.name, "model_version": card.version, "model_sha256": card.sha256})
    return dataclasses.asdict(card)


def _report(card: Any) -> None:
    """Say what was recognised, for the log."""
    from evasion.components.common.models.artifact import FOLDERS, size_of

    names = "those of the dataset's class folders, in sorted order" if card.class_names_origin == FOLDERS else (
        f"{', '.join(card.class_names[:5])}{', …' if len(card.class_names) > 5 else ''} ({card.class_names_origin})"
    )  # fmt: skip
    print(
        f"{card.title}: images of {size_of(card.input_shape)}, input range {card.input_range}; outputs: {card.outputs} "
        f"of {len(card.class_names)} classes; class names: {names}",
        flush=True,
    )
