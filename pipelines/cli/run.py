"""The command `evasion run`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from evasion.components.common.tracking import DEFAULT_EXPERIMENT
from evasion.pipelines.cli.commands import PipelineCommand
from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED
from evasion.pipelines.cli.options import (
    SETTINGS,
    WIDTH,
    PipelineCommands,
    chosen,
    ended_by_signals,
    fail,
    help_of,
    options_of,
    told,
)

# kfp, MLflow and Rich are imported by the functions that need them, so that help comes at once.


@click.command(
    "run",
    cls=PipelineCommands,
    make=lambda command: _command(command),  # defined below
    options_metavar="",
    subcommand_metavar="PIPELINE [OPTIONS]",
    no_args_is_help=True,
)
def run() -> None:
    """Run a pipeline on this machine, in processes or with --docker in containers.

    Every parameter of a pipeline is an option; `evasion run PIPELINE --help` explains them.
    """


def _common_options() -> list[click.Option]:
    """Return the options that every pipeline has beside its own."""
    return [
        click.Option(
            ["--output"],
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("runs"),
            show_default=True,
            help="The folder that collects runs.",
        ),
        click.Option(
            ["--experiment"],
            default=DEFAULT_EXPERIMENT,
            show_default=True,
            envvar="MLFLOW_EXPERIMENT_NAME",
            show_envvar=True,
            help="The MLflow experiment; models are registered under names that begin with it.",
        ),
        click.Option(
            ["--tracking-uri"],
            envvar="MLFLOW_TRACKING_URI",
            show_envvar=True,
            help="Where MLflow keeps runs and models.  [default: mlflow.db in the output folder]",
        ),
        click.Option(
            ["--docker"],
            is_flag=True,
            help="Run every step in a container, as on a cluster, and MLflow too unless --tracking-uri names one.",
        ),
        click.Option(["--verbose"], is_flag=True, help="Show what the steps print."),
        click.Option(["--quiet"], is_flag=True, help="Show the result alone."),
    ]


def _command(command: PipelineCommand) -> click.Command:
    """Make the command that runs a pipeline."""

    def callback(
        output: Path,
        experiment: str,
        tracking_uri: str | None,
        docker: bool,
        verbose: bool,
        quiet: bool,
        **values: Any,
    ) -> None:
        pipeline, arguments = chosen(command, values)
        run_pipeline(pipeline, arguments, output, experiment, tracking_uri, docker=docker, verbose=verbose, quiet=quiet)

    return click.Command(
        command.name,
        params=[*options_of(command), *_common_options()],
        callback=callback,
        help=help_of(command),
        short_help=command.summary,
        context_settings=SETTINGS,
    )


def run_pipeline(
    pipeline: Any,
    arguments: Mapping[str, Any],
    output: Path,
    experiment: str,
    tracking_uri: str | None,
    *,
    docker: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run a pipeline, show how it goes and what it found."""
    from rich.console import Console

    from evasion.components.common.tracking import TrackingError
    from evasion.pipelines.cli import run_progress, tables
    from evasion.pipelines.local import runner
    from evasion.pipelines.local.containers import EngineError
    from evasion.pipelines.plan import BadArgumentsError

    progress = Console(stderr=True, quiet=quiet)
    shown = run_progress.RunBars if progress.is_terminal else run_progress.RunLines
    try:
        with ended_by_signals(), shown(progress, verbose=verbose) as listener:
            result = runner.run(
                pipeline,
                arguments,
                output=output,
                experiment=experiment,
                tracking_uri=tracking_uri,
                docker=docker,
                listener=listener,
            )
    except BadArgumentsError as error:
        fail(BAD_INPUT, *(told(problem.message, problem.parameters) for problem in error.problems))
    except runner.StepFailedError as error:
        fail(FAILED, str(error), note=f"All output: {error.log}")
    except (TrackingError, EngineError, runner.KfpVersionError, OSError) as error:
        fail(FAILED, str(error))
    except KeyboardInterrupt:
        fail(INTERRUPTED, "interrupted")
    # Outside a terminal nothing bounds the width, and Rich would take 80.
    tables.show_result(Console(width=None if sys.stdout.isatty() else WIDTH), result)
