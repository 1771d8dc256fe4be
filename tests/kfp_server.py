"""A server that implements Kubeflow Pipelines' v2beta1 API, for tests of its clients.

Every request and response body is one of kfp-server-api's models. A run advances through the steps of its package by a
few with every request, and reports them as nodes of Argo's workflow, like the real API. Faults can be injected.

    python tests/kfp_server.py

prints its address and serves until Ctrl-C.
"""

import base64
import contextlib
import datetime
import graphlib
import gzip
import json
import re
import socket
import ssl
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api as api
import yaml

RESET = "reset"
_CLIENT = api.ApiClient()


@dataclass
class Story:
    """The course of runs: `ends` is their state after all steps, or None to run until terminated."""

    ends: str | None = "SUCCEEDED"
    fails: str = ""  # the display name of the task that fails, or with "-driver" its driver
    fails_in: int = 0  # in a loop, the round in which it fails
    error: str = ""
    per_look: int = 4  # steps that end with every request
    log: dict[str, str] = field(default_factory=dict)  # the logs of a step's pods by its task name
    compressed: bool = False  # whether Argo has compressed the nodes, which Kubeflow then does not return


@dataclass
class Run:
    model: api.V2beta1Run
    tasks: list
    story: Story
    workflow: str
    looks: int = 0
    nodes: list = field(default_factory=list)  # of Argo's workflow
    terminated: bool = False


class KfpServer:
    """The server, at `address`."""

    def __init__(self, *, multi_user=False, certificate=None):
        self.multi_user = multi_user
        self.story = Story()
        self.tokens = None  # accepted tokens; None to require none
        self.cookies = None
        self.shows_workflows = True  # has the older API, which returns Argo's workflows
        self.tries_all_again = True  # Kubeflow's default for Argo: every node can be retried
        self.log_in_page = False  # returns a web page for every request, as a proxy in front of it does
        self.faults = []  # [method, pattern of the path, fault, number of times, after]
        self.asked = []  # (method, path, query, headers) of all requests
        self.experiments, self.pipelines, self.versions, self.runs, self.recurring = {}, {}, {}, {}, {}
        self.packages = {}
        self.started = lambda run: None  # called with every new run
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": self}))
        port = self._http.server_address[1]
        self.address = f"http://127.0.0.1:{port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            self.address = f"https://localhost:{port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()

    def fail(self, fault, *, method="GET", path="", times=1, after=False):
        """Answer the next requests with a status, a reset, or a delay in seconds; with `after`, after the work."""
        self.faults.append([method, path, fault, times, after])

    def fault_for(self, method, path):
        with self._lock:
            for entry in self.faults:
                fault_method, pattern, fault, times, after = entry
                if fault_method == method and re.search(pattern, path) and times:
                    entry[3] -= 1
                    return fault, after
        return None, False

    def count(self, method, path):
        return sum(request[0] == method and re.search(path, request[1]) is not None for request in self.asked)

    def answer(self, method, path, query, body, files):
        """Return the status and the model, or the text, of a request."""
        with self._lock:
            for pattern, handle in self.ROUTES:
                match = re.fullmatch(pattern, f"{method} {path}")
                if match:
                    return handle(self, query, body or files, *map(unquote, match.groups()))
        return 404, {"error": "Not Found", "code": 5, "message": "Not Found"}

    # -- the API ----------------------------------------------------------------------------------------------------

    def healthz(self, query, body):
        return 200, api.V2beta1GetHealthzResponse(multi_user=self.multi_user, pipeline_store="database")

    def _listed(self, held, query):
        wanted = json.loads(query["filter"])["predicates"] if "filter" in query else []
        for predicate in wanted:
            assert predicate["operation"] == "EQUALS"
            held = [one for one in held if getattr(one, predicate["key"]) == predicate["stringValue"]]
        return list(held)

    def _owned(self, held, query):
        if self.multi_user and not query.get("namespace"):
            return None
        if not self.multi_user and query.get("namespace"):
            return None
        return held if not self.multi_user else [one for one in held if one.namespace == query["namespace"]]

    def list_experiments(self, query, body):
        held = self._owned(self.experiments.values(), query)
        if held is None:
            return refused("In multi-user mode namespace is required; in single-user mode it must be empty")
        return 200, api.V2beta1ListExperimentsResponse(experiments=self._listed(held, query) or None)

    def create_experiment(self, query, body):
        wanted = parsed(body, "V2beta1Experiment")
        if bool(wanted.namespace) != self.multi_user:
            return refused("In single-user mode, CreateExperimentRequest shouldn't contain namespace")
        if any(
            (one.display_name, one.namespace) == (wanted.display_name, wanted.namespace)
            for one in self.experiments.values()
        ):
            return taken("experiment")
        wanted.experiment_id, wanted.created_at = str(uuid.uuid4()), now()
        self.experiments[wanted.experiment_id] = wanted
        return 200, wanted

    def list_pipelines(self, query, body):
        held = self.pipelines.values()
        if self.multi_user:
            held = [one for one in held if (one.namespace or "") == query.get("namespace", "")]
        listed = self._listed(held, query)
        return 200, api.V2beta1ListPipelinesResponse(pipelines=listed or None, total_size=len(listed))

    def create_pipeline(self, query, body):
        wanted = parsed(body, "V2beta1Pipeline")
        if any((one.name, one.namespace) == (wanted.name, wanted.namespace) for one in self.pipelines.values()):
            return taken("pipeline")
        wanted.pipeline_id, wanted.created_at = str(uuid.uuid4()), now()
        self.pipelines[wanted.pipeline_id] = wanted
        return 200, wanted

    def list_versions(self, query, body, pipeline):
        versions = [version for version in self.versions.values() if version.pipeline_id == pipeline]
        listed = self._listed(versions, query)
        return 200, api.V2beta1ListPipelineVersionsResponse(pipeline_versions=listed or None, total_size=len(listed))

    def upload_version(self, query, files):
        if query["pipelineid"] not in self.pipelines:
            return refused("no such pipeline")
        if any(one.name == query["name"] for one in self.versions.values()):
            return taken("pipeline version")
        content = files["uploadfile"]
        spec = next(iter(yaml.safe_load_all(content)))
        version = api.V2beta1PipelineVersion(
            pipeline_id=query["pipelineid"],
            pipeline_version_id=str(uuid.uuid4()),
            name=query["name"],
            display_name=query.get("display_name", query["name"]),
            description=query.get("description"),
            created_at=now(),
            pipeline_spec=spec,
        )
        self.versions[version.pipeline_version_id] = version
        self.packages[version.pipeline_version_id] = content
        return 200, version

    def create_run(self, query, body):
        wanted = parsed(body, "V2beta1Run")
        version = self.versions.get(wanted.pipeline_version_reference.pipeline_version_id)
        if version is None or wanted.experiment_id not in self.experiments:
            return refused("no such pipeline version or experiment")
        declared = version.pipeline_spec["root"].get("inputDefinitions", {}).get("parameters", {})
        arguments = (wanted.runtime_config.parameters if wanted.runtime_config else None) or {}
        if unknown := arguments.keys() - declared.keys():
            return refused(f"no such parameters: {unknown}")
        required = {
            name
            for name, parameter in declared.items()
            if "defaultValue" not in parameter and not parameter.get("isOptional")
        }
        if missing := required - arguments.keys():
            return refused(f"missing parameters: {missing}")
        wanted.run_id, wanted.created_at, wanted.state = str(uuid.uuid4()), now(), "PENDING"
        wanted.storage_state = "AVAILABLE"
        workflow = f"{version.pipeline_spec['pipelineInfo']['name']}-x7k2p"
        rounds = int(arguments.get("shards", 1))
        again = "(0)" if self.tries_all_again else ""
        dag, root = version.pipeline_spec["root"]["dag"], f"{workflow}{again}.root{again}"
        tasks = list(walk(version.pipeline_spec, dag, root, rounds, again=again))
        story = self.story
        if lost := lost_artifact(version.pipeline_spec):
            story = replace(story, ends="FAILED", fails=f"{lost[0]}-driver", error=lost[1])
        self.runs[wanted.run_id] = Run(wanted, tasks, story, workflow)
        self.started(wanted)
        return 200, wanted

    def list_runs(self, query, body):
        held = [one.model for one in self.runs.values() if one.model.experiment_id == query.get("experiment_id")]
        return 200, api.V2beta1ListRunsResponse(runs=self._listed(held, query) or None)

    def get_run(self, query, body, run_id):
        if run_id not in self.runs:
            return 404, {"error": "run not found", "code": 5, "message": "run not found"}
        run = self.runs[run_id]
        self._go_on(run)
        return 200, run.model

    def get_workflow(self, query, body, run_id):
        if not self.shows_workflows:
            return 404, {"error": "Not Found", "code": 5, "message": "Not Found"}
        run = self.runs[run_id]
        held = {node["id"]: node for node in run.nodes}
        status = {"nodes": held}
        if run.story.compressed:
            packed = base64.b64encode(gzip.compress(json.dumps(held).encode())).decode()
            status = {"nodes": None, "compressedNodes": packed}
        manifest = json.dumps({"metadata": {"name": run.workflow}, "status": status})
        return 200, {"run": {"id": run_id}, "pipeline_runtime": {"workflow_manifest": manifest}}

    def terminate(self, query, body, run_id):
        run = self.runs[run_id]
        run.story, run.terminated = Story(ends="FAILED", per_look=0), True
        run.model.state = "CANCELING"
        return 200, {}

    def list_recurring(self, query, body):
        held = [one for one in self.recurring.values() if one.experiment_id == query.get("experiment_id")]
        return 200, api.V2beta1ListRecurringRunsResponse(recurring_runs=self._listed(held, query) or None)

    def create_recurring(self, query, body):
        wanted = parsed(body, "V2beta1RecurringRun")
        if len(wanted.trigger.cron_schedule.cron.split()) != 6 and "@" not in wanted.trigger.cron_schedule.cron:
            return refused("Schedule cron is not a supported format")
        wanted.recurring_run_id, wanted.created_at, wanted.status = str(uuid.uuid4()), now(), "ENABLED"
        self.recurring[wanted.recurring_run_id] = wanted
        return 200, wanted

    def pod_log(self, query, body):
        run = self.runs.get(query.get("runid"))
        for task in run.tasks if run else ():
            names = tries(task, "(0)" if self.tries_all_again else "")
            last = names[-1]
            pod = f"{run.workflow}-{template(last)}-{node_id('', last)[1:]}"
            if query["podname"] == pod and task.name in run.story.log:
                return 200, run.story.log[task.name] if task.round == run.story.fails_in else "All is well."
        # As the dashboard's server does: an error with status 200.
        missing = f"Could not get main container logs: pods {query['podname']!r} not found"
        return 200, json.dumps({"error_message": missing, "error_details": missing})

    ROUTES = (
        (r"GET /apis/v2beta1/healthz", healthz),
        (r"GET /apis/v2beta1/experiments", list_experiments),
        (r"POST /apis/v2beta1/experiments", create_experiment),
        (r"GET /apis/v2beta1/pipelines", list_pipelines),
        (r"POST /apis/v2beta1/pipelines", create_pipeline),
        (r"POST /apis/v2beta1/pipelines/upload_version", upload_version),
        (r"GET /apis/v2beta1/pipelines/([^/]+)/versions", list_versions),
        (r"GET /apis/v2beta1/runs", list_runs),
        (r"POST /apis/v2beta1/runs", create_run),
        (r"GET /apis/v2beta1/runs/([^/:]+)", get_run),
        (r"POST /apis/v2beta1/runs/([^/:]+):terminate", terminate),
        (r"GET /apis/v1beta1/runs/([^/:]+)", get_workflow),
        (r"GET /apis/v2beta1/recurringruns", list_recurring),
        (r"POST /apis/v2beta1/recurringruns", create_recurring),
        (r"GET /k8s/pod/logs", pod_log),
    )

    def _go_on(self, run):
        """Advance a run."""
        story, model = run.story, run.model
        if model.state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
            return
        run.looks += 1
        steps = [task for task in run.tasks if task.executor]
        done = (run.looks - 1) * story.per_look
        fails = story.fails.removesuffix("-driver"), story.fails_in
        broken = next((n for n, task in enumerate(steps) if (task.name, task.round) == fails), None)
        over = story.ends is not None and (done >= len(steps) or not story.per_look)
        again = "(0)" if self.tries_all_again else ""
        root = f"{run.workflow}{again}.root"
        lost_root = story.fails == "root-driver" and run.looks > 1
        over = over or lost_root
        run.nodes = [argo_node(run, f"{root}-driver{again}", "Failed" if lost_root else "Succeeded", story.error)]
        details = [detail("root-driver", "FAILED" if lost_root else "SUCCEEDED", [node_id(run.workflow, root)])]
        for number, task in enumerate([] if story.fails == "root-driver" else steps):
            if broken is not None and done > broken:
                over = True
                if number > broken:
                    break
            state = "SUCCEEDED" if number < done else "RUNNING" if number < done + story.per_look else "PENDING"
            failed = number == broken and done > broken
            if state == "PENDING":
                break
            driver = "FAILED" if failed and story.fails.endswith("-driver") else "SUCCEEDED"
            details.append(detail(f"{task.name}-driver", driver, [node_id(run.workflow, task.path)]))
            at = f"{task.path.removesuffix(again)}-driver"
            if again:
                run.nodes.append(argo_node(run, at, driver.title(), "No more retries left"))
            run.nodes.append(argo_node(run, f"{at}{again}", driver.title(), story.error if failed else ""))
            if driver == "FAILED":
                continue
            state = "FAILED" if failed else state
            details.append(detail(task.name, state, [node_id(run.workflow, f"{task.path}.executor")]))
            details.append(detail("executor", state, []))
            run.nodes.append(argo_node(run, task.path.removesuffix(again), state.title(), "", pod=False))
            for name in tries(task, again):
                run.nodes.append(argo_node(run, name, state.title(), story.error if failed else ""))
        model.state = story.ends if over else "CANCELING" if run.terminated else "RUNNING"
        if over:
            model.finished_at = now()
        # Kubeflow returns the nodes that it has read last, and cannot read compressed ones.
        if not story.compressed:
            model.run_details = api.V2beta1RunDetails(task_details=details)


@dataclass(frozen=True)
class Task:
    name: str
    path: str
    retries: int | None
    executor: bool
    round: int = 0


def walk(spec, dag, above, rounds, place=0, again=""):
    """All tasks in topological order, each graph followed by its tasks.

    For a loop, Kubeflow creates a node for each round, named as in its argocompiler/dag.go and by Argo.
    """
    waits = {name: set(task.get("dependentTasks", ())) for name, task in dag["tasks"].items()}
    for name in graphlib.TopologicalSorter(waits).static_order():
        task = dag["tasks"][name]
        inner = spec["components"][task["componentRef"]["name"]]
        retries = int(task["retryPolicy"]["maxRetryCount"]) if "retryPolicy" in task else None
        yield Task(name, f"{above}.{name}{again}", retries, "dag" not in inner, place)
        if "dag" in inner and "parameterIterator" in task:
            for number in range(rounds):
                graph = f"{above}.{name}{again}.iteration-iterations({number}:{number}){again}.iteration-item{again}"
                yield from walk(spec, inner["dag"], graph, rounds, number, again)
        elif "dag" in inner:
            yield from walk(spec, inner["dag"], f"{above}.{name}{again}", rounds, place, again)


def lost_artifact(spec):
    """The task that does not receive an importer's artifact, and its driver's error; None if all do.

    The launcher of an importer records its artifact under the task's name, but drivers look it up by the task's key.
    """
    executors = spec["deploymentSpec"]["executors"]
    for dag in (spec["root"]["dag"], *(one["dag"] for one in spec["components"].values() if "dag" in one)):
        for name, task in dag["tasks"].items():
            for source in task.get("inputs", {}).get("artifacts", {}).values():
                key = source.get("taskOutputArtifact", {}).get("producerTask")
                producer = dag["tasks"].get(key)
                label = producer and spec["components"][producer["componentRef"]["name"]].get("executorLabel")
                if label and "importer" in executors[label] and producer["taskInfo"]["name"] != key:
                    return name, f'cannot find producer task "{key}_idx_0"'
    return None


def node_id(workflow, path):
    """Argo's name of a node: FNV-1a of the path."""
    value = 2166136261
    for byte in path.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return f"{workflow}-{value}"


def tries(task, again):
    """The names of the nodes of the pods that have run a task; a retried task succeeds or fails at its second try."""
    if task.retries is None and not again:
        return [f"{task.path}.executor"]
    return [f"{task.path}.executor({number})" for number in range(min(2, (task.retries or 0) + 1))]


def argo_node(run, name, phase, message="", *, pod=True):
    """A node of Argo's workflow. Its display name is the last level of its name, with the number of the try."""
    last = name.rpartition(".")[2]
    return {
        "id": node_id(run.workflow, name),
        "name": name,
        "displayName": last,
        "type": "Pod" if pod and message != "No more retries left" else "Retry",
        "templateName": template(name),
        "phase": {"Canceled": "Failed"}.get(phase, phase),
        "startedAt": (now() - datetime.timedelta(seconds=5)).isoformat(),
        "finishedAt": now().isoformat() if phase in ("Succeeded", "Failed") else None,
        "message": message if phase == "Failed" else "",
    }


def template(name):
    last = name.rpartition(".")[2]
    if "-driver" in last:
        return "system-dag-driver" if last.startswith("root") else "system-container-driver"
    return "system-container-impl" if last == "executor" else "retry-system-container-impl"


def detail(name, state, children):
    started = now() - datetime.timedelta(seconds=5)
    return api.V2beta1PipelineTaskDetail(
        task_id=str(uuid.uuid4()),
        display_name=name,
        create_time=started,
        start_time=started,
        # Like the real API, which reports a time long past for a future event.
        end_time=now() if state in ("SUCCEEDED", "FAILED") else datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC),
        state=state,
        child_tasks=[api.PipelineTaskDetailChildTask(pod_name=child) for child in children] or None,
    )


def now():
    return datetime.datetime.now(datetime.UTC)


def parsed(body, model):
    """The model of a body; an unknown field is an error."""
    instance = _CLIENT._ApiClient__deserialize(body, model)
    assert _CLIENT.sanitize_for_serialization(instance) == body, f"{model} does not have all fields of {body}"
    return instance


def refused(message):
    return 400, {"error": message, "code": 3, "message": message}


def taken(kind):
    return 409, {"error": f"{kind} already exists", "code": 6, "message": f"{kind} already exists"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve("GET")

    def do_POST(self):
        self._serve("POST")

    def _serve(self, method):
        server = self.server_state
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.asked.append((method, parts.path, query, dict(self.headers)))
        fault, after = server.fault_for(method, parts.path)
        if isinstance(fault, float):
            time.sleep(fault)
            fault = None
        answer = None
        if fault is None or after:
            answer = self._answer(method, parts.path, query, content)
        if fault == RESET:
            # SO_LINGER 0 makes the other side see a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self._send(*(answer if fault is None else (fault, {"error": "fault", "code": 13, "message": "fault"})))

    def _answer(self, method, path, query, content):
        server = self.server_state
        if server.log_in_page:
            return 200, "<html>Log in</html>"
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if server.tokens is not None and token not in server.tokens:
            return 401, {"error": "Unauthenticated", "code": 16, "message": "the token has expired"}
        if server.cookies is not None and self.headers.get("Cookie") not in server.cookies:
            return 403, {"error": "forbidden", "code": 7, "message": "forbidden"}
        body, files = None, None
        kind = self.headers.get("Content-Type") or ""
        if kind.startswith("multipart/"):
            message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + content)
            files = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in message.walk()
                if not part.is_multipart()
            }
        elif content and content != b"null":
            body = json.loads(content)
        return server.answer(method, path, query, body, files)

    def _send(self, status, answer):
        if isinstance(answer, str):
            kind = "text/html" if answer.startswith("<html>") else "text/plain"
            content = answer.encode()
        else:
            kind = "application/json"
            content = json.dumps(_CLIENT.sanitize_for_serialization(answer)).encode()
        with contextlib.suppress(ConnectionError):  # the client may have timed out
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextlib.contextmanager
def serving(**options):
    """Run a server for a block, and yield it."""
    server = KfpServer(**options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    with serving() as server, contextlib.suppress(KeyboardInterrupt):
        print(server.address, flush=True)
        threading.Event().wait()
