"""Registers models in MLflow and downloads them."""

import re
from pathlib import Path
from typing import Any

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


def download_model(model: str, destination: Path) -> tuple[Path, str, str]:
    """Download a registered model.

    Args:
        model: `name` (its newest version), `name/version`, `name@alias`, or a `models:/…` URI.
        destination: The folder for its files.

    Returns:
        The folder with `model.keras` and `model.json`, the registered name and the version.

    Raises:
        TrackingError: If MLflow does not have the model. The message lists the names or versions that it has.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from evasion.components.common.models import artifact

    reference = model.removeprefix("models:/").strip("/")
    version = _find_version(model, reference)
    uri = f"models:/{reference}" if version is None else f"models:/{version.name}/{version.version}"
    try:
        with default_variables(patience(PATIENT)):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(destination)))
    except MlflowException as error:
        raise TrackingError(
            f"MLflow has no such model. Received: model={model!r}: {without_password(str(error))}"
        ) from error
    files = list(folder.rglob(artifact.FILE))
    if len(files) != 1 or not (folder / artifact.CARD).is_file():
        raise TrackingError(
            f"{uri} has no {artifact.FILE} with {artifact.CARD}: register the model with `train` or `init_model`."
        )
    files[0].rename(folder / artifact.FILE)
    return folder, "" if version is None else str(version.name), "" if version is None else str(version.version)


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
            raise TrackingError(_unknown(client, model)) from error


def _unknown(client: Any, model: str) -> str:
    """Return the message for a model that does not exist, with the versions or names that exist."""
    from mlflow.exceptions import MlflowException

    name = model.removeprefix("models:/").partition("/")[0].partition("@")[0]
    versions: list[Any] = []
    if name:
        try:
            versions = list(client.search_model_versions(f"name = '{_quoted(name)}'"))
        except MlflowException:
            versions = []
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
