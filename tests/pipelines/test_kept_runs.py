"""`evasion runs`: the runs of an output folder, and their removal with what MLflow has of them."""

import json

import pytest
from click.testing import CliRunner
from kfp import dsl
from kfp.dsl import Dataset, Model, Output
from mlflow import MlflowClient

from evasion.components.common import tracking
from evasion.components.step import step
from evasion.pipelines.cli import main
from evasion.pipelines.local import runner, runs
from evasion.pipelines.local.results import StepFailedError


@step
def keep(dataset: Output[Dataset], model: Output[Model], fail: bool):
    import json
    import pathlib

    from evasion.components.common import tracking

    with tracking.stage("keep", {}) as run:
        pathlib.Path(dataset.path).write_bytes(bytes(1_000_000))
        run.log_file(pathlib.Path(dataset.path), "keep.tar")
        pathlib.Path(model.path).mkdir()
        card = {"name": "evasion_le_net", "version": "3", "architecture": "le_net"}
        pathlib.Path(model.path, "model.json").write_text(json.dumps(card))
        if fail:
            raise ValueError("it was to fail")


@dsl.pipeline
def keeping(fail: bool = False):
    keep(fail=fail)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def kept(output):
    return [runner.run(keeping, {}, output=output) for _ in range(2)]


def evasion(*arguments, **options):
    return CliRunner().invoke(main.main, [str(argument) for argument in arguments], **options)


def test_a_dataset_is_stored_once(kept, output):
    dataset = kept[0].steps[0].outputs["dataset"]
    (artifact,) = [path for path in (output / "mlartifacts").rglob("keep.tar") if path.samefile(dataset)]
    assert dataset.stat().st_nlink == 2
    client = MlflowClient(kept[0].tracking_uri)
    (stage,) = client.search_runs(
        [client.get_run(kept[0].run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{kept[0].run_id}'"
    )
    assert [file.path for file in client.list_artifacts(stage.info.run_id)] == ["keep.tar"]
    assert artifact.stat().st_size == 1_000_000


def test_a_dataset_on_another_file_system_is_copied(mlflow_store, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    (tmp_path / "tar").write_text("images")
    with tracking.stage("fgm", {}) as run:
        run.log_file(tmp_path / "tar", "fgm.tar")
    assert run.complete
    assert tracking.download_dataset(run.run_id, "fgm.tar", tmp_path / "downloaded").read_text() == "images"


def test_runs_are_listed_with_their_state(kept, output):
    with pytest.raises(StepFailedError):
        runner.run(keeping, {"fail": True}, output=output)
    record = output / "killed-1" / runs.RECORD
    record.parent.mkdir()
    content = json.loads((kept[0].run_dir / runs.RECORD).read_text()) | {"state": "RUNNING"}
    process = json.loads(content["process"]) | {"started": "0"}  # another process that had the same id
    record.write_text(json.dumps(content | {"process": json.dumps(process)}))
    result = evasion("runs", "--output", output)
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert "FINISHED" in lines[kept[0].run_dir.name]
    assert "evasion_le_net/3" in lines[kept[0].run_dir.name]
    assert "1.0 MiB" in lines[kept[0].run_dir.name]
    assert "KILLED" in lines["killed-1"]
    assert sum("FAILED" in line for line in lines.values()) == 1
    assert "contains no run" in evasion("runs", "--output", output / "nowhere").stdout


@pytest.mark.parametrize("name", ["nothing", "..", "mlartifacts", "../runs"])
def test_only_runs_are_removed(kept, output, name):
    result = evasion("runs", "remove", name, "--output", output, "--yes")
    assert result.exit_code == 2
    assert f"NAME must be a run in {output}" in result.stderr


def test_a_run_is_removed_with_its_entries_and_artifacts(kept, output):
    first, second = kept
    name = first.run_dir.name
    refused = evasion("runs", "remove", name, "--output", output, input="n\n")
    assert refused.exit_code == 1
    assert first.run_dir.exists()

    client = MlflowClient(first.tracking_uri)
    experiment = client.get_run(first.run_id).info.experiment_id
    artifacts = list((output / "mlartifacts").rglob("keep.tar"))
    removed = evasion("runs", "--output", output, "remove", name, "--yes")
    assert removed.exit_code == 0, removed.output
    assert not first.run_dir.exists()
    assert second.run_dir.exists()
    left = {run.info.run_id for run in client.search_runs([experiment], run_view_type=3)}  # also deleted ones
    assert first.run_id not in left
    assert second.run_id in left
    assert len(list((output / "mlartifacts").rglob("keep.tar"))) == len(artifacts) - 1


def test_a_run_that_still_runs_is_not_removed(output, kept):
    running = output / "running-1"
    running.mkdir()
    with runs.recorded(running, "keeping", "0", ""):
        result = evasion("runs", "remove", "running-1", "--output", output, "--yes")
    assert result.exit_code == 2
    assert "running-1, which is RUNNING" in result.stderr


@pytest.mark.usefixtures("mlflow_store")
def test_a_registered_model_stays(le_net_of_two_layers, tmp_path):
    import os

    with tracking.pipeline_run("train", {}) as parent, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", parent)
        with tracking.stage("train", {}) as run:
            run.log_model(le_net_of_two_layers, register_as="evasion_le_net")
            run.log_model(le_net_of_two_layers, register_as="")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    assert tracking.remove_pipeline_runs([parent], uri) == ["evasion_le_net/1"]
    client = MlflowClient(uri)
    assert client.search_runs(["0", "1"], run_view_type=3) == []
    assert len(client.search_logged_models(["1"])) == 1
    assert tracking.download_model("evasion_le_net", tmp_path / "model")[2:] == ("evasion_le_net", "1")


@pytest.fixture
def le_net_of_two_layers(tmp_path):
    import keras

    from evasion.components.common.models import artifact

    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    names = ("cat", "dog")
    artifact.save(
        keras.Sequential(layers),
        tmp_path / "saved",
        architecture="le_net",
        input_shape=(28, 28, 1),
        class_names=names,
        weights="none",
    )
    return tmp_path / "saved"
