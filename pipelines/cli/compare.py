"""The command `evasion compare`."""

import sys
from pathlib import Path

import click

from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED
from evasion.pipelines.cli.options import WIDTH, fail

# SciPy and Rich are imported by the functions that need them, so that help comes at once.


@click.command("compare", epilog="Example: evasion compare runs/plain runs/hardened --name plain --name hardened")
@click.argument("reports", nargs=-1, required=True, metavar="REPORT REPORT...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("comparison"),
    show_default=True,
    help="The folder for compare.html and compare.json.",
)
@click.option("--name", "names", multiple=True, help="What to call a model, once for each report in their order.")
def compare_reports(reports: tuple[Path, ...], output: Path, names: tuple[str, ...]) -> None:
    """Compare models that were evaluated on the same images.

    A REPORT is a report.json, or the folder of a run that holds one.
    """
    from rich.console import Console

    from evasion.components.common.results.report import path_of
    from evasion.components.compare import comparison
    from evasion.pipelines.cli import tables

    page, summary = output / "compare.html", output / "compare.json"
    try:
        compared = comparison.write([path_of(path) for path in reports], list(names), page, summary)
    except ValueError as error:
        fail(BAD_INPUT, str(error))
    except OSError as error:
        fail(FAILED, str(error))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    tables.show_comparison(console, compared, page)
