"""The connection to MLflow: its address, timeouts, and errors without passwords."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

Result = TypeVar("Result")

# MLflow sends telemetry by default. It blocks in closed networks, and users have not agreed to it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Each update of MLflow's progress bars would be a line in the log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

PARENT = "MLFLOW_RUN_ID"
KUBEFLOW_RUN = "KFP_RUN_ID"  # set by pipelines/placement.py
KUBEFLOW_TAG = "kfp.pipeline_run_id"  # the tag that Kubeflow's backend sets on runs that it opens itself
ARTIFACT_ROOT = "EVASION_ARTIFACT_ROOT"
DEFAULT_EXPERIMENT = "evasion"
PARENT_TAG = "mlflow.parentRunId"
MOST_RUNS = 50_000  # MLflow's limit for one search; enough for the stages of thousands of shards
# At the start of a stage MLflow must answer at once; at the end it may restart meanwhile.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
# Of a file, which takes as long as it is large: MLflow has answered just before.
TRANSFER = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
# In Kubeflow the first step has reached MLflow, so later steps wait about four minutes for it to come back: its pod may
# be moving to another node, and a failure would lose hours of other steps' work.
LASTING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "8", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
# Of a step before which another one has waited in vain.
HURRIED = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
LOST = "EVASION_MLFLOW_LOST"  # set by pipelines/local/session.py for such a step
# Seconds that a stage waits at its end until MLflow answers, and every further request of a process in vain.
END_SECONDS, LASTING_SECONDS, LATE_SECONDS = 10.0, 300.0, 2.0

INCOMPLETE = "warning: tracking is incomplete: "  # how the line of a step begins that says so
UNREACHABLE = "check MLFLOW_TRACKING_URI and that the server is running"  # in the error of `reachable`

_set_here: dict[str, str] = {}  # the variables that `default_variables` has set


class AwayError(RuntimeError):
    """MLflow has not answered in time."""


@dataclass
class Connection:
    """What this process knows of its connection to MLflow.

    Attributes:
        lost: Whether the last request had no answer: then the next ones do not wait as long.
        warnings: What is not in MLflow that should be.
    """

    lost: bool = False
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Say and record that something is not in MLflow."""
        message = f"{INCOMPLETE}{without_password(message)}"
        self.warnings.append(message)
        print(message, file=sys.stderr, flush=True)


connection = Connection()


class TrackingError(RuntimeError):
    """MLflow cannot be reached, or does not have the requested object."""


class LoginError(TrackingError):
    """MLflow requires a login, or rejects the present one."""


def connect() -> Any:
    """Return MLflow's client."""
    from mlflow import MlflowClient

    return MlflowClient()


def surrounding_run(client: Any) -> Any | None:
    """Return the pipeline's run, or None."""
    if identifier := os.environ.get(PARENT):
        return client.get_run(identifier)
    if kubeflow_run := os.environ.get(KUBEFLOW_RUN):
        query = f"tags.`{KUBEFLOW_TAG}` = '{kubeflow_run}'"
        return next(iter(client.search_runs([current_experiment(client).experiment_id], query, max_results=1)), None)
    return None


def current_experiment(client: Any) -> Any:
    """Return the experiment that the environment names; create it if it does not exist."""
    if identifier := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return client.get_experiment(identifier)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        from mlflow.exceptions import MlflowException

        root = os.environ.get(ARTIFACT_ROOT)
        with suppress(MlflowException):  # another stage may have created it in the meantime
            client.create_experiment(name, artifact_location=f"{root}/{name}" if root else None)
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise TrackingError(f"MLflow did not create the experiment {name!r}.")
    return experiment


@contextmanager
def tracking_uri(uri: str) -> Iterator[None]:
    """Use the MLflow at an address in this block, regardless of the environment."""
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
    """Set environment variables in this block, except those that the user has set; a block inside may set others.

    Only in the main thread: the system's environment must not change while C code reads it in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: os.environ.get(name) for name in variables}
    own = [name for name, value in before.items() if value is None or _set_here.get(name) == value]
    for name in own:
        os.environ[name] = _set_here[name] = variables[name]
    try:
        yield
    finally:
        for name in own:
            if (value := before[name]) is None:
                os.environ.pop(name, None)
                _set_here.pop(name, None)
            else:
                os.environ[name] = _set_here[name] = value


def patience(default: Mapping[str, str]) -> Mapping[str, str]:
    """Return MLflow's settings for retries: the longest in a step of Kubeflow, otherwise `default`."""
    return LASTING if os.environ.get(KUBEFLOW_RUN) else default


def impatience() -> Mapping[str, str]:
    """Return MLflow's settings for a request without which nothing has begun."""
    return HURRIED if os.environ.get(LOST) else IMPATIENT


def answered(call: Callable[[], Result]) -> Result:
    """Return what a short call of MLflow returns; give up after a deadline, whatever the calls before have cost.

    The first call in vain has some seconds, so that MLflow may restart, in Kubeflow some minutes; every later one in
    this process has two.

    Raises:
        AwayError: If MLflow does not answer in time.
    """
    seconds = LASTING_SECONDS if os.environ.get(KUBEFLOW_RUN) else END_SECONDS
    seconds = LATE_SECONDS if connection.lost else seconds
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    with default_variables(IMPATIENT if connection.lost else patience(PATIENT)):
        # Not of an executor, which would wait for it at the end of the process.
        threading.Thread(target=run, daemon=True).start()
        if not wait([result], seconds).done:
            connection.lost = True
            raise AwayError(f"MLflow has not answered for {seconds:.0f} seconds")
    answer = result.result()
    connection.lost = False
    return answer


@contextmanager
def reachable(*, lasting: bool = False) -> Iterator[None]:
    """Raise one clear error soon if MLflow does not answer; with `lasting`, in Kubeflow, only after several minutes."""
    import logging

    from mlflow.exceptions import MlflowException

    # They log database migrations, a warning about a signature that only Spark needs, and each request in vain.
    for logger in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(logger).setLevel("WARNING")
    for logger in ("mlflow.tensorflow", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel("ERROR")
    try:
        with default_variables(patience(impatience()) if lasting else impatience()):
            yield
    except Exception as error:
        if not isinstance(error, (MlflowException, OSError, *_database_errors())):
            raise
        import mlflow

        uri = mlflow.get_tracking_uri()
        if uri.startswith("sqlite:"):
            advice = (
                "check that its folder can be written and that no other process holds it, and move it away if its "
                "creation was interrupted"
            )
            message = f"MLflow at {uri} cannot be used; {advice}: {_innermost(error)}"
        else:
            message = (
                f"MLflow at {uri} cannot be used; check MLFLOW_TRACKING_URI and that the server is running: "
                f"{_innermost(error)}"
            )
        # If the address contains a password, so does MLflow's own message, which a log would show as the cause.
        raise TrackingError(without_password(message)) from (error if _password(uri) is None else None)


def failures() -> tuple[type[Exception], ...]:
    """Return the errors with which MLflow fails."""
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError, AwayError, *_database_errors())


def _database_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a database that MLflow lets through; none where it keeps its runs elsewhere."""
    module = sys.modules.get("sqlalchemy.exc")
    return (module.SQLAlchemyError,) if module else ()


def _innermost(error: BaseException) -> str:
    """Return the first line of what an error was caused by in the end."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return str(error).splitlines()[0] if str(error) else repr(error)


def _password(uri: str) -> str | None:
    from urllib.parse import urlsplit

    return urlsplit(uri).password


def without_password(text: str) -> str:
    """Return a message of MLflow without the password that the tracking URI may contain."""
    import mlflow

    password = _password(mlflow.get_tracking_uri())
    return text.replace(f":{password}@", ":***@") if password else text
