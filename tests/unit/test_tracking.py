"""MLflow: in a database, behind a real server, and when that server is gone."""

import contextlib
import itertools
import os
import re
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
import uuid
from pathlib import Path

import numpy as np
import pytest

from evasion.components.common import tracking
from evasion.components.common.tracking import TrackingError, stage_run
from evasion.components.common.tracking.client import connect
from evasion.components.infer import task as infer_task
from evasion.components.track_run import task as track_run

VARIABLES = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "KFP_RUN_ID",
    "EVASION_ARTIFACT_ROOT",
)


@contextlib.contextmanager
def serving(folder, empty_mlflow):
    """A real `mlflow server` on a free port, its database and artifacts in `folder`; gives its address and process."""
    folder.mkdir(exist_ok=True)
    (folder / "mlflow.db").write_bytes(empty_mlflow.read_bytes())  # making one takes longer than the server's start
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health").close()
                break
            except urllib.error.URLError:
                assert process.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.1)
        else:
            pytest.fail((folder / "log.txt").read_text())
        yield address, process
    finally:
        kill(process)


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the server and its worker, which have a session of their own
    process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_mlflow):
    with serving(tmp_path_factory.mktemp("server"), empty_mlflow) as (address, _):
        yield address


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def client(request, tmp_path, monkeypatch):
    """An MLflow, in an experiment of this test alone, with a working directory that must stay as empty as it is."""
    if request.param == "server":
        address = request.getfixturevalue("server")
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        mlflow_client = connect()
    else:
        mlflow_client = request.getfixturevalue("mlflow_store")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{request.param}{re.sub(r'[^a-z_]', '', request.node.originalname)}")
    working_directory = tmp_path / "working_directory"
    working_directory.mkdir()
    monkeypatch.chdir(working_directory)
    yield mlflow_client
    assert list(working_directory.iterdir()) == []  # no ./mlruns


def runs_of(client, name=None):
    experiment = client.get_experiment_by_name(name or os.environ["MLFLOW_EXPERIMENT_NAME"])
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


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


def statuses(client):
    return {run.data.tags["stage"]: run.info.status for run in runs_of(client)}


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


def test_a_dataset_is_logged_under_its_name_and_found_by_run_or_parent(client, monkeypatch, tmp_path):
    tar = tmp_path / "dataset"  # as Kubeflow calls the file
    tar.write_bytes(b"images")
    with tracking.pipeline_run("fgm", {}) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent)
        with tracking.stage("fgm", {}) as run:
            run.log_file(tar, "fgm.tar")
            run.log_file(tar, "report/report.html")
        with tracking.stage("infer", {}):
            pass
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"fgm.tar", "report"}
    assert [file.path for file in client.list_artifacts(run.run_id, "report")] == ["report/report.html"]
    for place, holder in enumerate((run.run_id, parent)):
        folder = tmp_path / f"found_{place}"
        folder.mkdir()
        tar_path = tracking.download_dataset(holder, "fgm.tar", folder)
        assert tar_path == folder / "fgm.tar"
        assert tar_path.read_bytes() == b"images"
    with pytest.raises(
        TrackingError, match=rf"one artifact of run {parent}, which has fgm\.tar\. Received: .*'adv\.tar'"
    ):
        tracking.download_dataset(parent, "adv.tar", tmp_path)


def test_a_dataset_that_two_stages_logged_needs_the_run_of_one(mlflow_store, monkeypatch, tmp_path):
    (tmp_path / "tar").write_bytes(b"")
    with tracking.pipeline_run("jpeg_compression", {}) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent)
        for _ in range(2):
            with tracking.stage("jpeg_compression", {}) as run:
                run.log_file(tmp_path / "tar", "jpeg_compression.tar")
    with pytest.raises(TrackingError, match="several stages logged this name: give the run id of one stage"):
        tracking.download_dataset(parent, "jpeg_compression.tar", tmp_path)
    assert tracking.download_dataset(run.run_id, "jpeg_compression.tar", tmp_path / "downloaded").is_file()


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run", ""])
def test_a_run_that_is_not_there_is_named(client, tmp_path, run_id):
    with pytest.raises(TrackingError, match=f"MLflow has no such run. Received: run_id='{run_id}'"):
        tracking.download_dataset(run_id, "fgm.tar", tmp_path)


@pytest.fixture
def registered(client, le_net_artifact, request):
    """The LeNet as three versions of one registered model, the second under an alias; and a model without a name."""
    name = tracking.registered_name(os.environ["MLFLOW_EXPERIMENT_NAME"], " v1 ", "le_net")
    with tracking.stage("train", {}) as run:
        versions = [run.log_model(le_net_artifact, register_as=name) for _ in range(3)]
        assert run.log_model(le_net_artifact, register_as="") == ""
    assert versions == ["1", "2", "3"]
    client.set_registered_model_alias(name, "best", "2")
    return name, run.run_id


def test_registered_models_are_found_by_every_kind_of_name(client, registered, le_net_artifact, tmp_path, digits):
    name, run_id = registered
    expected = {
        name: "3",
        f"models:/{name}": "3",
        f"models:/{name}/latest": "3",
        f"{name}/1": "1",
        f"{name}@best": "2",
        f"models:/{name}/2": "2",
        f"models:/{name}@best": "2",
    }
    for place, (reference, version) in enumerate(expected.items()):
        model = tracking.download_model(reference, tmp_path / str(place))
        assert model[1:] == (name, version), reference
        for file in ("model.keras", "model.json"):
            assert (model[0] / file).read_bytes() == (le_net_artifact / file).read_bytes()

    # By MLflow's own id, which is all that a model has that was not registered.
    logged = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert len(logged) == 4
    assert {model.source_run_id for model in logged} == {run_id}
    (identifier,) = {model.model_id for model in logged} - {
        client.get_model_version(name, version).source.removeprefix("models:/") for version in "123"
    }
    folder, *nameless = tracking.download_model(f"models:/{identifier}", tmp_path / "nameless")
    assert nameless == ["", ""]
    assert (folder / "model.keras").is_file()

    import mlflow

    x = digits.pixels[:3] / np.float32(255)
    import keras

    probabilities = keras.saving.load_model(le_net_artifact / "model.keras", compile=False).predict(x, verbose=0)
    assert np.allclose(
        mlflow.tensorflow.load_model(f"models:/{name}/1").predict(x, verbose=0), probabilities, atol=1e-6
    )
    assert np.allclose(mlflow.pyfunc.load_model(f"models:/{name}/1").predict(x), probabilities, atol=1e-6)


def test_what_is_not_registered_is_answered_with_what_is(client, registered, tmp_path):
    name, _ = registered
    for wrong in (f"{name}/9", f"models:/{name}/9", f"{name}@worst", f"{name}/abc"):
        with pytest.raises(TrackingError, match=rf"{name} has versions 1, 2, 3\. Received: model='{wrong}'"):
            tracking.download_model(wrong, tmp_path)
    for wrong in ("le_net", "models:/le_net", "le_net/1", "le_net@best", "le_net/latest", "m-lab_le_net", "a/b/c"):
        with pytest.raises(TrackingError, match=rf"the registered models are .*{name}.* model='{wrong}'"):
            tracking.download_model(wrong, tmp_path)
    for wrong in ("le'net", "le'net/1", "le'net@best", "models:/le'net"):
        with pytest.raises(TrackingError, match=r"model must not contain a quote\. Received: model="):
            tracking.download_model(wrong, tmp_path)
    for wrong in ("m-" + "0" * 32, "models:/m-" + "0" * 32):
        with pytest.raises(TrackingError, match=f"MLflow has no such model. Received: model='{wrong}'"):
            tracking.download_model(wrong, tmp_path)


def test_a_model_whose_name_begins_as_mlflows_ids_do_is_found(mlflow_store, le_net_artifact, tmp_path):
    with tracking.stage("train", {}) as run:
        run.log_model(le_net_artifact, register_as="m-lab_le_net")
    assert tracking.download_model("m-lab_le_net", tmp_path / "downloaded")[1:] == ("m-lab_le_net", "1")


def test_no_model_at_all_says_how_to_get_one(mlflow_store, tmp_path):
    with pytest.raises(TrackingError, match="no model is registered: run `train` or `init_model` first"):
        tracking.download_model("lab_le_net", tmp_path)


@pytest.mark.parametrize(
    ("experiment", "tag", "name"),
    [
        ("lab", "v1", "lab_v1_le_net"),
        ("lab", "", "lab_le_net"),
        ("lab", "  ", "lab_le_net"),
        ("my lab", " v 1.0 ", "my lab_v 1.0_le_net"),
    ],
)
def test_a_registered_name_has_three_parts_or_two(experiment, tag, name):
    assert tracking.registered_name(experiment, tag, "le_net") == name


@pytest.mark.parametrize("experiment", ["/Users/me/lab", "a:b", "lab@home", "l'ab"])
def test_an_experiment_whose_name_cannot_be_part_of_a_model_name_is_refused_before_work(
    mlflow_store, train, digits_tar, monkeypatch, experiment, tmp_path
):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    with pytest.raises(TrackingError, match=f"must not contain .*Received: experiment=.{experiment}"):
        train(digits_tar, register_model=True)
    assert not (tmp_path / "model").exists()


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
        evaluate = infer_task._evaluate

        def evaluated(*arguments):
            result = evaluate(*arguments)
            kill(process)
            return result

        monkeypatch.setattr(infer_task, "_evaluate", evaluated)
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
