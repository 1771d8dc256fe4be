"""A Kubeflow Pipelines host: the API of kfp-server-api, with time limits, retries and renewed tokens.

A request that reads is retried after any error. Before a request that creates an object is retried, the object is
searched for, since an error does not tell whether it was created.
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
BACKOFF = 0.5  # seconds before the second retry; each further pause is twice as long
RETRIES = 5
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
TRANSIENT = (429, 500, 502, 503, 504)
LOG_LINES = 200  # of a failed step's log

Resource = TypeVar("Resource")


class HostError(RuntimeError):
    """The host refused a request."""


class UnreachableError(HostError):
    """The host does not respond, or not as Kubeflow Pipelines does."""


class DeniedError(HostError):
    """The host denied access."""


class MissingError(HostError):
    """The host does not have the requested object."""


class TakenError(HostError):
    """The host already has an object of that name."""


class _Client(kfp_server_api.ApiClient):  # type: ignore[misc] # it has no types
    """The generated client, with the identity's headers, a time limit, and errors that say what to do."""

    def __init__(self, address: str, identity: Identity) -> None:
        configuration = kfp_server_api.Configuration(host=address)
        # The generated client reads neither the proxy nor the certificates from the environment.
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
        """Send a request, and send it again with a new token if the token has expired."""
        arguments["_request_timeout"] = arguments.get("_request_timeout") or (CONNECT, READ)
        headers = dict(arguments.pop("headers", None) or {})
        try:
            for retried in (False, True):
                try:
                    response = super().request(
                        method, url, headers={**headers, **self._identity.headers()}, **arguments
                    )
                    break
                except kfp_server_api.ApiException as error:
                    if retried or error.status != HTTPStatus.UNAUTHORIZED or not self._identity.renewed():
                        raise _host_error(error, self.configuration.host) from error
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{self.configuration.host} does not respond: {_cause(error)}") from error
        except AuthenticationError as error:
            raise DeniedError(str(error)) from error
        if "html" in str(response.getheader("content-type")):
            raise DeniedError(
                f"{self.configuration.host} returned a web page, which may be a login page. Set --token, "
                "--token-command or --cookie, and check that --host is the address of the API."
            )
        return response

    def text(self, url: str, query: Mapping[str, str]) -> tuple[str | None, str]:
        """Request a plain text once; return the text and no reason, or None and the reason."""
        try:
            # Without the client's retries: the dashboard returns status 500 for a pod that does not exist.
            response = self.rest_client.pool_manager.request(
                "GET",
                url,
                fields=query,
                headers=self._identity.headers(),
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT, read=READ),
            )
        except (urllib3.exceptions.HTTPError, AuthenticationError) as error:
            return None, _cause(error)
        if response.status == HTTPStatus.OK and "html" not in response.headers.get("content-type", ""):
            return response.data.decode(errors="replace"), ""
        return None, f"{url} returned status {response.status}"


def _error_body(text: str) -> str:
    """Return the message of an error that was sent with status 200; blank if the text is not an error."""
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


def _host_error(error: Any, address: str) -> HostError:
    """Return the HostError for an error of the generated client."""
    try:
        body = json.loads(error.body or "")
        message = str(body.get("message") or body.get("error") or body)
    except (ValueError, AttributeError):
        message = str(error.reason if not error.body else error.body.decode(errors="replace")).strip()
    if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        reason = f": {message}" if message else ""
        return DeniedError(
            f"Permission denied by {address} (HTTP {error.status}){reason}. Set --token, --token-command or --cookie."
        )
    message = f"{error.status} {message}".strip()
    if error.status == HTTPStatus.NOT_FOUND:
        return MissingError(f"{address}: {message}")
    if error.status == HTTPStatus.CONFLICT:
        return TakenError(f"{address}: {message}")
    # Status 0: no response that TLS accepts.
    unreachable = not error.status or error.status in TRANSIENT
    return (UnreachableError if unreachable else HostError)(f"{address}: {message}")


def _cause(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


class Host:
    """A client for a host.

    Args:
        address: The address of the dashboard, or of the API server itself.
        identity: The credentials.
        namespace: The namespace of the pods; on a host with several users, that of the user's profile.
        dashboard: The dashboard's address in users' browsers, if it is another one.
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
        """Check that the host responds, and read whether it serves several users.

        Raises:
            HostError: The host does not respond or denies access.
        """
        health = kfp_server_api.HealthzServiceApi(self._client).healthz_service_get_healthz()
        self.multi_user = bool(health.multi_user)

    @property
    def _owner(self) -> dict[str, str]:
        """The namespace as an argument of calls; a host with a single user accepts none."""
        return {"namespace": self.namespace} if self.multi_user else {}

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if it is missing."""

        def find() -> Any:
            response = self._experiments.experiment_service_list_experiments(filter=_name_filter(name), **self._owner)
            return next(iter(response.experiments or ()), None)

        def create() -> Any:
            experiment = kfp_server_api.V2beta1Experiment(display_name=name, **self._owner)
            return self._experiments.experiment_service_create_experiment(experiment)

        return str(_get_or_create(find, create)[0].experiment_id)

    def package(self, name: str, version: str, content: bytes, description: str) -> tuple[Any, bool]:
        """Return the version of a pipeline with this content, and whether it was uploaded now.

        Args:
            name: The pipeline's name.
            version: The version's name, unique to the content.
            content: The compiled YAML.
            description: The version's description.
        """

        def find_pipeline() -> Any:
            response = self._pipelines.pipeline_service_list_pipelines(filter=_name_filter(name), **self._owner)
            return next(iter(response.pipelines or ()), None)

        def create_pipeline() -> Any:
            pipeline = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, **self._owner)
            return self._pipelines.pipeline_service_create_pipeline(pipeline)

        pipeline_id = _get_or_create(find_pipeline, create_pipeline)[0].pipeline_id

        def find() -> Any:
            response = self._pipelines.pipeline_service_list_pipeline_versions(
                pipeline_id, filter=_name_filter(version)
            )
            return next(iter(response.pipeline_versions or ()), None)

        def create() -> Any:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, f"{name}.yaml")
                file.write_bytes(content)
                return self._uploads.upload_pipeline_version(
                    str(file), name=version, display_name=version, pipelineid=pipeline_id, description=description
                )

        return _get_or_create(find, create)

    def start(
        self, package: Any, experiment: str, name: str, arguments: Mapping[str, Any], description: str, mark: str
    ) -> Any:
        """Start a run.

        Args:
            package: The version, as `package` returns it.
            experiment: The experiment's id.
            name: The run's name in the dashboard, which need not be unique.
            arguments: The values of the pipeline's parameters.
            description: The run's description.
            mark: A unique text, which is added to the description to recognize the run.
        """

        def find() -> Any:
            response = self._runs.run_service_list_runs(
                experiment_id=experiment, filter=_name_filter(name), sort_by="created_at desc", page_size=50
            )
            return next((run for run in response.runs or () if mark in (run.description or "")), None)

        def create() -> Any:
            run = kfp_server_api.V2beta1Run(
                display_name=name,
                description=f"{description} ({mark})",
                experiment_id=experiment,
                pipeline_version_reference=_reference(package),
                runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(arguments)),
            )
            return self._runs.run_service_create_run(run)

        return _get_or_create(find, create, find_first=False)[0]

    def schedule(
        self, package: Any, experiment: str, name: str, arguments: Mapping[str, Any], description: str, cron: str
    ) -> tuple[Any, bool, list[Any]]:
        """Create a recurring run, or keep an existing one with the same package, arguments and times.

        Returns:
            The recurring run, whether it was created now, and other recurring runs of that name in the experiment.
        """
        others: list[Any] = []

        def find() -> Any:
            response = self._recurring.recurring_run_service_list_recurring_runs(
                experiment_id=experiment, filter=_name_filter(name), page_size=50, **self._owner
            )
            listed = response.recurring_runs or ()
            equal = [recurring for recurring in listed if _is_same_schedule(recurring, package, arguments, cron)]
            others[:] = [recurring for recurring in listed if recurring not in equal[:1]]
            return next(iter(equal), None)

        def create() -> Any:
            recurring = kfp_server_api.V2beta1RecurringRun(
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
            return self._recurring.recurring_run_service_create_recurring_run(recurring)

        return (*_get_or_create(find, create), others)

    def run(self, run_id: str) -> Any:
        """Return the current state of a run."""
        return self._runs.run_service_get_run(run_id)

    def nodes(self, run_id: str) -> list[Node] | None:
        """Return the nodes of a run's workflow; None if the host does not show it.

        Only the older API returns the workflow.
        """
        text, _ = self._client.text(f"{self.address}/apis/v1beta1/runs/{run_id}", {})
        try:
            manifest = json.loads(text or "{}").get("pipeline_runtime", {}).get("workflow_manifest")
            return nodes_of(manifest) if manifest else None
        except (AttributeError, ValueError):
            return None

    def terminate(self, run_id: str) -> None:
        """Request the termination of a run."""
        _get_or_create(lambda: None, lambda: self._runs.run_service_terminate_run(run_id))

    def log(self, run_id: str, pod: str) -> list[str]:
        """Return the last lines of a pod's log.

        The dashboard serves logs, archived ones included; the API server serves them under another path.

        Raises:
            HostError: The log is not available.
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
        raise MissingError(reasons[0])  # the dashboard's, which has most logs

    def page(self, run_id: str) -> str:
        """Return the address of a run in the dashboard."""
        return f"{self._dashboard}/#/runs/details/{run_id}"


def _reference(package: Any) -> Any:
    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=package.pipeline_id, pipeline_version_id=package.pipeline_version_id
    )


def _is_same_schedule(recurring: Any, package: Any, arguments: Mapping[str, Any], cron: str) -> bool:
    """Return whether a recurring run is enabled and has this package, these arguments and these times."""
    schedule = recurring.trigger.cron_schedule if recurring.trigger else None
    return (
        schedule is not None
        and schedule.cron == cron
        and recurring.pipeline_version_reference == _reference(package)
        and (recurring.runtime_config.parameters if recurring.runtime_config else {}) == dict(arguments)
        and recurring.status != kfp_server_api.V2beta1RecurringRunStatus.DISABLED
    )


def _name_filter(name: str) -> str:
    """Return the filter for objects of a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _get_or_create(
    find: Callable[[], Resource | None], create: Callable[[], Resource], *, find_first: bool = True
) -> tuple[Resource, bool]:
    """Return an existing or a new object, and whether it was created now; after an error, search before retrying."""
    existing = find() if find_first else None
    for attempt in range(RETRIES + 1):
        if existing is not None:
            return existing, attempt > 0
        try:
            return create(), True
        except (UnreachableError, TakenError):
            if attempt == RETRIES:
                raise
        time.sleep(BACKOFF * 2**attempt)
        existing = find()
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' warnings about retries."""
    import logging

    logger = logging.getLogger("urllib3")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
