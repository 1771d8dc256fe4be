"""Runs a pipeline on this machine: kfp.local, in processes or in containers, tracked in MLflow."""

import copy
import functools
import io
import json
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from evasion.components.common import tracking
from evasion.pipelines import plan
from evasion.pipelines.catalog import Pipeline
from evasion.pipelines.local import containers, process, server
from evasion.pipelines.plan import PlannedStep
from evasion.pipelines.revision import commit_of

# Runs a step, given its image, its command, its variables and a callback for its lines; returns status and last lines.
Launch = Callable[[str, Sequence[str], Mapping[str, str], Callable[[str], None]], tuple[int, list[str]]]

# This module replaces private parts of kfp, which may differ in another version.
KFP = "2.17"

_PROGRESS = re.compile(r"progress: (\d+)/(\d+) (.*)")


class StepFailedError(RuntimeError):
    """A step of a pipeline ended with an error.

    Attributes:
        step: The step's name.
        message: The step's own error message.
        log: The file with the output of the run.
    """

    def __init__(self, step: str, message: str, log: Path) -> None:
        self.step, self.message, self.log = step, message, log
        super().__init__(f"{step}: {message}")


class KfpVersionError(RuntimeError):
    """The version of kfp is not supported."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        step: The step.
        seconds: Its duration.
        outputs: The paths of its artifacts by the name of the output.
        metrics: Its numeric metrics.
    """

    step: PlannedStep
    seconds: float
    outputs: Mapping[str, Path]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """The result of a pipeline.

    Attributes:
        run_dir: The folder with all files of the run.
        run_id: The pipeline's run in MLflow, the parent of the steps' runs.
        tracking_uri: MLflow's tracking URI.
        steps: The results of its steps, in the order in which they ran.
        outputs: The pipeline's outputs: artifacts and values by name.
        served: The output folder, if an MLflow server was started for this run and has been stopped; otherwise None.
    """

    run_dir: Path
    run_id: str
    tracking_uri: str
    steps: tuple[StepResult, ...]
    outputs: Mapping[str, Any]
    served: Path | None = None

    @property
    def log(self) -> Path:
        """The file with the output of the run."""
        return self.run_dir / "log.txt"

    @property
    def report(self) -> Path | None:
        """The HTML report; None if the pipeline has no report."""
        return _if_exists(self.run_dir / "report.html")

    @property
    def summary(self) -> Path | None:
        """The numbers of the report as JSON; None if the pipeline has no report."""
        return _if_exists(self.run_dir / "report.json")


class RunListener:
    """Receives the events of a run. All methods do nothing by default; subclasses override them."""

    def preparing(self, activity: str) -> None:
        """Called before the first step with the current preparation, such as starting a server."""

    def planned(self, run_dir: Path, steps: list[PlannedStep]) -> None:
        """Called with the folder of the run and the steps that will run."""

    def step_started(self, step: PlannedStep, number: int, total: int) -> None:
        """Called when a step starts, the `number`-th of `total`."""

    def line(self, text: str) -> None:
        """Called with each line that the step prints."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Called when the step reports progress: `done` of `total` units, such as batches."""

    def step_finished(self, result: StepResult) -> None:
        """Called when the step has succeeded."""


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
    installed = version("kfp")
    if not installed.startswith(f"{KFP}."):
        raise KfpVersionError(
            f"kfp must have version {KFP} to run pipelines on this machine. Received: kfp {installed}"
        )
    values = plan.complete(pipeline, arguments)
    planned = plan.planned_steps(pipeline, values)
    plan.check(planned)
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
        run_dir = _new_folder(output, pipeline.component_spec.name)
        commit = commit_of(Path.cwd())
        run_id = stack.enter_context(tracking.pipeline_run(pipeline.component_spec.name, values, git_commit=commit))
        stack.enter_context(_environment({"MLFLOW_RUN_ID": run_id}))
        log = stack.enter_context((run_dir / "log.txt").open("w", encoding="utf-8", buffering=1))
        listener.planned(run_dir, planned)
        launch: Launch
        if container_setup:
            launch = container_setup.launcher(run_dir / "steps").run
        else:
            launch = functools.partial(_in_process, stack.enter_context(process.ProcessLauncher(os.environ)))
        session = _Session({step.task: step for step in planned}, launch, docker, listener, log, Path(log.name))
        outputs = session.run(pipeline, values, run_dir / "steps")
        _keep_report(session.results, run_dir)
    served = output if container_setup and container_setup.server_started else None
    return Result(run_dir, run_id, str(variables["MLFLOW_TRACKING_URI"]), tuple(session.results), outputs, served)


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


def _if_exists(path: Path) -> Path | None:
    return path if path.is_file() else None


def _tracking_variables(output: Path, experiment: str, uri: str | None) -> dict[str, str | None]:
    """Return the environment variables with which MLflow, here and in the steps, records the run."""
    variables: dict[str, str | None] = {
        "MLFLOW_TRACKING_URI": uri or f"sqlite:///{output / 'mlflow.db'}",
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


class _Plain(io.TextIOBase):
    """A stream that writes kfp's output to the log, without colours."""

    def __init__(self, log: IO[str]) -> None:
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(process.plain(text))
        return len(text)


@dataclass
class _Session:
    """A run in progress: its steps, its log, and the results so far."""

    steps: Mapping[str, PlannedStep]
    launch: Launch
    docker: bool
    listener: RunListener
    log: IO[str]
    log_path: Path
    results: list[StepResult] = field(default_factory=list)
    started: list[PlannedStep] = field(default_factory=list)
    rounds: int = 1  # of the current loop
    round: int = 1  # the current round

    def run(self, pipeline: Pipeline, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Run the pipeline with kfp.local and return its outputs."""
        from kfp import local

        with (
            _settings_kept(),
            _steps_started_by(self),
            _tasks_in_order(),
            _loops_run_by(self),
            redirect_stdout(_Plain(self.log)),
            warnings.catch_warnings(),
        ):
            # kfp warns about settings that matter only on a cluster, such as GPUs and display names.
            warnings.filterwarnings("ignore", module=r"kfp\b")
            runner = local.DockerRunner() if self.docker else local.SubprocessRunner(use_venv=False)
            local.init(runner=runner, pipeline_root=str(folder))
            try:
                return dict(pipeline(**values).outputs)
            except StepFailedError:
                raise
            except Exception as error:
                # kfp itself failed, for example to read an output of a step.
                step = self.started[-1].name if self.started else pipeline.component_spec.name
                raise StepFailedError(step, process.plain(str(error)), self.log_path) from error

    def start(self, task: str) -> PlannedStep:
        """Record the start of a task, and return its step."""
        step = self.steps.get(task) or PlannedStep(task, task, task, {}, frozenset(), {})
        if step.looped and self.rounds > 1:
            step = replace(step, name=f"{step.name} {self.round}/{self.rounds}")
        self.started.append(step)
        total = sum(self.rounds if planned.looped else 1 for planned in self.steps.values())
        self.listener.step_started(step, len(self.started), max(total, len(self.started)))
        return step

    def on_line(self, line: str) -> None:
        """Log a line of the step's output, and report its progress."""
        self.log.write(f"    {line}\n")
        if match := _PROGRESS.fullmatch(line):
            self.listener.progress(int(match[1]), int(match[2]), match[3])
        else:
            self.listener.line(line)

    def finish(self, result: StepResult) -> None:
        """Record the success of a step."""
        self.results.append(result)
        self.listener.step_finished(result)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Restore kfp's local settings at the end: while they are set, every call of a component runs it."""
    from kfp.local.config import LocalExecutionConfig

    before = LocalExecutionConfig.instance
    try:
        yield
    finally:
        LocalExecutionConfig.instance = before


@contextmanager
def _steps_started_by(session: _Session) -> Iterator[None]:
    """Run the steps with `_Task` instead of kfp's own handlers.

    kfp has no setting for this. Its own handlers leave the step running when the run is interrupted, continue with
    other branches after a failure, and mix the step's output with their own. The handler for processes replaces
    "python3" in every argument, even in paths of data, by the path of the interpreter; the handler for containers
    takes a failed step for a successful one if its container is gone.
    """
    if session.docker:
        from kfp.local import docker_task_handler as module

        name = "DockerTaskHandler"
    else:
        from kfp.local import subprocess_task_handler as module

        name = "SubprocessTaskHandler"
    original = getattr(module, name)
    setattr(module, name, functools.partial(_Task, session))
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def _tasks_in_order() -> Iterator[None]:
    """Run the tasks of a graph in the order of `plan.in_order`."""
    from kfp.local import graph_utils

    def reversed_order(tasks: Mapping[str, Any]) -> list[str]:
        return plan.in_order({name: task.dependent_tasks for name, task in tasks.items()})[::-1]

    original = graph_utils.topological_sort_tasks
    graph_utils.topological_sort_tasks = reversed_order
    try:
        yield
    finally:
        graph_utils.topological_sort_tasks = original


@contextmanager
def _loops_run_by(session: _Session) -> Iterator[None]:
    """Run the items of loops one after the other.

    kfp runs two items at once, in threads which an interrupt does not reach, and hides the error of a step; two steps
    that run a model would share the cores that a single one can use. It also passes the item for every parameter of the
    loop that another step computes.
    """
    from kfp.compiler.pipeline_spec_builder import to_protobuf_value
    from kfp.local.orchestrator import task_spec_utils
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ParallelExecutor, execute_task
    from kfp.local.status import Status

    def run(_: Any, *, tasks: Sequence[tuple[str, Any]], io_store: Any, parallelism_limit: int, **options: Any) -> Any:  # noqa: ARG001
        outputs = {}
        session.rounds = len(tasks)
        for session.round, (name, spec) in enumerate(tasks, 1):
            outputs[name], status = execute_task(task_name=name, task_spec=spec, io_store=io_store, **options)
            if status == Status.FAILURE:
                return {}, status
        return outputs, Status.SUCCESS

    def iteration(loop: Any, item: Any, _: str) -> Any:
        spec = copy.deepcopy(loop)
        item_input = spec.inputs.parameters[spec.parameter_iterator.item_input]
        item_input.runtime_value.constant.CopyFrom(to_protobuf_value(item))
        spec.ClearField("parameter_iterator")
        return spec

    originals = ParallelExecutor.execute_parallel_tasks, task_spec_utils.create_parameter_loop_iteration_task_spec
    ParallelExecutor.execute_parallel_tasks = run
    task_spec_utils.create_parameter_loop_iteration_task_spec = iteration
    try:
        yield
    finally:
        ParallelExecutor.execute_parallel_tasks, task_spec_utils.create_parameter_loop_iteration_task_spec = originals


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


class _Task:
    """Runs one step, with the interface of kfp's task handlers."""

    def __init__(
        self,
        session: _Session,
        *,
        image: str,
        full_command: list[str],
        env_vars: Mapping[str, str] | None = None,
        **_: Any,
    ) -> None:
        self._session = session
        self._image = image
        self._command = full_command
        self._variables = env_vars or {}

    def run(self) -> Any:
        """Run the step and return kfp's success status.

        Raises:
            StepFailedError: The step ended with an error.
        """
        from kfp.local.status import Status

        command = self._command
        declared = json.loads(command[command.index("--executor_input") + 1])["outputs"]
        result_file = Path(declared["outputFile"])
        step = self._session.start(result_file.parent.name)
        started = time.monotonic()
        code, last_lines = self._session.launch(self._image, command, self._variables, self._session.on_line)
        if code != 0:
            raise StepFailedError(step.name, process.error(last_lines, code), self._session.log_path)
        seconds = time.monotonic() - started
        artifacts = {name: listed["artifacts"][0] for name, listed in declared.get("artifacts", {}).items()}
        paths = {name: Path(artifact["uri"]) for name, artifact in artifacts.items()}
        metrics = {name for name, artifact in artifacts.items() if artifact["type"]["schemaTitle"] == "system.Metrics"}
        self._session.finish(StepResult(step, seconds, paths, _numeric_metadata(result_file, metrics)))
        return Status.SUCCESS


def _numeric_metadata(result_file: Path, names: Collection[str]) -> dict[str, float]:
    """Return the numbers in the metadata of the step's artifacts of these names."""
    if not result_file.is_file():
        return {}
    artifacts = json.loads(result_file.read_text(encoding="utf-8")).get("artifacts", {})
    return {
        key: value
        for name in names
        for artifact in artifacts.get(name, {}).get("artifacts", [])
        for key, value in artifact.get("metadata", {}).items()
        if isinstance(value, int | float)
    }
