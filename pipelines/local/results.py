"""The result of a run on this machine, and the listener of its events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evasion.pipelines.plan import PlannedStep


class StepFailedError(RuntimeError):
    """A step of a pipeline ended with an error.

    Attributes:
        step: The step's name.
        message: The step's own error message.
        log: The file with the output of the run.
        warnings: What it and the steps before it have warned of.
    """

    def __init__(self, step: str, message: str, log: Path, warnings: Sequence[str] = ()) -> None:
        self.step, self.message, self.log, self.warnings = step, message, log, tuple(warnings)
        super().__init__(f"{step}: {message}")


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
        warnings: What the steps have warned of, such as results that are not in MLflow.
        served: The output folder, if an MLflow server was started for this run and has been stopped; otherwise None.
    """

    run_dir: Path
    run_id: str
    tracking_uri: str
    steps: tuple[StepResult, ...]
    outputs: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
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


def _if_exists(path: Path) -> Path | None:
    return path if path.is_file() else None


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
