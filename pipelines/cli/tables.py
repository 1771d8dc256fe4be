"""Prints results as tables: of a run, of a report, of a comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from evasion.pipelines.local.runner import Result, StepResult

# What an attacker may know, as report.json names it.
AWARE, OBLIVIOUS = "defense-aware", "oblivious"


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
    from evasion.components.common.results.outcomes import probability  # it imports SciPy

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
