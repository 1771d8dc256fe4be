"""Submits a package, follows its run, and fetches the report."""

import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console

from evasion.components.common.results import report as reports
from evasion.components.common.tracking import LoginError, TrackingError, check_access, download_report, end_open_runs
from evasion.components.common.validate import ParameterError
from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED, OF_A_RUN, TIMED_OUT, UNREACHABLE
from evasion.pipelines.cli.options import WIDTH, ended_by_signals, fail, with_option_hint
from evasion.pipelines.cli.submit import progress
from evasion.pipelines.cli.submit.request import Request, validate
from evasion.pipelines.cli.tables import show_report
from evasion.pipelines.placement import CREDENTIALS, LINEAGE
from evasion.pipelines.plan import BadArgumentsError, PlannedStep
from evasion.pipelines.revision import commit_of
from evasion.pipelines.submit import DASHBOARD, DASHBOARD_PORT, KUBEFLOW, kubectl, logs, watch
from evasion.pipelines.submit import host as hosts
from evasion.pipelines.submit.auth import identity, own_namespace
from evasion.pipelines.submit.cron import six_fields
from evasion.pipelines.submit.forward import forwarded
from evasion.pipelines.submit.host import Host, HostError
from evasion.pipelines.submit.kubectl import KubectlError
from evasion.pipelines.submit.package import Package
from evasion.pipelines.submit.workflow import failed_pods

ENDS = {"SUCCEEDED": "succeeded", "FAILED": "failed", "CANCELED": "was cancelled", "SKIPPED": "was skipped"}


SHOWN_PORT = 8080  # of the dashboard in printed addresses, since the connection through kubectl ends with the command

IN_CLUSTER = f"http://ml-pipeline.{KUBEFLOW}.svc.cluster.local:8888"


def submit_package(
    package: Package, name: str, experiment: str, arguments: Mapping[str, Any], request: Request
) -> None:
    """Submit a package, and follow its run as the request says."""
    # A recurring run has no commit by default: a new commit would create another recurring run.
    commit = request.git_commit or ("" if request.cron else commit_of(Path.cwd()))
    inputs = package.pipeline.component_spec.inputs or {}
    origin = {"git_commit": commit, "kubeflow_link": request.host}
    # A default that was compiled into the package is kept.
    lineage = {name: origin[name] for name in LINEAGE if name in inputs and not inputs[name].default}
    try:
        values, planned = package.plan({**arguments, **lineage})
        cron = six_fields(request.cron) if request.cron else ""
    except BadArgumentsError as error:
        fail(BAD_INPUT, *(with_option_hint(problem.message, problem.parameters) for problem in error.problems))
    except ParameterError as error:
        fail(BAD_INPUT, with_option_hint(str(error), error.parameters))
    validate(request, planned, cron)
    console = Console(stderr=True)
    job = Job(package, name, experiment, values, planned, request, commit, console)
    try:
        with ended_by_signals(), hosts.quiet(), ExitStack() as stack:
            host = _connected(request, stack)
            if request.output:
                job.check_mlflow(host)
            if cron:
                job.schedule(host, cron)
            else:
                job.run(host, stack)
    except (hosts.UnreachableError, hosts.DeniedError, KubectlError, TrackingError) as error:
        fail(UNREACHABLE, str(error))
    except (hosts.HostError, OSError) as error:
        fail(FAILED, str(error))
    except KeyboardInterrupt:
        fail(INTERRUPTED, "interrupted")


def _connected(request: Request, stack: ExitStack) -> Host:
    """Return the host of the request, connected."""
    address, dashboard = request.host or IN_CLUSTER, ""
    if request.port_forward:
        dashboard = f"http://127.0.0.1:{SHOWN_PORT}"
        address = stack.enter_context(forwarded(DASHBOARD, KUBEFLOW, DASHBOARD_PORT))
    credentials = identity(token=request.token, token_command=request.token_command, cookie=request.cookie)
    host = Host(address, credentials, request.namespace or own_namespace(), dashboard)
    host.connect()
    if host.multi_user and not host.namespace:
        fail(BAD_INPUT, "namespace must be given, since this host serves several users. Set --namespace.")
    host.namespace = host.namespace or KUBEFLOW
    return host


@dataclass(frozen=True)
class Job:
    """A package with its arguments, to run on a host."""

    package: Package
    pipeline: str
    experiment: str
    values: Mapping[str, Any]
    planned: Sequence[PlannedStep]
    request: Request
    commit: str
    console: Console

    def log(self, text: str) -> None:
        """Print a progress message to standard error; only the result goes to standard output."""
        self.console.out(text, highlight=False)

    @property
    def description(self) -> str:
        """The run's description in the dashboard."""
        return f"evasion submit {self.pipeline}{f', commit {self.commit}' if self.commit else ''}"

    def upload(self, host: Host) -> tuple[str, Any]:
        """Create the experiment and upload the pipeline if needed; return the experiment's id and the version."""
        experiment = host.experiment(self.experiment)
        version, uploaded = host.package(
            self.package.name, self.package.version, self.package.content, self.description
        )
        self.log(f"{'uploaded' if uploaded else 'already there:'} {self.package.version}")
        return experiment, version

    def schedule(self, host: Host, cron: str) -> None:
        """Create a recurring run."""
        experiment, version = self.upload(host)
        name = self.request.run_name or self.pipeline
        recurring, created, others = host.schedule(version, experiment, name, self.values, self.description, cron)
        if cron != self.request.cron.strip():
            self.log(f"cron: {cron}, where the first field is seconds, as Kubeflow expects")
        state = "recurs" if created else "recurs already"
        click.echo(f"{name} {state}: {cron} (recurring run {recurring.recurring_run_id})")
        for other in others:
            self.log(f"! {other.recurring_run_id} has the same name and stays active: disable it if no longer needed")

    def run(self, host: Host, stack: ExitStack) -> None:
        """Start the run, and follow it unless --no-wait is given."""
        experiment, version = self.upload(host)
        name = self.request.run_name or f"{self.pipeline} {datetime.now():%Y-%m-%d %H:%M:%S}"
        # The mark prevents a second start if a response of the host is lost.
        mark = f"submission {uuid.uuid4()}"
        started = host.start(version, experiment, name, self.values, self.description, mark)
        click.echo(f"Run: {host.page(started.run_id)}")
        if self.request.port_forward:
            command = f"kubectl port-forward --namespace {KUBEFLOW} service/{DASHBOARD} {SHOWN_PORT}:{DASHBOARD_PORT}"
            self.log(f"To open this page, keep this command running: {command}")
        if not self.request.wait:
            return
        ended = self.follow(host, started.run_id)
        code = OF_A_RUN[ended.state]
        message = self.explain(host, ended) if code == FAILED else ""
        if self.request.output:
            self.end_tracked(host, ended)
        if code:
            message = message or (ended.error.message if ended.error else "")
            fail(
                code,
                f"The run {ENDS[ended.state]}{f': {message}' if message else ''}",
                note=f"Run: {host.page(ended.run_id)}",
            )
        self.log("The run succeeded.")
        if self.request.output:
            self.fetch(host, ended.run_id, stack)

    def explain(self, host: Host, run: Any) -> str:
        """Print the logs of the failed steps, and return the error message of the first."""
        nodes = watch.nodes(host, run)
        steps = watch.progress(nodes, self.planned)
        names = {failed.step.task: failed.step.name for failed in steps if failed.state == "FAILED"}
        # Pods outside the pipeline's steps, such as the driver of the whole run, count if no step failed.
        pods = {pod.task: pod.message for pod in failed_pods(nodes)}
        if not names:
            names = {task: f"the driver of {task}" for task in pods}
        first = ""
        for task, name in names.items():
            message = pods.get(task, "")
            try:
                pod, lines = logs.failed_step_log(host, run, nodes, self.package.spec, task)
                message = logs.last_exception(lines) or message
                self.log(f"{name}: {message}" if message else f"{name} failed.")
                self.log(f"The last lines of {name} (pod {pod}):")
                for line in lines:
                    self.log(f"    {line}")
            except HostError as error:
                self.log(
                    f"Could not fetch the log of {name} ({error}). See the dashboard, or run: kubectl logs "
                    f"--namespace {host.namespace} --selector pipeline/runid={run.run_id} --container main"
                )
            first = first or (f"{name}: {message}" if message else "")
        return first

    def follow(self, host: Host, run_id: str) -> Any:
        """Wait for the end of the run and return it; Ctrl-C terminates it, or asks whether to terminate it."""
        listener = (progress.WatchBars if self.console.is_terminal else progress.WatchLines)(self.console)
        deadline = time.monotonic() + self.request.timeout if self.request.timeout else None
        without_asking, terminated = self.request.terminate_on_interrupt, False
        while True:
            try:
                with listener:
                    return watch.until_ended(
                        host, run_id, self.planned, listener, deadline=deadline, cancelled=terminated
                    )
            except watch.TimeUpError:
                fail(TIMED_OUT, "The run has not ended in time; it continues.", note=f"Run: {host.page(run_id)}")
            except KeyboardInterrupt:
                if not without_asking and not (sys.stdin.isatty() and self.confirm_termination()):
                    fail(INTERRUPTED, "interrupted; the run continues", note=f"Run: {host.page(run_id)}")
                without_asking, terminated = False, True
                host.terminate(run_id)
                self.log("The run is being terminated.")

    def confirm_termination(self) -> bool:
        """Ask whether to terminate the run; another Ctrl-C means no."""
        try:
            return click.confirm("Terminate the run?", err=True)
        except click.Abort:
            return False

    def fetch(self, host: Host, run_id: str, stack: ExitStack) -> None:
        """Download the report and show it."""
        output = self.request.output or Path()
        output.mkdir(parents=True, exist_ok=True)
        page, summary = download_report(run_id, self.mlflow(host, stack), output)
        try:
            report = reports.read(summary)
        except ValueError as error:
            # The image of the steps may be of another version than this command.
            fail(FAILED, f"The run succeeded, but its report cannot be shown: {error}", note=f"Report: {page}")
        show_report(Console(width=None if sys.stdout.isatty() else WIDTH), report)
        click.echo(f"Report: {page}")

    def end_tracked(self, host: Host, run: Any) -> None:
        """End the MLflow runs that an ended run has left open, such as those of killed pods."""
        status = "FAILED" if run.state == "FAILED" else "KILLED"
        try:
            with ExitStack() as stack:
                number = end_open_runs(run.run_id, self.mlflow(host, stack), status)
        except (TrackingError, KubectlError) as error:
            self.log(f"Could not end the open runs in MLflow: {error}")
        else:
            if number:
                self.log(f"Open runs in MLflow ended as {status}: {number}")

    def check_mlflow(self, host: Host) -> None:
        """Check the access to MLflow, so that a problem is reported before a run has cost hours."""
        with ExitStack() as stack:
            address = self.mlflow(host, stack)
            try:
                check_access(address)
            except TrackingError as error:
                messages = [str(error)]
                secret = self.secret
                if isinstance(error, LoginError) and secret and not os.environ.get(CREDENTIALS[0]):
                    messages.append(f"kubectl shows no login in Secret {host.namespace}/{secret}.")
                raise TrackingError(" ".join([*messages, "No run was started."])) from error

    @property
    def secret(self) -> str:
        """The Secret with the login of the MLflow behind kubectl; the login is never sent to another address."""
        through_kubectl = self.request.port_forward and not self.request.tracking_uri
        return self.package.secret(CREDENTIALS[0]) if through_kubectl else ""

    def mlflow(self, host: Host, stack: ExitStack) -> str:
        """Return MLflow's address as seen from here, and use the steps' login until the stack is unwound."""
        cluster_address = self.package.variable("MLFLOW_TRACKING_URI")
        if self.request.tracking_uri or not self.request.port_forward:
            return self.request.tracking_uri or cluster_address
        # http://SERVICE.NAMESPACE.svc:PORT
        parts = urlsplit(cluster_address)
        service, _, rest = str(parts.hostname).partition(".")
        namespace = rest.partition(".")[0] or host.namespace
        address = stack.enter_context(forwarded(service, namespace, parts.port or 80))
        if self.secret and not any(os.environ.get(name) for name in (*CREDENTIALS, "MLFLOW_TRACKING_TOKEN")):
            login = kubectl.secret(self.secret, host.namespace)
            stack.enter_context(_environment({name: login[name] for name in CREDENTIALS if name in login}))
        return address


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them at the end."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)
