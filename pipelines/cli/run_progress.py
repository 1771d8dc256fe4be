"""Shows how a run on this machine goes: live in a terminal, in plain lines elsewhere."""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from evasion.pipelines.cli.durations import duration
from evasion.pipelines.local.runner import RunListener, StepResult
from evasion.pipelines.plan import PlannedStep

INTERVAL = 10.0  # seconds between two lines of progress outside a terminal


class RunLines(RunListener, AbstractContextManager["RunLines"]):
    """A line when a step starts and ends, and every ten seconds of a long one."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._label = ""
        self._shown = 0.0

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def preparing(self, what: str) -> None:
        """Say what is made ready."""
        self._say(what)

    def planned(self, run_dir: Path, steps: list[PlannedStep]) -> None:
        """Say where the run is."""
        self._say(f"{len(steps)} steps in {run_dir}")

    def step_started(self, step: PlannedStep, number: int, total: int) -> None:
        """Say which step of how many starts."""
        self._label = f"step {number} of {total}: {step.name}"
        self._shown = time.monotonic()
        self._say(self._label)

    def line(self, text: str) -> None:
        """Repeat what the step prints, if asked to."""
        if self._verbose:
            self._say(f"  {text}")

    def progress(self, done: int, total: int, what: str) -> None:
        """Say how far it is, unless that was said just now."""
        if time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            self._say(f"{self._label}: {done}/{total} {what}")

    def step_finished(self, result: StepResult) -> None:
        """Say how long the step took."""
        self._say(f"{self._label}: done in {duration(result.seconds)}")

    def _say(self, text: str) -> None:
        # Neither colours nor line breaks of its own: a log is read by other programs too.
        self._console.out(text, highlight=False)


class RunBars(RunLines):
    """The same, with the running step at the bottom: its time, and a bar while it reports how far it is."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        super().__init__(console, verbose=verbose)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[what]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # The run has these redirected to its log.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._number = ""

    def __enter__(self) -> Self:
        """Start to draw."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to draw, and give the terminal back."""
        self._progress.stop()

    def step_started(self, step: PlannedStep, number: int, total: int) -> None:
        """Draw the step, without a length until it reports one."""
        self._label = step.name
        self._number = f"{number:>{len(str(total))}}/{total}"
        self._clear()
        self._progress.add_task(f"step {number} of {total}: {step.name}", total=None, what="")

    def progress(self, done: int, total: int, what: str) -> None:
        """Move the bar."""
        for task in self._progress.task_ids:
            self._progress.update(task, completed=done, total=total, what=f"{done}/{total} {what}")

    def step_finished(self, result: StepResult) -> None:
        """Leave a line behind."""
        self._clear()
        self._progress.console.print(
            f"[green]✓[/] {self._number} [bold]{self._label}[/] [dim]{duration(result.seconds)}[/]", highlight=False
        )

    def _clear(self) -> None:
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
