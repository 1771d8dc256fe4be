"""Runs every pipeline with kfp.local, chained through MLflow like the original's entry points."""

import json
import re

import pytest
from mlflow import MlflowClient

from evasion.pipelines import catalog
from evasion.pipelines.catalog import pipelines
from evasion.pipelines.local import runner
from evasion.pipelines.local.results import StepFailedError

pytestmark = pytest.mark.slow

LE_NET = {"model_architecture": "le_net", "batch_size": 32, "seed": 1}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(output):
    def run(pipeline, **arguments):
        pipeline = pipelines()[pipeline] if isinstance(pipeline, str) else pipeline
        return runner.run(pipeline, arguments, output=output)

    return run


@pytest.fixture(scope="module")
def trained(run, mnist):
    return run(
        "train",
        data_dir_train=str(mnist / "training"),
        data_dir_test=str(mnist / "testing"),
        epochs=2.5,
        model_tag="small",
        **LE_NET,
    )


@pytest.fixture(scope="module")
def attacked(run, mnist, trained):
    return run("fgm", data_dir=str(mnist / "testing"), model="evasion_small_le_net", eps=0.1, **LE_NET)


def client(result):
    return MlflowClient(result.tracking_uri)


def evaluations(result):
    """The numbers of the last inference of a run, by the name of the dataset."""
    folder = [step for step in result.steps if step.step.function == "infer"][-1].outputs["evaluation"]
    names = json.loads((folder / "evaluations.json").read_text())
    return {name: json.loads((folder / name / "evaluation.json").read_text()) for name in names}


def evaluation(result):
    """The numbers of an inference of one dataset."""
    (numbers,) = evaluations(result).values()
    return numbers


def children(result):
    tracking = client(result)
    parent = tracking.get_run(result.run_id)
    runs = tracking.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'")
    return {one.data.tags["stage"]: one for one in runs}


def test_train(trained):
    metrics = evaluation(trained)["metrics"]
    assert metrics["images"] == 100
    assert metrics["accuracy"] > 0.6
    assert client(trained).get_model_version("evasion_small_le_net", "1").source
    runs = children(trained)
    assert set(runs) == {"load_dataset", "train", "infer"}
    assert all(one.info.status == "FINISHED" for one in runs.values())
    assert runs["infer"].info.run_name == "infer clean"
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", runs["infer"].data.tags["mlflow.source.git.commit"])
    # The fault of the original: the test set's metrics were overwritten by the training set's.
    assert runs["infer"].data.metrics["accuracy"] == pytest.approx(metrics["accuracy"])
    assert "accuracy" not in runs["train"].data.metrics
    assert runs["train"].data.params["epochs"] == "2.5"


def test_fgm(attacked, trained):
    numbers = evaluation(attacked)
    assert numbers["metrics"]["accuracy_under_attack"] < evaluation(trained)["metrics"]["accuracy"]
    assert numbers["metrics"]["right_before"] == evaluation(trained)["metrics"]["correct"]
    # 0.1 is 25.5 levels, rounded towards the original.
    assert numbers["distances"]["l_infinity_norm"]["max"] == pytest.approx(25 / 255)
    assert "fgm.tar" in [one.path for one in client(attacked).list_artifacts(children(attacked)["fgm"].info.run_id)]


@pytest.mark.parametrize("whose", ["pipeline", "stage"])
def test_infer_reads_the_attacked_images_from_mlflow(run, attacked, whose):
    run_id = attacked.run_id if whose == "pipeline" else children(attacked)["fgm"].info.run_id
    again = run("infer", run_id=run_id, model="evasion_small_le_net/1", **LE_NET)
    assert evaluation(again)["metrics"] == evaluation(attacked)["metrics"]
    assert evaluation(again)["dataset"]["sha256"] == evaluation(attacked)["dataset"]["sha256"]


DEFENSES = {
    "spatial_smoothing": {"spatial_smoothing_window_size": 2},
    "jpeg_compression": {"jpeg_compression_quality": 60, "jpeg_compression_channels_first": True},
    "gaussian_augmentation": {"gaussian_augmentation_sigma": 0.05},
}


@pytest.mark.parametrize("name", DEFENSES)
def test_defenses_read_the_attacked_images_from_mlflow(run, attacked, name):
    defended = run(
        name,
        model="models:/evasion_small_le_net/1",
        load_dataset_from_mlruns=True,
        dataset_run_id=attacked.run_id,
        dataset_tar_name="fgm.tar",
        dataset_name="fgm",
        **DEFENSES[name],
        **LE_NET,
    )
    numbers = evaluation(defended)
    assert [entry["stage"] for entry in numbers["dataset"]["provenance"]] == ["load_dataset", "fgm", name]
    assert numbers["dataset"]["provenance"][-1]["applied"]
    assert numbers["metrics"]["images"] == 100
    assert "attack_success_rate" in numbers["metrics"]
    assert numbers["distances"]["l_2_norm"]["mean"] > 0


def test_training_on_a_defended_dataset(run, mnist, trained):
    noisy = run(
        "gaussian_augmentation",
        data_dir=str(mnist / "training"),
        model="evasion_small_le_net",
        dataset_split="training",
        gaussian_augmentation_perform_data_augmentation=True,
        gaussian_augmentation_ratio=0.5,
        gaussian_augmentation_apply_fit=True,
        **LE_NET,
    )
    assert evaluation(noisy)["metrics"]["images"] == 900
    retrained = run(
        "train",
        data_dir_test=str(mnist / "testing"),
        load_dataset_from_mlruns=True,
        training_dataset_run_id=noisy.run_id,
        dataset_tar_name="gaussian_augmentation.tar",
        dataset_name="gaussian_augmentation",
        epochs=0.5,
        register_model=False,
        **LE_NET,
    )
    # The fault of the original: register_model=False registered the model anyway.
    assert not client(retrained).search_model_versions("name = 'evasion_le_net'")


def test_init_model(run, photographs):
    result = run(
        "init_model", data_dir=str(photographs), model_architecture="resnet50", weights="none", batch_size=3, seed=1
    )
    numbers = evaluation(result)
    assert numbers["metrics"]["images"] == 4
    assert len(numbers["model"]["class_names"]) == 1000
    assert numbers["model"]["name"] == "evasion_resnet50"
    assert client(result).get_model_version("evasion_resnet50", "1")


def table(result):
    return json.loads(result.summary.read_text())["table"]


def measured(result):
    """The report without the hashes of tars, which depend on the shards."""

    def without_hashes(value):
        if isinstance(value, dict):
            hashes = {"sha256", "dataset_sha256", "parent_sha256"}
            return {name: without_hashes(member) for name, member in value.items() if name not in hashes}
        if isinstance(value, list):
            return [without_hashes(member) for member in value]
        return value.partition(", original images")[0] if isinstance(value, str) else value

    report = json.loads(result.summary.read_text())
    return without_hashes(report) | {"originals": report["originals"]}


# For each defense: clean images, those of an oblivious attacker, and those of a defense-aware attacker.
EVALUATED = ["load_dataset", "fgm", "auto_attack"]
for defense in DEFENSES:
    EVALUATED.append(defense)
    for attack in ("fgm", "auto_attack"):
        EVALUATED += [f"{defense}_of_{attack}", f"{defense}_of_{attack}_aware_of_{defense}"]

# The numbers themselves are those of other tests.
QUICK = {
    "auto_attack_max_iter": 3,
    "auto_attack_n_target_classes": 1,
    "auto_attack_n_queries": 3,
    "curve_pgd_max_iter": 1,
    "eot_samples": 2,
}


def test_the_whole_evaluation_of_a_trained_and_of_the_registered_model(run, mnist, trained):
    """Train, attack, defend and report; then again in shards with the registered model, to the same numbers."""
    arguments = {
        "data_dir_train": str(mnist / "training"),
        "data_dir_test": str(mnist / "testing"),
        "epochs": 2.5,
        "eps": 0.1,
        "model_tag": "whole",
        **QUICK,
        **LE_NET,
    }
    first = run("evaluation_trained", **arguments)
    assert [row["defense"]["name"] for row in table(first)] == 3 * [
        "none",
        "spatial_smoothing",
        "jpeg_compression",
        "gaussian_augmentation",
    ]
    undefended = table(first)[0]
    assert undefended["judged"]["robust_accuracy"]["value"] < undefended["clean_accuracy"]["value"]
    assert undefended["clean_accuracy"]["value"] == evaluation(trained)["metrics"]["accuracy"]
    assert len(children(first)) >= 8
    logged = client(first).list_artifacts(first.run_id, "report")
    assert sorted(one.path for one in logged) == ["report/report.html", "report/report.json"]
    whole = client(first).get_run(first.run_id)
    stages = client(first).search_runs(
        [whole.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first.run_id}'", max_results=1000
    )
    assert len(stages) == len(first.steps)
    (inferred,) = (one for one in stages if one.data.tags["stage"] == "infer")
    logged = client(first).list_artifacts(inferred.info.run_id)
    assert sorted(one.path for one in logged) == sorted(evaluations(first)) == sorted(EVALUATED)
    for name, numbers in evaluations(first).items():
        before = "" if name == "load_dataset" else f"{name}/"
        attacked = any(entry["kind"] == "attack" for entry in numbers["dataset"]["provenance"])
        accuracy = "accuracy_under_attack" if attacked else "accuracy"
        assert inferred.data.metrics[f"{before}{accuracy}"] == pytest.approx(numbers["metrics"][accuracy])
        assert (f"{before}robust_accuracy" in inferred.data.metrics) == attacked
    robust = inferred.data.metrics["jpeg_compression_of_fgm_aware_of_jpeg_compression/robust_accuracy"]
    of_fgm = {row["defense"]["name"]: row for row in table(first) if row["attack"]["name"] == "fgm"}
    by_table = of_fgm["jpeg_compression"]["attackers"]["defense-aware"]["robust_accuracy"]
    assert robust == pytest.approx(by_table["value"])
    reports = {one.data.tags["parent_report"] for one in (whole, *stages)}
    assert reports == {f"runs:/{first.run_id}/report/report.json"}
    assert whole.data.tags["dataset_sha256"] == inferred.data.tags["dataset_sha256"]

    registered = {name: arguments[name] for name in ("data_dir_test", "eps", *QUICK, *LE_NET)}
    registered |= {"model": "evasion_whole_le_net/1", "shards": 2}
    sharded = run(catalog.evaluation("registered", sharded=True), **registered)
    assert measured(sharded) == measured(first)
    names = [one.step.name for one in sharded.steps]
    assert {"fgm 1/2", "fgm 2/2", "report"} <= set(names)
    assert {"fgm", "report"} <= {one.step.name for one in first.steps}
    assert len(names) == len(set(names)) == 2 + 2 * (len(first.steps) - 4) + 1


def test_the_whole_evaluation_of_a_pretrained_model(run, photographs):
    result = run(
        "evaluation_pretrained",
        data_dir_test=str(photographs),
        model_architecture="resnet50",
        weights="none",
        eps=8 / 255,
        eps_values="0.1",  # a single point of the curve: a ResNet50 is slow
        batch_size=4,
        seed=1,
        **QUICK | {"eot_samples": 1, "auto_attack_max_iter": 1, "auto_attack_n_queries": 1},
    )
    assert [row["judged"]["robust_accuracy"]["n"] for row in table(result)] == 12 * [4]
    assert result.report.stat().st_size > 10_000


def test_a_failed_step_reports_its_own_error_and_fails_the_run(run, mnist, output):
    with pytest.raises(StepFailedError, match=r"model must be registered in MLflow.*no_such_model") as failure:
        run("fgm", data_dir=str(mnist / "testing"), model="no_such_model", **LE_NET)
    assert failure.value.step == "load_model"
    tracking = MlflowClient(f"sqlite:///{output}/mlflow.db")
    newest = tracking.search_runs(["1"], "tags.pipeline = 'fgm'", max_results=1)[0]
    assert newest.info.status == "FAILED"
