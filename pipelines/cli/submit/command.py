"""The command `evasion submit`."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from evasion.components.common.tracking import DEFAULT_EXPERIMENT
from evasion.pipelines.cli.commands import PipelineCommand, pipeline_command
from evasion.pipelines.cli.exit_codes import BAD_INPUT
from evasion.pipelines.cli.options import (
    SETTINGS,
    PipelineCommands,
    fail,
    help_of,
    options_of,
    placement_of,
    placement_parameters,
    selected_pipeline,
)
from evasion.pipelines.cli.submit.request import Request
from evasion.pipelines.placement import LINEAGE
from evasion.pipelines.submit import DASHBOARD, KUBEFLOW

# Functions import kfp and MLflow when they need them, so that --help stays fast.

# Options of a placement whose names have another meaning here.
RENAMED = {"timeout": "step_timeout"}


class Duration(click.ParamType[float]):
    """Seconds, as in 90m, 2h30m or 45s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a duration."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", str(value).replace(" ", ""))
        seconds = sum(
            int(number or 0) * unit
            for number, unit in zip(match.groups() if match else (), (3600, 60, 1), strict=False)
        )
        if not seconds:
            self.fail(f"Invalid duration: {value!r}. Use e.g. 90m, 2h30m or 45s.", param, ctx)
        return float(seconds)


def _common_options() -> list[click.Option]:
    """Return the options that all pipelines have in addition to their own."""
    return [*_connection_options(), *_run_options()]


def _connection_options() -> list[click.Option]:
    """Return the options for the connection to a host."""
    return [
        click.Option(
            ["--host"],
            default="",
            envvar="KFP_HOST",
            show_envvar=True,
            help="The address of Kubeflow Pipelines, such as https://kubeflow.example/pipeline.  [default: in a pod, "
            "the address in the cluster]",
        ),
        click.Option(
            ["--port-forward"],
            is_flag=True,
            help="Connect to the cluster of kubectl's context through kubectl, to the service "
            f"{DASHBOARD} in the namespace {KUBEFLOW}.",
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
    ]


def _run_options() -> list[click.Option]:
    """Return the options for the run and its report."""
    return [
        click.Option(
            ["--namespace"],
            default="",
            envvar="KFP_NAMESPACE",
            show_envvar=True,
            help=f"The namespace of the run.  [default: the pod's, or {KUBEFLOW}]",
        ),
        click.Option(["--run-name"], default="", help="The run's name in the dashboard.  [default: pipeline and time]"),
        click.Option(
            ["--git-commit"],
            default="",
            help="The Git commit of the run, recorded in MLflow.  [default: the commit of the current folder]",
        ),
        click.Option(["--wait/--no-wait"], default=True, show_default=True, help="Wait until the run has ended."),
        click.Option(
            ["--timeout"],
            type=Duration(),
            help="How long to wait, such as 90m; the run itself continues.  [default: no limit]",
        ),
        click.Option(
            ["--terminate-on-interrupt"],
            is_flag=True,
            help="Terminate the run when this command is interrupted, for example by a cancelled CI job.  [default: "
            "ask in a terminal, otherwise let the run continue]",
        ),
        click.Option(
            ["--output"],
            type=click.Path(file_okay=False, path_type=Path),
            help="The folder for the run's report.html and report.json, fetched from MLflow. The login to MLflow is "
            "read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; if these are not set, --port-forward "
            "uses the steps' Secret.",
        ),
        click.Option(
            ["--tracking-uri"],
            default="",
            envvar="MLFLOW_TRACKING_URI",
            show_envvar=True,
            help="For --output, MLflow's address as seen from this machine.  [default: in a pod or with "
            "--port-forward, the pipeline's own]",
        ),
        click.Option(
            ["--cron"],
            default="",
            help='Create a recurring run, such as "0 2 * * *", in the time zone of the cluster.',
        ),
    ]


class _SubmitCommands(PipelineCommands):
    """The commands of pipelines and of compiled files."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the click command of a pipeline or of a compiled file."""
        if Path(name).suffix in (".yaml", ".yml"):
            return _file_command(Path(name))
        return super().get_command(ctx, name)


def _command(command: PipelineCommand) -> click.Command:
    """Return the click command that submits a pipeline."""

    def run(**values: Any) -> None:
        from evasion.pipelines.cli.submit.job import submit_package
        from evasion.pipelines.placement import place
        from evasion.pipelines.submit.package import Package

        pipeline, arguments = selected_pipeline(command, values)
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
    """Return the click command that submits a compiled file."""
    from evasion.pipelines.submit.package import Package

    try:
        package = Package.read(file)
    except (OSError, ValueError) as error:
        fail(BAD_INPUT, str(error))
    command = pipeline_command(package.name, package.pipeline, left_out=tuple(LINEAGE))
    experiment = click.Option(
        ["--experiment"], default=DEFAULT_EXPERIMENT, show_default=True, help="The experiment in Kubeflow."
    )

    def run(experiment: str, **values: Any) -> None:
        from evasion.pipelines.cli.submit.job import submit_package

        _, arguments = selected_pipeline(command, values)
        submit_package(package, package.name, experiment, arguments, _request(values))

    return click.Command(
        str(file),
        params=[*options_of(command), *_common_options(), experiment],
        callback=run,
        help=f"Submit the compiled pipeline {package.name} of {file}.",
        context_settings=SETTINGS,
    )


submit = _SubmitCommands(
    name="submit",
    make=_command,
    help="""Run a pipeline in a cluster: upload it if it is new there, start it, and wait until it has ended.

    PIPELINE is a name, or the path of a compiled YAML file. Every parameter is an option, as in `evasion run`; so are
    the steps' resources in the cluster, as in `evasion compile`.

    \b
    Exit codes:
      0  the run succeeded (with --no-wait or --cron: was created)
      1  the run failed, or the host refused it
      2  invalid usage; nothing was sent
      3  the run was cancelled or skipped
      4  --timeout has passed; the run continues
      5  the host, or MLflow for --output, is unreachable or denies access
    """,
    epilog="Example: evasion submit evaluation --host https://kubeflow.example/pipeline --data-dir-test /data/test",
    options_metavar="",
    subcommand_metavar="PIPELINE|FILE [OPTIONS]",
    no_args_is_help=True,
    context_settings=SETTINGS,
)


def _request(values: Mapping[str, Any]) -> Request:
    request = Request(**{field.name: values[field.name] for field in fields(Request)})
    source = click.get_current_context().get_parameter_source("host")
    # An option takes precedence over an environment variable.
    return replace(request, host="") if request.port_forward and source is ParameterSource.ENVIRONMENT else request
