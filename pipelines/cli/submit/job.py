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
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
from rich.console import Console

from evasion.components.common.results import report as reports
from evasion.components.common.tracking import LoginError, TrackingError, check_access, download_report, end_open_runs
from evasion.components.common.validate import ParameterError
from evasion.pipelines.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED, OF_A_RUN, TIMED_OUT, UNREACHABLE
from evasion.pipelines.cli.options import WIDTH, ended_by_signals, fail, told
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


SHOWN_PORT = 8080  # at which the dashboard is said to be, since the way through kubectl ends with the command

IN_CLUSTER = f"http://ml-pipeline.{KUBEFLOW}.svc.cluster.local:8888"


def submit_package(
    package: Package, name: str, experiment: str, arguments: Mapping[str, Any], request: Request
) -> None:
    """Submit a package and do what is asked of its run."""
    # What recurs is asked for by no commit: a new one would make another recurring run of it.
    commit = request.git_commit or ("" if request.cron else commit_of(Path.cwd()))
    known = package.pipeline.component_spec.inputs or {}
    # A link that the package has settled stays.
    settled = {name for name in LINEAGE if name in known and known[name].default}
    whence = {"git_commit": commit, "kubeflow_link": request.host}
    lineage = {name: value for name, value in whence.items() if name in known and name not in settled}
    try:
        values, planned = package.plan({**arguments, **lineage})
        cron = six_fields(request.cron) if request.cron else ""
    except BadArgumentsError as error:
        fail(BAD_INPUT, *(told(problem.message, problem.parameters) for problem in error.problems))
    except ParameterError as error:
        fail(BAD_INPUT, told(str(error), error.parameters))
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
    """Return the host that the options say, which answers."""
    address, dashboard = request.host or IN_CLUSTER, ""
    if request.port_forward:
        dashboard = f"http://127.0.0.1:{SHOWN_PORT}"
        address = stack.enter_context(forwarded(DASHBOARD, KUBEFLOW, DASHBOARD_PORT))
    who = identity(token=request.token, token_command=request.token_command, cookie=request.cookie)
    host = Host(address, who, request.namespace or own_namespace(), dashboard)
    host.connect()
    if host.multi_user and not host.namespace:
        fail(BAD_INPUT, "This host serves several namespaces: yours must be given. Set --namespace.")
    host.namespace = host.namespace or KUBEFLOW
    return host


@dataclass(frozen=True)
class Job:
    """One package with its arguments, on the way to a host."""

    package: Package
    pipeline: str
    experiment: str
    values: Mapping[str, Any]
    planned: Sequence[PlannedStep]
    request: Request
    commit: str
    console: Console

    def say(self, text: str) -> None:
        """Tell how it goes; the result alone goes to standard output."""
        self.console.out(text, highlight=False)

    @property
    def description(self) -> str:
        """What the run says of itself in the dashboard."""
        return f"evasion submit {self.pipeline}{f', commit {self.commit}' if self.commit else ''}"

    def upload(self, host: Host) -> tuple[str, Any]:
        """Return the experiment's id and the version of the pipeline, both there."""
        experiment = host.experiment(self.experiment)
        version, uploaded = host.package(
            self.package.name, self.package.version, self.package.content, self.description
        )
        self.say(f"{'uploaded' if uploaded else 'already there:'} {self.package.version}")
        return experiment, version

    def schedule(self, host: Host, cron: str) -> None:
        """Let the run recur."""
        experiment, version = self.upload(host)
        name = self.request.run_name or self.pipeline
        found, made, others = host.schedule(version, experiment, name, self.values, self.description, cron)
        if cron != self.request.cron.strip():
            self.say(f"cron: {cron}, of which Kubeflow takes the first field for seconds")
        state = "recurs" if made else "recurs already"
        click.echo(f"{name} {state}: {cron} (recurring run {found.recurring_run_id})")
        for other in others:
            self.say(f"! {other.recurring_run_id} bears this name too and goes on: disable it if this one replaces it")

    def run(self, host: Host, stack: ExitStack) -> None:
        """Start the run, and follow it if it is to be waited for."""
        experiment, version = self.upload(host)
        name = self.request.run_name or f"{self.pipeline} {datetime.now():%Y-%m-%d %H:%M:%S}"
        # What is lost on the way to the host must not be started twice.
        mark = f"submission {uuid.uuid4()}"
        started = host.start(version, experiment, name, self.values, self.description, mark)
        click.echo(f"Run: {host.page(started.run_id)}")
        if self.request.port_forward:
            shown = f"kubectl port-forward --namespace {KUBEFLOW} service/{DASHBOARD} {SHOWN_PORT}:{DASHBOARD_PORT}"
            self.say(f"The page is there while this runs: {shown}")
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
        self.say("The run succeeded.")
        if self.request.output:
            self.fetch(host, ended.run_id, stack)

    def explain(self, host: Host, run: Any) -> str:
        """Show the logs of the steps that failed, and return what the first of them says went wrong."""
        nodes = watch.nodes(host, run)
        names = {one.step.task: one.step.name for one in watch.progress(nodes, self.planned) if one.state == "FAILED"}
        # What is no step of the pipeline, such as the driver of the whole, counts where nothing else failed.
        pods = {pod.task: pod.message for pod in failed_pods(nodes)}
        if not names:
            names = {task: f"the driver of {task}" for task in pods}
        first = ""
        for task, name in names.items():
            message = pods.get(task, "")
            try:
                pod, lines = logs.of_failed(host, run, nodes, self.package.spec, task)
                message = logs.raised(lines) or message
                self.say(f"{name}: {message}" if message else f"{name} failed.")
                self.say(f"The last lines of {name} (pod {pod}):")
                for line in lines:
                    self.say(f"    {line}")
            except HostError as error:
                self.say(
                    f"Could not fetch the log of {name} ({error}). See the dashboard, or: kubectl logs "
                    f"--namespace {host.namespace} --selector pipeline/runid={run.run_id} --container main"
                )
            first = first or (f"{name}: {message}" if message else "")
        return first

    def follow(self, host: Host, run_id: str) -> Any:
        """Return the run once it has ended; Ctrl-C asks whether to terminate it, or does so."""
        listener = (progress.WatchBars if self.console.is_terminal else progress.WatchLines)(self.console)
        deadline = time.monotonic() + self.request.timeout if self.request.timeout else None
        unasked, terminated = self.request.terminate_on_interrupt, False
        while True:
            try:
                with listener:
                    return watch.until_ended(
                        host, run_id, self.planned, listener, deadline=deadline, cancelled=terminated
                    )
            except watch.TimeUpError:
                fail(TIMED_OUT, "The run has not ended in time; it goes on.", note=f"Run: {host.page(run_id)}")
            except KeyboardInterrupt:
                if not unasked and not (sys.stdin.isatty() and self.asks_to_terminate()):
                    self.left(host, run_id)
                unasked, terminated = False, True
                host.terminate(run_id)
                self.say("The run is being terminated.")

    def asks_to_terminate(self) -> bool:
        """Ask; a further Ctrl-C is a no."""
        try:
            return click.confirm("Terminate the run?", err=True)
        except click.Abort:
            return False

    def left(self, host: Host, run_id: str) -> NoReturn:
        """Leave a run that goes on."""
        fail(INTERRUPTED, "interrupted; the run goes on", note=f"Run: {host.page(run_id)}")

    def fetch(self, host: Host, run_id: str, stack: ExitStack) -> None:
        """Bring the report here and show it."""
        output = self.request.output or Path()
        output.mkdir(parents=True, exist_ok=True)
        page, summary = download_report(run_id, self.mlflow(host, stack), output)
        result = Console(width=None if sys.stdout.isatty() else WIDTH)
        show_report(result, reports.read(summary))
        click.echo(f"Report: {page}")

    def end_tracked(self, host: Host, run: Any) -> None:
        """End the runs in MLflow that this one has left open, which is over: those of pods that were killed."""
        status = "FAILED" if run.state == "FAILED" else "KILLED"
        try:
            with ExitStack() as stack:
                number = end_open_runs(run.run_id, self.mlflow(host, stack), status)
        except (TrackingError, KubectlError) as error:
            self.say(f"Could not see to the runs in MLflow that may be open: {error}")
        else:
            if number:
                self.say(f"Runs in MLflow that were left open and are {status} now: {number}")

    def check_mlflow(self, host: Host) -> None:
        """Ask MLflow as the report will be asked for, so that what is amiss is said before a run has cost hours."""
        with ExitStack() as stack:
            address = self.mlflow(host, stack)
            try:
                check_access(address)
            except TrackingError as error:
                told = [str(error)]
                secret = self.secret
                if isinstance(error, LoginError) and secret and not os.environ.get(CREDENTIALS[0]):
                    told.append(f"kubectl shows no login in Secret {host.namespace}/{secret}.")
                raise TrackingError(" ".join([*told, "No run was started."])) from error

    @property
    def secret(self) -> str:
        """The Secret with the login of the MLflow that kubectl leads to; to another address it is never sent."""
        through_kubectl = self.request.port_forward and not self.request.tracking_uri
        return self.package.secret(CREDENTIALS[0]) if through_kubectl else ""

    def mlflow(self, host: Host, stack: ExitStack) -> str:
        """Return where MLflow is, seen from here, and ask it as the steps do until the stack is unwound."""
        inside = self.package.variable("MLFLOW_TRACKING_URI")
        if self.request.tracking_uri or not self.request.port_forward:
            return self.request.tracking_uri or inside
        # Of http://SERVICE.NAMESPACE.svc:PORT.
        parts = urlsplit(inside)
        service, _, rest = str(parts.hostname).partition(".")
        namespace = rest.partition(".")[0] or host.namespace
        address = stack.enter_context(forwarded(service, namespace, parts.port or 80))
        if self.secret and not any(os.environ.get(name) for name in (*CREDENTIALS, "MLFLOW_TRACKING_TOKEN")):
            login = kubectl.secret(self.secret, host.namespace)
            stack.enter_context(_variables({name: login[name] for name in CREDENTIALS if name in login}))
        return address


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a block, and put back what was there."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)
