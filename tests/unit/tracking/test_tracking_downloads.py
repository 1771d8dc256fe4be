"""Datasets and models from MLflow."""

import os

import numpy as np
import pytest

from evasion.components.common import tracking
from evasion.components.common.tracking import TrackingError


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
        assert (model.name, model.version) == (name, version), reference
        for file in (model.file, model.card):
            assert file.read_bytes() == (le_net_artifact / file.name).read_bytes()

    # By MLflow's own id, which is all that a model has that was not registered.
    logged = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert len(logged) == 4
    assert {model.source_run_id for model in logged} == {run_id}
    (identifier,) = {model.model_id for model in logged} - {
        client.get_model_version(name, version).source.removeprefix("models:/") for version in "123"
    }
    nameless = tracking.download_model(f"models:/{identifier}", tmp_path / "nameless")
    assert (nameless.name, nameless.version) == ("", "")
    assert nameless.file.is_file()

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
    downloaded = tracking.download_model("m-lab_le_net", tmp_path / "downloaded")
    assert (downloaded.name, downloaded.version) == ("m-lab_le_net", "1")


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
