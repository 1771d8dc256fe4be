"""Runs a pipeline on this machine: kfp.local, in processes or in containers, tracked in MLflow."""

import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evasion.components.common import tracking, validate
from evasion.pipelines import plan
from evasion.pipelines.catalog import Pipeline
from evasion.pipelines.local import containers, kfp_patches, process, runs, server, store
from evasion.pipelines.local.results import Result, RunListener, StepFailedError, StepResult
from evasion.pipelines.local.session import Launch, Session
from evasion.pipelines.plan import PlannedStep
from evasion.pipelines.revision import commit_of


def run(
    pipeline: Pipeline,
    arguments: Mapping[str, Any],
    *,
    output: Path = Path("runs"),
    experiment: str = "evasion",
    tracking_uri: str | None = None,
    docker: bool = False,
    listener: RunListener | None = None,
) -> Result:
    """Run a pipeline on this machine and wait for its end.

    Its files are in `<output>/<pipeline>-<time>`: `log.txt`, the artifacts under `steps`, and, if the pipeline has a
    report, `report.html` and `report.json`. A process can run only one pipeline at a time: kfp's local settings and the
    environment that the steps inherit belong to the whole process.

    Args:
        pipeline: The pipeline, a function decorated with `dsl.pipeline`.
        arguments: The values of its parameters.
        output: The parent folder of runs.
        experiment: The MLflow experiment, which is created if it is missing.
        tracking_uri: MLflow's tracking URI; by default MLFLOW_TRACKING_URI, or `mlflow.db` in `output`.
        docker: Run every step in a container; without a tracking URI, also MLflow with PostgreSQL, whose data is in
            `server` in `output`.
        listener: Receives the events of the run.

    Raises:
        BadArgumentsError: The arguments are invalid. Nothing has been started.
        KfpVersionError: The version of kfp is not supported. Nothing has been started.
        EngineError: The container engine or an image is missing, and nothing has been started; or MLflow does not
            start in its containers.
        StepFailedError: A step ended with an error. No further step has been started.
    """
    kfp_patches.require_version()
    values = plan.complete(pipeline, arguments)
    planned = plan.planned_steps(pipeline, values)
    plan.check(planned)
    try:
        validate.experiment(experiment)
    except validate.ParameterError as error:
        raise plan.BadArgumentsError([plan.Problem(str(error), error.parameters)]) from None
    listener = listener or RunListener()
    output = output.absolute()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    with ExitStack() as stack:
        container_setup = None
        if docker:
            container_setup = _ContainerSetup.prepare(planned, output, uri, listener, stack)
            uri = container_setup.mlflow.address
        variables = _tracking_variables(output, experiment, uri)
        stack.enter_context(_environment(variables | _interpreter_variables()))
        for abandoned in tracking.end_abandoned():
            listener.preparing(f"MLflow: ended the run of {abandoned} that a killed process had left open")
        run_dir = _new_folder(output, pipeline.component_spec.name)
        commit = commit_of(Path.cwd())
        tracking.connection.warnings.clear()  # of a run before in this process
        run_id = stack.enter_context(tracking.pipeline_run(pipeline.component_spec.name, values, git_commit=commit))
        stack.enter_context(_environment({"MLFLOW_RUN_ID": run_id}))
        started = bool(container_setup and container_setup.server_started)
        uri = str(variables["MLFLOW_TRACKING_URI"])
        stack.enter_context(
            runs.recorded(run_dir, pipeline.component_spec.name, run_id, "" if started else runs.address(uri))
        )
        log = stack.enter_context((run_dir / "log.txt").open("w", encoding="utf-8", buffering=1))
        listener.planned(run_dir, planned)
        launch = _launcher(container_setup, run_dir, stack)
        session = Session({step.task: step for step in planned}, launch, docker, listener, log, Path(log.name))
        with _stages_ended(run_id, session):
            outputs = session.run(pipeline, values, run_dir / "steps")
        _keep_report(session.results, run_dir)
    warnings = (*session.warnings, *tracking.connection.warnings)
    return Result(run_dir, run_id, uri, tuple(session.results), outputs, warnings, output if started else None)


@contextmanager
def _stages_ended(run_id: str, session: Session) -> Iterator[None]:
    """End the MLflow runs that the steps of this block have left open: a killed step cannot end its own."""
    status, waited = "FAILED", False
    try:
        yield
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except StepFailedError as error:
        waited = tracking.UNREACHABLE in error.message
        raise
    finally:
        if waited or session.incomplete:
            tracking.connection.lost = True  # a step has waited for MLflow already
        tracking.end_stages(run_id, status)


def _launcher(container_setup: "_ContainerSetup | None", run_dir: Path, stack: ExitStack) -> Launch:
    """Return what runs a step: in a container, or in a process."""
    if container_setup:
        return container_setup.launcher(run_dir / "steps").run
    return functools.partial(_in_process, stack.enter_context(process.ProcessLauncher(os.environ)))


@dataclass(frozen=True)
class _ContainerSetup:
    """What the containers of a run need.

    Attributes:
        engine: The container engine.
        mlflow: The MLflow server.
        server_started: Whether that server was started for this run.
        inputs: Files and folders of this machine that the steps read.
    """

    engine: containers.Engine
    mlflow: server.Server
    server_started: bool
    inputs: list[str]

    @classmethod
    def prepare(
        cls, planned: Sequence[PlannedStep], output: Path, uri: str | None, listener: RunListener, stack: ExitStack
    ) -> "_ContainerSetup":
        """Connect to the engine, and start an MLflow server in it unless a tracking URI is given.

        Raises:
            EngineError: The container engine, an image or a permission is missing, or MLflow does not start.
        """
        inputs = containers.local_paths(planned)
        existing = server.existing(uri) if uri else None
        images = (containers.image("cpu"), *(() if existing else server.IMAGES))
        engine = stack.enter_context(containers.engine(images))
        if existing:
            return cls(engine, existing, False, inputs)
        listener.preparing("starting MLflow and PostgreSQL")
        return cls(engine, stack.enter_context(server.running(engine, output / "server")), True, inputs)

    def launcher(self, outputs: Path) -> containers.ContainerLauncher:
        """Return the launcher of steps that write to a folder."""
        return containers.ContainerLauncher(
            self.engine,
            network=self.mlflow.network,
            outputs=outputs,
            inputs=self.inputs,
            variables={
                "MLFLOW_TRACKING_URI": self.mlflow.container_address,
                **server.proxy_exceptions(self.mlflow),
            },
        )


def _tracking_variables(output: Path, experiment: str, uri: str | None) -> dict[str, str | None]:
    """Return the environment variables with which MLflow, here and in the steps, records the run."""
    variables: dict[str, str | None] = {
        "MLFLOW_TRACKING_URI": uri or f"sqlite:///{store.prepare(output)}",
        "MLFLOW_EXPERIMENT_NAME": experiment,
        # Set by a surrounding run; they would keep MLflow from creating a new run in this experiment.
        "MLFLOW_EXPERIMENT_ID": None,
        "MLFLOW_RUN_ID": None,
    }
    if not uri:
        variables["EVASION_ARTIFACT_ROOT"] = str(output / "mlartifacts")
    return variables


def _interpreter_variables() -> dict[str, str | None]:
    """Return the environment variables for the steps' Python: unbuffered output, quiet TensorFlow and MLflow."""
    return {
        "PYTHONUNBUFFERED": "1",
        tracking.REVISION: os.environ.get(tracking.REVISION) or commit_of(Path(__file__).parent),
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        # MLflow would print the address of a server that may stop with the run.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables (None: remove), and restore them at the end."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _new_folder(output: Path, name: str) -> Path:
    """Create a new folder for this run."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = output / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"{output / stem} and all names derived from it already exist")


def _keep_report(results: list[StepResult], run_dir: Path) -> None:
    """Copy the report to the folder of the run."""
    for result in results:
        if result.step.function == "report":
            shutil.copyfile(result.outputs["html"], run_dir / "report.html")
            shutil.copyfile(result.outputs["summary"], run_dir / "report.json")


def _in_process(
    launcher: process.ProcessLauncher,
    image: str,  # noqa: ARG001 - the step runs in this environment
    command: Sequence[str],
    variables: Mapping[str, str],
    on_line: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Run a step in a process group of its own."""
    # The shell script of the step calls "python3", which may be another interpreter.
    python = f"{shlex.quote(sys.executable)} -m"
    local_command = [part.replace("python3 -m", python) if '"$program_path/' in part else part for part in command]
    return launcher.run(local_command, {**os.environ, **variables}, on_line)
