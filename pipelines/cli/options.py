"""What the commands of `evasion` share: options made of a pipeline's parameters, and how an error ends a command."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from evasion.components.common.validate import ParameterError
from evasion.pipelines import placement
from evasion.pipelines.cli import commands
from evasion.pipelines.cli.commands import PipelineCommand
from evasion.pipelines.cli.exit_codes import BAD_INPUT
from evasion.pipelines.derived import REQUIRED, Parameter

# kfp is imported by the functions that need it, so that help comes at once.

WIDTH = 110  # of tables where there is no terminal

TYPES: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, bool: click.BOOL, str: click.STRING}


def dashed(name: str) -> str:
    """Return a parameter's name as an option has it."""
    return name.replace("_", "-")


# `--data_dir` is as good as `--data-dir`: the documents of the steps say the former.
SETTINGS = {"token_normalize_func": dashed, "help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


class PipelineCommands(click.Group):
    """A command for each pipeline.

    Args:
        make: Returns click's command of a pipeline's.
        arguments: The rest is click's.
    """

    def __init__(self, *, make: Callable[[PipelineCommand], click.Command], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._make = make

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        """Name the pipelines."""
        return commands.names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 - click's interface
        """Make the command of a pipeline."""
        known = commands.command(name.replace("-", "_"))
        return self._make(known) if known else None

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


def options_of(command: PipelineCommand) -> list[click.Option]:
    """Return the options of a pipeline's command."""
    choices = [
        click.Option([f"--{what}"], callback=names_in, metavar="NAME,…", help=text)
        for what, text in command.choices.items()
    ]
    return [*choices, *map(option, command.parameters)]


def chosen(command: PipelineCommand, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline that the options ask for with the values of its parameters, or refuse them."""
    asked = {name: values[name] for name in (*command.choices, *(one.name for one in command.parameters))}
    try:
        return command.choose(asked)
    except commands.UselessOptionError as error:
        fail(BAD_INPUT, str(error))
    except ParameterError as error:
        fail(BAD_INPUT, told(str(error), error.parameters))


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
    except ParameterError as error:
        fail(BAD_INPUT, told(str(error), tuple(renamed.get(name, name) for name in error.parameters)))


def option(parameter: Parameter) -> click.Option:
    """Make the option for a parameter of a pipeline, of its type and with its default and description."""
    default = parameter.default
    if isinstance(default, bool):
        default = str(default).lower()  # in words, so that help shows it as it is to be typed
    required = default is REQUIRED
    # click takes even a default of None for one; and a blank text is not worth showing.
    optional: dict[str, Any] = {} if required else {"default": default, "show_default": default not in ("", None)}
    return click.Option(
        [f"--{dashed(parameter.name)}", parameter.name],
        type=TYPES[parameter.type],
        required=required,
        **optional,
        help=parameter.text,
        metavar="true|false" if parameter.type is bool else None,
    )


def help_of(command: PipelineCommand) -> str:
    """Return the text of a pipeline's command, its indented lines kept, and an example where it has none."""
    paragraphs = [
        # click fills paragraphs unless this mark stands before them.
        f"\b\n{paragraph}" if any(line.startswith(" ") for line in paragraph.splitlines()) else paragraph
        for paragraph in command.text.split("\n\n")
    ]
    if not any("evasion run" in paragraph for paragraph in paragraphs):
        required = [parameter.name for parameter in command.parameters if parameter.default is REQUIRED]
        options = "".join(f" --{dashed(parameter)} ..." for parameter in required)
        paragraphs.append(f"\b\nExample:\n  evasion run {command.name}{options}")
    return "\n\n".join(paragraphs)


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
