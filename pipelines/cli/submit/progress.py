"""Shows the progress of a run in a cluster: live in a terminal, in plain lines elsewhere."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Self

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from evasion.pipelines.cli.durations import duration
from evasion.pipelines.submit.watch import ENDED, StepProgress, WatchListener

WORDS = {
    "PENDING": "waiting for a pod",
    "RUNNING": "started",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "SKIPPED": "skipped",
    "CANCELING": "being cancelled",
    "CANCELED": "cancelled",
    "PAUSED": "paused",
}
MARKS = {"SUCCEEDED": "[green]✓[/]", "FAILED": "[red]✗[/]"}


class WatchLines(WatchListener, AbstractContextManager["WatchLines"]):
    """Prints a line when a step's state changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._silent = False

    def __exit__(self, *_: object) -> None:
        """Do nothing; the terminal needs no cleanup."""

    def changed(self, steps: Sequence[StepProgress]) -> None:
        """Print the steps whose state has changed."""
        self._silent = False
        for progress in steps:
            task = progress.step.task
            if progress.state and progress.state != self._states.get(task):
                self._states[task] = progress.state
                ended = sum(self._states.get(other.step.task, "") in ENDED for other in steps)
                self.print_step(progress, f"{ended}/{len(steps)}")

    def silent(self, error: str) -> None:
        """Print the error once until the host responds again."""
        if not self._silent:
            self._silent = True
            self._console.out(f"trying again: {error}", highlight=False)

    def print_step(self, progress: StepProgress, count: str) -> None:
        """Print the line of a step, with Kubeflow's error message if it failed."""
        took = f" in {_duration(progress)}" if progress.state in ENDED and progress.started else ""
        error = f": {progress.error}" if progress.error else ""
        state = WORDS.get(progress.state, progress.state.lower())
        self._console.out(f"[{count}] {progress.step.name}: {state}{took}{error}", highlight=False)


class WatchBars(WatchLines):
    """Draws the running steps at the bottom, each with its duration, and a line above for each that has ended."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[state]}", markup=False, style="dim"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._shown: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing, and restore the terminal."""
        self._bars.stop()

    def changed(self, steps: Sequence[StepProgress]) -> None:
        """Draw the running steps, and print the steps that have ended."""
        for progress in steps:
            if progress.state and progress.state not in ENDED:
                self._draw(progress)
        super().changed(steps)

    def print_step(self, progress: StepProgress, count: str) -> None:
        """Replace the bar of a step that has ended by a line."""
        if progress.state not in ENDED:
            return
        if progress.step.task in self._shown:
            self._bars.remove_task(self._shown.pop(progress.step.task))
        took = _duration(progress)
        summary = took if progress.state == "SUCCEEDED" else f"{WORDS[progress.state]} after {took}"
        mark = MARKS.get(progress.state, "[yellow]–[/]")
        self._bars.console.print(f"{mark} {count} [bold]{progress.step.name}[/] [dim]{summary}[/]", highlight=False)
        if progress.error:
            self._bars.console.print(progress.error, style="red", markup=False, highlight=False)

    def _draw(self, progress: StepProgress) -> None:
        step = progress.step
        if step.task not in self._shown:
            self._shown[step.task] = self._bars.add_task(step.name, total=None, state="")
        bar = self._shown[step.task]
        state = "" if progress.state == "RUNNING" else WORDS.get(progress.state, progress.state.lower())
        self._bars.update(bar, state=state)
        for task in self._bars.tasks:
            if task.id == bar:
                task.start_time = self._bars.get_time() - progress.seconds(datetime.now(UTC))


def _duration(progress: StepProgress) -> str:
    return duration(progress.seconds(datetime.now(UTC)))
