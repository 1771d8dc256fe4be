"""One run under kfp.local: which step runs, what it prints, and what it writes."""

import functools
import io
import json
import re
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from evasion.components.common import tracking
from evasion.pipelines.catalog import Pipeline
from evasion.pipelines.local import kfp_patches, process
from evasion.pipelines.local.results import RunListener, StepFailedError, StepResult
from evasion.pipelines.plan import PlannedStep

# Runs a step, given its image, its command, its variables and a callback for its lines; returns status and last lines.
Launch = Callable[[str, Sequence[str], Mapping[str, str], Callable[[str], None]], tuple[int, list[str]]]

WARNING = "warning: "  # how the line of a step begins that the user must see
_PROGRESS = re.compile(r"progress: (\d+)/(\d+) (.*)")


class _Plain(io.TextIOBase):
    """A stream that writes kfp's output to the log, without colours."""

    def __init__(self, log: IO[str]) -> None:
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(process.plain(text))
        return len(text)


@dataclass
class Session:
    """A run in progress: its steps, its log, and the results so far."""

    steps: Mapping[str, PlannedStep]
    launch: Launch
    docker: bool
    listener: RunListener
    log: IO[str]
    log_path: Path
    results: list[StepResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # what the steps have warned of
    started: list[PlannedStep] = field(default_factory=list)
    rounds: int = 1  # of the current loop
    round: int = 1  # the current round

    def run(self, pipeline: Pipeline, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Run the pipeline with kfp.local and return its outputs."""
        from kfp import local

        with (
            kfp_patches.settings_kept(),
            kfp_patches.steps_started_by(functools.partial(_Task, self), docker=self.docker),
            kfp_patches.tasks_in_order(),
            kfp_patches.loops_run_by(self),
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
                raise StepFailedError(step, process.plain(str(error)), self.log_path, self.warnings) from error

    @property
    def incomplete(self) -> bool:
        """Whether a step has waited for MLflow in vain."""
        return any(line.startswith(tracking.INCOMPLETE) for line in self.warnings)

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
        if line.startswith(WARNING) and line not in self.warnings:
            self.warnings.append(line)
        if match := _PROGRESS.fullmatch(line):
            self.listener.progress(int(match[1]), int(match[2]), match[3])
        else:
            self.listener.line(line)

    def finish(self, result: StepResult) -> None:
        """Record the success of a step."""
        self.results.append(result)
        self.listener.step_finished(result)


class _Task:
    """Runs one step, with the interface of kfp's task handlers."""

    def __init__(
        self,
        session: Session,
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
        variables = {**self._variables, **({tracking.LOST: "1"} if self._session.incomplete else {})}
        code, last_lines = self._session.launch(self._image, command, variables, self._session.on_line)
        if code != 0:
            session = self._session
            raise StepFailedError(step.name, process.error(last_lines, code), session.log_path, session.warnings)
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
