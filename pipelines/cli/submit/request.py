"""What `evasion submit` is asked to do with a run, and whether the options go together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from evasion.pipelines.cli.exit_codes import BAD_INPUT
from evasion.pipelines.cli.options import fail
from evasion.pipelines.plan import PlannedStep
from evasion.pipelines.submit.auth import in_cluster


@dataclass(frozen=True)
class Request:
    """What is asked of a host, as the options say it."""

    host: str
    port_forward: bool
    namespace: str
    run_name: str
    git_commit: str
    token: str
    token_command: str
    cookie: str
    wait: bool
    timeout: float | None
    terminate_on_interrupt: bool
    output: Path | None
    tracking_uri: str
    cron: str


def validate(request: Request, planned: Sequence[PlannedStep], cron: str) -> None:
    """Hold the options to each other, before anything is sent."""
    if request.output and (cron or not request.wait):
        fail(BAD_INPUT, f"--output needs a run to wait for. Leave out {'--cron' if cron else '--no-wait'}.")
    if request.output and not any(step.function == "report" for step in planned):
        fail(BAD_INPUT, "--output needs a pipeline that makes a report, such as evaluation.")
    if request.host and request.port_forward:
        fail(BAD_INPUT, "--host and --port-forward are two ways to one host: give one.")
    if not (request.host or request.port_forward or in_cluster()):
        fail(BAD_INPUT, "Say where Kubeflow Pipelines is. Set --host or --port-forward.")
    if request.host and urlsplit(request.host).scheme not in ("http", "https"):
        fail(BAD_INPUT, f"host must begin with http:// or https://. Received: host={request.host!r}. Set --host.")
    if request.output and not (request.tracking_uri or request.port_forward or in_cluster()):
        fail(BAD_INPUT, "--output fetches the report from MLflow: say where it is, seen from here. Set --tracking-uri.")
