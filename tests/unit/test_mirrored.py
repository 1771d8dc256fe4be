"""Training on several devices: logical CPUs of TensorFlow replace GPUs, in separate processes."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, pathlib, sys
import numpy as np
import tensorflow as tf

cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)

from evasion.components.common.models import artifact
from evasion.components.train import mirrored, task

tar, folder = map(pathlib.Path, sys.argv[1:3])
name = sys.argv[3]
usual = dict(model_tag="", epochs=2.0, batch_size=24, register_model=False, learning_rate=0.01, optimizer="sgd",
             validation_split=0.3, weights="none", weights_sha256="", eps=0.1, eps_step=0.05, max_iter=2, seed=7)
chosen, alone = mirrored.strategy, lambda batches: None

def train(name, strategy, **changed):
    asked = []
    def watched(batches):
        asked.append(strategy(batches))
        return asked[0]
    mirrored.strategy = watched
    result = task.train(dataset=tar, model=folder / name, **usual | changed)
    weights = [w.tolist() for w in artifact.load(folder / name).get_weights()]
    replicas = asked[0].num_replicas_in_sync if asked[0] else 1
    return dict(metrics=result["metrics"], weights=weights, replicas=replicas)

results = {}
if name == "defended":
    results[name] = train(name, chosen, model_architecture="le_net", apply_defense=True)
else:
    results["alone"] = train("alone", alone, model_architecture="shallow_net", apply_defense=False)
    results["together"] = train("together", chosen, model_architecture="shallow_net", apply_defense=False)
    batches = ([24, 24], [24, 13], [25], [9, 3], [32, 32])
    results["parts"] = [(s.num_replicas_in_sync if s else 1) for s in map(chosen, batches)]
(folder / f"{name}.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(digits_tar, empty_mlflow, tmp_path_factory):
    """80 digits: 56 to train on, the last batch of 8 in parts of 3, 3 and 2, and 24 to validate."""
    folder = tmp_path_factory.mktemp("mirrored")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    environment |= {"EVASION_ARTIFACT_ROOT": str(folder / "artifacts")}
    (folder / "mlflow.db").write_bytes(empty_mlflow.read_bytes())
    names = ("plain", "defended")  # TensorFlow supports one strategy in a process
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, digits_tar, folder, name], env=environment) for name in names
    ]
    assert [process.wait() for process in processes] == [0, 0]
    return {key: value for name in names for key, value in json.loads((folder / f"{name}.json").read_text()).items()}


def flat(weights):
    import numpy as np

    return np.concatenate([np.ravel(weight) for weight in weights])


def test_several_devices_train_what_one_does(results):
    assert (results["alone"]["replicas"], results["together"]["replicas"]) == (1, 3)
    assert results["together"]["metrics"] == pytest.approx(results["alone"]["metrics"], rel=1e-5)
    assert flat(results["together"]["weights"]) == pytest.approx(flat(results["alone"]["weights"]), abs=1e-6)
    assert results["alone"]["metrics"]["epochs_trained"] == 2


def test_as_many_devices_are_used_as_divide_the_batches(results):
    assert results["parts"] == [3, 1, 1, 3, 2]


def test_adversarial_training_runs_on_several_devices(results):
    assert results["defended"]["replicas"] == 3
    assert results["defended"]["metrics"]["training_loss"] < 3


@pytest.mark.parametrize(("chosen", "expected"), [({}, "true"), ({"TF_FORCE_GPU_ALLOW_GROWTH": "false"}, "false")])
def test_gpu_memory_grows_unless_configured_otherwise(chosen, expected):
    """What TensorFlow reads is set before a step imports it."""
    script = "import os, sys, evasion.components.train.task; assert 'tensorflow' not in sys.modules;"
    script += "print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")} | chosen
    result = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == expected
