"""A Kubeflow Pipelines host: the API of kfp-server-api, with time limits, retries and tokens that are renewed.

Reading is tried again after any fault. What makes something is looked for again first, since a fault leaves open
whether it was made.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import kfp_server_api
import urllib3

from evasion.pipelines.submit.auth import AuthenticationError, Identity
from evasion.pipelines.submit.workflow import Node, nodes_of

CONNECT, READ = 10.0, 60.0  # seconds
BACKOFF = 0.5  # seconds before the second retry; each further one waits twice as long
RETRIES = 5
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
TRANSIENT = (429, 500, 502, 503, 504)
LOG_LINES = 200  # of a failed step's log

Made = TypeVar("Made")


class HostError(RuntimeError):
    """The host refuses what was asked."""


class UnreachableError(HostError):
    """The host does not answer, or not as Kubeflow Pipelines does."""


class DeniedError(HostError):
    """The host does not let this identity do it."""


class MissingError(HostError):
    """The host does not hold what was asked for."""


class TakenError(HostError):
    """The host already holds one of that name."""


class _Client(kfp_server_api.ApiClient):  # type: ignore[misc] # it has no types
    """The generated client, with the identity's headers, a time limit, and errors that say what to do."""

    def __init__(self, address: str, identity: Identity) -> None:
        configuration = kfp_server_api.Configuration(host=address)
        # The generated client asks the environment for neither.
        parts = urlsplit(address)
        if not proxy_bypass(str(parts.hostname)):
            configuration.proxy = getproxies().get(parts.scheme)
        configuration.ssl_ca_cert = next((os.environ[name] for name in CERTIFICATES if os.environ.get(name)), None)
        configuration.retries = urllib3.Retry(
            total=RETRIES,
            backoff_factor=BACKOFF,
            backoff_max=10,
            status_forcelist=TRANSIENT,
            allowed_methods={"GET"},
            raise_on_status=False,
        )
        super().__init__(configuration)
        self._identity = identity

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        """Ask once, and once more with a new token where the one sent has expired."""
        arguments["_request_timeout"] = arguments.get("_request_timeout") or (CONNECT, READ)
        asked = dict(arguments.pop("headers", None) or {})
        try:
            for again in (False, True):
                try:
                    response = super().request(method, url, headers={**asked, **self._identity.headers()}, **arguments)
                    break
                except kfp_server_api.ApiException as error:
                    if again or error.status != HTTPStatus.UNAUTHORIZED or not self._identity.renewed():
                        raise _explained(error, self.configuration.host) from error
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{self.configuration.host} does not answer: {_cause(error)}") from error
        except AuthenticationError as error:
            raise DeniedError(str(error)) from error
        if "html" in str(response.getheader("content-type")):
            raise DeniedError(
                f"{self.configuration.host} answers with a web page, as a log-in does: set --token, --token-command or "
                "--cookie, and see that --host is that of the API."
            )
        return response

    def text(self, url: str, query: Mapping[str, str]) -> tuple[str | None, str]:
        """Ask once for a plain text; return it, or None and why there is none."""
        try:
            # Past the retries: the dashboard says 500 of a pod that is not there.
            answer = self.rest_client.pool_manager.request(
                "GET",
                url,
                fields=query,
                headers=self._identity.headers(),
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT, read=READ),
            )
        except (urllib3.exceptions.HTTPError, AuthenticationError) as error:
            return None, _cause(error)
        if answer.status == HTTPStatus.OK and "html" not in answer.headers.get("content-type", ""):
            return answer.data.decode(errors="replace"), ""
        return None, f"{url} answers {answer.status}"


def _error_body(text: str) -> str:
    """Return the message of an error that was sent as an answer, with status 200; blank where a text is none."""
    if not text.startswith("{"):
        return ""
    try:
        body = json.loads(text)
    except ValueError:
        return ""
    return (
        str(body.get("error_message") or "").partition("\n")[0]
        if body.keys() <= {"error_message", "error_details"}
        else ""
    )


def _explained(error: Any, address: str) -> HostError:
    """Return the error of ours for one of the generated client."""
    try:
        told = json.loads(error.body or "")
        said = str(told.get("message") or told.get("error") or told)
    except (ValueError, AttributeError):
        said = str(error.reason if not error.body else error.body.decode(errors="replace")).strip()
    said = f"{error.status} {said}".strip()
    if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return DeniedError(f"{address} does not let you: {said}. Set --token, --token-command or --cookie.")
    if error.status == HTTPStatus.NOT_FOUND:
        return MissingError(f"{address}: {said}")
    if error.status == HTTPStatus.CONFLICT:
        return TakenError(f"{address}: {said}")
    # Status 0: no answer that TLS accepts.
    unreachable = not error.status or error.status in TRANSIENT
    return (UnreachableError if unreachable else HostError)(f"{address}: {said}")


def _cause(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


class Host:
    """A host, as one identity sees it.

    Args:
        address: Where it is: that of the dashboard, or of the API server itself.
        identity: Who asks.
        namespace: The profile's namespace, where the host serves several; and where its pods are.
        dashboard: Where people find the dashboard, if not at the address.
    """

    def __init__(self, address: str, identity: Identity, namespace: str = "", dashboard: str = "") -> None:
        self.address = address.rstrip("/")
        self.namespace = namespace
        self._dashboard = dashboard or self.address
        self._client = _Client(self.address, identity)
        self._pipelines = kfp_server_api.PipelineServiceApi(self._client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(self._client)
        self._experiments = kfp_server_api.ExperimentServiceApi(self._client)
        self._runs = kfp_server_api.RunServiceApi(self._client)
        self._recurring = kfp_server_api.RecurringRunServiceApi(self._client)
        self.multi_user = False

    def connect(self) -> None:
        """See that the host answers, and whether it asks for a namespace.

        Raises:
            HostError: It does not.
        """
        found = kfp_server_api.HealthzServiceApi(self._client).healthz_service_get_healthz()
        self.multi_user = bool(found.multi_user)

    @property
    def _owner(self) -> dict[str, str]:
        """The namespace, for the calls that take one; a host of one user refuses any."""
        return {"namespace": self.namespace} if self.multi_user else {}

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, made where it is missing."""

        def find() -> Any:
            listed = self._experiments.experiment_service_list_experiments(filter=_named(name), **self._owner)
            return next(iter(listed.experiments or ()), None)

        def make() -> Any:
            wanted = kfp_server_api.V2beta1Experiment(display_name=name, **self._owner)
            return self._experiments.experiment_service_create_experiment(wanted)

        return str(_found_or_made(find, make)[0].experiment_id)

    def package(self, name: str, version: str, content: bytes, description: str) -> tuple[Any, bool]:
        """Return the version of a pipeline that is this package, and whether it had to be uploaded.

        Args:
            name: The pipeline's name.
            version: The version's, which is another one for another content.
            content: The compiled YAML.
            description: What the version says of itself.
        """

        def find_pipeline() -> Any:
            listed = self._pipelines.pipeline_service_list_pipelines(filter=_named(name), **self._owner)
            return next(iter(listed.pipelines or ()), None)

        def make_pipeline() -> Any:
            wanted = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, **self._owner)
            return self._pipelines.pipeline_service_create_pipeline(wanted)

        pipeline = _found_or_made(find_pipeline, make_pipeline)[0].pipeline_id

        def find() -> Any:
            listed = self._pipelines.pipeline_service_list_pipeline_versions(pipeline, filter=_named(version))
            return next(iter(listed.pipeline_versions or ()), None)

        def make() -> Any:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, f"{name}.yaml")
                file.write_bytes(content)
                return self._uploads.upload_pipeline_version(
                    str(file), name=version, display_name=version, pipelineid=pipeline, description=description
                )

        return _found_or_made(find, make)

    def start(
        self, package: Any, experiment: str, name: str, arguments: Mapping[str, Any], description: str, mark: str
    ) -> Any:
        """Start a run.

        Args:
            package: The version, as `package` returns it.
            experiment: The experiment's id.
            name: What the dashboard calls the run; several may bear it.
            arguments: The values of the pipeline's parameters.
            description: What the run says of itself.
            mark: A text that no other run's description holds, by which this one is known again.
        """

        def find() -> Any:
            listed = self._runs.run_service_list_runs(
                experiment_id=experiment, filter=_named(name), sort_by="created_at desc", page_size=50
            )
            return next((run for run in listed.runs or () if mark in (run.description or "")), None)

        def make() -> Any:
            wanted = kfp_server_api.V2beta1Run(
                display_name=name,
                description=f"{description} ({mark})",
                experiment_id=experiment,
                pipeline_version_reference=_reference(package),
                runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(arguments)),
            )
            return self._runs.run_service_create_run(wanted)

        return _found_or_made(find, make, look_first=False)[0]

    def schedule(
        self, package: Any, experiment: str, name: str, arguments: Mapping[str, Any], description: str, cron: str
    ) -> tuple[Any, bool, list[Any]]:
        """Let a run recur; one that is already there with the same package, arguments and times is kept.

        Returns:
            The recurring run, whether it had to be made, and others of that name in the experiment.
        """
        others: list[Any] = []

        def find() -> Any:
            listed = self._recurring.recurring_run_service_list_recurring_runs(
                experiment_id=experiment, filter=_named(name), page_size=50, **self._owner
            )
            alike = [one for one in listed.recurring_runs or () if _recurs(one, package, arguments, cron)]
            others[:] = [one for one in listed.recurring_runs or () if one not in alike[:1]]
            return next(iter(alike), None)

        def make() -> Any:
            wanted = kfp_server_api.V2beta1RecurringRun(
                display_name=name,
                description=description,
                experiment_id=experiment,
                pipeline_version_reference=_reference(package),
                runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(arguments)),
                trigger=kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=cron)),
                mode=kfp_server_api.RecurringRunMode.ENABLE,
                max_concurrency="1",
                no_catchup=True,
            )
            return self._recurring.recurring_run_service_create_recurring_run(wanted)

        return (*_found_or_made(find, make), others)

    def run(self, run_id: str) -> Any:
        """Return a run as it is now."""
        return self._runs.run_service_get_run(run_id)

    def nodes(self, run_id: str) -> list[Node] | None:
        """Return the nodes of a run's workflow; None where the host does not show it.

        The older API alone passes the workflow on.
        """
        text, _ = self._client.text(f"{self.address}/apis/v1beta1/runs/{run_id}", {})
        try:
            manifest = json.loads(text or "{}").get("pipeline_runtime", {}).get("workflow_manifest")
            return nodes_of(manifest) if manifest else None
        except (AttributeError, ValueError):
            return None

    def terminate(self, run_id: str) -> None:
        """Ask for the end of a run."""
        _found_or_made(lambda: None, lambda: self._runs.run_service_terminate_run(run_id))

    def log(self, run_id: str, pod: str) -> list[str]:
        """Return the last lines that a pod has written.

        The dashboard serves them, with the archive of logs behind it; the API server does so elsewhere.

        Raises:
            HostError: They are not to be had.
        """
        dashboard = ("/k8s/pod/logs", {"podname": pod, "runid": run_id, "podnamespace": self.namespace})
        reasons = []
        for path, query in (dashboard, (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", {})):
            text, reason = self._client.text(
                self.address + path, {name: value for name, value in query.items() if value}
            )
            reason = reason or _error_body(text or "")
            if text is not None and not reason:
                return text.splitlines()[-LOG_LINES:]
            reasons.append(reason)
        raise MissingError(reasons[0])  # of the dashboard, which has most logs

    def page(self, run_id: str) -> str:
        """Return where the dashboard shows a run."""
        return f"{self._dashboard}/#/runs/details/{run_id}"


def _reference(package: Any) -> Any:
    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=package.pipeline_id, pipeline_version_id=package.pipeline_version_id
    )


def _recurs(one: Any, package: Any, arguments: Mapping[str, Any], cron: str) -> bool:
    """Tell whether a recurring run is of this package, with these arguments, at these times, and on."""
    schedule = one.trigger.cron_schedule if one.trigger else None
    return (
        schedule is not None
        and schedule.cron == cron
        and one.pipeline_version_reference == _reference(package)
        and (one.runtime_config.parameters if one.runtime_config else {}) == dict(arguments)
        and one.status != kfp_server_api.V2beta1RecurringRunStatus.DISABLED
    )


def _named(name: str) -> str:
    """Return the filter for what bears a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _found_or_made(
    find: Callable[[], Made | None], make: Callable[[], Made], *, look_first: bool = True
) -> tuple[Made, bool]:
    """Return what is found, or what is made, and whether it was made; after a fault, look whether it was."""
    found = find() if look_first else None
    for attempt in range(RETRIES + 1):
        if found is not None:
            return found, attempt > 0
        try:
            return make(), True
        except (UnreachableError, TakenError):
            if attempt == RETRIES:
                raise
        time.sleep(BACKOFF * 2**attempt)
        found = find()
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own warnings about every retry off the terminal for a block."""
    import logging

    logger = logging.getLogger("urllib3")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
