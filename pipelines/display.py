"""Shows how a run goes: live in a terminal, in plain lines elsewhere."""

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from evasion.pipelines.local import Listener, Result, StepResult
from evasion.pipelines.preflight import Step

INTERVAL = 10.0  # seconds between two lines of progress outside a terminal

# What an attacker may know, as report.json names it.
AWARE, OBLIVIOUS = "defense-aware", "oblivious"


def duration(seconds: float) -> str:
    """Return a duration for people: `4.2 s`, `3 min 20 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


class Lines(Listener, AbstractContextManager["Lines"]):
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

    def planned(self, run_dir: Path, steps: list[Step]) -> None:
        """Say where the run is."""
        self._say(f"{len(steps)} steps in {run_dir}")

    def step_started(self, step: Step, number: int, total: int) -> None:
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


class Live(Lines):
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

    def step_started(self, step: Step, number: int, total: int) -> None:
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


def show_result(console: Console, result: Result) -> None:
    """Print what a run found, and where everything is.

    Args:
        console: Where to print.
        result: The run.
    """
    if result.summary:
        show_report(console, json.loads(result.summary.read_text(encoding="utf-8")))
    else:
        measured = [step for step in result.steps if step.metrics]
        inferred = [step for step in measured if step.step.function == "infer"]
        for step in (inferred or measured)[-1:]:
            console.print(_metrics_table(step))
    if result.report:
        console.out(f"Report: {result.report}", highlight=False)
    console.out(f"Run:    {result.run_dir}", highlight=False)
    where = f"see it with: evasion mlflow --output {result.served}" if result.served else _where(result.tracking_uri)
    console.out(f"MLflow: run {result.run_id}, {where}", highlight=False)


def show_report(console: Console, summary: Mapping[str, Any]) -> None:
    """Print a table for each attack, the sentence they amount to, and what the checks objected to.

    Args:
        console: Where to print.
        summary: What `report.json` holds.
    """
    two = any(AWARE in row.get("attackers", {}) for row in summary["table"])
    tables: dict[str, Table] = {}
    for row in summary["table"]:
        attack = f"{row['attack']} {row['attack_settings']}".strip() if row["robust_accuracy"] else ""
        if attack not in tables:
            tables[attack] = Table("defense", *_columns(two), title=escape(attack), box=box.SIMPLE_HEAD, pad_edge=False)
        defense = "no defense" if row["defense"] == "none" else row["defense"]
        tables[attack].add_row(escape(defense), *(_share(share) for share in _shares(row, two)))
    for table in tables.values():
        console.print(table)
    told = "In brackets: 95 % Wilson intervals."
    if two:
        told += " An oblivious attacker does not know the defense: an upper bound. Success rate: of the worse attacker."
    console.print(told, style="dim", highlight=False)
    console.print(escape(summary["headline"]), highlight=False)
    for finding in summary["checks"]:
        if finding["status"] != "pass":
            said = f"{finding['name']} ({finding['subject']}): {finding['found'].rstrip('.')}. {finding['advice']}"
            console.print(f"[yellow]{finding['status']}[/] {escape(said.strip())}", highlight=False)


def show_comparison(console: Console, content: Mapping[str, Any], page: Path) -> None:
    """Print models side by side, which pairs differ, and where the page is.

    Args:
        console: Where to print.
        content: What `compare.json` holds.
        page: The page.
    """
    from evasion.components.report.outcomes import probability  # it imports SciPy

    for block in content["attacks"]:
        titles = ["clean accuracy, %"]
        if block["attack"]:
            titles += ["robust accuracy, %", "best defense, %"]
        columns = (Column(title, justify="right") for title in titles)
        table = Table("model", *columns, title=escape(block["attack"] or ""), box=box.SIMPLE_HEAD, pad_edge=False)
        for model in block["models"]:
            best = model["best_defense"]
            shares = (
                [model["clean_accuracy"], model["robust_accuracy"]] if block["attack"] else [model["clean_accuracy"]]
            )
            told = [_share(share) for share in shares]
            if block["attack"]:
                told.append(f"{escape(best['defense'])}: {_share(best['robust_accuracy'])}" if best else "none helps")
            table.add_row(escape(model["model"]), *told)
        console.print(table)
    console.print("In brackets: 95 % Wilson intervals.", style="dim", highlight=False)
    for pair in content["pairs"]:
        one, other = escape(pair["one"]), escape(pair["other"])
        more = pair["only_one_right"] > pair["only_other_right"]
        said = "may be chance" if pair["may_be_chance"] else f"{one if more else other} is better"
        console.print(
            f"{escape(pair['images'])}: {one} / {other}: {said}, {probability(pair['p_adjusted'])}", highlight=False
        )
    console.print(escape(content["headline"]), highlight=False)
    for note in content["notes"]:
        console.print(f"[yellow]![/] {escape(note)}", highlight=False)
    console.out(f"Comparison: {page}", highlight=False)


def _columns(two: bool) -> list[Column]:
    """The columns of shares; with two attackers, two of robust accuracy."""
    robust = [f"robust accuracy, %\n{knowledge}" for knowledge in (AWARE, OBLIVIOUS)] if two else ["robust accuracy, %"]
    titles = ["clean accuracy, %", *robust, "attack success rate, %"]
    return [Column(title, justify="right") for title in titles]


def _shares(row: Mapping[str, Any], two: bool) -> list[Mapping[str, float] | None]:
    """The shares of a row; without a defense both attackers are one."""
    attackers = row.get("attackers") or {AWARE: row, OBLIVIOUS: row}
    robust = [attackers.get(knowledge, {}).get("robust_accuracy") for knowledge in (AWARE, OBLIVIOUS)]
    return [row["clean_accuracy"], *(robust if two else [row["robust_accuracy"]]), row["attack_success_rate"]]


def _share(share: Mapping[str, float] | None) -> str:
    """Return a share of images in percent with its interval."""
    if share is None:
        return "–"
    value, low, high = (f"{100 * share[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} [dim]{escape(f'[{low}, {high}]')}[/]"


def _metrics_table(step: StepResult) -> Table:
    """Return the numbers of one step."""
    table = Table("metric", Column("value", justify="right"), title=step.step.name, box=box.SIMPLE_HEAD)
    for name, value in step.metrics.items():
        table.add_row(name, f"{value:.0f}" if value == int(value) else f"{value:.4f}")
    return table


def _where(tracking_uri: str) -> str:
    """Say how to look at a run in MLflow, without the password that an address may hold."""
    parts = urlsplit(tracking_uri)
    if parts.scheme in ("http", "https"):
        return f"at {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.password:
        return f"in {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"see it with: mlflow ui --backend-store-uri {tracking_uri}"
