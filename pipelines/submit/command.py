"""The command `evasion submit`."""

import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from evasion.components.common.tracking import DEFAULT_EXPERIMENT
from evasion.pipelines.commands import PipelineCommand, of_pipeline
from evasion.pipelines.options import (
    BAD_INPUT,
    INTERRUPTED,
    SETTINGS,
    WIDTH,
    PipelineCommands,
    chosen,
    ended_by_signals,
    fail,
    help_of,
    options_of,
    placement_of,
    placement_parameters,
    told,
)
from evasion.pipelines.placement import CREDENTIALS, LINEAGE
from evasion.pipelines.revision import commit_of
from evasion.pipelines.submit.auth import identity, in_cluster, own_namespace
from evasion.pipelines.submit.cron import six_fields

if TYPE_CHECKING:
    from rich.console import Console

    from evasion.pipelines.preflight import Step
    from evasion.pipelines.submit.host import Host
    from evasion.pipelines.submit.package import Package

# kfp and MLflow are imported by the functions that need them, so that help comes at once.

FAILED, CANCELLED, TIMED_OUT, UNREACHABLE = 1, 3, 4, 5
CODES = {"SUCCEEDED": 0, "FAILED": FAILED, "CANCELED": CANCELLED, "SKIPPED": CANCELLED}
ENDS = {"SUCCEEDED": "succeeded", "FAILED": "failed", "CANCELED": "was cancelled", "SKIPPED": "was skipped"}

KUBEFLOW = "kubeflow"  # the namespace of Kubeflow Pipelines itself
DASHBOARD, DASHBOARD_PORT = "ml-pipeline-ui", 80
SHOWN_PORT = 8080  # at which the dashboard is said to be, since the way through kubectl ends with the command
IN_CLUSTER = f"http://ml-pipeline.{KUBEFLOW}.svc.cluster.local:8888"

# A placement's option that bears the name of something else here.
RENAMED = {"timeout": "step_timeout"}


class Duration(click.ParamType[float]):
    """Seconds, as in 90m, 2h30m or 45s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", str(value).replace(" ", ""))
        seconds = sum(
            int(number or 0) * unit
            for number, unit in zip(found.groups() if found else (), (3600, 60, 1), strict=False)
        )
        if not seconds:
            self.fail(f"{value!r} is no duration, such as 90m, 2h30m or 45s.", param, ctx)
        return float(seconds)


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


def _common_options() -> list[click.Option]:
    """Return the options that every pipeline has beside its own."""
    return [
        click.Option(
            ["--host"],
            default="",
            envvar="KFP_HOST",
            show_envvar=True,
            help="Kubeflow Pipelines' address, such as https://kubeflow.example/pipeline.  [default: that of the "
            "cluster, in a pod]",
        ),
        click.Option(
            ["--port-forward"],
            is_flag=True,
            help=f"Reach the cluster of kubectl's context through kubectl: service {DASHBOARD}, namespace {KUBEFLOW}.",
        ),
        click.Option(
            ["--namespace"],
            default="",
            envvar="KFP_NAMESPACE",
            show_envvar=True,
            help=f"The namespace of the run.  [default: the pod's, or {KUBEFLOW}]",
        ),
        click.Option(
            ["--run-name"], default="", help="What the dashboard calls the run.  [default: pipeline and time]"
        ),
        click.Option(
            ["--git-commit"],
            default="",
            help="The commit that asks for the run, recorded in MLflow.  [default: that of the folder you are in]",
        ),
        click.Option(["--token"], default="", envvar="KFP_TOKEN", show_envvar=True, help="A bearer token."),
        click.Option(
            ["--token-command"],
            default="",
            help="A command that prints a bearer token; it is run again when the token has expired.",
        ),
        click.Option(
            ["--cookie"],
            default="",
            envvar="KFP_COOKIE",
            show_envvar=True,
            help="The header Cookie of a session, such as authservice_session=…",
        ),
        click.Option(["--wait/--no-wait"], default=True, show_default=True, help="Follow the run until it has ended."),
        click.Option(
            ["--timeout"], type=Duration(), help="How long to wait, such as 90m; the run goes on.  [default: for ever]"
        ),
        click.Option(
            ["--terminate-on-interrupt"],
            is_flag=True,
            help="Terminate the run when this command is interrupted, as a CI job that is cancelled.  [default: ask, "
            "or let it go on where nobody can answer]",
        ),
        click.Option(
            ["--output"],
            type=click.Path(file_okay=False, path_type=Path),
            help="The folder for report.html and report.json of the run, fetched from MLflow. One with a password "
            "takes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; through --port-forward, without them, those "
            "of the steps' Secret.",
        ),
        click.Option(
            ["--tracking-uri"],
            default="",
            envvar="MLFLOW_TRACKING_URI",
            show_envvar=True,
            help="For --output, MLflow's address seen from here.  [default: the pipeline's own in a pod, or through "
            "--port-forward]",
        ),
        click.Option(
            ["--cron"],
            default="",
            help='Let the run recur, such as "0 2 * * *", in the time zone of the cluster.',
        ),
    ]


class _Submitted(PipelineCommands):
    """The commands of pipelines, and of files that hold a compiled one."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Make the command of a pipeline or of a file."""
        if Path(name).suffix in (".yaml", ".yml"):
            return _file_command(Path(name))
        return super().get_command(ctx, name)


def _command(command: PipelineCommand) -> click.Command:
    """Make the command that submits a pipeline."""

    def run(**values: Any) -> None:
        from evasion.pipelines.placement import place
        from evasion.pipelines.submit.package import Package

        pipeline, arguments = chosen(command, values)
        placement = placement_of(values, RENAMED)
        package = Package.of(place(pipeline, placement))
        _submit(package, command.name, placement.experiment, arguments, _request(values))

    return click.Command(
        command.name,
        params=[*options_of(command), *_common_options(), *placement_parameters(RENAMED)],
        callback=run,
        help=help_of(command).replace("evasion run", "evasion submit"),
        short_help=command.summary,
        context_settings=SETTINGS,
    )


def _file_command(file: Path) -> click.Command:
    """Make the command that submits a compiled pipeline."""
    from evasion.pipelines.submit.package import Package

    try:
        package = Package.read(file)
    except (OSError, ValueError) as error:
        fail(BAD_INPUT, str(error))
    command = of_pipeline(package.name, package.pipeline, left_out=tuple(LINEAGE))
    experiment = click.Option(
        ["--experiment"], default=DEFAULT_EXPERIMENT, show_default=True, help="The experiment in Kubeflow."
    )

    def run(experiment: str, **values: Any) -> None:
        _, arguments = chosen(command, values)
        _submit(package, package.name, experiment, arguments, _request(values))

    return click.Command(
        str(file),
        params=[*options_of(command), *_common_options(), experiment],
        callback=run,
        help=f"Submit the compiled pipeline {package.name} of {file}.",
        context_settings=SETTINGS,
    )


submit = _Submitted(
    name="submit",
    make=_command,
    help="""Run a pipeline in a cluster: upload it if it is new there, start it, and follow it until it has ended.

    PIPELINE is a name, or the path of a compiled YAML. Every parameter is an option, as in `evasion run`; so is what
    the cluster gives to the steps, as in `evasion compile`.

    \b
    Ends with:
      0  the run has succeeded (with --no-wait and --cron: is there)
      1  it has failed, or the host refuses it
      2  wrong usage; nothing was sent
      3  it was cancelled or skipped
      4  --timeout has passed; the run goes on
      5  the host, or MLflow for --output, cannot be reached or does not let you
    """,
    epilog="Example: evasion submit evaluation --host https://kubeflow.example/pipeline --data-dir-test /data/test",
    options_metavar="",
    subcommand_metavar="PIPELINE|FILE [OPTIONS]",
    no_args_is_help=True,
    context_settings=SETTINGS,
)


def _request(values: Mapping[str, Any]) -> Request:
    request = Request(**{one.name: values[one.name] for one in fields(Request)})
    named = click.get_current_context().get_parameter_source("host")
    # What is asked for outdoes what the environment says.
    return replace(request, host="") if request.port_forward and named is ParameterSource.ENVIRONMENT else request


def _submit(package: "Package", name: str, experiment: str, arguments: Mapping[str, Any], request: Request) -> None:
    """Submit a package and do what is asked of its run."""
    from rich.console import Console

    from evasion.components.common.tracking import TrackingError
    from evasion.pipelines.preflight import BadArgumentsError
    from evasion.pipelines.submit import host as hosts
    from evasion.pipelines.submit.kubectl import KubectlError

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
    except ValueError as error:
        fail(BAD_INPUT, told(str(error), ("cron",)))
    _check(request, planned, cron)
    console = Console(stderr=True)
    job = _Job(package, name, experiment, values, planned, request, commit, console)
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


def _check(request: Request, planned: Sequence["Step"], cron: str) -> None:
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


def _connected(request: Request, stack: ExitStack) -> "Host":
    """Return the host that the options say, which answers."""
    from evasion.pipelines.submit.forward import forwarded
    from evasion.pipelines.submit.host import Host

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
class _Job:
    """One package with its arguments, on the way to a host."""

    package: "Package"
    pipeline: str
    experiment: str
    values: Mapping[str, Any]
    planned: Sequence["Step"]
    request: Request
    commit: str
    console: "Console"

    def say(self, text: str) -> None:
        """Tell how it goes; the result alone goes to standard output."""
        self.console.out(text, highlight=False)

    @property
    def description(self) -> str:
        """What the run says of itself in the dashboard."""
        return f"evasion submit {self.pipeline}{f', commit {self.commit}' if self.commit else ''}"

    def upload(self, host: "Host") -> tuple[str, Any]:
        """Return the experiment's id and the version of the pipeline, both there."""
        experiment = host.experiment(self.experiment)
        version, uploaded = host.package(
            self.package.name, self.package.version, self.package.content, self.description
        )
        self.say(f"{'uploaded' if uploaded else 'already there:'} {self.package.version}")
        return experiment, version

    def schedule(self, host: "Host", cron: str) -> None:
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

    def run(self, host: "Host", stack: ExitStack) -> None:
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
        code = CODES[ended.state]
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

    def explain(self, host: "Host", run: Any) -> str:
        """Show the logs of the steps that failed, and return what the first of them says went wrong."""
        from evasion.pipelines.submit import logs, watch
        from evasion.pipelines.submit.host import HostError
        from evasion.pipelines.submit.workflow import failed_pods

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

    def follow(self, host: "Host", run_id: str) -> Any:
        """Return the run once it has ended; Ctrl-C asks whether to terminate it, or does so."""
        from evasion.pipelines.submit import show, watch

        listener = (show.Live if self.console.is_terminal else show.Lines)(self.console)
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

    def left(self, host: "Host", run_id: str) -> NoReturn:
        """Leave a run that goes on."""
        fail(INTERRUPTED, "interrupted; the run goes on", note=f"Run: {host.page(run_id)}")

    def fetch(self, host: "Host", run_id: str, stack: ExitStack) -> None:
        """Bring the report here and show it."""
        import json

        from rich.console import Console

        from evasion.components.common.tracking import download_report
        from evasion.pipelines.display import show_report

        output = self.request.output or Path()
        output.mkdir(parents=True, exist_ok=True)
        page, summary = download_report(run_id, self.mlflow(host, stack), output)
        result = Console(width=None if sys.stdout.isatty() else WIDTH)
        show_report(result, json.loads(summary.read_text(encoding="utf-8")))
        click.echo(f"Report: {page}")

    def end_tracked(self, host: "Host", run: Any) -> None:
        """End the runs in MLflow that this one has left open, which is over: those of pods that were killed."""
        from evasion.components.common.tracking import TrackingError, end_open_runs
        from evasion.pipelines.submit.kubectl import KubectlError

        status = "FAILED" if run.state == "FAILED" else "KILLED"
        try:
            with ExitStack() as stack:
                number = end_open_runs(run.run_id, self.mlflow(host, stack), status)
        except (TrackingError, KubectlError) as error:
            self.say(f"Could not see to the runs in MLflow that may be open: {error}")
        else:
            if number:
                self.say(f"Runs in MLflow that were left open and are {status} now: {number}")

    def check_mlflow(self, host: "Host") -> None:
        """Ask MLflow as the report will be asked for, so that what is amiss is said before a run has cost hours."""
        from evasion.components.common.tracking import LoginError, TrackingError, check_access

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

    def mlflow(self, host: "Host", stack: ExitStack) -> str:
        """Return where MLflow is, seen from here, and ask it as the steps do until the stack is unwound."""
        from evasion.pipelines.submit import kubectl
        from evasion.pipelines.submit.forward import forwarded

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
