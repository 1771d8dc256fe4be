"""Prints results as tables: of a run, of a report, of a comparison."""

import shlex
from pathlib import Path
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from evasion.components.common.data.provenance import KNOWLEDGE
from evasion.components.common.drawing.words import probability
from evasion.components.common.results import report as reports
from evasion.components.common.results.report import Report
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Row
from evasion.components.common.results.treatments import NONE
from evasion.components.compare.comparison import Comparison
from evasion.pipelines.local.results import Result, StepResult


def show_result(console: Console, result: Result) -> None:
    """Print the results of a run, where its files are, and last what of it is incomplete.

    Args:
        console: Where to print.
        result: The run.
    """
    if result.summary:
        show_report(console, reports.read(result.summary))
    else:
        measured = [step for step in result.steps if step.metrics]
        inferred = [step for step in measured if step.step.function == "infer"]
        for step in (inferred or measured)[-1:]:
            console.print(_metrics_table(step))
    if result.report:
        console.out(f"Report: {result.report}", highlight=False)
    console.out(f"Run:    {result.run_dir}", highlight=False)
    served = f"see it with: evasion mlflow --output {shlex.quote(str(result.served))}" if result.served else ""
    where = served or _where(result.tracking_uri)
    console.out(f"MLflow: run {result.run_id}, {where}", highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False, soft_wrap=True)


def show_report(console: Console, report: Report) -> None:
    """Print a table for each attack, the headline, and the checks that did not pass.

    Args:
        console: Where to print.
        report: The report.
    """
    two = any(row.aware for row in report.table)
    tables: dict[str, Table] = {}
    for row in report.table:
        attack = row.attack.label + (", a single step" if row.single_step else "")
        if attack not in tables:
            title = "" if row.attack == NONE else escape(attack)
            tables[attack] = Table(
                Column("defense", no_wrap=True), *_columns(two), title=title, box=box.SIMPLE_HEAD, pad_edge=False
            )
        defense = "no defense" if row.defense == NONE else row.defense.name
        tables[attack].add_row(escape(defense), *_shares(row, two))
    for table in tables.values():
        console.print(table)
    legend = "In brackets: 95 % Wilson intervals. Robust: right without an attack and under each attacker."
    if two:
        legend += " An oblivious attacker does not know the defense: an upper bound."
    console.print(legend, style="dim", highlight=False)
    console.print(escape(report.headline), highlight=False)
    if report.attacker and report.attacker.effort:
        console.print(escape(f"{report.attacker.effort} {report.attacker.advice}".strip()), highlight=False)
    for check in report.checks:
        if check.status != "pass":
            text = f"{check.name} ({check.subject}): {check.finding.rstrip('.')}. {check.advice}"
            console.print(f"[yellow]{check.status}[/] {escape(text.strip())}", highlight=False)


def show_comparison(console: Console, comparison: Comparison, page: Path) -> None:
    """Print models side by side, which pairs differ, and where the page is.

    Args:
        console: Where to print.
        comparison: The comparison.
        page: The page.
    """
    for attack, entries in comparison.blocks:
        titles = ["clean accuracy, %", *(["robust accuracy, %", "best defense, %"] if attack else [])]
        columns = (Column(title, justify="right") for title in titles)
        table = Table("model", *columns, title=escape(attack), box=box.SIMPLE_HEAD, pad_edge=False)
        for entry in entries:
            cells = [_share(entry.model.report.clean)]
            if attack:
                best = entry.best
                cells.append(_share(entry.undefended.robust_accuracy if entry.undefended else None))
                cells.append(f"{escape(best.defense.label)}: {_share(best.robust_accuracy)}" if best else "none helps")
            table.add_row(escape(entry.model.name), *cells)
        console.print(table)
    console.print("In brackets: 95 % Wilson intervals.", style="dim", highlight=False)
    for pair in comparison.pairs:
        result = f"{escape(pair.better)} is better" if pair.better else "may be chance"
        models = f"{escape(pair.one)} / {escape(pair.other)}"
        console.print(f"{escape(pair.images)}: {models}: {result}, {probability(pair.p)}", highlight=False)
    console.print(escape(" ".join(comparison.headline).strip()), highlight=False)
    for note in comparison.notes:
        console.print(f"[yellow]![/] {escape(note)}", highlight=False)
    console.out(f"Comparison: {page}", highlight=False)


def _columns(two: bool) -> list[Column]:
    """The columns of shares; with two attackers, robust accuracy under each besides the worst case."""
    attackers = [knowledge.replace("-", "-\n") + ", %" for knowledge in KNOWLEDGE] if two else []
    titles = ["clean\naccuracy, %", "robust\naccuracy, %", *attackers, "attack\nsuccess rate, %"]
    return [Column(title, justify="right", no_wrap=True) for title in titles]


def _shares(row: Row, two: bool) -> list[str]:
    """Return the shares of a row as text."""
    attackers = [row.attackers[each].robust_accuracy if each in row.attackers else None for each in KNOWLEDGE]
    by_attacker = [f"{100 * share.value:.1f}" if share else "" for share in attackers] if two else []
    return [_share(row.clean_accuracy), _share(row.robust_accuracy), *by_attacker, _share(row.attack_success_rate)]


def _share(share: Share | None) -> str:
    """Return a share of images in percent with its interval."""
    if share is None:
        return "–"
    value, low, high = (f"{100 * number:.1f}" for number in (share.value, share.low, share.high))
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
    return f"see it with: mlflow ui --backend-store-uri {shlex.quote(tracking_uri)}"
