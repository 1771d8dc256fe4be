"""Shows the progress of a run on this machine: live in a terminal, in plain lines elsewhere."""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from evasion.pipelines.cli.durations import duration
from evasion.pipelines.local.results import RunListener, StepResult
from evasion.pipelines.plan import PlannedStep

INTERVAL = 10.0  # seconds between two lines of progress outside a terminal


class RunLines(RunListener, AbstractContextManager["RunLines"]):
    """Prints a line when a step starts and ends, and every ten seconds during a long step."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._label = ""
        self._last_shown = 0.0

    def __exit__(self, *_: object) -> None:
        """Do nothing; the terminal needs no cleanup."""

    def preparing(self, activity: str) -> None:
        """Print the activity."""
        self._print(activity)

    def planned(self, run_dir: Path, steps: list[PlannedStep]) -> None:
        """Print the number of steps and the folder of the run."""
        self._print(f"{len(steps)} steps in {run_dir}")

    def step_started(self, step: PlannedStep, number: int, total: int) -> None:
        """Print the number and the name of the step."""
        self._label = f"step {number} of {total}: {step.name}"
        self._last_shown = time.monotonic()
        self._print(self._label)

    def line(self, text: str) -> None:
        """Print the line, with --verbose."""
        if self._verbose:
            self._print(f"  {text}")

    def progress(self, done: int, total: int, unit: str) -> None:
        """Print the progress, at most every ten seconds."""
        if time.monotonic() - self._last_shown >= INTERVAL:
            self._last_shown = time.monotonic()
            self._print(f"{self._label}: {done}/{total} {unit}")

    def step_finished(self, result: StepResult) -> None:
        """Print the duration of the step."""
        self._print(f"{self._label}: done in {duration(result.seconds)}")

    def _print(self, text: str) -> None:
        # Without colours and added line breaks, since other programs read logs too.
        self._console.out(text, highlight=False)


class RunBars(RunLines):
    """Draws the running step at the bottom: its duration, and a bar while it reports its progress."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        super().__init__(console, verbose=verbose)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # The run redirects these to its log.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._number = ""

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing, and restore the terminal."""
        self._progress.stop()

    def step_started(self, step: PlannedStep, number: int, total: int) -> None:
        """Draw the step, without a length until it reports its progress."""
        self._label = step.name
        self._number = f"{number:>{len(str(total))}}/{total}"
        self._clear()
        self._progress.add_task(f"step {number} of {total}: {step.name}", total=None, count="")

    def progress(self, done: int, total: int, unit: str) -> None:
        """Update the bar."""
        for task in self._progress.task_ids:
            self._progress.update(task, completed=done, total=total, count=f"{done}/{total} {unit}")

    def step_finished(self, result: StepResult) -> None:
        """Replace the bar by a line with the duration of the step."""
        self._clear()
        self._progress.console.print(
            f"[green]✓[/] {self._number} [bold]{self._label}[/] [dim]{duration(result.seconds)}[/]", highlight=False
        )

    def _clear(self) -> None:
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
