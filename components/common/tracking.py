"""MLflow: one run a stage below one run a pipeline; the only module that imports it.

Where runs go is MLflow's own business (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` or `_ID`). The run of the
pipeline is `MLFLOW_RUN_ID`, which the local runner or Kubeflow's backend sets; where they do not, it is the one that
bears the id of Kubeflow's run (`KFP_RUN_ID`), which the step `track_run` opens and ends. Without either a stage's run
stands alone. A stage opens its run before it works, or while it works on its first images, so that a wrong address
fails at once, and logs results when it has them: if MLflow has gone by then, the artifacts are kept and the stage
says that tracking is incomplete.

Every run bears tags that say where it comes from: the commit of the steps' code (`mlflow.source.git.commit`), the
image (`mlflow.docker.image.uri`), Kubeflow's run (`kfp_run_id`); a stage's, the dataset that it worked on
(`dataset_sha256`) and the report that came of it (`parent_report`; that of a comparison, the hashes of its reports,
which their runs bear as `report_sha256`); a pipeline's, its testing data, the commit that asked for it (`git_commit`)
and Kubeflow's page of the run (`kfp_run_url`).
"""

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

# MLflow reports its use to its makers unless told not to; closed networks hang on it, and nobody here was asked.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars of transfers take a line of a log for every step of theirs.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

ARTIFACT_ROOT = "EVASION_ARTIFACT_ROOT"
PARENT = "MLFLOW_RUN_ID"
KUBEFLOW_RUN = "KFP_RUN_ID"  # set by pipelines/placement.py
IMAGE = "EVASION_IMAGE"  # set by pipelines/placement.py and pipelines/containers.py
REVISION = "EVASION_REVISION"  # set by images/Dockerfile and pipelines/local.py
KUBEFLOW_TAG = "kfp.pipeline_run_id"  # as Kubeflow's backend tags the runs that it opens itself
DEFAULT_EXPERIMENT = "evasion"
REPORT = ("report/report.html", "report/report.json")
_PARENT_TAG = "mlflow.parentRunId"
MOST_RUNS = 50_000  # that MLflow hands out at once: some thousand shards' stages
_RESERVED = "/:@'\"?%"  # MLflow refuses the first two; the others end a name in its URIs and searches
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


@dataclasses.dataclass
class Stage:
    """The run of a stage that is under way.

    Attributes:
        run_id: MLflow's id of the run.
        experiment: The experiment's name, the first part of the models' names.
        whole: The pipeline's run, where there is one: for a report, which speaks of the whole.
        complete: False once something could not be logged.
    """

    run_id: str
    experiment: str
    whole: "Stage | None" = None
    complete: bool = True

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log what was found out while working, such as the seed drawn."""
        self._try(lambda client: _log_parameters(client, self.run_id, parameters))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log finite numbers by name."""
        self._try(lambda client: _log_metrics(client, self.run_id, metrics))

    def tag(self, tags: Mapping[str, str], name: str = "") -> None:
        """Tag the run, and give it another name.

        Args:
            tags: Texts by name.
            name: The run's new name, or `""` to keep the one it has.
        """

        def log(client: Any) -> None:
            if name:
                client.update_run(self.run_id, name=name)
            _log_tags(client, self.run_id, tags)

        self._try(log)

    def links_report(self, summary: str) -> None:
        """Tell the pipeline's run and those of its stages where the report is that they led to.

        Args:
            summary: The name under which this run, that of the pipeline, holds it.
        """
        tags = {"parent_report": f"runs:/{self.run_id}/{summary}"}

        def log(client: Any) -> None:
            experiment = client.get_run(self.run_id).info.experiment_id
            below = client.search_runs([experiment], f"tags.`{_PARENT_TAG}` = '{self.run_id}'", max_results=MOST_RUNS)
            for identifier in (self.run_id, *(run.info.run_id for run in below)):
                _log_tags(client, identifier, tags)

        self._try(log)

    def log_file(self, path: Path, name: str) -> None:
        """Log a file under `name`, which may hold folders: `report/report.html`."""

        def log(client: Any) -> None:
            folder, _, file = name.rpartition("/")
            with tempfile.TemporaryDirectory() as temporary:
                link = Path(temporary, file)
                link.symlink_to(path.resolve())  # MLflow names an artifact after its file; nothing is copied here
                client.log_artifact(self.run_id, str(link), folder or None)

        self._try(log)

    def log_model(self, folder: Path, register_as: str) -> str:
        """Log a model artifact and register it; return its version, or `""` if it could not be logged.

        Args:
            folder: The model artifact.
            register_as: The registered model's name, or `""` to register nothing.
        """
        versions: list[str] = []
        self._try(lambda _: versions.append(_log_model(folder, register_as, self.run_id)))
        return versions[0] if versions else ""

    def _try(self, log: Callable[[Any], None]) -> None:
        from mlflow.exceptions import MlflowException

        if not self.complete:
            return
        try:
            with _environment(_patience(PATIENT)):
                log(_client())
        except (MlflowException, OSError) as error:
            self.complete = False
            print(
                f"warning: tracking is incomplete: MLflow failed after the stage's work was done, and what it would "
                f"have held of run {self.run_id} is in the artifacts alone: {_without_password(str(error))}",
                file=sys.stderr,
            )


@contextmanager
def stage(name: str, parameters: Mapping[str, Any]) -> Iterator[Stage]:
    """Open the MLflow run of a stage, below the pipeline's run where there is one.

    Args:
        name: The stage's name, which the run takes.
        parameters: The parameters it was called with.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    opened = _open(name, parameters)
    with _closing(lambda: opened.run_id):
        yield opened


class Opening:
    """The run of a stage that a thread is opening while the stage works.

    Args:
        opened: The run to come.
    """

    def __init__(self, opened: "Future[Stage]") -> None:
        self._opened = opened

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of the work until MLflow turns out not to answer; the end waits for its answer.

        Raises:
            TrackingError: If it does not.
        """
        for item in items:
            if self._opened.done():
                self._opened.result()
            yield item
        self._opened.result()

    def stage(self) -> Stage:
        """Return the run, once it is open.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        return self._opened.result()


@contextmanager
def stage_meanwhile(name: str, parameters: Mapping[str, Any]) -> Iterator[Opening]:
    """Like `stage`, for one that has less to import than MLflow: it works while a thread imports that.

    Hand the work's items through `Opening.watched`, which tells of a wrong address.
    """
    with ThreadPoolExecutor(1) as thread:
        opening = Opening(thread.submit(_open, name, parameters))
        with _closing(lambda: opening.stage().run_id):
            yield opening


def _open(name: str, parameters: Mapping[str, Any]) -> Stage:
    with _reachable(lasting=True):
        client = _client()
        parent = _parent(client)
        experiment = client.get_experiment(parent.info.experiment_id) if parent else _experiment(client)
        tags = {_PARENT_TAG: parent.info.run_id} if parent else {}
        run = client.create_run(experiment.experiment_id, run_name=name, tags={**tags, **_lineage(), "stage": name})
        _log_parameters(client, run.info.run_id, parameters)
    whole = Stage(parent.info.run_id, experiment.name) if parent else None
    return Stage(run.info.run_id, experiment.name, whole)


@contextmanager
def pipeline_run(name: str, parameters: Mapping[str, Any], *, git_commit: str = "") -> Iterator[str]:
    """Open the run of a whole pipeline and yield its id; it ends FINISHED, FAILED or KILLED.

    Args:
        name: The pipeline's name.
        parameters: The parameters it was called with.
        git_commit: The commit that asks for it, or `""`.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    with _reachable():
        client = _client()
        tags = {**_lineage(git_commit=git_commit), "stage": "pipeline", "pipeline": name}
        run = client.create_run(_experiment(client).experiment_id, run_name=name, tags=tags)
        _log_parameters(client, run.info.run_id, parameters)
    with _closing(lambda: run.info.run_id):
        yield str(run.info.run_id)


def mark_pipeline_run(
    name: str, status: str, *, run_name: str = "", git_commit: str = "", kubeflow_page: str = ""
) -> str:
    """Open or finish the run of a pipeline in Kubeflow, which stages find by the id of Kubeflow's run.

    Where Kubeflow's backend keeps a run in MLflow itself, it is left to it.

    Args:
        name: The pipeline's name.
        status: RUNNING or FINISHED.
        run_name: What Kubeflow's dashboard calls the run, or `""`.
        git_commit: The commit that asks for it, or `""`.
        kubeflow_page: Where Kubeflow's dashboard shows it, or `""`.

    Returns:
        The run's id, or `""` where there is none to mark.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    kubeflow_run = os.environ.get(KUBEFLOW_RUN)
    with _reachable(lasting=status != "RUNNING"):
        client = _client()
        run = _parent(client)
        if os.environ.get(PARENT) or not kubeflow_run:
            return ""
        if run is None and status == "RUNNING":
            tags = {"stage": "pipeline", "pipeline": name, KUBEFLOW_TAG: kubeflow_run}
            tags |= _lineage(kfp_run_name=run_name, git_commit=git_commit, kfp_run_url=kubeflow_page)
            if kubeflow_page:
                # What MLflow shows as the run's description.
                tags["mlflow.note.content"] = f"[{run_name or kubeflow_run}]({kubeflow_page}) in Kubeflow"
            run = client.create_run(_experiment(client).experiment_id, run_name=run_name or name, tags=tags)
        elif run is not None and status == "RUNNING":
            client.update_run(run.info.run_id, status)
        elif run is not None:
            client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id) if run else ""


def fail_pipeline_run() -> None:
    """End the run of a pipeline in Kubeflow as FAILED, after one of its stages failed.

    Nothing else would: no step of Kubeflow's runs after one that failed, but one whose graph hides the whole pipeline
    behind it. Where a further try of the stage succeeds, the last step finishes the run all the same. What goes wrong
    here is only a warning.
    """
    from mlflow.exceptions import MlflowException

    if os.environ.get(PARENT) or not os.environ.get(KUBEFLOW_RUN):
        return
    try:
        with _reachable():
            run = _parent(_client())
    except (TrackingError, MlflowException) as error:
        print(f"warning: the pipeline's run stays open in MLflow: {error}", file=sys.stderr)
        return
    if run is not None and run.info.status == "RUNNING":
        _end(run.info.run_id, "FAILED")


def page_of_pipeline_run(address: str) -> str:
    """Return where MLflow shows the pipeline's run, or that which Kubeflow's backend keeps; `""` without one.

    Args:
        address: MLflow's, as people reach it; `""` for the one that the steps use.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    import mlflow

    with _reachable(lasting=True):
        run = _parent(_client())
        address = address or _without_password(mlflow.get_tracking_uri())
        return f"{address.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" if run else ""


def _lineage(**known: str) -> dict[str, str]:
    """Return the tags that say where a run comes from, as far as it is known."""
    found = {
        "mlflow.source.git.commit": os.environ.get(REVISION, ""),
        "mlflow.docker.image.uri": os.environ.get(IMAGE, ""),
        "kfp_run_id": os.environ.get(KUBEFLOW_RUN, ""),
        **known,
    }
    return {name: value for name, value in found.items() if value}


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


def download_dataset(run_id: str, tar_name: str, destination: Path) -> Path:
    """Fetch a dataset tar that a stage logged.

    Args:
        run_id: The run of the stage, or of the pipeline whose stage it was.
        tar_name: The artifact's name.
        destination: A folder for the file.

    Raises:
        TrackingError: If the run or the artifact is not there, or several stages of the pipeline logged that name.
    """
    from mlflow.exceptions import MlflowException

    with _reachable(lasting=True):
        client = _client()
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise  # it did not answer
            raise TrackingError(f"MLflow holds no such run. Received: run_id={run_id!r}") from error
        children = client.search_runs(
            [run.info.experiment_id], f"tags.`{_PARENT_TAG}` = '{run.info.run_id}'", max_results=MOST_RUNS
        )
        names = {
            one.info.run_id: {file.path for file in client.list_artifacts(one.info.run_id)} for one in (run, *children)
        }
    holders = [one for one, files in names.items() if tar_name in files]
    if len(holders) != 1:
        found = ", ".join(sorted(name for name in set().union(*names.values()) if name.endswith(".tar"))) or "no tar"
        raise TrackingError(
            f"dataset_tar_name must be the name of one artifact of run {run_id}, which holds {found}"
            f"{' (several stages hold that name: give the run id of one)' if len(holders) > 1 else ''}. "
            f"Received: dataset_tar_name={tar_name!r}"
        )
    with _environment(_patience(PATIENT)):
        return Path(client.download_artifacts(holders[0], tar_name, str(destination)))


def check_access(uri: str) -> None:
    """Ask MLflow for its experiments, as whom the environment says.

    Args:
        uri: Where MLflow is.

    Raises:
        LoginError: It does not take the login.
        TrackingError: It does not answer.
    """
    from mlflow.exceptions import MlflowException

    with _at(uri), _reachable():
        try:
            _client().search_experiments(max_results=1)
        except MlflowException as error:
            if error.error_code not in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
                raise
            who = os.environ.get("MLFLOW_TRACKING_USERNAME")
            refuses = f"does not take the login of {who}" if who else "asks for a login"
            raise LoginError(
                f"MLflow at {_without_password(uri)} {refuses}. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            ) from error


def download_report(kubeflow_run: str, uri: str, destination: Path) -> list[Path]:
    """Fetch the report of a run in Kubeflow, the page and the numbers.

    Args:
        kubeflow_run: The run's id in Kubeflow.
        uri: Where MLflow is, seen from here.
        destination: A folder; the files appear in it whole.

    Raises:
        TrackingError: If MLflow does not answer, or does not hold the report.
    """
    with _at(uri), _reachable():
        client = _client()
        experiments = [one.experiment_id for one in client.search_experiments()]

        def tagged(name: str, value: str) -> list[Any]:
            return list(client.search_runs(experiments, f"tags.`{name}` = '{value}'", max_results=MOST_RUNS))

        # Where Kubeflow's backend keeps the run, the report lies below the run that it opened for the step.
        held, below = tagged(KUBEFLOW_TAG, kubeflow_run), []
        while held:
            for run in held:
                files = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
                if files >= set(REPORT):
                    with _environment(_patience(PATIENT)), tempfile.TemporaryDirectory(dir=destination) as folder:
                        return [
                            Path(client.download_artifacts(run.info.run_id, name, folder)).replace(
                                destination / Path(name).name
                            )
                            for name in REPORT
                        ]
                below += tagged(_PARENT_TAG, run.info.run_id)
            held, below = below, []
    raise TrackingError(
        f"MLflow holds no report of Kubeflow's run {kubeflow_run}: the log of the step `report` says whether tracking "
        "was incomplete."
    )


def end_open_runs(kubeflow_run: str, uri: str, status: str) -> int:
    """End what a run in Kubeflow that is over has left open: a pod that is killed ends no run.

    Args:
        kubeflow_run: The run's id in Kubeflow.
        uri: Where MLflow is, seen from here.
        status: FAILED or KILLED.

    Returns:
        How many runs were left open, those of the pipeline and of its stages.

    Raises:
        TrackingError: If MLflow does not answer, or does not let them be ended.
    """
    with _at(uri), _environment({"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}), _reachable():
        client = _client()
        experiments = [one.experiment_id for one in client.search_experiments()]
        left = f"tags.`kfp_run_id` = '{kubeflow_run}' and attributes.status = 'RUNNING'"
        runs = client.search_runs(experiments, left, max_results=MOST_RUNS) if experiments else []
        for run in runs:
            client.set_terminated(run.info.run_id, status)
    return len(runs)


@contextmanager
def _at(uri: str) -> Iterator[None]:
    """Let MLflow be at an address for a block, whatever the environment says."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


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
    with _reachable(lasting=True):
        client = _client()
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
        with _environment(_patience(PATIENT)):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(destination)))
    except MlflowException as error:
        raise TrackingError(
            f"MLflow holds no such model. Received: model={model!r}: {_without_password(str(error))}"
        ) from error
    from evasion.components.common import model as model_artifact

    files = list(folder.rglob(model_artifact.FILE))
    if len(files) != 1 or not (folder / model_artifact.CARD).is_file():
        raise TrackingError(
            f"{uri} holds no {model_artifact.FILE} with {model_artifact.CARD}: register it by `train` or `init_model`."
        )
    files[0].rename(folder / model_artifact.FILE)
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


def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


def _parent(client: Any) -> Any | None:
    """Return the pipeline's run, if there is one."""
    if identifier := os.environ.get(PARENT):
        return client.get_run(identifier)
    if kubeflow_run := os.environ.get(KUBEFLOW_RUN):
        tagged = f"tags.`{KUBEFLOW_TAG}` = '{kubeflow_run}'"
        return next(iter(client.search_runs([_experiment(client).experiment_id], tagged, max_results=1)), None)
    return None


def _experiment(client: Any) -> Any:
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
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables where the user has not, for a block."""
    absent = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(absent)
    try:
        yield
    finally:
        for name in absent:
            os.environ.pop(name, None)


def _patience(elsewhere: Mapping[str, str]) -> Mapping[str, str]:
    """Return how often MLflow is asked again: in a step of Kubeflow's longer than elsewhere."""
    return LASTING if os.environ.get(KUBEFLOW_RUN) else elsewhere


@contextmanager
def _reachable(*, lasting: bool = False) -> Iterator[None]:
    """Turn MLflow's silence into one clear error, soon; with `lasting` in Kubeflow only when it stays away."""
    import logging

    from mlflow.exceptions import MlflowException

    # They tell of database migrations, and warn of a signature that only Spark needs.
    for noisy, level in (("mlflow.store.db.utils", "WARNING"), ("alembic", "WARNING"), ("mlflow.tensorflow", "ERROR")):
        logging.getLogger(noisy).setLevel(level)
    try:
        with _environment(_patience(IMPATIENT) if lasting else IMPATIENT):
            yield
    except (MlflowException, OSError) as error:
        import mlflow

        uri = mlflow.get_tracking_uri()
        message = (
            f"MLflow at {uri} cannot be used; check MLFLOW_TRACKING_URI and that the server runs: "
            f"{str(error).splitlines()[0] if str(error) else error!r}"
        )
        # Where the address has a password, so have MLflow's own words, which a log would show as the cause.
        raise TrackingError(_without_password(message)) from (error if _password(uri) is None else None)


def _password(uri: str) -> str | None:
    from urllib.parse import urlsplit

    return urlsplit(uri).password


def _without_password(text: str) -> str:
    """Return a text of MLflow's without the password that the tracking URI may hold."""
    import mlflow

    password = _password(mlflow.get_tracking_uri())
    return text.replace(f":{password}@", ":***@") if password else text


@contextmanager
def _closing(run_id: Callable[[], str]) -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with suppress(TrackingError):  # never opened, which is told already
            _end(run_id(), status)


def _end(run_id: str, status: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        with _environment(_patience(PATIENT)):
            _client().set_terminated(run_id, status)
    except (MlflowException, OSError) as error:
        told = _without_password(str(error))
        print(f"warning: tracking is incomplete: run {run_id} stays open in MLflow: {told}", file=sys.stderr)


def _log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _log_parameters(client: Any, run_id: str, parameters: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in parameters.items()])


def _log_metrics(client: Any, run_id: str, metrics: Mapping[str, float]) -> None:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()])


def _log_model(folder: Path, register_as: str, run_id: str) -> str:
    """Log and register the very file of the artifact, in MLflow's TensorFlow flavour."""
    import shutil

    import mlflow
    import tensorflow as tf

    from evasion.components.common import model as model_artifact

    keras_model = model_artifact.load(folder)

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
            shutil.copyfile(folder / model_artifact.FILE, Path(path, "data", model_artifact.FILE))
            shutil.copyfile(folder / model_artifact.CARD, Path(path, model_artifact.CARD))

    client = _client()
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
