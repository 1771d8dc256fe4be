"""The command line `evasion`: runs pipelines on this machine and compiles them for Kubeflow."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from evasion.components.common.tracking import DEFAULT_EXPERIMENT
from evasion.pipelines import placement
from evasion.pipelines.commands import PipelineCommand
from evasion.pipelines.gate.command import gate_report
from evasion.pipelines.options import (
    BAD_INPUT,
    INTERRUPTED,
    SETTINGS,
    WIDTH,
    PipelineCommands,
    chosen,
    ended_by_signals,
    fail,
    help_of,
    names_in,
    options_of,
    placement_of,
    placement_options,
    told,
    unknown,
)
from evasion.pipelines.submit.command import submit

# kfp, MLflow and Rich are imported by the commands that need them, so that help comes at once.


@click.group(
    context_settings=SETTINGS,
    epilog="""\b
    Begin with:
      evasion list                   which pipelines there are
      evasion run evaluation --help  what one does and takes
      evasion compile all            the YAMLs to upload to Kubeflow
      evasion submit evaluation ...  run it in a cluster, and wait for it
      evasion compare RUN RUN        models side by side
      evasion gate RUN --threshold TEXT  a report held to thresholds
    """,
)
@click.version_option(package_name="evasion-pipelines", prog_name="evasion")
def main() -> None:
    """Measure how far evasion attacks fool an image classifier, and what defenses give back."""


main.add_command(gate_report)
main.add_command(submit)


@main.command(
    "run",
    cls=PipelineCommands,
    make=lambda command: _command(command),  # defined below
    options_metavar="",
    subcommand_metavar="PIPELINE [OPTIONS]",
    no_args_is_help=True,
)
def run_group() -> None:
    """Run a pipeline on this machine, in processes or with --docker in containers.

    Every parameter of a pipeline is an option; `evasion run PIPELINE --help` explains them.
    """


@main.command("list")
def list_pipelines() -> None:
    """Show which pipelines there are."""
    from evasion.pipelines import commands

    width = max(map(len, commands.names()))
    for name in commands.names():
        command = commands.command(name)
        click.echo(f"{name:{width}}  {command.summary if command else ''}")


@main.command(
    "compile",
    epilog="""\b
    Examples:
      evasion compile evaluation train --image registry.example/evasion-pipelines:1.0
      evasion compile all --device gpu --node-selector cloud.google.com/gke-accelerator=nvidia-l4
    """,
)
@click.argument("names", nargs=-1, metavar="[PIPELINE...|all]")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("compiled"),
    show_default=True,
    help="The folder for the YAMLs, one a pipeline.",
)
@click.option(
    "--steps",
    is_flag=True,
    help="Compile steps instead, for pipelines of your own: OUTPUT/STEP/component.yaml. The rest does not count.",
)
@click.option("--attacks", callback=names_in, metavar="NAME,…", help="Of evaluations, as `evasion run` takes them.")
@click.option("--defenses", callback=names_in, metavar="NAME,…", help="Of evaluations, as `evasion run` takes them.")
@click.option("--sharded", is_flag=True, help="Let evaluations have a parameter `shards`, and a loop over so many.")
@placement_options
def compile_pipelines(
    names: tuple[str, ...],
    output: Path,
    steps: bool,
    attacks: list[str] | None,
    defenses: list[str] | None,
    sharded: bool,
    **placed: Any,
) -> None:
    """Compile pipelines to YAML for Kubeflow: those named, or all.

    `evaluation` names three of them, for a model that is registered, trained or pretrained.

    The options say what the cluster gives to the steps. The YAMLs of the defaults are in pipelines/compiled.
    """
    from evasion.pipelines import catalog, stages
    from evasion.pipelines.compiled_yaml import compile_to

    given = placement_of(placed, {})
    evaluations: dict[str, Any] = {}
    if not steps:
        try:
            evaluations = catalog.evaluations(attacks, defenses, sharded=sharded)
        except ValueError as error:
            fail(BAD_INPUT, told(str(error), (str(error).split()[0],)))
    known = dict(stages.steps() if steps else {**catalog.pipelines(), **evaluations})
    wanted: list[str] = []
    for name in names or ("all",):
        one = name.replace("-", "_")
        if one == catalog.EVALUATION and not steps:
            wanted += evaluations
        elif one == "all":
            wanted += known
        elif one in known:
            wanted.append(one)
        else:
            unknown(one, known, "step" if steps else "pipeline")
    try:
        for name in dict.fromkeys(wanted):
            if steps:
                click.echo(compile_to(known[name], output / name / "component.yaml"))
            else:
                click.echo(compile_to(placement.place(known[name], given), output / f"{name}.yaml"))
    except OSError as error:
        fail(1, str(error))


@main.command("compare", epilog="Example: evasion compare runs/plain runs/hardened --name plain --name hardened")
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

    from evasion.components.compare import comparison
    from evasion.pipelines import display

    found = [path / "report.json" if path.is_dir() else path for path in reports]
    page, summary = output / "compare.html", output / "compare.json"
    try:
        comparison.write(found, list(names), page, summary)
    except ValueError as error:
        fail(BAD_INPUT, str(error))
    except OSError as error:
        fail(1, str(error))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    display.show_comparison(console, json.loads(summary.read_text(encoding="utf-8")), page)


@main.command("mlflow")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The folder that collects runs.",
)
def serve_mlflow(output: Path) -> None:
    """Serve MLflow over what `evasion run --docker` has kept, until Ctrl-C."""
    from evasion.pipelines import containers, server

    folder = output.absolute() / "server"
    if not folder.is_dir():
        fail(BAD_INPUT, f"{output} holds no run of `evasion run --docker`. Set --output.")
    try:
        with ended_by_signals(), containers.engine(server.IMAGES) as engine, server.running(engine, folder) as served:
            click.echo(f"MLflow is at {served.address}. Ctrl-C ends it.")
            signal.pause()
    except containers.EngineError as error:
        fail(1, str(error))
    except KeyboardInterrupt:
        return


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

    def run(
        output: Path,
        experiment: str,
        tracking_uri: str | None,
        docker: bool,
        verbose: bool,
        quiet: bool,
        **values: Any,
    ) -> None:
        pipeline, arguments = chosen(command, values)
        _run(pipeline, arguments, output, experiment, tracking_uri, docker=docker, verbose=verbose, quiet=quiet)

    return click.Command(
        command.name,
        params=[*options_of(command), *_common_options()],
        callback=run,
        help=help_of(command),
        short_help=command.summary,
        context_settings=SETTINGS,
    )


def _run(
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
    from evasion.pipelines import display, local
    from evasion.pipelines.containers import EngineError
    from evasion.pipelines.preflight import BadArgumentsError

    progress = Console(stderr=True, quiet=quiet)
    shown = display.Live if progress.is_terminal else display.Lines
    try:
        with ended_by_signals(), shown(progress, verbose=verbose) as listener:
            result = local.run(
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
    except local.StepFailedError as error:
        fail(1, str(error), note=f"All output: {error.log}")
    except (TrackingError, EngineError, local.KfpVersionError, OSError) as error:
        fail(1, str(error))
    except KeyboardInterrupt:
        fail(INTERRUPTED, "interrupted")
    # Outside a terminal nothing bounds the width, and Rich would take 80.
    display.show_result(Console(width=None if sys.stdout.isatty() else WIDTH), result)
