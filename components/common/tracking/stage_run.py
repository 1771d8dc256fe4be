"""The MLflow run of a stage, nested in the run of its pipeline."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from evasion.components.common.files import replacing
from evasion.components.common.tracking.client import (
    KUBEFLOW_RUN,
    MOST_RUNS,
    PARENT_TAG,
    TRANSFER,
    TrackingError,
    answered,
    connect,
    connection,
    current_experiment,
    default_variables,
    failures,
    impatience,
    patience,
    reachable,
    surrounding_run,
    without_password,
)
from evasion.components.common.tracking.models import log_model
from evasion.components.common.tracking.processes import PROCESS, this_process
from evasion.components.common.tracking.signals import signals_held

Item = TypeVar("Item")
IMAGE = "EVASION_IMAGE"  # set by pipelines/placement.py and pipelines/containers.py
REVISION = "EVASION_REVISION"  # set by images/Dockerfile and pipelines/local.py


@dataclasses.dataclass
class StageRun:
    """The open run of a stage.

    Attributes:
        run_id: MLflow's id of the run.
        experiment: The experiment's name, the first part of the models' names.
        whole: The pipeline's run, or None: for results of the whole pipeline, such as the report.
        complete: False after something could not be logged.
        problem: Why it could not be logged.
    """

    run_id: str
    experiment: str
    whole: "StageRun | None" = None
    complete: bool = True
    problem: str = ""

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log values that are known only during the work, such as the seed drawn."""
        self._try(lambda client: log_run_parameters(client, self.run_id, parameters))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log finite numbers by name."""
        self._try(lambda client: log_run_metrics(client, self.run_id, metrics))

    def tag(self, tags: Mapping[str, str], name: str = "") -> None:
        """Tag the run and rename it.

        Args:
            tags: The values of the tags by name.
            name: The run's new name, or `""` to keep its name.
        """

        def log(client: Any) -> None:
            if name:
                client.update_run(self.run_id, name=name)
            log_tags(client, self.run_id, tags)

        self._try(log)

    def links_report(self, summary: str) -> None:
        """Tag the pipeline's run and those of its stages with the location of the report.

        Args:
            summary: The report's name among the artifacts of this run, the pipeline's.
        """
        tags = {"parent_report": f"runs:/{self.run_id}/{summary}"}

        def log(client: Any) -> None:
            experiment = client.get_run(self.run_id).info.experiment_id
            children = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{self.run_id}'", max_results=MOST_RUNS)
            for identifier in (self.run_id, *(run.info.run_id for run in children)):
                log_tags(client, identifier, tags)

        self._try(log)

    def log_file(self, path: Path, name: str) -> None:
        """Log a file under `name`, which may contain folders: `report/report.html`.

        Where MLflow keeps artifacts on the same file system, it gets a second name of the file, not a copy. Nothing
        here writes into a file that exists.
        """

        def log(client: Any) -> None:
            if linked(path, client.get_run(self.run_id).info.artifact_uri, name):
                return
            folder, _, file = name.rpartition("/")
            with tempfile.TemporaryDirectory() as temporary:
                link = Path(temporary, file)
                link.symlink_to(path.resolve())  # MLflow names an artifact after its file; nothing is copied here
                client.log_artifact(self.run_id, str(link), folder or None)

        self._try(log, long=True)

    def log_model(self, folder: Path, register_as: str) -> str:
        """Log a model artifact and register it; return its version, or `""` if none is registered.

        Args:
            folder: The model artifact.
            register_as: The registered model's name, or `""` to register nothing.

        Raises:
            TrackingError: If the model was to be registered and is not. Its artifact is kept.
        """
        versions: list[str] = []
        self._try(lambda _: versions.append(log_model(folder, register_as, self.run_id)), long=True)
        if register_as and not versions:
            raise TrackingError(
                f"The model is not registered in MLflow as {register_as}: {self.problem}. It is kept in {folder}."
            )
        return versions[0] if versions else ""

    def _try(self, log: Callable[[Any], None], *, long: bool = False) -> None:
        """Log something; after a failure, nothing more.

        Args:
            log: Logs it, given MLflow's client.
            long: Whether it takes as long as a file is large. Then MLflow must have answered before.
        """
        if not self.complete:
            return
        try:
            if long:
                answered(lambda: connect().get_run(self.run_id))
                with default_variables(patience(TRANSFER)):
                    log(connect())
            else:
                answered(lambda: log(connect()))
        except failures() as error:
            self.complete, self.problem = False, without_password(str(error))
            if self.whole:
                self.whole.complete = False
            connection.warn(
                f"MLflow failed after the stage's work was done. The results of run {self.run_id} are only in the "
                f"artifacts: {self.problem}"
            )


def linked(path: Path, artifacts: str, name: str) -> bool:
    """Give a file a second name among the artifacts of a run; return whether that is possible there.

    Args:
        path: The file.
        artifacts: The URI of the run's artifacts.
        name: The name of the artifact, which may contain folders.
    """
    parts = urlsplit(artifacts)
    if parts.scheme not in ("", "file") or parts.netloc:
        return False
    target = Path(url2pathname(parts.path) if parts.scheme else artifacts, name)
    try:
        with replacing(target) as partial:
            partial.hardlink_to(path.resolve())
    except OSError:  # another file system, or one without links
        return False
    return True


@contextmanager
def stage(name: str, parameters: Mapping[str, Any]) -> Iterator[StageRun]:
    """Open the MLflow run of a stage, nested in the pipeline's run if there is one.

    Args:
        name: The name of the stage and of the run.
        parameters: The stage's parameters.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    with ended(lambda: open_stage(name, parameters)) as opened:
        yield opened


class Opening:
    """The run of a stage that a thread opens while the stage works.

    Args:
        opened: The future of the run.
    """

    def __init__(self, opened: "Future[StageRun]") -> None:
        self._opened = opened

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of the work; stop as soon as the run cannot be opened. After the last item, wait for the run.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        for item in items:
            if self._opened.done():
                self._opened.result()
            yield item
        self._opened.result()

    @property
    def run_id(self) -> str:
        """MLflow's id of the run, once it is open.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        return self._opened.result().run_id

    def stage(self) -> StageRun:
        """Wait until the run is open, and return it.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        return self._opened.result()


@contextmanager
def stage_meanwhile(name: str, parameters: Mapping[str, Any]) -> Iterator[Opening]:
    """Like `stage`, for stages that import less than MLflow does: they work while a thread imports MLflow.

    Pass the work's items through `Opening.watched`, which raises an error for a wrong address.
    """
    # In this thread, before the work: see `default_variables`.
    with (
        ThreadPoolExecutor(1) as thread,
        default_variables(patience(impatience())),
        ended(lambda: Opening(thread.submit(open_stage, name, parameters))) as opening,
    ):
        yield opening


def open_stage(name: str, parameters: Mapping[str, Any]) -> StageRun:
    """Create the run of a stage and leave it open."""
    with reachable(lasting=True):
        client = connect()
        parent = surrounding_run(client)
        experiment = client.get_experiment(parent.info.experiment_id) if parent else current_experiment(client)
        tags = {PARENT_TAG: parent.info.run_id} if parent else {}
        run_id = create_run(client, experiment, name, {**tags, **lineage_tags(), "stage": name}, parameters)
    whole = StageRun(parent.info.run_id, experiment.name) if parent else None
    return StageRun(run_id, experiment.name, whole)


def create_run(client: Any, experiment: Any, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
    """Create a run with its parameters and return its id; if they cannot be logged, it is ended."""
    run_id = str(client.create_run(experiment.experiment_id, run_name=name, tags=tags).info.run_id)
    try:
        log_run_parameters(client, run_id, parameters)
    except BaseException:
        end(run_id, "FAILED")
        raise
    return run_id


def lineage_tags(**further: str) -> dict[str, str]:
    """Return the tags that record the origin of a run, without those that are empty."""
    tags = {
        "mlflow.source.git.commit": os.environ.get(REVISION, ""),
        "mlflow.docker.image.uri": os.environ.get(IMAGE, ""),
        "kfp_run_id": os.environ.get(KUBEFLOW_RUN, ""),
        PROCESS: this_process() if os.environ.get(KUBEFLOW_RUN) else "",
        **further,
    }
    return {name: value for name, value in tags.items() if value}


class Run(Protocol):
    """An open run, or one that a thread opens."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""


Opened = TypeVar("Opened", bound=Run)


@contextmanager
def ended(opened: Callable[[], Opened]) -> Iterator[Opened]:
    """Open a run, and end it after the block: FINISHED, after an interrupt KILLED, after any other error FAILED.

    Signals wait until the run is open and known, and while it is ended.

    Args:
        opened: Opens it.
    """
    status, run = "FAILED", None
    try:
        with signals_held():
            run = opened()
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # If it was never opened, that error has been raised already.
        if run is not None:
            with signals_held(), suppress(TrackingError):
                end(run.run_id, status)


def end(run_id: str, status: str) -> None:
    """End a run. An error is only a warning."""
    try:
        answered(lambda: connect().set_terminated(run_id, status))
    except failures() as error:
        connection.warn(f"run {run_id} stays open in MLflow: {error}")


def log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def log_run_parameters(client: Any, run_id: str, parameters: Mapping[str, Any]) -> None:
    """Log parameters of a run."""
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in parameters.items()])


def log_run_metrics(client: Any, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log metrics of a run, all at one time."""
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()])
