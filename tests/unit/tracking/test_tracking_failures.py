"""MLflow that does not answer."""

import contextlib
import itertools
import os
import select
import socket
import socketserver
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
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
        (3, lambda: tracking.download_model("lab_le_net", Path("nowhere"))),
        (3, lambda: tracking.download_model("lab_le_net/1", Path("nowhere"))),
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
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        other = chosen.getsockname()[1]

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

    served = []

    def serve():
        served.append(socketserver.ThreadingTCPServer(("127.0.0.1", other), Forwarder))
        served[0].daemon_threads = True
        served[0].serve_forever()

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


def test_a_model_that_cannot_be_logged_is_kept_without_a_name(train, digits_tar, mlflow_store, monkeypatch, capsys):
    from mlflow.exceptions import MlflowException

    def failing(*_):
        raise MlflowException("the registry is full")

    monkeypatch.setattr(stage_run, "log_model", failing)
    result = train(digits_tar, log_model=True, register_model=True)
    assert (result["card"]["name"], result["card"]["version"]) == ("", "")
    assert (result["folder"] / "model.keras").is_file()
    assert "warning: tracking is incomplete" in capsys.readouterr().err
