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

# Runs a step: takes its image, its command, its variables and who hears its lines; returns status and last lines.
Launch = Callable[[str, Sequence[str], Mapping[str, str], Callable[[str], None]], tuple[int, list[str]]]

# Private parts of kfp stand in for its handlers, loops and order below; those of another version may differ.
KFP = "2.17"

_PROGRESS = re.compile(r"progress: (\d+)/(\d+) (.*)")


class StepFailedError(RuntimeError):
    """A step of a pipeline ended with an error.

    Attributes:
        step: The step's name.
        message: The step's own error.
        log: Everything that the run printed.
    """

    def __init__(self, step: str, message: str, log: Path) -> None:
        self.step, self.message, self.log = step, message, log
        super().__init__(f"{step}: {message}")


class KfpVersionError(RuntimeError):
    """kfp is of a version whose private parts are not known here."""


@dataclass(frozen=True)
class StepResult:
    """A step that has run.

    Attributes:
        step: The step.
        seconds: How long it took.
        outputs: The path of each artifact that it wrote, by the name of the output.
        metrics: The numbers of its metrics.
    """

    step: PlannedStep
    seconds: float
    outputs: Mapping[str, Path]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """A pipeline that has run.

    Attributes:
        run_dir: The folder that holds all the run wrote.
        run_id: Its run in MLflow; those of the steps are nested below it.
        tracking_uri: Where MLflow keeps that run.
        steps: Its steps, in the order in which they ran.
        outputs: The pipeline's outputs: artifacts and values by name.
        served: The folder of runs whose MLflow server, started for this run, has stopped again; otherwise None.
    """

    run_dir: Path
    run_id: str
    tracking_uri: str
    steps: tuple[StepResult, ...]
    outputs: Mapping[str, Any]
    served: Path | None = None

    @property
    def log(self) -> Path:
        """Everything that the run printed."""
        return self.run_dir / "log.txt"

    @property
    def report(self) -> Path | None:
        """The report as a page, where the pipeline makes one."""
        return _if_there(self.run_dir / "report.html")

    @property
    def summary(self) -> Path | None:
        """The numbers of the report as JSON, where the pipeline makes one."""
        return _if_there(self.run_dir / "report.json")


class RunListener:
    """Is told how a run goes. Every method does nothing until a subclass gives it something to do."""

    def preparing(self, what: str) -> None:
        """Hear what is made ready before anything runs."""

    def planned(self, run_dir: Path, steps: list[PlannedStep]) -> None:
        """Hear what will run, and where."""

    def step_started(self, step: PlannedStep, number: int, total: int) -> None:
        """Hear that a step starts, the `number`-th of `total`."""

    def line(self, text: str) -> None:
        """Hear a line that the step printed."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Hear how far inside the step the work is."""

    def step_finished(self, result: StepResult) -> None:
        """Hear that the step ended well."""


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
    """Run a pipeline here and wait for it.

    What it writes is in `<output>/<pipeline>-<time>`: `log.txt`, the artifacts under `steps`, and, from a
    pipeline that makes them, `report.html` and `report.json`. One run at a time in a process: kfp's local
    settings and the environment that the steps inherit belong to the whole process.

    Args:
        pipeline: The pipeline, a function under `dsl.pipeline`.
        arguments: The values of its parameters.
        output: The folder that collects runs.
        experiment: The MLflow experiment, made where it is missing.
        tracking_uri: Where MLflow keeps runs. Otherwise MLFLOW_TRACKING_URI, otherwise `mlflow.db` in `output`.
        docker: Run every step in a container; MLflow too, over PostgreSQL in `server` in `output`, unless it is
            elsewhere.
        listener: Is told how the run goes.

    Raises:
        BadArgumentsError: The arguments break a rule. Nothing has been started.
        KfpVersionError: kfp is not of the version that this is held to. Nothing has been started.
        EngineError: There is no container engine, or an image is missing, and nothing has been started; or MLflow
            does not start in its containers.
        StepFailedError: A step ended with an error. It has been the last one.
    """
    installed = version("kfp")
    if not installed.startswith(f"{KFP}."):
        raise KfpVersionError(f"kfp must be of version {KFP} to run pipelines here. Received: kfp {installed}")
    values = plan.complete(pipeline, arguments)
    planned = plan.planned_steps(pipeline, values)
    plan.check(planned)
    listener = listener or RunListener()
    output = output.absolute()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    with ExitStack() as stack:
        served = None
        if docker:
            inputs = containers.local_paths(planned)
            elsewhere = server.reached_at(uri) if uri else None
            images = (containers.image("cpu"), *(() if elsewhere else server.IMAGES))
            engine = stack.enter_context(containers.engine(images))
            if elsewhere is None:
                served = output
                listener.preparing("starting MLflow and PostgreSQL")
            mlflow = elsewhere or stack.enter_context(server.running(engine, output / "server"))
            uri = mlflow.address
        variables = _tracking_variables(output, experiment, uri)
        stack.enter_context(_environment(variables | _interpreter_variables()))
        run_dir = _new_folder(output, pipeline.component_spec.name)
        commit = commit_of(Path.cwd())
        run_id = stack.enter_context(tracking.pipeline_run(pipeline.component_spec.name, values, git_commit=commit))
        stack.enter_context(_environment({"MLFLOW_RUN_ID": run_id}))
        log = stack.enter_context((run_dir / "log.txt").open("w", encoding="utf-8", buffering=1))
        listener.planned(run_dir, planned)
        launch: Launch
        if docker:
            launch = containers.ContainerLauncher(
                engine,
                network=mlflow.network,
                outputs=run_dir / "steps",
                inputs=inputs,
                variables={"MLFLOW_TRACKING_URI": mlflow.inside, **server.past_proxies(mlflow)},
            ).run
        else:
            launch = functools.partial(_in_process, stack.enter_context(process.ProcessLauncher(os.environ)))
        session = _Session({step.task: step for step in planned}, launch, docker, listener, log, Path(log.name))
        outputs = session.run(pipeline, values, run_dir / "steps")
        _keep_report(session.results, run_dir)
    return Result(run_dir, run_id, str(variables["MLFLOW_TRACKING_URI"]), tuple(session.results), outputs, served)


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _tracking_variables(output: Path, experiment: str, uri: str | None) -> dict[str, str | None]:
    """Return the variables that tell MLflow, here and in the steps, where to keep the run."""
    variables: dict[str, str | None] = {
        "MLFLOW_TRACKING_URI": uri or f"sqlite:///{output / 'mlflow.db'}",
        "MLFLOW_EXPERIMENT_NAME": experiment,
        # Of a surrounding run; with these set MLflow would not make a new one in this experiment.
        "MLFLOW_EXPERIMENT_ID": None,
        "MLFLOW_RUN_ID": None,
    }
    if not uri:
        variables["EVASION_ARTIFACT_ROOT"] = str(output / "mlartifacts")
    return variables


def _interpreter_variables() -> dict[str, str | None]:
    """Return the variables for the steps' Python: lines as they come, TensorFlow and MLflow quiet."""
    return {
        "PYTHONUNBUFFERED": "1",
        tracking.REVISION: os.environ.get(tracking.REVISION) or commit_of(Path(__file__).parent),
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        # The address of a server that may stop with the run, printed among the results.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables (None: remove), and put back what was there."""
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
    """Make a folder for this run that no other run has."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = output / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"{output / stem} is taken, and so are all names after it")


def _keep_report(results: list[StepResult], run_dir: Path) -> None:
    """Copy the report to where a person looks for it."""
    for result in results:
        if result.step.function == "report":
            shutil.copyfile(result.outputs["html"], run_dir / "report.html")
            shutil.copyfile(result.outputs["summary"], run_dir / "report.json")


class _Plain(io.TextIOBase):
    """The log, for kfp to print on: without colours."""

    def __init__(self, log: IO[str]) -> None:
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(process.plain(text))
        return len(text)


@dataclass
class _Session:
    """One run: which step is on, what it printed, and what the steps before it gave."""

    steps: Mapping[str, PlannedStep]
    launch: Launch
    docker: bool
    listener: RunListener
    log: IO[str]
    log_path: Path
    results: list[StepResult] = field(default_factory=list)
    started: list[PlannedStep] = field(default_factory=list)
    rounds: int = 1  # of the loop, and which of them it is
    round: int = 1

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
            # Of settings that matter on a cluster alone, such as GPUs and names to show.
            warnings.filterwarnings("ignore", module=r"kfp\b")
            runner = local.DockerRunner() if self.docker else local.SubprocessRunner(use_venv=False)
            local.init(runner=runner, pipeline_root=str(folder))
            try:
                return dict(pipeline(**values).outputs)
            except StepFailedError:
                raise
            except Exception as error:
                # kfp itself failed, as when it cannot read what a step wrote.
                step = self.started[-1].name if self.started else pipeline.component_spec.name
                raise StepFailedError(step, process.plain(str(error)), self.log_path) from error

    def start(self, task: str) -> PlannedStep:
        """Note that a task starts, and return its step."""
        step = self.steps.get(task) or PlannedStep(task, task, task, {}, frozenset(), {})
        if step.looped and self.rounds > 1:
            step = replace(step, name=f"{step.name} {self.round}/{self.rounds}")
        self.started.append(step)
        total = sum(self.rounds if each.looped else 1 for each in self.steps.values())
        self.listener.step_started(step, len(self.started), max(total, len(self.started)))
        return step

    def hear(self, line: str) -> None:
        """Take a line that the step printed."""
        self.log.write(f"    {line}\n")
        if found := _PROGRESS.fullmatch(line):
            self.listener.progress(int(found[1]), int(found[2]), found[3])
        else:
            self.listener.line(line)

    def finish(self, result: StepResult) -> None:
        """Note that the step ended well."""
        self.results.append(result)
        self.listener.step_finished(result)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back kfp's local settings: while they are set, every call of a component anywhere starts it."""
    from kfp.local.config import LocalExecutionConfig

    before = LocalExecutionConfig.instance
    try:
        yield
    finally:
        LocalExecutionConfig.instance = before


@contextmanager
def _steps_started_by(session: _Session) -> Iterator[None]:
    """Let `_Task` start the steps in place of kfp's own handlers.

    kfp has no setting for it. Its own handlers leave the step running when the run is interrupted, go on with
    other branches after a failure, and print the step's lines among their own. The one for processes replaces
    "python3" in every argument, paths of data included, by the path of the interpreter; the one for containers
    takes a failed step whose container is gone for a good one.
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
    """Let the tasks of a graph run in the order that `preflight` tells."""
    from kfp.local import graph_utils

    def stacked(tasks: Mapping[str, Any]) -> list[str]:
        return plan.in_order({name: task.dependent_tasks for name, task in tasks.items()})[::-1]

    original = graph_utils.topological_sort_tasks
    graph_utils.topological_sort_tasks = stacked
    try:
        yield
    finally:
        graph_utils.topological_sort_tasks = original


@contextmanager
def _loops_run_by(session: _Session) -> Iterator[None]:
    """Let loops run here, one item after the other.

    kfp runs two items at once, in threads which an interrupt does not reach, and keeps a step's error to itself; two
    steps that run a model would share the cores that one of them has use for. It also gives the item for every
    parameter of the loop that another step found.
    """
    from kfp.compiler.pipeline_spec_builder import to_protobuf_value
    from kfp.local.orchestrator import task_spec_utils
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ParallelExecutor, execute_task
    from kfp.local.status import Status

    def run(_: Any, *, tasks: Sequence[tuple[str, Any]], io_store: Any, parallelism_limit: int, **given: Any) -> Any:  # noqa: ARG001
        found = {}
        session.rounds = len(tasks)
        for session.round, (name, spec) in enumerate(tasks, 1):
            found[name], status = execute_task(task_name=name, task_spec=spec, io_store=io_store, **given)
            if status == Status.FAILURE:
                return {}, status
        return found, Status.SUCCESS

    def one_round(loop: Any, item: Any, _: str) -> Any:
        spec = copy.deepcopy(loop)
        place = spec.inputs.parameters[spec.parameter_iterator.item_input]
        place.runtime_value.constant.CopyFrom(to_protobuf_value(item))
        spec.ClearField("parameter_iterator")
        return spec

    originals = ParallelExecutor.execute_parallel_tasks, task_spec_utils.create_parameter_loop_iteration_task_spec
    ParallelExecutor.execute_parallel_tasks = run
    task_spec_utils.create_parameter_loop_iteration_task_spec = one_round
    try:
        yield
    finally:
        ParallelExecutor.execute_parallel_tasks, task_spec_utils.create_parameter_loop_iteration_task_spec = originals


def _in_process(
    starter: process.ProcessLauncher,
    image: str,  # noqa: ARG001 - the step runs in what is installed here
    command: Sequence[str],
    variables: Mapping[str, str],
    hear: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Run a step in a process group of its own."""
    # The shell script that starts the step says "python3", which may be another one.
    python = f"{shlex.quote(sys.executable)} -m"
    ours = [part.replace("python3 -m", python) if '"$program_path/' in part else part for part in command]
    return starter.run(ours, {**os.environ, **variables}, hear)


class _Task:
    """Runs one step; has the interface of kfp's task handlers."""

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
        """Run the step, and return kfp's status for success.

        Raises:
            StepFailedError: The step ended with an error.
        """
        from kfp.local.status import Status

        command = self._command
        declared = json.loads(command[command.index("--executor_input") + 1])["outputs"]
        result_file = Path(declared["outputFile"])
        step = self._session.start(result_file.parent.name)
        started = time.monotonic()
        code, last_lines = self._session.launch(self._image, command, self._variables, self._session.hear)
        if code != 0:
            raise StepFailedError(step.name, process.error(last_lines, code), self._session.log_path)
        seconds = time.monotonic() - started
        written = {name: listed["artifacts"][0] for name, listed in declared.get("artifacts", {}).items()}
        paths = {name: Path(artifact["uri"]) for name, artifact in written.items()}
        measured = {name for name, artifact in written.items() if artifact["type"]["schemaTitle"] == "system.Metrics"}
        self._session.finish(StepResult(step, seconds, paths, _numbers(result_file, measured)))
        return Status.SUCCESS


def _numbers(result_file: Path, names: Collection[str]) -> dict[str, float]:
    """Return what a step logged to its artifacts of these names."""
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
