"""Attacks that fail for a known reason: each trips its own check and no other, and a run without a fault trips none.

The stages are real, on a small LeNet and 80 digits.
"""

import json

import keras
import numpy as np
import pytest

from evasion.components.common.models import artifact
from evasion.components.fgm.task import fgm
from evasion.components.gaussian_augmentation.task import gaussian_augmentation
from evasion.components.infer.task import infer
from evasion.components.jpeg_compression.task import jpeg_compression
from evasion.components.pgd.task import pgd
from evasion.components.report.task import report

INDICATORS = {
    "attack survives 8 bits",
    "best iterate kept",
    "cross-entropy not saturated",
    "defense-aware attack hurts no less",
    "enough draws of a random defense",
    "gradient from logits",
    "gradients not masked",
    "gradients not zero",
    "loss converged",
    "loss is smooth",
}
EPS = 0.2
PGD = {"eps": EPS, "eps_step": EPS / 5, "max_iter": 20, "num_random_init": 1, "norm": "inf"}
FGM = {"eps": EPS, "eps_step": EPS / 10, "minimal": False, "norm": "inf"}
JPEG = {"quality": 50, "channels_first": False}
NOISE = {"sigma": 0.2, "ratio": 1.0, "perform_data_augmentation": False}
APPLIED = {"apply_fit": False, "apply_predict": True, "seed": 5}
COMMON = {"batch_size": 40, "seed": 5}


def saved(model, folder):
    artifact.save(
        model,
        folder,
        architecture="le_net",
        input_shape=(28, 28, 1),
        class_names=tuple("0123456789"),
        weights="trained",
    )
    return folder


@pytest.fixture
def tripped(mlflow_store, digits_tar, le_net_artifact, tmp_path):
    """Run attacks, defenses, inference and report; return the indicators that warn or fail."""

    def run(model=le_net_artifact, defenses=(), eot_samples=4, curve=None, **changed):
        known = json.dumps(dict(defenses))
        target = {"dataset": digits_tar, "model": model, "defenses": known, "eot_samples": eot_samples, **COMMON}
        fgm(adversarial=tmp_path / "fgm", **target, **FGM)
        pgd(adversarial=tmp_path / "pgd", **target, **PGD | changed)
        attacked = [tmp_path / "fgm", tmp_path / "pgd"]
        tasks = {"jpeg_compression": jpeg_compression, "gaussian_augmentation": gaussian_augmentation}
        for name, settings in dict(defenses).items():
            tasks[name](dataset=digits_tar, others=attacked, defended=tmp_path / name, **settings, **APPLIED)
        others = [*attacked, *(tmp_path / name for name in dict(defenses))]
        infer(dataset=digits_tar, others=others, model=model, evaluation=tmp_path / "infer", **COMMON)
        paths = {"html": tmp_path / "report.html", "summary": tmp_path / "report.json"}
        report(
            evaluation=tmp_path / "infer",
            evaluation_shards=[],
            curve=curve,
            curve_shards=[],
            clean_accuracy_floor=0.5,
            **paths,
        )
        checks = json.loads(paths["summary"].read_text())["checks"]
        assert all(check["advice"] for check in checks if check["status"] != "pass")
        made = [check for check in checks if check["status"] != "pass" and check["name"] in INDICATORS]
        print(*made, sep="\n")
        return {check["name"] for check in made}

    return run


def test_a_clean_run_trips_none(tripped):
    assert tripped(defenses={"jpeg_compression": JPEG, "gaussian_augmentation": NOISE}) == set()


def test_steps_ten_times_too_small(tripped):
    assert tripped(eps_step=EPS / 50, max_iter=10, num_random_init=0) == {"loss converged"}


def test_rounded_activations(tripped, le_net, tmp_path):
    """The model rounds its images to five levels, so its outputs are constant between them."""
    inputs = keras.Input((28, 28, 1))
    outputs = keras.ops.round(inputs * 4) / 4
    for layer in le_net.layers[1:]:
        outputs = layer(outputs)
    assert tripped(saved(keras.Model(inputs, outputs), tmp_path / "rounded")) == {"gradients not zero"}


def test_logits_times_a_thousand(tripped, le_net, tmp_path):
    model = keras.models.clone_model(le_net)
    model.set_weights([*le_net.get_weights()[:-2], *(1000 * each for each in le_net.get_weights()[-2:])])
    assert tripped(saved(model, tmp_path / "scaled")) == {"cross-entropy not saturated"}


def test_a_random_defense_without_expectation_over_draws(tripped):
    noise = {**NOISE, "sigma": 0.3}
    found = tripped(defenses={"gaussian_augmentation": noise}, eot_samples=1)
    assert found == {"enough draws of a random defense"}


def test_steps_that_are_lost_in_8_bits(tripped):
    assert tripped(eps=0.003, eps_step=0.001) == {"attack survives 8 bits"}


def test_the_planted_models_are_as_accurate_as_the_plain_one(le_net, digits):
    """Else another check would have to speak up first."""
    x, labels = digits.pixels[:80] / np.float32(255), digits.labels[:80]
    rounded = le_net.predict(np.round(x * 4) / 4, verbose=0).argmax(axis=1)
    assert (rounded == labels).mean() > 0.7
