"""The body of every step: what becomes of a step's parameters, and of a pipeline's run when its stage fails."""

import inspect
import json
import os
import signal
import sys
import time
import types
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from evasion.components import body
from evasion.components.common import tracking
from evasion.components.common.data.dataset import Dataset
from evasion.pipelines import stages
from evasion.pipelines.inputs import with_datasets


@pytest.fixture
def stage(monkeypatch):
    """Install a function as the stage `example`, which `call` can run."""

    def put(function):
        module = types.ModuleType("evasion.components.example.task")
        module.example = function
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


def artifact(kind, path):
    return kind(name="x", uri=str(path))


def test_artifacts_become_paths_and_all_else_stays_as_it_is(stage, tmp_path):
    def example(*, dataset: Path, model: Path, eps: float, norm: str, minimal: bool) -> dict[str, Any]:
        return locals()

    stage(example)
    dataset, model = artifact(dsl.Dataset, tmp_path / "dataset"), artifact(dsl.Model, tmp_path / "model")
    artifacts = {"dataset": dataset, "model": model, "metrics": artifact(dsl.Metrics, tmp_path / "metrics")}
    returned = body.call("example", {**artifacts, "eps": 0.3, "norm": "inf", "minimal": False, "call": body.call})
    assert returned == {
        "dataset": tmp_path / "dataset",
        "model": tmp_path / "model",
        "eps": 0.3,
        "norm": "inf",
        "minimal": False,
    }


def test_a_missing_artifact_is_none_and_a_missing_list_empty(stage, tmp_path):
    def example(
        *, evaluation: Path | None, evaluation_shards: list[Path], curve: Path | None, curve_shards: list[Path]
    ) -> dict[str, Any]:
        return locals()

    stage(example)
    shards = [artifact(dsl.Artifact, tmp_path / name) for name in ("one", "two")]
    arguments = {"evaluation": None, "evaluation_shards": shards, "curve": None, "curve_shards": None}
    assert body.call("example", arguments) == {
        "evaluation": None,
        "evaluation_shards": [tmp_path / "one", tmp_path / "two"],
        "curve": None,
        "curve_shards": [],
    }
    arguments |= {"evaluation_shards": [], "curve": shards[0]}
    assert body.call("example", arguments) == {
        "evaluation": None,
        "evaluation_shards": [],
        "curve": tmp_path / "one",
        "curve_shards": [],
    }


def test_datasets_without_a_parameter_of_their_own_are_the_others(stage, tmp_path):
    def example(*, dataset: Path, others: Sequence[Path], defended: Path) -> dict[str, Any]:
        return locals()

    stage(example)
    names = ("dataset", "defended", "dataset_2", "dataset_3", "dataset_10")
    arguments = {name: artifact(dsl.Dataset, tmp_path / name) for name in names}
    arguments |= {"metrics": artifact(dsl.Metrics, tmp_path / "metrics"), "dataset_4": None}
    assert body.call("example", arguments) == {
        "dataset": tmp_path / "dataset",
        "defended": tmp_path / "defended",
        "others": [tmp_path / "dataset_2", tmp_path / "dataset_3", tmp_path / "dataset_10"],
    }
    assert body.call("example", {name: arguments[name] for name in ("dataset", "defended")})["others"] == []


@pytest.mark.parametrize("name", stages.steps())
def test_a_step_hands_its_stage_all_that_it_takes(name):
    """Else a parameter would be without effect, or a run would fail that had passed every check."""
    source = inspect.getsource(stages.steps()[name].python_func)
    if f'call("{name}", locals())' not in source:
        assert name == "compare"  # whose reports are not a list in Kubeflow
        return
    taken = inspect.signature(stages.steps()[name].python_func).parameters
    module = __import__(f"evasion.components.{name}.task", fromlist=[name])
    needed = inspect.signature(getattr(module, name)).parameters
    assert needed.keys() - {"others"} <= taken.keys()
    results = {name for name, parameter in taken.items() if "Metrics" in str(parameter.annotation)}
    assert taken.keys() - needed.keys() == results


def test_a_step_of_several_datasets_defends_them_all(make_dataset, random_pixels, tmp_path, mlflow_store):
    datasets = {
        name: artifact(dsl.Dataset, make_dataset(random_pixels(3, (8, 8, 1), seed), name=name))
        for seed, name in enumerate(("clean", "fgm", "pgd"))
    }
    metrics = artifact(dsl.Metrics, tmp_path / "metrics")
    wide = with_datasets(stages.defenses()["spatial_smoothing"], 4)
    wide.python_func(
        dataset=datasets["clean"],
        defended=artifact(dsl.Dataset, tmp_path / "defended"),
        metrics=metrics,
        dataset_2=datasets["fgm"],
        dataset_4=datasets["pgd"],
    )
    assert [dataset.header.name for dataset in Dataset.all_in(tmp_path / "defended")] == [
        "spatial_smoothing",
        "spatial_smoothing_of_fgm",
        "spatial_smoothing_of_pgd",
    ]
    assert {"l_2_norm_mean", "spatial_smoothing_of_pgd/l_2_norm_mean"} <= metrics.metadata.keys()
    assert json.loads(json.dumps(metrics.metadata)) == metrics.metadata


@pytest.fixture
def smooth(make_dataset, random_pixels, tmp_path):
    """Run the step's body on a dataset; with a bad parameter, or on a bad file, it fails."""
    source = make_dataset(random_pixels(3, (8, 8, 1)))

    def run(dataset=source, window_size=3):
        arguments = {
            "dataset": artifact(dsl.Dataset, dataset),
            "defended": artifact(dsl.Dataset, tmp_path / "defended"),
            "window_size": window_size,
            "apply_fit": False,
            "apply_predict": True,
            "seed": 1,
        }
        return body.call("spatial_smoothing", arguments)

    return run


def status_of_the_pipeline(client):
    experiment = client.get_experiment_by_name("evasion")
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'pipeline'")
    return run.info.status


@pytest.mark.parametrize("bad", [{"window_size": 0}, {"dataset": Path("/nowhere")}], ids=["parameter", "file"])
def test_a_stage_that_fails_in_kubeflow_fails_the_run_until_it_is_finished(mlflow_store, monkeypatch, smooth, bad):
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    tracking.mark_pipeline_run("spatial_smoothing", "RUNNING")
    smooth()
    assert status_of_the_pipeline(mlflow_store) == "RUNNING"
    with pytest.raises((ValueError, FileNotFoundError), match=r"window_size|nowhere"):
        smooth(**bad)
    assert status_of_the_pipeline(mlflow_store) == "FAILED"
    smooth()
    assert status_of_the_pipeline(mlflow_store) == "FAILED"
    tracking.mark_pipeline_run("spatial_smoothing", "FINISHED")
    assert status_of_the_pipeline(mlflow_store) == "FINISHED"


def test_a_stage_that_fails_elsewhere_leaves_the_run_to_who_opened_it(mlflow_store, monkeypatch, smooth):
    with tracking.pipeline_run("spatial_smoothing", {}) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent)
        with pytest.raises(ValueError, match="window_size"):
            smooth(window_size=0)
        assert status_of_the_pipeline(mlflow_store) == "RUNNING"


def test_the_error_of_a_stage_is_reported_though_mlflow_is_gone(monkeypatch, smooth, capsys):
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"window_size must be an integer in \[1, 255\]"):
        smooth(window_size=0)
    assert "warning: the pipeline's run stays open in MLflow" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_a_terminated_stage_is_interrupted_and_ends_its_runs(mlflow_store, monkeypatch, stage, number, code):
    """A pod is terminated at its end. The status is the one by which a cluster tries it again."""

    def example():
        with tracking.stage("example", {}):
            os.kill(os.getpid(), number)
            time.sleep(60)

    stage(example)
    monkeypatch.setenv("KFP_RUN_ID", str(uuid.uuid4()))
    tracking.mark_pipeline_run("example", "RUNNING")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit if code else KeyboardInterrupt) as ended:
        body.call("example", {})
    assert getattr(ended.value, "code", None) == code
    assert signal.getsignal(signal.SIGTERM) is handler
    (experiment,) = mlflow_store.search_experiments(filter_string="name = 'evasion'")
    runs = mlflow_store.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["KILLED", "KILLED"]
