"""The options of `evasion submit` that do not belong to a pipeline, and their validation."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from evasion.pipelines.cli.exit_codes import BAD_INPUT
from evasion.pipelines.cli.options import fail
from evasion.pipelines.plan import PlannedStep
from evasion.pipelines.submit.auth import in_cluster


@dataclass(frozen=True)
class Request:
    """The values of these options."""

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

    @property
    def has_credentials(self) -> bool:
        """Whether requests carry a token or a cookie that was given for them."""
        return bool(self.token or self.token_command or self.cookie)


def _is_here(host: str | None) -> bool:
    """Return whether a host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def validate(request: Request, planned: Sequence[PlannedStep], cron: str) -> None:
    """Exit if the options contradict each other, before anything is sent."""
    if request.output and (cron or not request.wait):
        fail(BAD_INPUT, f"--output requires waiting for the run. Omit {'--cron' if cron else '--no-wait'}.")
    if request.output and not any(step.function == "report" for step in planned):
        fail(BAD_INPUT, "--output requires a pipeline with a report, such as evaluation.")
    if request.host and request.port_forward:
        fail(BAD_INPUT, "--host and --port-forward exclude each other. Set only one of them.")
    if not (request.host or request.port_forward or in_cluster()):
        fail(BAD_INPUT, "The address of Kubeflow Pipelines is missing. Set --host or --port-forward.")
    address = urlsplit(request.host)
    if "@" in address.netloc:
        # What was received is not shown, since it holds a password.
        fail(
            BAD_INPUT,
            "host must be without a user name and a password, since addresses are logged. "
            "Set --token, --token-command or --cookie.",
        )
    if request.host and address.scheme not in ("http", "https"):
        fail(BAD_INPUT, f"host must begin with http:// or https://. Received: host={request.host!r}. Set --host.")
    if address.scheme == "http" and not _is_here(address.hostname) and request.has_credentials:
        click.echo(
            f"Warning: the credentials go to {request.host} over plain http, where anyone on the way can read them. "
            "Use https://.",
            err=True,
        )
    if request.output and not (request.tracking_uri or request.port_forward or in_cluster()):
        fail(BAD_INPUT, "--output requires MLflow's address as seen from this machine. Set --tracking-uri.")
