"""Registered models: their names, and their files to and from MLflow."""

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

_RESERVED = "/:@'\"?%"  # MLflow refuses the first two; the others end a name in its URIs and searches


def registered_name(experiment: str, model_tag: str, model_architecture: str) -> str:
    """Return `{experiment}_{model_tag}_{model_architecture}`, without the tag where it is blank.

    Raises:
        TrackingError: If the experiment's name cannot be part of a registered model's.
    """
    if found := sorted(set(experiment) & set(_RESERVED)):
        raise TrackingError(
            f"A model is registered under its experiment's name, which must not hold {' '.join(found)}: set "
            f"MLFLOW_EXPERIMENT_NAME to another one. Received: experiment={experiment!r}"
        )
    return "_".join(part for part in (experiment, model_tag.strip(), model_architecture) if part)


def download_model(model: str, destination: Path) -> tuple[Path, str, str]:
    """Fetch a registered model.

    Args:
        model: `name` (its newest version), `name/version`, `name@alias`, or a `models:/…` URI.
        destination: A folder for its files.

    Returns:
        The folder that holds `model.keras` and `model.json`, the registered name and the version.

    Raises:
        TrackingError: If MLflow does not hold the model, with the names or versions that it does hold.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    reference = model.removeprefix("models:/").strip("/")
    with reachable(lasting=True):
        client = connect()
        try:
            if "@" in reference:
                found = client.get_model_version_by_alias(*reference.rsplit("@", 1))
            elif re.fullmatch("m-[0-9a-f]{32}", reference):  # MLflow's own id of a model, which may have no name
                found = None
            elif "/" in reference and not reference.lower().endswith("/latest"):
                found = client.get_model_version(*reference.rsplit("/", 1))
            else:
                name = reference.rpartition("/")[0] or reference
                versions = client.search_model_versions(f"name = '{_quoted(name)}'")
                if not versions:
                    raise TrackingError(_unknown(client, model))
                found = max(versions, key=lambda version: int(version.version))
        except MlflowException as error:
            raise TrackingError(_unknown(client, model)) from error
    uri = f"models:/{reference}" if found is None else f"models:/{found.name}/{found.version}"
    try:
        with default_variables(patience(PATIENT)):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(destination)))
    except MlflowException as error:
        raise TrackingError(
            f"MLflow holds no such model. Received: model={model!r}: {without_password(str(error))}"
        ) from error
    from evasion.components.common.models import artifact

    files = list(folder.rglob(artifact.FILE))
    if len(files) != 1 or not (folder / artifact.CARD).is_file():
        raise TrackingError(
            f"{uri} holds no {artifact.FILE} with {artifact.CARD}: register it by `train` or `init_model`."
        )
    files[0].rename(folder / artifact.FILE)
    return folder, "" if found is None else str(found.name), "" if found is None else str(found.version)


def _unknown(client: Any, model: str) -> str:
    from mlflow.exceptions import MlflowException

    name = model.removeprefix("models:/").partition("/")[0].partition("@")[0]
    versions: list[Any] = []
    if name:
        try:
            versions = list(client.search_model_versions(f"name = '{_quoted(name)}'"))
        except MlflowException:
            versions = []
    if versions:
        known = f"{name} has versions {', '.join(sorted((str(one.version) for one in versions), key=int))}"
    else:
        names = sorted(one.name for one in client.search_registered_models(max_results=100))
        known = f"it holds {', '.join(names)}" if names else "it holds none: run `train` or `init_model` first"
    return f"model must be one that MLflow holds; {known}. Received: model={model!r}"


def _quoted(name: str) -> str:
    if "'" in name:
        raise TrackingError(f"model must not hold a quote. Received: model={name!r}")
    return name


def log_model(folder: Path, register_as: str, run_id: str) -> str:
    """Log and register the very file of the artifact, in MLflow's TensorFlow flavour."""
    import shutil

    import mlflow
    import tensorflow as tf

    from evasion.components.common.models import artifact

    keras_model = artifact.load(folder)

    class KerasFile:
        """A flavour for `Model.log`: MLflow's own, with the artifact's file in place of the one it saves anew."""

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
    # Made here, since `Model.log` would put it into the process's current experiment, not into the run's.
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
