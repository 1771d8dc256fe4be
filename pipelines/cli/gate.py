"""The command `evasion gate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evasion.pipelines.cli.exit_codes import CANNOT_TELL

if TYPE_CHECKING:
    from rich.console import Console

    from evasion.pipelines.gate.gate import Gate

# SciPy and Rich are imported when they are needed, so that help comes at once.

WIDTH = 110
FILE = click.Path(dir_okay=False, path_type=Path)
COLOURS = {"pass": "green", "fail": "red", "cannot tell": "yellow"}


@click.command(
    "gate",
    epilog="""\b
    Thresholds: METRIC COMPARATOR NUMBER [at eps NUMBER] [for DEFENSE] [with ATTACK] [by ATTACKER]
      clean_accuracy >= 95 %
      clean_accuracy_drop <= 0.02                      what each defense costs
      robust_accuracy >= 0.30 at eps 8/255             without a defense, under all attacks together
      robust_accuracy >= 0.30 for jpeg_compression     under all its attackers together
      attack_success_rate <= 0.60 with fgm
      gain > 0 for spatial_smoothing by defense-aware  against no defense
    """,
)
@click.argument("report", type=click.Path(path_type=Path))
@click.option("--threshold", "thresholds", multiple=True, metavar="TEXT", help="What the report must meet; repeatable.")
@click.option(
    "--config",
    type=FILE,
    help="A TOML file with any of thresholds = [...], baseline, allowed_drop and accept_checks = [...].",
)
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="A report of the same images, or the folder of its run."
)
@click.option(
    "--allowed-drop",
    type=float,
    help="A drop below the baseline that is surely no larger passes, even beyond noise: a share.  [default: 0]",
)
@click.option(
    "--accept-check", "accept_checks", multiple=True, metavar="NAME", help="A check that may fail; repeatable."
)
@click.option("--junit", type=FILE, help="Write JUnit XML.")
@click.option("--markdown", type=FILE, help="Write a summary for a pull request.")
@click.option("--sarif", type=FILE, help="Write SARIF 2.1.0.")
@click.option("--json", type=FILE, help="Write everything as JSON.")
def gate_report(
    report: Path,
    thresholds: tuple[str, ...],
    config: Path | None,
    baseline: Path | None,
    allowed_drop: float | None,
    accept_checks: tuple[str, ...],
    **outputs: Path | None,
) -> None:
    """Judge a report by thresholds and a baseline: exit 0 pass, 1 fail, 2 cannot tell.

    REPORT is a report.json, or the folder of a run that holds one. A threshold passes if both ends of the number's
    95 % interval meet it and fails if neither does; otherwise more images are needed. The result is also "cannot tell"
    where the report lacks the number or a check of its own failed. A row of the baseline, of one attack and attacker or
    of all together, fails if fewer of the same images are right, or robust, than before, by more than noise (McNemar's
    exact test, Holm's adjustment).
    """
    from rich.console import Console

    from evasion.components.common.results.report import path_of
    from evasion.pipelines.gate import gate
    from evasion.pipelines.gate import outputs as files
    from evasion.pipelines.gate.settings import settings

    try:
        report = path_of(report)
        asked = settings(thresholds, config, baseline, allowed_drop, accept_checks)
        _distinct({"REPORT": report, "--baseline": asked.baseline, "--config": config}, outputs)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    judged = gate.gate(report, asked)
    try:
        files.write(judged, outputs)
    except OSError as error:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {error}", err=True)
        sys.exit(CANNOT_TELL)
    show(Console(width=None if sys.stdout.isatty() else WIDTH), judged)
    sys.exit(judged.judgement.exit_code)


def show(console: Console, judged: Gate) -> None:
    """Print a line for each verdict, and the overall result."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "asked", "finding", box=box.SIMPLE_HEAD, pad_edge=False)
    for verdict in judged.verdicts:
        colour = COLOURS[verdict.judgement.value]
        table.add_row(f"[{colour}]{verdict.judgement.value}[/]", escape(verdict.name), escape(verdict.text))
    console.print(table)
    console.print(f"[{COLOURS[judged.judgement.value]}]{escape(judged.headline)}[/]", highlight=False)


def _distinct(inputs: dict[str, Path | None], outputs: dict[str, Path | None]) -> None:
    """Refuse to write over what is read or written."""
    seen: dict[Path, str] = {path.resolve(): name for name, path in inputs.items() if path}
    for name, path in outputs.items():
        if path and (other := seen.setdefault(path.resolve(), f"--{name}")) != f"--{name}":
            raise ValueError(f"--{name} must be a file of its own. Received: {path}, which is {other}.")
