"""The command `evasion compile`."""

from pathlib import Path
from typing import Any

import click

from evasion.components.common.validate import ParameterError
from evasion.pipelines import placement
from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED
from evasion.pipelines.cli.options import fail, names_in, placement_of, placement_options, told, unknown

# kfp is imported by the functions that need it, so that help comes at once.


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
        except ParameterError as error:
            fail(BAD_INPUT, told(str(error), error.parameters))
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
        fail(FAILED, str(error))
