"""Shared by all commands of `evasion`: options derived from a pipeline's parameters, and exits with error messages."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from evasion.components.common.validate import ParameterError
from evasion.pipelines import placement
from evasion.pipelines.cli import commands
from evasion.pipelines.cli.commands import PipelineCommand
from evasion.pipelines.cli.exit_codes import BAD_INPUT
from evasion.pipelines.derived import REQUIRED, Parameter

# Functions import kfp when they need it, so that --help stays fast.

WIDTH = 110  # of tables outside a terminal

TYPES: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, bool: click.BOOL, str: click.STRING}


def dashed(name: str) -> str:
    """Return a parameter's name in the form of an option."""
    return name.replace("_", "-")


# `--data_dir` is accepted for `--data-dir`: the documentation of the steps uses underscores.
SETTINGS = {"token_normalize_func": dashed, "help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


class PipelineCommands(click.Group):
    """A command for each pipeline.

    Args:
        make: Returns the click command of a pipeline's command.
        arguments: Passed to `click.Group`.
    """

    def __init__(self, *, make: Callable[[PipelineCommand], click.Command], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._make = make

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        """Return the names of the pipelines."""
        return commands.names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 - click's interface
        """Return the click command of a pipeline."""
        pipeline_command = commands.command(name.replace("-", "_"))
        return self._make(pipeline_command) if pipeline_command else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the click command, or list the pipelines in an error."""
        if args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        command = self.get_command(ctx, args[0])
        if command is None:
            unknown(args[0], self.list_commands(ctx))
        return command.name, command, args[1:]


def names_in(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Parse names separated by commas; a blank string is an empty list."""
    return None if value is None else [name.strip().replace("-", "_") for name in value.split(",") if name.strip()]


def options_of(command: PipelineCommand) -> list[click.Option]:
    """Return the options of a pipeline's command."""
    choices = [
        click.Option([f"--{name}"], callback=names_in, metavar="NAME,…", help=text)
        for name, text in command.choices.items()
    ]
    return [*choices, *map(option, command.parameters)]


def selected_pipeline(command: PipelineCommand, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline that the options select and the values of its parameters; exit if they are invalid."""
    names = (*command.choices, *(parameter.name for parameter in command.parameters))
    try:
        return command.select({name: values[name] for name in names})
    except commands.UselessOptionError as error:
        fail(BAD_INPUT, str(error))
    except ParameterError as error:
        fail(BAD_INPUT, with_option_hint(str(error), error.parameters))


def placement_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each field of `Placement` to a command."""
    for name, attributes in reversed(list(_placement_attributes())):
        command = click.option(f"--{dashed(name)}", **attributes)(command)
    return command


def placement_parameters(renamed: Mapping[str, str]) -> list[click.Option]:
    """Return an option for each field of `Placement`, renamed by field where needed."""
    return [
        click.Option([f"--{dashed(renamed.get(name, name))}"], **attributes)
        for name, attributes in _placement_attributes()
    ]


def _placement_attributes() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, default, text in placement.options():
        multiple = isinstance(default, tuple)
        yield (
            name,
            {
                "type": str if multiple else type(default),
                "default": default,
                "show_default": default != "",
                "multiple": multiple,
                "help": text,
            },
        )


def placement_of(values: Mapping[str, Any], renamed: Mapping[str, str]) -> placement.Placement:
    """Return the placement of these options; exit if they are invalid."""
    settings = {name: values[renamed.get(name, name)] for name, *_ in placement.options()}
    try:
        return placement.Placement(**settings)
    except ParameterError as error:
        fail(BAD_INPUT, with_option_hint(str(error), tuple(renamed.get(name, name) for name in error.parameters)))


def option(parameter: Parameter) -> click.Option:
    """Return the option for a parameter of a pipeline, with its type, default and description."""
    default = parameter.default
    if isinstance(default, bool):
        default = str(default).lower()  # so that the help shows it as a user types it
    required = default is REQUIRED
    # For click even None is a default; a blank default is not shown.
    optional: dict[str, Any] = {} if required else {"default": default, "show_default": default not in ("", None)}
    return click.Option(
        [f"--{dashed(parameter.name)}", parameter.name],
        type=TYPES[parameter.type],
        required=required,
        **optional,
        help=parameter.text,
        metavar="true|false" if parameter.type is bool else None,
        callback=_in_any_case(parameter.choices),
    )


def _in_any_case(choices: Sequence[str]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback that takes a choice in letters of any case; any other value is left to the step's own rule."""
    by_lowercase = {choice.lower(): choice for choice in choices}
    return lambda _, __, value: by_lowercase.get(value.lower(), value) if isinstance(value, str) else value


def help_of(command: PipelineCommand) -> str:
    """Return the help text of a pipeline's command; indented lines are kept, and a missing example is added."""
    paragraphs = [
        # click rewraps paragraphs unless they begin with this mark.
        f"\b\n{paragraph}" if any(line.startswith(" ") for line in paragraph.splitlines()) else paragraph
        for paragraph in command.text.split("\n\n")
    ]
    if not any("evasion run" in paragraph for paragraph in paragraphs):
        required = [parameter.name for parameter in command.parameters if parameter.default is REQUIRED]
        options = "".join(f" --{dashed(parameter)} ..." for parameter in required)
        paragraphs.append(f"\b\nExample:\n  evasion run {command.name}{options}")
    return "\n\n".join(paragraphs)


def unknown(name: str, choices: Iterable[str], kind: str = "pipeline") -> NoReturn:
    """Exit with a usage error for a pipeline or a step that does not exist."""
    raise click.UsageError(f"No such {kind}: {name}. Choose from {', '.join(choices)}.")


def with_option_hint(message: str, parameters: tuple[str, ...]) -> str:
    """Add to a message which options to set."""
    options = " or ".join(f"--{dashed(name)}" for name in dict.fromkeys(parameters))
    return f"{message}{'' if message.endswith('.') else '.'} Set {options}." if options else message


def fail(code: int, *messages: str, note: str = "") -> NoReturn:
    """Print error messages and exit with a code."""
    for message in messages:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    if note:
        click.echo(note, err=True)
    sys.exit(code)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that they end the running step too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
