"""The command line `evasion`: runs pipelines on this machine and compiles them for Kubeflow."""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from evasion.pipelines import placement
from evasion.pipelines.gate.command import gate_report

# kfp, MLflow and Rich are imported by the commands that need them, so that help comes at once.

BAD_INPUT = 2
INTERRUPTED = 130

WIDTH = 110  # of tables where there is no terminal

TYPES: dict[str, click.ParamType[Any]] = {
    "Integer": click.INT,
    "Float": click.FLOAT,
    "Boolean": click.BOOL,
    "String": click.STRING,
}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


# `--data_dir` is as good as `--data-dir`: the documents of the steps say the former.
SETTINGS = {"token_normalize_func": _dashed, "help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


@click.group(
    context_settings=SETTINGS,
    epilog="""\b
    Begin with:
      evasion list                       which pipelines there are
      evasion run fgm_evaluation --help  what one does and takes
      evasion compile all                the YAMLs to upload to Kubeflow
      evasion compare RUN RUN            models side by side
      evasion gate RUN --threshold TEXT  a report held to thresholds
    """,
)
@click.version_option(package_name="evasion-pipelines", prog_name="evasion")
def main() -> None:
    """Measure how far the Fast Gradient Method fools an image classifier, and what defenses give back."""


main.add_command(gate_report)


class PipelineCommands(click.Group):
    """A command for each pipeline, with an option for each of its parameters."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        """Name the pipelines."""
        from evasion.pipelines.catalog import pipelines

        return list(pipelines())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 - click's interface
        """Make the command of a pipeline."""
        from evasion.pipelines.catalog import pipelines

        name = name.replace("-", "_")
        return _command(name, pipelines()[name]) if name in pipelines() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the pipeline, or say which there are."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            _unknown(args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


@main.command(
    "run",
    cls=PipelineCommands,
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
    from evasion.pipelines.catalog import pipelines

    width = max(map(len, pipelines()))
    for name, pipeline in pipelines().items():
        click.echo(f"{name:{width}}  {_first_paragraph(pipeline)}")


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Read names separated by commas; a blank text names none."""
    return None if value is None else [name.strip().replace("-", "_") for name in value.split(",") if name.strip()]


ATTACKS = click.Option(
    ["--attacks"],
    callback=_names,
    metavar="NAME,…",
    help="fgm, pgd or both: which attacks to make.  [default: fgm]",
)
DEFENSES = click.Option(
    ["--defenses"],
    callback=_names,
    metavar="NAME,…",
    help="spatial_smoothing, jpeg_compression, gaussian_augmentation: which defenses to judge.  [default: all]",
)


def _evaluation(attacks: list[str] | None, defenses: list[str] | None) -> Any:
    """Return the evaluation of the attacks and defenses named."""
    from evasion.pipelines import catalog

    try:
        return catalog.evaluation(attacks, defenses)
    except ValueError as error:
        _fail(BAD_INPUT, str(error))


def _placement_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `Placement`."""
    for name, default, text in reversed(list(placement.options())):
        several = isinstance(default, tuple)
        command = click.option(
            f"--{_dashed(name)}",
            type=str if several else type(default),
            default=default,
            show_default=default != "",
            multiple=several,
            help=text,
        )(command)
    return command


@main.command(
    "compile",
    epilog="""\b
    Examples:
      evasion compile fgm_evaluation train --image registry.example/evasion-pipelines:1.0
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
@click.option("--attacks", callback=_names, metavar="NAME,…", help="Of fgm_evaluation, as `evasion run` takes them.")
@click.option("--defenses", callback=_names, metavar="NAME,…", help="Of fgm_evaluation, as `evasion run` takes them.")
@_placement_options
def compile_pipelines(
    names: tuple[str, ...],
    output: Path,
    steps: bool,
    attacks: list[str] | None,
    defenses: list[str] | None,
    **placed: Any,
) -> None:
    """Compile pipelines to YAML for Kubeflow: those named, or all.

    The options say what the cluster gives to the steps. The YAMLs of the defaults are in pipelines/compiled.
    """
    from evasion.pipelines import catalog

    try:
        given = placement.Placement(**placed)
    except ValueError as error:
        _fail(BAD_INPUT, _told(str(error), tuple(name for name in placed if re.search(rf"\b{name}=", str(error)))))
    known = dict(catalog.steps() if steps else catalog.pipelines())
    if not steps and (attacks is not None or defenses is not None):
        known[catalog.EVALUATION] = _evaluation(attacks, defenses)
    chosen = [name.replace("-", "_") for name in names if name != "all"]
    for name in chosen:
        if name not in known:
            _unknown(name, known, "step" if steps else "pipeline")
    try:
        for name in chosen if chosen and "all" not in names else known:
            if steps:
                click.echo(_compile(known[name], output / name / "component.yaml"))
            else:
                click.echo(_compile(placement.place(known[name], given), output / f"{name}.yaml"))
    except OSError as error:
        _fail(1, str(error))


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
        _fail(BAD_INPUT, str(error))
    except OSError as error:
        _fail(1, str(error))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    display.show_comparison(console, json.loads(summary.read_text(encoding="utf-8")), page)


def _compile(compiled: Any, path: Path) -> Path:
    """Write the YAML of a pipeline or a step; a file that is there is whole at any time."""
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.unfinished.yaml")
    try:
        compiler.Compiler().compile(compiled, str(unfinished))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


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
        _fail(BAD_INPUT, f"{output} holds no run of `evasion run --docker`. Set --output.")
    try:
        with _ended_by_signals(), containers.engine(server.IMAGES) as engine, server.running(engine, folder) as served:
            click.echo(f"MLflow is at {served.address}. Ctrl-C ends it.")
            signal.pause()
    except containers.EngineError as error:
        _fail(1, str(error))
    except KeyboardInterrupt:
        return


def _unknown(name: str, known: Iterable[str], kind: str = "pipeline") -> NoReturn:
    """Refuse a pipeline or a step that does not exist."""
    raise click.UsageError(f"No such {kind}: {name}. Choose from {', '.join(known)}.")


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
            default="evasion",
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


def _command(name: str, pipeline: Any) -> click.Command:
    """Make the command that runs a pipeline."""
    from evasion.pipelines import catalog

    own = [_option(parameter, declared) for parameter, declared in (pipeline.component_spec.inputs or {}).items()]

    choices = [ATTACKS, DEFENSES] if name == catalog.EVALUATION else []

    def run(
        output: Path,
        experiment: str,
        tracking_uri: str | None,
        docker: bool,
        verbose: bool,
        quiet: bool,
        **arguments: Any,
    ) -> None:
        chosen = [arguments.pop(choice.name) for choice in choices]
        built = _evaluation(*chosen) if chosen else pipeline
        _run(built, arguments, output, experiment, tracking_uri, docker=docker, verbose=verbose, quiet=quiet)

    return click.Command(
        name,
        params=[*choices, *own, *_common_options()],
        callback=run,
        help=_help(name, pipeline),
        short_help=_first_paragraph(pipeline),
        context_settings=SETTINGS,
    )


def _option(name: str, declared: Any) -> click.Option:
    """Make the option for a parameter of a pipeline, of its type and with its default and description."""
    # In words, so that help shows it as it is to be typed.
    default = str(declared.default).lower() if isinstance(declared.default, bool) else declared.default
    # click takes even a default of None for one; and a blank text is not worth showing.
    optional: dict[str, Any] = {"default": default, "show_default": default != ""} if declared.optional else {}
    return click.Option(
        [f"--{_dashed(name)}", name],
        type=TYPES.get(declared.type, click.STRING),
        required=not declared.optional,
        **optional,
        help=" ".join((declared.description or "").split()),
        metavar="true|false" if declared.type == "Boolean" else None,
    )


def _first_paragraph(pipeline: Any) -> str:
    return " ".join(_documented(pipeline)[0].split())


def _documented(pipeline: Any) -> list[str]:
    """Return the paragraphs of a pipeline's docstring, its parameters left out."""
    import docstring_parser

    parsed = docstring_parser.parse(pipeline.pipeline_func.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    return (parsed.description or "").split("\n\n")


def _help(name: str, pipeline: Any) -> str:
    """Return what a pipeline's docstring says, its indented lines kept, and an example where it has none."""
    paragraphs = [
        # click fills paragraphs unless this mark stands before them.
        f"\b\n{paragraph}" if any(line.startswith(" ") for line in paragraph.splitlines()) else paragraph
        for paragraph in _documented(pipeline)
    ]
    if not any("evasion run" in paragraph for paragraph in paragraphs):
        required = [name for name, declared in (pipeline.component_spec.inputs or {}).items() if not declared.optional]
        options = "".join(f" --{_dashed(parameter)} ..." for parameter in required)
        paragraphs.append(f"\b\nExample:\n  evasion run {name}{options}")
    return "\n\n".join(paragraphs)


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
        with _ended_by_signals(), shown(progress, verbose=verbose) as listener:
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
        _fail(BAD_INPUT, *(_told(problem.message, problem.parameters) for problem in error.problems))
    except local.StepFailedError as error:
        _fail(1, str(error), note=f"All output: {error.log}")
    except (TrackingError, EngineError, OSError) as error:
        _fail(1, str(error))
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "interrupted")
    # Outside a terminal nothing bounds the width, and Rich would take 80.
    display.show_result(Console(width=None if sys.stdout.isatty() else WIDTH), result)


def _told(message: str, parameters: tuple[str, ...]) -> str:
    """Add to a message which options decide it."""
    options = " or ".join(f"--{_dashed(name)}" for name in dict.fromkeys(parameters))
    return f"{message}{'' if message.endswith('.') else '.'} Set {options}." if options else message


def _fail(code: int, *messages: str, note: str = "") -> NoReturn:
    """Print errors and leave with an exit code."""
    for message in messages:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    if note:
        click.echo(note, err=True)
    sys.exit(code)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a request to end the program end the running step too, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
