"""Parameters and data that a defense refuses, and its memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from defending import DEFENSES, GRAY, every_defense


@every_defense
def test_the_run_in_mlflow_holds_parameters_metrics_and_the_tar(
    defend, make_dataset, random_pixels, mlflow_store, stage
):
    path, numbers = defend(stage, make_dataset(random_pixels(4, GRAY)))
    experiment = mlflow_store.get_experiment_by_name("evasion")
    [run] = mlflow_store.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{stage} clean"
    assert run.data.tags["stage"] == stage
    expected = {**DEFENSES[stage][1], "apply_fit": False, "apply_predict": True, "seed": 1}
    assert run.data.params == {name: str(value) for name, value in expected.items()}
    assert run.data.metrics == pytest.approx(numbers)
    logged = mlflow_store.download_artifacts(run.info.run_id, f"{stage}.tar")
    assert Path(logged).read_bytes() == path.read_bytes()


@every_defense
def test_a_damaged_dataset_leaves_no_defended_one(defend, make_dataset, random_pixels, tmp_path, mlflow_store, stage):
    source = make_dataset(random_pixels(8, GRAY))
    data = bytearray(source.read_bytes())
    data[data.rindex(b"IDAT") + 20] ^= 0xFF  # the last image: the others are defended already
    source.write_bytes(data)
    with pytest.raises(ValueError, match=r"dog/0007\.png.*corrupt"):
        defend(stage, source)
    assert not [path for path in tmp_path.iterdir() if "defended" in path.name]
    experiment = mlflow_store.get_experiment_by_name("evasion")
    assert [run.info.status for run in mlflow_store.search_runs([experiment.experiment_id])] == ["FAILED"]


@pytest.mark.parametrize(
    ("stage", "parameters", "message"),
    [
        ("spatial_smoothing", {"window_size": 0}, "window_size must be an integer in [1, 255]"),
        ("spatial_smoothing", {"window_size": 100000}, "window_size must be an integer in [1, 255]"),
        ("spatial_smoothing", {"window_size": 2.5}, "window_size must be an integer in [1, 255]"),
        ("spatial_smoothing", {"seed": -2}, "seed must be an integer in [-1, 4294967295]"),
        ("jpeg_compression", {"quality": 0}, "quality must be an integer in [1, 100]"),
        ("jpeg_compression", {"quality": 101}, "quality must be an integer in [1, 100]"),
        ("jpeg_compression", {"seed": 2**32}, "seed must be an integer in [-1, 4294967295]"),
        ("gaussian_augmentation", {"ratio": 2}, "ratio must be in [0, 1]"),
        ("gaussian_augmentation", {"ratio": float("nan")}, "ratio must be in [0, 1]"),
        ("gaussian_augmentation", {"sigma": 0}, "sigma must be in (0, 10]"),
        ("gaussian_augmentation", {"sigma": -0.1}, "sigma must be in (0, 10]"),
        ("gaussian_augmentation", {"seed": 1.0}, "seed must be an integer in [-1, 4294967295]"),
    ],
)
def test_bad_parameters_are_refused_before_anything_starts(defend, tmp_path, mlflow_store, stage, parameters, message):
    [(name, value)] = parameters.items()
    with pytest.raises(ValueError, match="must be") as error:
        defend(stage, tmp_path / "not even there", **parameters)
    assert str(error.value) == f"{message}. Received: {name}={value!r}"
    assert mlflow_store.get_experiment_by_name("evasion") is None


MEASURED = """
import importlib, json, resource, sys
from pathlib import Path
source, output, defenses = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
for stage, parameters in defenses.items():
    task = importlib.import_module(f"evasion.components.{stage}.task")
    getattr(task, stage)(dataset=source, others=[], defended=output, **parameters)
print(json.dumps({"modules": sorted(sys.modules), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def in_its_own_process(stages, source, output):
    """Run defenses as steps do and return the modules that were imported and the peak memory in KiB."""
    common = {"apply_fit": False, "apply_predict": True, "seed": 1}
    defenses = json.dumps({stage: {**DEFENSES[stage][1], **common} for stage in stages})
    command = [sys.executable, "-c", MEASURED, source, output, defenses]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_defense_imports_no_model_library(make_dataset, random_pixels, tmp_path, mlflow_store):
    """MLflow itself imports pandas, pyarrow and SciPy; the rest of the seconds are saved."""
    source = make_dataset(random_pixels(4, GRAY))
    modules = set(in_its_own_process(DEFENSES, source, tmp_path / "defended.tar")["modules"])
    assert "mlflow" in modules
    assert not modules & {"tensorflow", "keras", "torch", "art", "sklearn", "matplotlib", "kfp"}


@pytest.mark.slow
@every_defense
def test_memory_does_not_grow_with_the_number_of_images(make_dataset, random_pixels, tmp_path, mlflow_store, stage):
    sources = {images: make_dataset(random_pixels(images, GRAY)) for images in (1_000, 10_000)}
    peaks = {
        images: in_its_own_process([stage], source, tmp_path / "defended.tar")["peak"]
        for images, source in sources.items()
    }
    assert peaks[10_000] <= 1.1 * peaks[1_000], peaks
