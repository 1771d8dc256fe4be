"""MLflow that does not answer."""

import contextlib
import http.server
import itertools
import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from ports import reserved_port
from runs_in_mlflow import VARIABLES, kill, serving

from evasion.components.common import tracking
from evasion.components.common.tracking import TrackingError, stage_run
from evasion.components.common.tracking.client import connect
from evasion.components.infer import evaluate as infer_evaluate
from evasion.components.infer import task as infer_task


@pytest.fixture
def refusing():
    """A server that closes every connection; gives its port and a list with an entry for each connection."""
    connections = []

    class Closing(socketserver.BaseRequestHandler):
        def handle(self):
            connections.append(self.client_address)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], connections
        server.shutdown()
        thread.join()


def test_a_request_that_is_not_answered_is_repeated_once_at_most(monkeypatch, refusing):
    port, connections = refusing
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:secret@127.0.0.1:{port}")
    with pytest.raises(TrackingError, match="cannot be used"), tracking.stage_meanwhile("fgm", {}) as opening:
        list(opening.watched(map(time.sleep, itertools.repeat(0.01))))  # work that would never end
    assert 1 <= len(connections) <= 2
    for opened in (tracking.stage, tracking.pipeline_run):
        connections.clear()
        with pytest.raises(TrackingError) as refused, opened("fgm", {}):
            pytest.fail("the work has begun")
        assert 1 <= len(connections) <= 2
        assert f"MLflow at http://somebody:***@127.0.0.1:{port} cannot be used; check MLFLOW_TRACKING_URI" in str(
            refused.value
        )
        assert "secret" not in "".join(traceback.format_exception(refused.value))
    for requests, download in (
        (1, lambda: tracking.download_model("lab_le_net", Path("nowhere"))),
        (1, lambda: tracking.download_model("lab_le_net/1", Path("nowhere"))),
        (1, lambda: tracking.download_dataset("0" * 32, "fgm.tar", Path("nowhere"))),
    ):
        connections.clear()
        with pytest.raises(TrackingError, match="cannot be used; check MLFLOW_TRACKING_URI"):
            download()
        assert requests <= len(connections) <= 2 * requests
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.parametrize("uri", ["nonsense://somewhere", "sqlite:////dev/null/mlflow.db"])
def test_an_address_that_is_none_is_reported(monkeypatch, uri):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=f"MLflow at {uri} cannot be used"), tracking.stage("fgm", {}):
        pytest.fail("the work has begun")


def test_a_parent_run_that_is_not_there_is_reported(mlflow_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match=r"cannot be used.*0{32}"), tracking.stage("fgm", {}):
        pytest.fail("the work has begun")


@contextlib.contextmanager
def reachable_after(seconds, address):
    """Another address of a server, at which nothing answers at first."""
    host, port = urllib.parse.urlsplit(address).hostname, urllib.parse.urlsplit(address).port

    class Forwarder(socketserver.BaseRequestHandler):
        def handle(self):
            with socket.create_connection((host, port)) as server:
                pairs = {self.request: server, server: self.request}
                while True:
                    for ready in select.select(list(pairs), [], [])[0]:
                        content = ready.recv(65536)
                        if not content:
                            return
                        pairs[ready].sendall(content)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    served = []

    def serve():
        served.append(Server(("127.0.0.1", other), Forwarder))
        served[0].serve_forever()

    with reserved_port() as other:
        timer = threading.Timer(seconds, serve)
        timer.start()
        try:
            yield f"http://127.0.0.1:{other}"
        finally:
            timer.join(0 if served else None)
            served[0].shutdown()
            served[0].server_close()


@pytest.mark.slow
def test_in_kubeflow_a_stage_waits_for_mlflow_to_come_back(server, monkeypatch):
    """A pod that moves to another node is not available for half a minute; the steps before have reached it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KFP_RUN_ID", "a-run")
    with reachable_after(5, server) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match="cannot be used"):
            tracking.mark_pipeline_run("fgm", "RUNNING")  # the first step says at once that an address is wrong
        with tracking.stage("fgm", {"eps": 0.3}) as run:
            run.log_metrics({"accuracy": 1.0})
        assert run.complete
        assert connect().get_run(run.run_id).data.metrics == {"accuracy": 1.0}


@pytest.mark.slow
def test_when_the_server_dies_during_a_stage_the_work_is_kept(
    tmp_path, empty_mlflow, monkeypatch, capsys, digits_tar, le_net_artifact
):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with serving(tmp_path / "server", empty_mlflow) as (address, process):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        evaluate = infer_evaluate.evaluate

        def evaluated(*arguments):
            result = evaluate(*arguments)
            kill(process)
            return result

        monkeypatch.setattr(infer_evaluate, "evaluate", evaluated)
        result = infer_task.infer(
            dataset=digits_tar,
            others=[],
            model=le_net_artifact,
            evaluation=tmp_path / "evaluation",
            batch_size=32,
            seed=0,
        )
    assert result["metrics"]["images"] == 80
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {"evaluations.json", "load_dataset"}
    assert {path.name for path in (tmp_path / "evaluation" / "load_dataset").iterdir()} == {
        "evaluation.json",
        "predictions.csv",
        "counts.npz",
        "images",
    }
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2  # once for all that was to be logged, once for the run that stays open
    assert "tracking is incomplete: MLflow failed after the stage's work was done" in warnings[0]
    assert "stays open in MLflow" in warnings[1]


@pytest.mark.parametrize("register", [True, False])
def test_a_model_that_cannot_be_logged_is_kept(
    train, digits_tar, mlflow_store, monkeypatch, capsys, tmp_path, register
):
    """One that was to be registered is an error: the next pipeline would take the version before."""
    from mlflow.exceptions import MlflowException

    def failing(*_):
        raise MlflowException("the registry is full")

    monkeypatch.setattr(stage_run, "log_model", failing)
    if register:
        with pytest.raises(
            TrackingError, match="not registered in MLflow as evasion_shallow_net: the registry is full"
        ):
            train(digits_tar, log_model=True, register_model=True)
    else:
        result = train(digits_tar, log_model=True, register_model=False)
        assert (result["card"]["name"], result["card"]["version"]) == ("", "")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert (card["name"], card["version"]) == ("", "")
    assert (tmp_path / "model" / "model.keras").is_file()
    assert "warning: tracking is incomplete" in capsys.readouterr().err
    (experiment,) = mlflow_store.search_experiments(filter_string="name = 'evasion'")
    (run,) = mlflow_store.search_runs([experiment.experiment_id])
    assert run.info.status == ("FAILED" if register else "FINISHED")


@contextlib.contextmanager
def proxied(address, status, path):
    """Another address of a server, which answers requests to a path with a status of its own."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def handle_request(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path in self.path:
                self.send_error(status)
                return
            request = urllib.request.Request(address + self.path, body or None, dict(self.headers), method=self.command)
            try:
                response = urllib.request.urlopen(request)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                content = response.read()
                self.send_response(response.status)
                self.send_header("Content-Type", response.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request  # noqa: N815 - names of http.server

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("status", "path"), [(500, "model-versions/create"), (503, "mlflow-artifacts/")])
def test_a_model_that_a_server_refuses_is_an_error(server, monkeypatch, le_net_artifact, status, path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with proxied(server, status, path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        message = f"is not registered in MLflow as evasion_le_net: .*{status}"
        with pytest.raises(TrackingError, match=message), tracking.stage("train", {}) as run:
            run.log_model(le_net_artifact, register_as="evasion_le_net")
        assert connect().get_run(run.run_id).info.status == "FAILED"


@pytest.mark.slow
def test_a_connection_that_breaks_during_a_download_is_named(server, monkeypatch, le_net_artifact, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with tracking.stage("train", {}) as run:
        version = run.log_model(le_net_artifact, register_as="broken_le_net")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for path, message in (
        ("mlflow-artifacts/", r"could not be downloaded from MLflow at \S+; check the connection"),
        ("model-versions/get?", "cannot be used; check MLFLOW_TRACKING_URI"),
    ):
        with proxied(server, 503, path) as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            with pytest.raises(TrackingError, match=message):
                tracking.download_model(f"broken_le_net/{version}", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def test_an_end_without_mlflow_has_one_deadline(tmp_path, empty_mlflow, monkeypatch, capsys, number):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with serving(tmp_path / "server", empty_mlflow) as (address, process):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with tracking.pipeline_run("train", {}) as parent:
            monkeypatch.setenv("MLFLOW_RUN_ID", parent)
            with tracking.stage("train", {}) as run:
                os.killpg(process.pid, number)
                started = time.monotonic()
                run.log_metrics({"accuracy": 1})
                run.whole.tag({"dataset_sha256": "0"})
                run.log_file(tmp_path / "server" / "log.txt", "log.txt")
            tracking.end_stages(parent)
    assert time.monotonic() - started < 20
    assert "MLflow has not answered for 10 seconds" in capsys.readouterr().err


def test_a_step_does_not_wait_where_one_before_it_has_waited_in_vain(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(tracking.LOST, "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for opened in (tracking.stage, tracking.stage_meanwhile):
            started = time.monotonic()
            with pytest.raises(TrackingError, match=tracking.UNREACHABLE), opened("fgm", {}) as run:
                run.stage()
            assert time.monotonic() - started < 8


INTERRUPTED_OPENING = """
import os, signal, sys
from evasion.components.common import tracking
from evasion.components.common.tracking import client, stage_run
if sys.argv[1] == "create":  # the signal comes when the run exists, and nobody knows its id yet
    create = client.connect().create_run
    def created(self, *arguments, **named):
        run = create(*arguments, **named)
        os.kill(os.getpid(), signal.SIGINT)
        return run
    type(client.connect()).create_run = created
else:
    def failing(*_):
        raise OSError("the disk is full") if sys.argv[1] == "fail" else KeyboardInterrupt
    stage_run.log_run_parameters = failing
with getattr(tracking, sys.argv[2])("fgm", {"eps": 0.3}) as opened:
    if sys.argv[2] == "stage_meanwhile":
        import time
        if sys.argv[1] == "fail":  # which the stage learns of when it asks for its run
            opened.stage()
        time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["create", "fail"])
@pytest.mark.parametrize("opened", ["stage", "stage_meanwhile", "pipeline_run"])
def test_what_happens_while_a_run_is_opened_leaves_none_open(mlflow_store, tmp_path, moment, opened):
    finished = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_OPENING, moment, opened], capture_output=True, text=True, cwd=tmp_path
    )
    assert finished.returncode != 0
    (experiment,) = mlflow_store.search_experiments(filter_string="name = 'evasion'")
    (run,) = mlflow_store.search_runs([experiment.experiment_id])
    assert run.info.status == ("KILLED" if moment == "create" else "FAILED"), finished.stderr


def test_the_environment_does_not_change_in_a_thread(mlflow_store, monkeypatch):
    """C code of another thread may be reading it, such as OpenCV."""
    changed_in = set()
    for name in ("putenv", "unsetenv"):
        change = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *arguments, change=change: (changed_in.add(threading.current_thread()), change(*arguments))
        )
    with tracking.stage_meanwhile("fgm", {"eps": 0.3}) as opening:
        opening.stage().log_metrics({"accuracy": 1})
    assert changed_in == {threading.main_thread()}
    assert not [name for name in os.environ if name.startswith("MLFLOW_HTTP_REQUEST")]
