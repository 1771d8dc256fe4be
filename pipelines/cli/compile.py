"""The command `evasion compile`."""

from pathlib import Path
from typing import Any

import click

from evasion.components.common.validate import ParameterError
from evasion.pipelines import placement
from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED
from evasion.pipelines.cli.options import fail, names_in, placement_of, placement_options, unknown, with_option_hint

# Functions import kfp when they need it, so that --help stays fast.


@click.command(
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
    help="The folder for the YAML files, one per pipeline.",
)
@click.option(
    "--steps",
    is_flag=True,
    help="Compile steps instead, for your own pipelines, to OUTPUT/STEP/component.yaml. Only --output applies.",
)
@click.option("--attacks", callback=names_in, metavar="NAME,…", help="The attacks of evaluations, as in `evasion run`.")
@click.option(
    "--defenses", callback=names_in, metavar="NAME,…", help="The defenses of evaluations, as in `evasion run`."
)
@click.option("--sharded", is_flag=True, help="Compile evaluations with a parameter `shards` and a loop over shards.")
@placement_options
def compile_pipelines(
    names: tuple[str, ...],
    output: Path,
    steps: bool,
    attacks: list[str] | None,
    defenses: list[str] | None,
    sharded: bool,
    **placement_values: Any,
) -> None:
    """Compile the named pipelines, or all, to YAML for Kubeflow.

    `evaluation` compiles three pipelines: for a registered, a trained and a pretrained model.

    The options set the steps' resources in the cluster. pipelines/compiled holds the YAML files for the defaults.
    """
    from evasion.pipelines import catalog, stages
    from evasion.pipelines.compiled_yaml import compile_to

    step_placement = placement_of(placement_values, {})
    evaluations: dict[str, Any] = {}
    if not steps:
        try:
            evaluations = catalog.evaluations(attacks, defenses, sharded=sharded)
        except ParameterError as error:
            fail(BAD_INPUT, with_option_hint(str(error), error.parameters))
    available = dict(stages.steps() if steps else {**catalog.pipelines(), **evaluations})
    selected: list[str] = []
    for argument in names or ("all",):
        name = argument.replace("-", "_")
        if name == catalog.EVALUATION and not steps:
            selected += evaluations
        elif name == "all":
            selected += available
        elif name in available:
            selected.append(name)
        else:
            unknown(name, available, "step" if steps else "pipeline")
    try:
        for name in dict.fromkeys(selected):
            if steps:
                click.echo(compile_to(available[name], output / name / "component.yaml"))
            else:
                placed = placement.place(available[name], step_placement)
                click.echo(compile_to(placed, output / f"{name}.yaml"))
    except OSError as error:
        fail(FAILED, str(error))
