"""The command `evasion mlflow`."""

import signal
from pathlib import Path

import click

from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED
from evasion.pipelines.cli.options import ended_by_signals, fail


@click.command("mlflow")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The parent folder of runs.",
)
def serve_mlflow(output: Path) -> None:
    """Serve MLflow with the runs of `evasion run --docker`, until Ctrl-C."""
    from evasion.pipelines.local import containers, server

    folder = output.absolute() / "server"
    if not folder.is_dir():
        fail(BAD_INPUT, f"{output} contains no run of `evasion run --docker`. Set --output.")
    try:
        with ended_by_signals(), containers.engine(server.IMAGES) as engine, server.running(engine, folder) as served:
            click.echo(f"MLflow is running at {served.address}. Press Ctrl-C to stop it.")
            signal.pause()
    except containers.EngineError as error:
        fail(FAILED, str(error))
    except KeyboardInterrupt:
        return
