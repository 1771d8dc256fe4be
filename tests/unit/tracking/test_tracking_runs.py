"""Runs of stages and pipelines in MLflow."""

import os
import signal
import socket
import subprocess
import sys
import uuid

import pytest
from runs_in_mlflow import VARIABLES, runs_of, statuses

from evasion.components.common import tracking
from evasion.components.common.tracking import TrackingError, stage_run
from evasion.components.track_run import task as track_run


def test_what_killed_pods_left_open_is_ended_without_output(client, monkeypatch, capsys):
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    tracking.mark_pipeline_run("fgm", "RUNNING")
    stage_run.open_stage("fgm", {})
    capsys.readouterr()
    uri = os.environ["MLFLOW_TRACKING_URI"]
    assert tracking.end_open_runs(os.environ["KFP_RUN_ID"], uri, "KILLED") == 2
    assert {run.info.status for run in runs_of(client)} == {"KILLED"}
    assert tracking.end_open_runs(os.environ["KFP_RUN_ID"], uri, "KILLED") == 0
    assert capsys.readouterr().out == ""  # where a command's result goes


def test_a_stage_is_a_run_with_its_parameters_and_metrics(client):
    with tracking.stage("fgm", {"eps": 0.3, "norm": "inf", "model_tag": "", "minimal": False}) as run:
        (open_run,) = runs_of(client)
        assert open_run.info.status == "RUNNING"
        run.log_parameters({"seed_drawn": 5})
        run.log_metrics({"accuracy": 0.5, "images": 10})
    (ended,) = runs_of(client)
    assert ended.info.run_id == run.run_id
    assert ended.info.run_name == "fgm"
    assert ended.info.status == "FINISHED"
    assert ended.data.params == {
        "eps": "0.3",
        "norm": "inf",
        "model_tag": "",
        "minimal": "False",
        "seed_drawn": "5",
    }
    assert ended.data.metrics == {"accuracy": 0.5, "images": 10.0}
    assert ended.data.tags["stage"] == "fgm"
    assert "mlflow.parentRunId" not in ended.data.tags
    assert run.experiment == os.environ["MLFLOW_EXPERIMENT_NAME"]
    assert run.whole is None
    assert run.complete


def test_stages_are_nested_below_the_run_of_the_pipeline(client, monkeypatch):
    with tracking.pipeline_run("evaluation_registered", {"eps": 0.3}) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another one, which must not count")
        for name in ("train", "infer"):
            with tracking.stage(name, {"a": 1}) as run:
                run.log_metrics({"accuracy": 1})
                assert run.experiment != "another one, which must not count"
                assert run.whole.run_id == parent
        run.whole.log_metrics({"report": 1})
    experiment = client.get_experiment(client.get_run(parent).info.experiment_id)
    runs = {run.data.tags["stage"]: run for run in runs_of(client, experiment.name)}
    assert set(runs) == {"pipeline", "train", "infer"}
    assert runs["pipeline"].info.run_id == parent
    assert runs["pipeline"].data.tags["pipeline"] == "evaluation_registered"
    assert runs["pipeline"].data.params == {"eps": "0.3"}
    assert runs["pipeline"].data.metrics == {"report": 1}
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("train", "infer")} == {parent}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert client.get_experiment_by_name("another one, which must not count") is None


@pytest.fixture
def in_kubeflow(client, monkeypatch):
    """A pod of a Kubeflow run: placement sets only `KFP_RUN_ID` in its steps. Return a new run's id."""
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    return os.environ["KFP_RUN_ID"]


@pytest.fixture
def mark(tmp_path):
    """Do as the step `track_run`; returns what it shows in the dashboard."""

    def run(status, pipeline="fgm", run_name="", git_commit="", kubeflow_link=""):
        link = tmp_path / "link" / "link.md"
        track_run.track_run(
            link=link,
            pipeline=pipeline,
            status=status,
            run_name=run_name,
            git_commit=git_commit,
            kubeflow_link=kubeflow_link,
        )
        return link.read_text()

    return run


def test_in_kubeflow_stages_are_nested_below_the_run_that_a_step_opened(client, in_kubeflow, mark):
    mark("RUNNING")
    mark("RUNNING")  # the step was tried again
    with tracking.stage("fgm", {"eps": 0.3}) as run:
        run.whole.log_metrics({"report": 1})
        assert run.experiment == os.environ["MLFLOW_EXPERIMENT_NAME"]
    pipeline, stage = runs_of(client)
    assert stage.data.tags["mlflow.parentRunId"] == run.whole.run_id == pipeline.info.run_id
    assert pipeline.info.status == "RUNNING"
    assert pipeline.info.run_name == pipeline.data.tags["pipeline"] == "fgm"
    assert pipeline.data.tags["kfp.pipeline_run_id"] == in_kubeflow
    assert pipeline.data.metrics == {"report": 1}

    mark("FINISHED")
    tracking.fail_pipeline_run()  # what has ended well is not ended again
    assert [run.info.status for run in runs_of(client)] == ["FINISHED", "FINISHED"]


def test_a_run_says_where_it_comes_from(client, in_kubeflow, mark, monkeypatch):
    monkeypatch.setenv("EVASION_REVISION", "c0ffee")
    monkeypatch.setenv("EVASION_IMAGE", "registry.example/evasion-pipelines@sha256:1234")
    link = "https://kubeflow.example/pipeline/"
    shown = mark("RUNNING", run_name="nightly 7", git_commit="beef", kubeflow_link=link)
    with tracking.stage("infer", {}) as run:
        run.tag({"dataset_sha256": "abcd"}, name="infer fgm")
    run.whole.links_report("report/report.json")
    whole, stage = runs_of(client)
    page = f"https://kubeflow.example/pipeline/#/runs/details/{in_kubeflow}"
    both = {
        "mlflow.source.git.commit": "c0ffee",
        "mlflow.docker.image.uri": "registry.example/evasion-pipelines@sha256:1234",
        "kfp_run_id": in_kubeflow,
        "parent_report": f"runs:/{whole.info.run_id}/report/report.json",
    }
    assert whole.info.run_name == "nightly 7"
    assert stage.info.run_name == "infer fgm"
    assert both.items() <= whole.data.tags.items()
    assert (both | {"dataset_sha256": "abcd", "stage": "infer"}).items() <= stage.data.tags.items()
    own = {"git_commit": "beef", "kfp_run_name": "nightly 7", "kfp_run_url": page, "pipeline": "fgm"}
    assert own.items() <= whole.data.tags.items()
    assert whole.data.tags["mlflow.note.content"] == f"[nightly 7]({page}) in Kubeflow"
    assert not own.keys() & stage.data.tags.keys() - {"stage"}
    place = f"/#/experiments/{whole.info.experiment_id}/runs/{whole.info.run_id}"
    assert shown.startswith("[The run in MLflow](")
    assert shown.endswith(f"{place})\n")
    monkeypatch.setenv("EVASION_MLFLOW_LINK", "https://mlflow.example/")
    assert mark("FINISHED") == f"[The run in MLflow](https://mlflow.example{place})\n"


def test_the_report_of_a_run_in_kubeflow_is_fetched(client, in_kubeflow, mark, monkeypatch, tmp_path):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(TrackingError, match=f"MLflow has no report of Kubeflow's run {in_kubeflow}"):
        tracking.download_report(in_kubeflow, uri, output)
    mark("RUNNING")
    with tracking.stage("report", {}) as run:
        for name in ("report.html", "report.json"):
            (tmp_path / name).write_text(f"this {name}")
            # Where Kubeflow's backend keeps the run, it is in that of the step alone.
            run.log_file(tmp_path / name, f"report/{name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    paths = tracking.download_report(in_kubeflow, uri, output)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
    assert [path.read_text() for path in paths] == ["this report.html", "this report.json"]
    assert sorted(output.iterdir()) == paths
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


def test_in_kubeflow_a_run_that_did_not_finish_is_failed(client, in_kubeflow, mark, monkeypatch):
    mark("RUNNING")
    with pytest.raises(ValueError, match="eps"), tracking.stage("fgm", {}):
        raise ValueError("eps")
    tracking.fail_pipeline_run()
    assert [run.info.status for run in runs_of(client)] == ["FAILED", "FAILED"]

    mark("RUNNING")  # retried in the dashboard: the same run goes on
    mark("FINISHED")
    assert [run.info.status for run in runs_of(client)] == ["FINISHED", "FAILED"]

    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))  # another run of the same pipeline
    mark("RUNNING")
    assert sorted(run.info.status for run in runs_of(client)) == ["FAILED", "FINISHED", "RUNNING"]


@pytest.fixture
def fail(client):
    """Let a stage fail as in a pod: it ends its own run, and its step that of the pipeline."""

    def run(name):
        with pytest.raises(ValueError, match="eps"), tracking.stage(name, {}):
            raise ValueError("eps")
        tracking.fail_pipeline_run()

    return run


def test_in_kubeflow_a_failed_run_stays_so_unless_a_further_try_leads_to_the_last_step(
    client, in_kubeflow, mark, fail, capsys
):
    mark("RUNNING")
    fail("fgm")
    # One that waited for a node meanwhile, or a further try: whether the last step comes, neither knows.
    with tracking.stage("security_curve", {}) as run, tracking.stage_meanwhile("fgm again", {}) as opening:
        assert opening.stage().whole.run_id == run.whole.run_id
    assert statuses(client) == {
        "pipeline": "FAILED",
        "fgm": "FAILED",
        "security_curve": "FINISHED",
        "fgm again": "FINISHED",
    }
    assert len({run.data.tags.get("mlflow.parentRunId") for run in runs_of(client)} - {None}) == 1
    mark("FINISHED")
    assert statuses(client)["pipeline"] == "FINISHED"
    assert "warning" not in capsys.readouterr().err


def test_in_kubeflow_a_run_that_ended_well_is_not_opened_by_a_stage(client, in_kubeflow, mark):
    mark("RUNNING")
    mark("FINISHED")
    with tracking.stage("fgm", {}):
        assert statuses(client) == {"pipeline": "FINISHED", "fgm": "RUNNING"}
    assert statuses(client)["pipeline"] == "FINISHED"


def test_a_failed_run_outside_kubeflow_is_not_opened_by_a_stage(client, monkeypatch):
    """The runner that opened it ends it, whatever stages do."""
    with pytest.raises(ValueError, match="eps"), tracking.pipeline_run("fgm", {}) as parent:
        raise ValueError("eps")
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    with tracking.stage("fgm", {}):
        assert client.get_run(parent).info.status == "FAILED"


def test_failing_a_run_touches_no_other(client, in_kubeflow, mark, monkeypatch):
    mark("RUNNING")
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    mark("RUNNING")
    tracking.fail_pipeline_run()
    ended = {run.data.tags["kfp.pipeline_run_id"]: run.info.status for run in runs_of(client)}
    assert ended == {in_kubeflow: "RUNNING", os.environ["KFP_RUN_ID"]: "FAILED"}
    monkeypatch.delenv("KFP_RUN_ID")
    tracking.fail_pipeline_run()
    assert ended == {run.data.tags["kfp.pipeline_run_id"]: run.info.status for run in runs_of(client)}


def test_a_run_that_cannot_be_failed_is_a_warning(monkeypatch, capsys):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:secret@127.0.0.1:{port}")
    tracking.fail_pipeline_run()
    message = capsys.readouterr().err
    assert "warning: the pipeline's run stays open in MLflow: MLflow at http://somebody:***@" in message
    assert "secret" not in message


def test_in_kubeflow_without_a_run_to_mark_stages_stand_alone(client, in_kubeflow, mark, capsys):
    tracking.fail_pipeline_run()
    mark("FINISHED")
    with tracking.stage("fgm", {}) as run:
        assert run.whole is None
    (run_in_mlflow,) = runs_of(client)
    assert "mlflow.parentRunId" not in run_in_mlflow.data.tags
    assert "no MLflow run to update" in capsys.readouterr().out


def test_a_run_that_kubeflows_backend_keeps_is_left_to_it(client, in_kubeflow, mark, monkeypatch):
    with tracking.pipeline_run("kept by the backend", {}) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent)
        for status in ("RUNNING", "FINISHED"):
            mark(status)
            assert client.get_run(parent).info.status == "RUNNING"
        tracking.fail_pipeline_run()
        assert client.get_run(parent).info.status == "RUNNING"
        with tracking.stage("fgm", {}) as run:
            assert run.whole.run_id == parent
    assert len(runs_of(client)) == 2


def test_the_last_step_ends_what_killed_pods_have_left(client, in_kubeflow, mark):
    mark("RUNNING")
    stage_run.open_stage("fgm", {})  # its pod was killed; the next try succeeds
    with tracking.stage("fgm again", {}):
        pass
    mark("FINISHED")
    assert statuses(client) == {"pipeline": "FINISHED", "fgm": "FAILED", "fgm again": "FINISHED"}


KILLED = """
import os, signal
from evasion.components.common import tracking
from evasion.components.common.tracking import stage_run
with tracking.pipeline_run("fgm", {}) as parent:
    os.environ["MLFLOW_RUN_ID"] = parent
    stage_run.open_stage("fgm", {})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_start_ends_what_a_killed_process_has_left(client, monkeypatch):
    with tracking.pipeline_run("alive", {}):
        finished = subprocess.run([sys.executable, "-c", KILLED], check=False)
        assert finished.returncode == -signal.SIGKILL
        with monkeypatch.context() as patch:  # a machine on which its process cannot be seen
            patch.setattr(socket, "gethostname", lambda: "elsewhere")
            assert tracking.end_abandoned() == []
        assert tracking.end_abandoned() == ["fgm"]
        assert tracking.end_abandoned() == []
        ended = sorted((run.data.tags["stage"], run.info.status) for run in runs_of(client))
        assert ended == [("fgm", "KILLED"), ("pipeline", "KILLED"), ("pipeline", "RUNNING")]


@pytest.mark.parametrize(("pipeline", "status"), [("", "RUNNING"), ("fgm", "KILLED"), ("fgm", "FAILED")])
def test_track_run_refuses_what_it_cannot_mark(mark, pipeline, status):
    with pytest.raises(ValueError, match="must be"):
        mark(status, pipeline)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("eps"), "FAILED"), (SystemExit(1), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
@pytest.mark.parametrize("opened", [tracking.stage, tracking.stage_meanwhile, tracking.pipeline_run])
def test_a_run_that_does_not_end_well_says_so(mlflow_store, opened, error, status):
    with pytest.raises(type(error)), opened("fgm", {}):
        raise error
    (run,) = runs_of(mlflow_store, "evasion")
    assert run.info.status == status


def test_an_experiment_may_be_given_by_its_id(client, monkeypatch):
    identifier = client.create_experiment(
        f"{os.environ['MLFLOW_EXPERIMENT_NAME']} by id", os.environ.get("EVASION_ARTIFACT_ROOT")
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", identifier)
    with tracking.stage("fgm", {}) as run:
        pass
    assert client.get_run(run.run_id).info.experiment_id == identifier
    assert run.experiment.endswith(" by id")
