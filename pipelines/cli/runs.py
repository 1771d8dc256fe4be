"""The command `evasion runs`."""

import sys
from datetime import datetime
from pathlib import Path

import click

from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED
from evasion.pipelines.cli.options import WIDTH, fail

# Functions import MLflow and Rich when they need them, so that --help stays fast.


def _output(default: Path | None) -> click.Option:
    return click.Option(
        ["--output"],
        type=click.Path(file_okay=False, path_type=Path),
        default=default,
        show_default=True,
        help="The parent folder of runs.",
    )


@click.group("runs", invoke_without_command=True, params=[_output(Path("runs"))])
@click.pass_context
def runs(context: click.Context, output: Path) -> None:
    """List the runs of `evasion run`, or remove some."""
    context.obj = output
    if context.invoked_subcommand is None:
        _show(output)


@runs.command("remove", epilog="Example: evasion runs remove train-20261128-131502", params=[_output(None)])
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove_runs(parent: Path, output: Path | None, names: tuple[str, ...], yes: bool) -> None:
    """Remove runs: their folders, and their entries and artifacts in MLflow. Registered models stay."""
    from evasion.components.common.tracking import TrackingError
    from evasion.pipelines.local import runs as local_runs

    try:
        removed = local_runs.to_remove(output or parent, names)
    except local_runs.RunError as error:
        fail(BAD_INPUT, str(error))
    for run in removed:
        click.echo(f"{run.folder} ({_size(run.size)})")
    if not yes:
        click.confirm(f"Remove {len(removed)} run{'s' if len(removed) > 1 else ''}, also from MLflow?", abort=True)
    try:
        models, left = local_runs.remove(removed)
    except (TrackingError, OSError) as error:
        fail(FAILED, str(error))
    for model in models:
        click.echo(f"The registered model {model} stays.")
    for name in left:
        click.echo(f"The entries of {name} in MLflow stay: it was tracked by a server of its own, or by version 0.2.")


def _show(output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from evasion.pipelines.local import runs as local_runs

    listed = local_runs.in_folder(output)
    if not listed:
        click.echo(f"{output} contains no run.")
        return
    table = Table(
        Column("name", no_wrap=True), "when", "state", Column("size", justify="right"), "model", box=box.SIMPLE_HEAD
    )
    for run in listed:
        record = run.record
        when = datetime.fromisoformat(record.started) if record else datetime.fromtimestamp(run.folder.stat().st_mtime)
        state = record.state if record else ""
        table.add_row(escape(run.folder.name), f"{when:%Y-%m-%d %H:%M}", state, _size(run.size), escape(run.model))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _size(size: int) -> str:
    """Format a number of bytes."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
