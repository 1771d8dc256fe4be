"""The command `evasion submit`."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from evasion.components.common.tracking import DEFAULT_EXPERIMENT
from evasion.pipelines.cli.commands import PipelineCommand, of_pipeline
from evasion.pipelines.cli.exit_codes import BAD_INPUT
from evasion.pipelines.cli.options import (
    SETTINGS,
    PipelineCommands,
    chosen,
    fail,
    help_of,
    options_of,
    placement_of,
    placement_parameters,
)
from evasion.pipelines.cli.submit.request import Request
from evasion.pipelines.placement import LINEAGE
from evasion.pipelines.submit import DASHBOARD, KUBEFLOW

# kfp and MLflow are imported by the functions that need them, so that help comes at once.

# A placement's option that bears the name of something else here.
RENAMED = {"timeout": "step_timeout"}


class Duration(click.ParamType[float]):
    """Seconds, as in 90m, 2h30m or 45s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", str(value).replace(" ", ""))
        seconds = sum(
            int(number or 0) * unit
            for number, unit in zip(found.groups() if found else (), (3600, 60, 1), strict=False)
        )
        if not seconds:
            self.fail(f"{value!r} is no duration, such as 90m, 2h30m or 45s.", param, ctx)
        return float(seconds)


def _common_options() -> list[click.Option]:
    """Return the options that every pipeline has beside its own."""
    return [
        click.Option(
            ["--host"],
            default="",
            envvar="KFP_HOST",
            show_envvar=True,
            help="Kubeflow Pipelines' address, such as https://kubeflow.example/pipeline.  [default: that of the "
            "cluster, in a pod]",
        ),
        click.Option(
            ["--port-forward"],
            is_flag=True,
            help=f"Reach the cluster of kubectl's context through kubectl: service {DASHBOARD}, namespace {KUBEFLOW}.",
        ),
        click.Option(
            ["--namespace"],
            default="",
            envvar="KFP_NAMESPACE",
            show_envvar=True,
            help=f"The namespace of the run.  [default: the pod's, or {KUBEFLOW}]",
        ),
        click.Option(
            ["--run-name"], default="", help="What the dashboard calls the run.  [default: pipeline and time]"
        ),
        click.Option(
            ["--git-commit"],
            default="",
            help="The commit that asks for the run, recorded in MLflow.  [default: that of the folder you are in]",
        ),
        click.Option(["--token"], default="", envvar="KFP_TOKEN", show_envvar=True, help="A bearer token."),
        click.Option(
            ["--token-command"],
            default="",
            help="A command that prints a bearer token; it is run again when the token has expired.",
        ),
        click.Option(
            ["--cookie"],
            default="",
            envvar="KFP_COOKIE",
            show_envvar=True,
            help="The header Cookie of a session, such as authservice_session=…",
        ),
        click.Option(["--wait/--no-wait"], default=True, show_default=True, help="Follow the run until it has ended."),
        click.Option(
            ["--timeout"], type=Duration(), help="How long to wait, such as 90m; the run goes on.  [default: for ever]"
        ),
        click.Option(
            ["--terminate-on-interrupt"],
            is_flag=True,
            help="Terminate the run when this command is interrupted, as a CI job that is cancelled.  [default: ask, "
            "or let it go on where nobody can answer]",
        ),
        click.Option(
            ["--output"],
            type=click.Path(file_okay=False, path_type=Path),
            help="The folder for report.html and report.json of the run, fetched from MLflow. One with a password "
            "takes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; through --port-forward, without them, those "
            "of the steps' Secret.",
        ),
        click.Option(
            ["--tracking-uri"],
            default="",
            envvar="MLFLOW_TRACKING_URI",
            show_envvar=True,
            help="For --output, MLflow's address seen from here.  [default: the pipeline's own in a pod, or through "
            "--port-forward]",
        ),
        click.Option(
            ["--cron"],
            default="",
            help='Let the run recur, such as "0 2 * * *", in the time zone of the cluster.',
        ),
    ]


class _Submitted(PipelineCommands):
    """The commands of pipelines, and of files that hold a compiled one."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Make the command of a pipeline or of a file."""
        if Path(name).suffix in (".yaml", ".yml"):
            return _file_command(Path(name))
        return super().get_command(ctx, name)


def _command(command: PipelineCommand) -> click.Command:
    """Make the command that submits a pipeline."""

    def run(**values: Any) -> None:
        from evasion.pipelines.cli.submit.job import submit_package
        from evasion.pipelines.placement import place
        from evasion.pipelines.submit.package import Package

        pipeline, arguments = chosen(command, values)
        placement = placement_of(values, RENAMED)
        package = Package.of(place(pipeline, placement))
        submit_package(package, command.name, placement.experiment, arguments, _request(values))

    return click.Command(
        command.name,
        params=[*options_of(command), *_common_options(), *placement_parameters(RENAMED)],
        callback=run,
        help=help_of(command).replace("evasion run", "evasion submit"),
        short_help=command.summary,
        context_settings=SETTINGS,
    )


def _file_command(file: Path) -> click.Command:
    """Make the command that submits a compiled pipeline."""
    from evasion.pipelines.submit.package import Package

    try:
        package = Package.read(file)
    except (OSError, ValueError) as error:
        fail(BAD_INPUT, str(error))
    command = of_pipeline(package.name, package.pipeline, left_out=tuple(LINEAGE))
    experiment = click.Option(
        ["--experiment"], default=DEFAULT_EXPERIMENT, show_default=True, help="The experiment in Kubeflow."
    )

    def run(experiment: str, **values: Any) -> None:
        from evasion.pipelines.cli.submit.job import submit_package

        _, arguments = chosen(command, values)
        submit_package(package, package.name, experiment, arguments, _request(values))

    return click.Command(
        str(file),
        params=[*options_of(command), *_common_options(), experiment],
        callback=run,
        help=f"Submit the compiled pipeline {package.name} of {file}.",
        context_settings=SETTINGS,
    )


submit = _Submitted(
    name="submit",
    make=_command,
    help="""Run a pipeline in a cluster: upload it if it is new there, start it, and follow it until it has ended.

    PIPELINE is a name, or the path of a compiled YAML. Every parameter is an option, as in `evasion run`; so is what
    the cluster gives to the steps, as in `evasion compile`.

    \b
    Ends with:
      0  the run has succeeded (with --no-wait and --cron: is there)
      1  it has failed, or the host refuses it
      2  wrong usage; nothing was sent
      3  it was cancelled or skipped
      4  --timeout has passed; the run goes on
      5  the host, or MLflow for --output, cannot be reached or does not let you
    """,
    epilog="Example: evasion submit evaluation --host https://kubeflow.example/pipeline --data-dir-test /data/test",
    options_metavar="",
    subcommand_metavar="PIPELINE|FILE [OPTIONS]",
    no_args_is_help=True,
    context_settings=SETTINGS,
)


def _request(values: Mapping[str, Any]) -> Request:
    request = Request(**{one.name: values[one.name] for one in fields(Request)})
    named = click.get_current_context().get_parameter_source("host")
    # What is asked for outdoes what the environment says.
    return replace(request, host="") if request.port_forward and named is ParameterSource.ENVIRONMENT else request
