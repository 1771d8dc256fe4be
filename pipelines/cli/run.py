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
    ended_by_signals,
    fail,
    help_of,
    options_of,
    selected_pipeline,
    with_option_hint,
)

# Functions import kfp, MLflow and Rich when they need them, so that --help stays fast.


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

    Every parameter of a pipeline is an option; see `evasion run PIPELINE --help`.
    """


def _common_options() -> list[click.Option]:
    """Return the options that all pipelines have in addition to their own."""
    return [
        click.Option(
            ["--output"],
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("runs"),
            show_default=True,
            help="The parent folder of runs.",
        ),
        click.Option(
            ["--experiment"],
            default=DEFAULT_EXPERIMENT,
            show_default=True,
            envvar="MLFLOW_EXPERIMENT_NAME",
            show_envvar=True,
            help="The MLflow experiment; also the prefix of the names of registered models.",
        ),
        click.Option(
            ["--tracking-uri"],
            envvar="MLFLOW_TRACKING_URI",
            show_envvar=True,
            help="MLflow's tracking URI.  [default: mlflow.db in the output folder]",
        ),
        click.Option(
            ["--docker"],
            is_flag=True,
            help="Run every step in a container, as on a cluster, and MLflow too unless --tracking-uri is given.",
        ),
        click.Option(["--verbose"], is_flag=True, help="Show the output of the steps."),
        click.Option(["--quiet"], is_flag=True, help="Show only the result."),
    ]


def _command(command: PipelineCommand) -> click.Command:
    """Return the click command that runs a pipeline."""

    def callback(
        output: Path,
        experiment: str,
        tracking_uri: str | None,
        docker: bool,
        verbose: bool,
        quiet: bool,
        **values: Any,
    ) -> None:
        pipeline, arguments = selected_pipeline(command, values)
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
    """Run a pipeline, and show its progress and its result."""
    from rich.console import Console

    from evasion.components.common.tracking import TrackingError
    from evasion.pipelines.cli import run_progress, tables
    from evasion.pipelines.local import runner
    from evasion.pipelines.local.containers import EngineError
    from evasion.pipelines.local.kfp_patches import KfpVersionError
    from evasion.pipelines.local.results import StepFailedError
    from evasion.pipelines.plan import BadArgumentsError

    progress = Console(stderr=True, quiet=quiet)
    listener_class = run_progress.RunBars if progress.is_terminal else run_progress.RunLines
    try:
        with ended_by_signals(), listener_class(progress, verbose=verbose) as listener:
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
        fail(BAD_INPUT, *(with_option_hint(problem.message, problem.parameters) for problem in error.problems))
    except StepFailedError as error:
        fail(FAILED, str(error), note="\n".join([*error.warnings, f"All output: {error.log}"]))
    except (TrackingError, EngineError, KfpVersionError, OSError) as error:
        fail(FAILED, str(error))
    except KeyboardInterrupt:
        fail(INTERRUPTED, "interrupted")
    # Outside a terminal nothing limits the width, and Rich would assume 80.
    try:
        tables.show_result(Console(width=None if sys.stdout.isatty() else WIDTH), result)
    except ValueError as error:
        # The image of the steps may be of another version than this command.
        fail(FAILED, f"The run succeeded, but its report cannot be shown: {error}", note=f"Report: {result.report}")
