"""Registers models in MLflow and downloads them."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from evasion.components.common.tracking.client import (
    PATIENT,
    TrackingError,
    connect,
    default_variables,
    patience,
    reachable,
    without_password,
)

_RESERVED = "/:@'\"?%"  # MLflow rejects the first two; the others end a name in its URIs and searches

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "NOT_FOUND")


def registered_name(experiment: str, model_tag: str, model_architecture: str) -> str:
    """Return `{experiment}_{model_tag}_{model_architecture}`, without the tag if it is blank.

    Raises:
        TrackingError: If the experiment's name cannot be part of a registered model's name.
    """
    if reserved := sorted(set(experiment) & set(_RESERVED)):
        raise TrackingError(
            f"The experiment's name is part of the registered model's name and must not contain {' '.join(reserved)}. "
            f"Set MLFLOW_EXPERIMENT_NAME to another name. Received: experiment={experiment!r}"
        )
    return "_".join(part for part in (experiment, model_tag.strip(), model_architecture) if part)


class DownloadedModel(NamedTuple):
    """A model from MLflow.

    Attributes:
        file: Its `.keras` or `.h5` file.
        card: Its description, if `train` or `init_model` logged it, or else None.
        name: Its registered name, or `""`.
        version: The version of that name, or `""`.
    """

    file: Path
    card: Path | None
    name: str
    version: str


def download_model(model: str, destination: Path) -> DownloadedModel:
    """Download a Keras model that was logged with `mlflow.keras`, `mlflow.tensorflow` or autologging, or registered.

    Args:
        model: `name` (its newest version), `name/version`, `name@alias`, a `models:/…` or a `runs:/RUN/path` URI.
        destination: The folder for its files.

    Raises:
        TrackingError: If MLflow does not have the model, or it is not a file of Keras. The message lists the names or
            versions that it has.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from evasion.components.common.models import artifact

    if model.startswith("runs:/"):
        uri, name, number = model, "", ""
    else:
        reference = model.removeprefix("models:/").strip("/")
        version = _find_version(model, reference)
        name, number = ("", "") if version is None else (str(version.name), str(version.version))
        uri = f"models:/{name}/{number}" if name else f"models:/{reference}"
    try:
        with default_variables(patience(PATIENT)):
            # Reads the file MLmodel alone: a pickle is refused before it is downloaded.
            _require_keras(model, mlflow.models.get_model_info(uri).flavors)
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(destination)))
    except (MlflowException, OSError) as error:
        message = without_password(str(error))
        if getattr(error, "error_code", "") in _ABSENT:
            raise TrackingError(f"MLflow has no such model. Received: model={model!r}: {message}") from error
        raise TrackingError(
            f"The files of the model {uri} could not be downloaded from MLflow at "
            f"{without_password(mlflow.get_tracking_uri())}; check the connection, and that the server runs: {message}"
        ) from error
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".keras", ".h5"))
    if len(files) != 1:
        raise TrackingError(
            f"The model must be one .keras or .h5 file of Keras, but {uri} has {len(files) or 'none'}: log it with "
            "mlflow.keras.log_model (with save_exported_model, MLflow keeps a graph without its layers)."
        )
    card = folder / artifact.CARD
    return DownloadedModel(files[0], card if card.is_file() else None, name, number)


def _require_keras(model: str, flavors: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise an error unless MLflow stores the model as a file of Keras."""
    if "keras" in flavors or flavors.get("tensorflow", {}).get("model_type") == "keras":
        return
    names = ", ".join(sorted(flavors)) or "none"
    raise TrackingError(
        f"The model must be a Keras model that mlflow.keras or mlflow.tensorflow logged. {model} is stored as {names}, "
        "which is not loaded, since such files can run code."
    )


def _find_version(model: str, reference: str) -> Any | None:
    """Return the registered version that `reference` means, or None for MLflow's own id of a model."""
    from mlflow.exceptions import MlflowException

    with reachable(lasting=True):
        client = connect()
        try:
            if "@" in reference:
                return client.get_model_version_by_alias(*reference.rsplit("@", 1))
            if re.fullmatch("m-[0-9a-f]{32}", reference):  # the model may have no name
                return None
            if "/" in reference and not reference.lower().endswith("/latest"):
                return client.get_model_version(*reference.rsplit("/", 1))
            name = reference.rpartition("/")[0] or reference
            versions = client.search_model_versions(f"name = '{_quoted(name)}'")
            if not versions:
                raise TrackingError(_unknown(client, model))
            return max(versions, key=lambda version: int(version.version))
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise  # MLflow did not answer
            raise TrackingError(_unknown(client, model)) from error


def _unknown(client: Any, model: str) -> str:
    """Return the message for a model that does not exist, with the versions or names that exist."""
    from mlflow.exceptions import MlflowException

    name = model.removeprefix("models:/").partition("/")[0].partition("@")[0]
    versions: list[Any] = []
    if name:
        with suppress(MlflowException):
            versions = list(client.search_model_versions(f"name = '{_quoted(name)}'"))
    if versions:
        numbers = sorted((str(version.version) for version in versions), key=int)
        existing = f"{name} has versions {', '.join(numbers)}"
    else:
        names = sorted(registered.name for registered in client.search_registered_models(max_results=100))
        existing = (
            f"the registered models are {', '.join(names)}"
            if names
            else "no model is registered: run `train` or `init_model` first"
        )
    return f"model must be registered in MLflow; {existing}. Received: model={model!r}"


def _quoted(name: str) -> str:
    if "'" in name:
        raise TrackingError(f"model must not contain a quote. Received: model={name!r}")
    return name


def log_model(folder: Path, register_as: str, run_id: str) -> str:
    """Log and register the artifact's own file in MLflow's TensorFlow flavour."""
    import shutil

    import mlflow
    import tensorflow as tf

    from evasion.components.common.models import artifact

    keras_model = artifact.load(folder)

    class KerasFile:
        """A flavour for `Model.log`: MLflow's own, with the artifact's file instead of a newly saved one."""

        __name__ = "mlflow.tensorflow"

        @staticmethod
        def save_model(path: str, mlflow_model: Any) -> None:
            mlflow.tensorflow.save_model(
                keras_model,
                path,
                mlflow_model=mlflow_model,
                pip_requirements=[f"tensorflow=={tf.__version__}"],
            )
            shutil.copyfile(folder / artifact.FILE, Path(path, "data", artifact.FILE))
            shutil.copyfile(folder / artifact.CARD, Path(path, artifact.CARD))

    client = connect()
    # `Model.log` would create it in the current experiment of the process, not in that of the run.
    created = client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", source_run_id=run_id)
    logged = mlflow.models.Model.log(
        artifact_path=None,
        name="model",
        flavor=KerasFile(),
        registered_model_name=register_as or None,
        run_id=run_id,
        model_id=created.model_id,
    )
    return str(logged.registered_model_version or "")
