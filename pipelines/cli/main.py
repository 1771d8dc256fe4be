"""The command line `evasion`."""

import click

from evasion.pipelines.cli.compare import compare_reports
from evasion.pipelines.cli.compile import compile_pipelines
from evasion.pipelines.cli.gate import gate_report
from evasion.pipelines.cli.options import SETTINGS
from evasion.pipelines.cli.run import run
from evasion.pipelines.cli.runs import runs
from evasion.pipelines.cli.serve import serve_mlflow
from evasion.pipelines.cli.submit.command import submit


@click.group(
    context_settings=SETTINGS,
    epilog="""\b
    Examples:
      evasion list                       list the pipelines
      evasion run evaluation --help      show a pipeline's description and options
      evasion runs                       list the runs on this machine
      evasion compile all                compile all pipelines to YAML for Kubeflow
      evasion submit evaluation ...      run a pipeline in a cluster and wait for it
      evasion compare RUN RUN            compare models
      evasion gate RUN --threshold TEXT  check a report against thresholds
    """,
)
@click.version_option(package_name="evasion-pipelines", prog_name="evasion")
def main() -> None:
    """Measure how far evasion attacks fool an image classifier, and how much defenses help."""


@main.command("list")
def list_pipelines() -> None:
    """List the pipelines."""
    from evasion.pipelines.cli import commands

    width = max(map(len, commands.names()))
    for name in commands.names():
        command = commands.command(name)
        click.echo(f"{name:{width}}  {command.summary if command else ''}")


for command in (run, runs, compile_pipelines, submit, compare_reports, gate_report, serve_mlflow):
    main.add_command(command)
