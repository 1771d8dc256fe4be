"""The report and the open runs in MLflow after a run in Kubeflow."""

import base64
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kfp import dsl
from kfp.compiler import Compiler
from kfp_server import Story
from submitting import secret
from summaries import summary

from evasion.components.common import tracking
from evasion.components.common.tracking import stage_run
from evasion.components.step import step
from evasion.pipelines.placement import Placement, place


@step
def report():
    pass


@dsl.pipeline(name="reporting")
def reporting():
    report()


@pytest.fixture(scope="module")
def reporting_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "reporting.yaml"
    Compiler().compile(place(reporting, Placement()), str(path))
    return str(path)


@pytest.fixture
def logs_report(kfp_server, mlflow_store, tmp_path, monkeypatch):
    """Let the next run log this report, as its steps do."""

    def logs(content):
        def log(run):
            monkeypatch.setenv("KFP_RUN_ID", run.run_id)
            (tmp_path / "report.html").write_text("<p>page</p>")
            (tmp_path / "report.json").write_text(json.dumps(content))
            tracking.mark_pipeline_run("reporting", "RUNNING")
            with tracking.stage("report", {}) as stage:
                for name in ("report.html", "report.json"):
                    stage.whole.log_file(tmp_path / name, f"report/{name}")

        kfp_server.started = log

    return logs


def test_the_report_is_fetched_from_mlflow(submit, reporting_file, logs_report, tmp_path):
    content = summary("fgm fools it.")
    logs_report(content)
    output = tmp_path / "a" / "b"
    result = submit(reporting_file, "--output", str(output), "--tracking-uri", os.environ["MLFLOW_TRACKING_URI"])
    assert json.loads((output / "report.json").read_text()) == content
    assert (output / "report.html").read_text() == "<p>page</p>"
    assert "fgm fools it." in result.stdout
    assert f"Report: {output / 'report.html'}\n" in result.stdout
    assert "Downloading" not in result.stderr  # MLflow's own bar, a few times over each file


def test_a_report_of_another_version_is_kept_and_named(submit, reporting_file, logs_report, tmp_path):
    logs_report(summary("fgm fools it.") | {"schema_version": 2})
    output, uri = tmp_path / "x", os.environ["MLFLOW_TRACKING_URI"]
    result = submit(reporting_file, "--output", str(output), "--tracking-uri", uri, code=1)
    assert "The run succeeded, but its report cannot be shown: " in result.stderr
    assert "must be of schema_version 4. Received: 2." in result.stderr
    assert f"Report: {output / 'report.html'}" in result.stderr
    assert (output / "report.html").is_file()


def test_a_missing_report_is_reported(submit, reporting_file, mlflow_store, tmp_path):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", uri, code=5)
    assert "MLflow has no report of Kubeflow's run" in result.stderr
    assert list((tmp_path / "x").iterdir()) == []


def test_mlflow_is_reached_through_kubectl_too(submit, reporting_file, kubectl, tmp_path):
    """The service that the package names, in the run's namespace; here it is the other server, which is not MLflow."""
    kubectl()
    result = submit(reporting_file, "--output", str(tmp_path), "--port-forward", "--namespace", "signs", code=5)
    assert re.search(r"MLflow at http://127\.0\.0\.1:\d+ cannot be used", result.stderr)
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--namespace kubeflow --address 127.0.0.1 service/ml-pipeline-ui :80",
        "--namespace signs --address 127.0.0.1 service/mlflow :5000",
    ]


@pytest.mark.parametrize(
    ("ends", "code", "status"), [("FAILED", 1, "FAILED"), ("CANCELED", 3, "KILLED"), ("SUCCEEDED", 5, "KILLED")]
)
def test_open_runs_of_killed_pods_are_ended_in_mlflow(
    submit, kfp_server, reporting_file, mlflow_store, tmp_path, monkeypatch, ends, code, status
):
    kfp_server.story = Story(ends=ends)

    def leave(run):
        """Leave open runs, as steps of killed pods do, and an open run that belongs to another run of Kubeflow."""
        for kubeflow_run in (run.run_id, "other"):
            monkeypatch.setenv("KFP_RUN_ID", kubeflow_run)
            tracking.mark_pipeline_run("reporting", "RUNNING")
            stage_run.open_stage("report", {})
        monkeypatch.setenv("KFP_RUN_ID", run.run_id)
        with tracking.stage("infer", {}):
            pass

    kfp_server.started = leave
    uri = os.environ["MLFLOW_TRACKING_URI"]
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", uri, code=code)
    experiments = [experiment.experiment_id for experiment in mlflow_store.search_experiments()]
    statuses = {
        (run.data.tags["kfp_run_id"] == "other", run.data.tags["stage"]): run.info.status
        for run in mlflow_store.search_runs(experiments)
    }
    assert statuses == {
        (False, "pipeline"): status,
        (False, "report"): status,
        (False, "infer"): "FINISHED",
        (True, "pipeline"): "RUNNING",
        (True, "report"): "RUNNING",
    }
    assert f"Open runs in MLflow ended as {status}: 2\n" in result.stderr


def test_the_end_of_a_run_is_reported_without_mlflow(submit, kfp_server, reporting_file, guarded, tmp_path):
    guarded.login = ":"  # none
    kfp_server.story = Story(ends="FAILED")
    kfp_server.started = lambda _: setattr(guarded, "login", "another")
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", guarded.address, code=1)
    assert "Error: The run failed" in result.stderr
    assert "Could not end the open runs in MLflow" in result.stderr


class Guarded(BaseHTTPRequestHandler):
    """MLflow's API behind a login, with the responses of its own server; it has no data."""

    def do_GET(self):
        sent = self.headers.get("Authorization", "Basic Og==").removeprefix("Basic ")
        self.server.logins.append(base64.b64decode(sent).decode())
        allowed = self.server.logins[-1] == self.server.login
        body = b"{}" if allowed else b"You are not authenticated."
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.wfile.write(body)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def guarded(monkeypatch, tmp_path):
    """An MLflow server at `.address` that requires a login."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        server.login, server.logins = "steps:right", []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_refused_login_to_mlflow_is_reported_before_the_run(
    submit, kfp_server, reporting_file, guarded, tmp_path, monkeypatch, password
):
    if password:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "steps")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    output = tmp_path / "x"
    result = submit(reporting_file, "--output", str(output), "--tracking-uri", guarded.address, code=5)
    refusal = "rejects the login of steps" if password else "requires a login"
    assert f"Error: MLflow at {guarded.address} {refusal}. Set MLFLOW_TRACKING_USERNAME and" in result.stderr
    assert "No run was started." in result.stderr
    assert kfp_server.runs == kfp_server.versions == {}
    assert not output.exists()


def test_an_unreachable_mlflow_is_reported_before_the_run(submit, kfp_server, reporting_file, tmp_path):
    where = ["--output", str(tmp_path / "x"), "--tracking-uri", "http://127.0.0.1:9"]
    assert "MLflow at http://127.0.0.1:9 cannot be used" in submit(reporting_file, *where, code=5).stderr
    assert kfp_server.runs == {}


def test_through_kubectl_the_login_is_that_of_the_steps(submit, kfp_server, reporting_file, guarded, kubectl, tmp_path):
    kubectl(mlflow=guarded.address)
    (tmp_path / "secret.json").write_text(secret("steps", "right"))
    where = ["--output", str(tmp_path / "x"), "--port-forward", "--namespace", "signs"]
    result = submit(reporting_file, *where, code=5)
    assert "MLflow has no report of Kubeflow's run" in result.stderr  # requested after the run
    assert len(kfp_server.runs) == 1
    assert set(guarded.logins) == {"steps:right"}
    assert (tmp_path / "got").read_text().splitlines()[-1].startswith("secret evasion-mlflow --namespace signs ")
    assert "right" not in result.output
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_a_login_in_the_environment_takes_precedence_over_the_secret(
    submit, kfp_server, reporting_file, guarded, kubectl, tmp_path, monkeypatch
):
    kubectl(mlflow=guarded.address)
    (tmp_path / "secret.json").write_text(secret("steps", "right"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mine")
    guarded.login = "me:mine"
    submit(reporting_file, "--output", str(tmp_path / "x"), "--port-forward", code=5)
    assert set(guarded.logins) == {"me:mine"}
    assert len(kfp_server.runs) == 1


def test_a_secret_that_kubectl_does_not_show_is_named(submit, kfp_server, reporting_file, guarded, kubectl, tmp_path):
    kubectl(mlflow=guarded.address)
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--port-forward", code=5)
    assert "requires a login" in result.stderr
    assert "kubectl shows no login in Secret kubeflow/evasion-mlflow." in " ".join(result.stderr.split())
    assert kfp_server.runs == {}


def test_the_secrets_login_goes_to_no_other_server(submit, kfp_server, reporting_file, guarded, kubectl, tmp_path):
    kubectl()
    (tmp_path / "secret.json").write_text(secret("steps", "right"))
    where = ["--output", str(tmp_path / "x"), "--port-forward", "--tracking-uri", guarded.address]
    submit(reporting_file, *where, code=5)
    assert set(guarded.logins) == {":"}
