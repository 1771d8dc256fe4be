"""Shows how a run in a cluster goes: live in a terminal, in plain lines elsewhere."""

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
    "PENDING": "waits for a pod",
    "RUNNING": "started",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "SKIPPED": "skipped",
    "CANCELING": "is being cancelled",
    "CANCELED": "cancelled",
    "PAUSED": "paused",
}
MARKS = {"SUCCEEDED": "[green]✓[/]", "FAILED": "[red]✗[/]"}


class WatchLines(WatchListener, AbstractContextManager["WatchLines"]):
    """A line whenever a step's state has changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._silent = False

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def changed(self, steps: Sequence[StepProgress]) -> None:
        """Say what has changed since the last look."""
        self._silent = False
        for one in steps:
            if one.state and one.state != self._states.get(one.step.task):
                self._states[one.step.task] = one.state
                ended = sum(self._states.get(step.step.task, "") in ENDED for step in steps)
                self.say(one, f"{ended}/{len(steps)}")

    def silent(self, error: str) -> None:
        """Say once that the host is asked again."""
        if not self._silent:
            self._silent = True
            self._console.out(f"trying again: {error}", highlight=False)

    def say(self, one: StepProgress, count: str) -> None:
        """Write the line of a step; of a failed one, with what Kubeflow says of it."""
        took = f" in {_took(one)}" if one.state in ENDED and one.started else ""
        error = f": {one.error}" if one.error else ""
        self._console.out(
            f"[{count}] {one.step.name}: {WORDS.get(one.state, one.state.lower())}{took}{error}", highlight=False
        )


class WatchBars(WatchLines):
    """The steps under way at the bottom, each with its time, and a line above for each that has ended."""

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
        """Start to draw."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to draw, and give the terminal back."""
        self._bars.stop()

    def changed(self, steps: Sequence[StepProgress]) -> None:
        """Move steps from the bottom to the lines above."""
        for one in steps:
            if one.state and one.state not in ENDED:
                self._draw(one)
        super().changed(steps)

    def say(self, one: StepProgress, count: str) -> None:
        """Leave a line behind."""
        if one.state not in ENDED:
            return
        if one.step.task in self._shown:
            self._bars.remove_task(self._shown.pop(one.step.task))
        told = _took(one) if one.state == "SUCCEEDED" else f"{WORDS[one.state]} after {_took(one)}"
        self._bars.console.print(
            f"{MARKS.get(one.state, '[yellow]–[/]')} {count} [bold]{one.step.name}[/] [dim]{told}[/]", highlight=False
        )
        if one.error:
            self._bars.console.print(one.error, style="red", markup=False, highlight=False)

    def _draw(self, one: StepProgress) -> None:
        if one.step.task not in self._shown:
            self._shown[one.step.task] = self._bars.add_task(one.step.name, total=None, state="")
        bar = self._shown[one.step.task]
        state = "" if one.state == "RUNNING" else WORDS.get(one.state, one.state.lower())
        self._bars.update(bar, state=state)
        for task in self._bars.tasks:
            if task.id == bar:
                task.start_time = self._bars.get_time() - one.seconds(datetime.now(UTC))


def _took(one: StepProgress) -> str:
    return duration(one.seconds(datetime.now(UTC)))
