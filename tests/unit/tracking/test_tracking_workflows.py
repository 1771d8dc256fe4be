"""What killed pods have left open in MLflow, and whether Kubernetes says that their workflow has ended."""

import json
import ssl
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from runs_in_mlflow import runs_of, statuses

from evasion.components.common import tracking
from evasion.components.common.tracking import stage_run, workflows
from evasion.components.track_run import task as track_run

NAMESPACE = "team-a"


class Kubernetes(ThreadingHTTPServer):
    """The list of workflows of one namespace, as Kubernetes answers it.

    Attributes:
        ongoing: The runs whose workflows go on.
        status: Of every answer.
        asked: The label selectors.
    """

    def __init__(self, certificate):
        super().__init__(("127.0.0.1", 0), _Answer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.ongoing, self.status, self.asked = set(), 200, []


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = urlsplit(self.path)
        assert parts.path == f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/workflows"
        assert self.headers["Authorization"] == "Bearer token-of-the-pod"
        (selector,) = parse_qs(parts.query)["labelSelector"]
        self.server.asked.append(selector)
        items = [
            {"metadata": {"name": f"evasion-{run}", "labels": {"pipeline/runid": run}}}
            for run in sorted(self.server.ongoing)
            if run in selector
        ]
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps({"kind": "PartialObjectMetadataList", "items": items}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def kubernetes(certificate, tmp_path, monkeypatch):
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "ca.crt").write_bytes(Path(certificate).read_bytes())
    (account / "namespace").write_text(NAMESPACE)
    (account / "token").write_text("token-of-the-pod\n")
    monkeypatch.setattr(workflows, "ACCOUNT", account)
    server = Kubernetes(certificate)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_address[1]))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def begin(client, kubernetes, monkeypatch, tmp_path):
    """Begin a run in Kubeflow as its first step does; returns the run's id."""

    def run():
        monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
        identifier = workflows.this_workflow()["run"]
        kubernetes.ongoing.add(identifier)
        track_run.track_run(
            link=tmp_path / "link.md", pipeline="fgm", status="RUNNING", run_name="", git_commit="", kubeflow_link=""
        )
        return identifier

    return run


@pytest.fixture
def killed(begin):
    """Begin a run of which two pods are killed; its pipeline's and a stage's run stay open."""
    run = begin()
    stage_run.open_stage("train", {})
    return run


def test_the_next_run_ends_what_killed_pods_have_left(client, kubernetes, killed, begin, capsys):
    kubernetes.ongoing.remove(killed)
    begin()
    with tracking.stage("fgm", {}):
        pass

    ended = {
        (run.data.tags["stage"], run.data.tags["kfp_run_id"] == killed, run.info.status) for run in runs_of(client)
    }
    assert ended == {
        *(("pipeline", True, "KILLED"), ("train", True, "KILLED")),
        *(("pipeline", False, "RUNNING"), ("fgm", False, "FINISHED")),
    }
    assert "that killed pods of earlier runs had left open: " in capsys.readouterr().out
    assert kubernetes.asked[-1].endswith("workflows.argoproj.io/completed!=true")


def test_a_run_that_goes_on_stays_open(client, killed, begin, capsys):
    begin()

    assert statuses(client)["train"] == "RUNNING"
    assert "killed pods" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        pytest.param(lambda server, patch: setattr(server, "status", 403), "403", id="no permission"),
        pytest.param(lambda server, patch: patch.setenv("KUBERNETES_SERVICE_PORT", "1"), "refused", id="no answer"),
        pytest.param(lambda server, patch: server.ongoing.clear(), "", id="its own run is not shown either"),
        pytest.param(
            lambda server, patch: (workflows.ACCOUNT / "namespace").write_text("team-b"), "", id="other namespace"
        ),
        pytest.param(
            lambda server, patch: patch.setattr(workflows, "ACCOUNT", Path("/nowhere")), "", id="no service account"
        ),
    ],
)
def test_a_run_stays_open_where_its_end_is_not_certain(client, kubernetes, killed, monkeypatch, capsys, change, warned):
    kubernetes.ongoing.remove(killed)
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    kubernetes.ongoing.add(workflows.this_workflow()["run"])
    change(kubernetes, monkeypatch)

    assert tracking.end_abandoned() == []
    assert statuses(client) == {"pipeline": "RUNNING", "train": "RUNNING"}
    message = capsys.readouterr().err
    assert warned in message
    assert bool(warned) == ("killed pods" in message)


def test_a_runs_id_cannot_change_the_question(kubernetes, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "own")
    kubernetes.ongoing.add("own")

    assert not workflows.workflow_has_ended(workflows.this_workflow() | {"run": "a),x in (b"})
    assert workflows.workflow_has_ended(workflows.this_workflow() | {"run": "a"})
    assert len(kubernetes.asked) == 1
