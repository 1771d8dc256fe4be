"""What the commands of `evasion` share: options made of a pipeline's parameters, and how an error ends a command."""

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from evasion.pipelines import placement

# kfp is imported by the functions that need it, so that help comes at once.

BAD_INPUT = 2
INTERRUPTED = 130

WIDTH = 110  # of tables where there is no terminal

TYPES: dict[str, click.ParamType[Any]] = {
    "Integer": click.INT,
    "Float": click.FLOAT,
    "Boolean": click.BOOL,
    "String": click.STRING,
}


def dashed(name: str) -> str:
    """Return a parameter's name as an option has it."""
    return name.replace("_", "-")


# `--data_dir` is as good as `--data-dir`: the documents of the steps say the former.
SETTINGS = {"token_normalize_func": dashed, "help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


class PipelineCommands(click.Group):
    """A command for each pipeline.

    Args:
        make: Returns the command of a pipeline, given its name and itself.
        arguments: The rest is click's.
    """

    def __init__(self, *, make: Callable[[str, Any], click.Command], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._make = make

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        """Name the pipelines."""
        from evasion.pipelines.catalog import pipelines

        return list(pipelines())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 - click's interface
        """Make the command of a pipeline."""
        from evasion.pipelines.catalog import pipelines

        name = name.replace("-", "_")
        return self._make(name, pipelines()[name]) if name in pipelines() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the pipeline, or say which there are."""
        if args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        found = self.get_command(ctx, args[0])
        if found is None:
            unknown(args[0], self.list_commands(ctx))
        return found.name, found, args[1:]


def names_in(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Read names separated by commas; a blank text names none."""
    return None if value is None else [name.strip().replace("-", "_") for name in value.split(",") if name.strip()]


ATTACKS = click.Option(
    ["--attacks"],
    callback=names_in,
    metavar="NAME,…",
    help="fgm, pgd or both: which attacks to make.  [default: fgm]",
)
DEFENSES = click.Option(
    ["--defenses"],
    callback=names_in,
    metavar="NAME,…",
    help="spatial_smoothing, jpeg_compression, gaussian_augmentation: which defenses to judge.  [default: all]",
)


def evaluation(attacks: list[str] | None, defenses: list[str] | None) -> Any:
    """Return the evaluation of the attacks and defenses named."""
    from evasion.pipelines import catalog

    try:
        return catalog.evaluation(attacks, defenses)
    except ValueError as error:
        fail(BAD_INPUT, str(error))


def placement_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `Placement`."""
    for name, attributes in reversed(list(_placement_attributes())):
        command = click.option(f"--{dashed(name)}", **attributes)(command)
    return command


def placement_parameters(renamed: Mapping[str, str]) -> list[click.Option]:
    """Return an option for each field of `Placement`, some under another name."""
    return [
        click.Option([f"--{dashed(renamed.get(name, name))}"], **attributes)
        for name, attributes in _placement_attributes()
    ]


def _placement_attributes() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, default, text in placement.options():
        several = isinstance(default, tuple)
        yield (
            name,
            {
                "type": str if several else type(default),
                "default": default,
                "show_default": default != "",
                "multiple": several,
                "help": text,
            },
        )


def placement_of(values: Mapping[str, Any], renamed: Mapping[str, str]) -> placement.Placement:
    """Return the placement that these options say, or refuse it."""
    given = {name: values[renamed.get(name, name)] for name, *_ in placement.options()}
    try:
        return placement.Placement(**given)
    except ValueError as error:
        guilty = (renamed.get(name, name) for name in given if re.search(rf"\b{name}=", str(error)))
        fail(BAD_INPUT, told(str(error), tuple(guilty)))


def option(name: str, declared: Any) -> click.Option:
    """Make the option for a parameter of a pipeline, of its type and with its default and description."""
    default = declared.default
    if isinstance(default, bool):
        default = str(default).lower()  # in words, so that help shows it as it is to be typed
    elif declared.type == "Integer" and default is not None:
        default = int(default)  # the compiled form knows one kind of number
    # click takes even a default of None for one; and a blank text is not worth showing.
    optional: dict[str, Any] = {"default": default, "show_default": default != ""} if declared.optional else {}
    return click.Option(
        [f"--{dashed(name)}", name],
        type=TYPES.get(declared.type, click.STRING),
        required=not declared.optional,
        **optional,
        help=" ".join((declared.description or "").split()),
        metavar="true|false" if declared.type == "Boolean" else None,
    )


def first_paragraph(pipeline: Any) -> str:
    """Return the first paragraph of a pipeline's docstring as one line."""
    return " ".join(_documented(pipeline)[0].split())


def _documented(pipeline: Any) -> list[str]:
    """Return the paragraphs of a pipeline's docstring, its parameters left out."""
    import docstring_parser

    parsed = docstring_parser.parse(pipeline.pipeline_func.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    return (parsed.description or "").split("\n\n")


def help_of(name: str, pipeline: Any) -> str:
    """Return what a pipeline's docstring says, its indented lines kept, and an example where it has none."""
    paragraphs = [
        # click fills paragraphs unless this mark stands before them.
        f"\b\n{paragraph}" if any(line.startswith(" ") for line in paragraph.splitlines()) else paragraph
        for paragraph in _documented(pipeline)
    ]
    if not any("evasion run" in paragraph for paragraph in paragraphs):
        required = [name for name, declared in (pipeline.component_spec.inputs or {}).items() if not declared.optional]
        options = "".join(f" --{dashed(parameter)} ..." for parameter in required)
        paragraphs.append(f"\b\nExample:\n  evasion run {name}{options}")
    return "\n\n".join(paragraphs)


def compile_to(compiled: Any, path: Path) -> Path:
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


def unknown(name: str, known: Iterable[str], kind: str = "pipeline") -> NoReturn:
    """Refuse a pipeline or a step that does not exist."""
    raise click.UsageError(f"No such {kind}: {name}. Choose from {', '.join(known)}.")


def told(message: str, parameters: tuple[str, ...]) -> str:
    """Add to a message which options decide it."""
    options = " or ".join(f"--{dashed(name)}" for name in dict.fromkeys(parameters))
    return f"{message}{'' if message.endswith('.') else '.'} Set {options}." if options else message


def fail(code: int, *messages: str, note: str = "") -> NoReturn:
    """Print errors and leave with an exit code."""
    for message in messages:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    if note:
        click.echo(note, err=True)
    sys.exit(code)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a request to end the program end the running step too, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
