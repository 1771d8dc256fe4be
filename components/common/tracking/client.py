"""The connection to MLflow: where it is, how long to wait for it, and its errors without passwords."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

# MLflow reports its use to its makers unless told not to; closed networks hang on it, and nobody here was asked.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars of transfers take a line of a log for every step of theirs.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

PARENT = "MLFLOW_RUN_ID"
KUBEFLOW_RUN = "KFP_RUN_ID"  # set by pipelines/placement.py
KUBEFLOW_TAG = "kfp.pipeline_run_id"  # as Kubeflow's backend tags the runs that it opens itself
ARTIFACT_ROOT = "EVASION_ARTIFACT_ROOT"
DEFAULT_EXPERIMENT = "evasion"
PARENT_TAG = "mlflow.parentRunId"
MOST_RUNS = 50_000  # that MLflow hands out at once: some thousand shards' stages
# At the start an answer must come at once; at the end MLflow's own retries have half a minute.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
# In Kubeflow, where the first step has found MLflow there, what follows waits some four minutes for it to come back: it
# may have been moved to another node, and hours of other steps would be lost.
LASTING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "8", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}


class TrackingError(RuntimeError):
    """MLflow cannot be reached, or does not hold what was asked of it."""


class LoginError(TrackingError):
    """MLflow wants a login, or another one."""


def connect() -> Any:
    """Return MLflow's client."""
    from mlflow import MlflowClient

    return MlflowClient()


def surrounding_run(client: Any) -> Any | None:
    """Return the pipeline's run, if there is one."""
    if identifier := os.environ.get(PARENT):
        return client.get_run(identifier)
    if kubeflow_run := os.environ.get(KUBEFLOW_RUN):
        tagged = f"tags.`{KUBEFLOW_TAG}` = '{kubeflow_run}'"
        return next(iter(client.search_runs([current_experiment(client).experiment_id], tagged, max_results=1)), None)
    return None


def current_experiment(client: Any) -> Any:
    """Return the experiment that the environment names; create it if it does not exist."""
    if identifier := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return client.get_experiment(identifier)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    found = client.get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        root = os.environ.get(ARTIFACT_ROOT)
        with suppress(MlflowException):  # another stage may have made it meanwhile
            client.create_experiment(name, artifact_location=f"{root}/{name}" if root else None)
        found = client.get_experiment_by_name(name)
    if found is None:
        raise TrackingError(f"MLflow did not make the experiment {name!r}.")
    return found


@contextmanager
def tracking_uri(uri: str) -> Iterator[None]:
    """Let MLflow be at an address for a block, whatever the environment says."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def default_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables where the user has not, for a block."""
    absent = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(absent)
    try:
        yield
    finally:
        for name in absent:
            os.environ.pop(name, None)


def patience(elsewhere: Mapping[str, str]) -> Mapping[str, str]:
    """Return how often MLflow is asked again: in a step of Kubeflow's longer than elsewhere."""
    return LASTING if os.environ.get(KUBEFLOW_RUN) else elsewhere


@contextmanager
def reachable(*, lasting: bool = False) -> Iterator[None]:
    """Turn MLflow's silence into one clear error, soon; with `lasting` in Kubeflow only when it stays away."""
    import logging

    from mlflow.exceptions import MlflowException

    # They tell of database migrations, and warn of a signature that only Spark needs.
    for noisy, level in (("mlflow.store.db.utils", "WARNING"), ("alembic", "WARNING"), ("mlflow.tensorflow", "ERROR")):
        logging.getLogger(noisy).setLevel(level)
    try:
        with default_variables(patience(IMPATIENT) if lasting else IMPATIENT):
            yield
    except (MlflowException, OSError) as error:
        import mlflow

        uri = mlflow.get_tracking_uri()
        message = (
            f"MLflow at {uri} cannot be used; check MLFLOW_TRACKING_URI and that the server runs: "
            f"{str(error).splitlines()[0] if str(error) else error!r}"
        )
        # Where the address has a password, so have MLflow's own words, which a log would show as the cause.
        raise TrackingError(without_password(message)) from (error if _password(uri) is None else None)


def _password(uri: str) -> str | None:
    from urllib.parse import urlsplit

    return urlsplit(uri).password


def without_password(text: str) -> str:
    """Return a text of MLflow's without the password that the tracking URI may hold."""
    import mlflow

    password = _password(mlflow.get_tracking_uri())
    return text.replace(f":{password}@", ":***@") if password else text
