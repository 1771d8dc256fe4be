"""Attacks that fail for a known reason: each trips its own check and no other, and a run without a fault trips none.

The stages are real, on small networks and 80 digits, and all checks of the report count.
"""

import json

import keras
import numpy as np
import pytest

from evasion.components.auto_attack.task import auto_attack
from evasion.components.common.models import artifact
from evasion.components.fgm.task import fgm
from evasion.components.gaussian_augmentation.task import gaussian_augmentation
from evasion.components.infer.task import infer
from evasion.components.jpeg_compression.task import jpeg_compression
from evasion.components.pgd.task import pgd
from evasion.components.report.task import report
from evasion.components.security_curve.task import security_curve

SO_FEW_IMAGES = "enough images"
"""The one check that every run here trips."""

EPS = 0.2
ATTACKS = {
    "fgm": {"eps": EPS, "eps_step": EPS / 10, "minimal": False, "norm": "inf"},
    "pgd": {"eps": EPS, "eps_step": EPS / 5, "max_iter": 20, "num_random_init": 1, "norm": "inf"},
    "auto_attack": {
        "eps": EPS,
        "norm": "inf",
        "budget": "light",
        "members": "apgd-ce,apgd-t,square",
        **dict.fromkeys(("max_iter", "num_random_init", "n_target_classes", "n_queries"), 0),
    },
}
CURVE = {"eps": EPS, "norm": "inf", "eps_values": "1", "pgd_max_iter": 5}
JPEG = {"quality": 50, "channels_first": False}
NOISE = {"sigma": 0.2, "ratio": 1.0, "perform_data_augmentation": False}
APPLIED = {"apply_fit": False, "apply_predict": True, "seed": 5}
COMMON = {"batch_size": 40, "seed": 5}
TASKS = {"fgm": fgm, "pgd": pgd, "auto_attack": auto_attack}
DEFENSES = {"jpeg_compression": jpeg_compression, "gaussian_augmentation": gaussian_augmentation}


def built(activation=keras.ops.relu):
    """Build a small network; one of convolutions would take twice the time."""
    inputs = keras.Input((28, 28, 1))
    values = activation(keras.layers.Dense(64)(keras.layers.Flatten()(inputs)))
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(values))


def trained(model, digits):
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(digits.pixels[1000:3000] / np.float32(255), digits.labels[1000:3000], epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module")
def network(digits):
    keras.utils.set_random_seed(0)
    return trained(built(), digits)


@pytest.fixture
def times_a_thousand(network):
    model = built()
    model.set_weights([*network.get_weights()[:-2], *(1000 * each for each in network.get_weights()[-2:])])
    return model


class Tripped:
    """Evaluates as by default, with `fgm`, `auto_attack` and the curve."""

    def __init__(self, network, dataset, folder):
        self._network, self._dataset, self._folder = network, dataset, folder
        self.checks, self.evaluations = [], []

    def __call__(self, model=None, attacks=("fgm", "auto_attack"), defenses=(), eot_samples=4, **changed):
        """Evaluate; return the names of the checks that warn or fail."""
        folder, known = self._folder, json.dumps(dict(defenses))
        artifact.save(
            model or self._network,
            folder / "model",
            architecture="le_net",
            input_shape=(28, 28, 1),
            class_names=tuple("0123456789"),
            weights="trained",
        )
        common = {"dataset": self._dataset, "model": folder / "model", **COMMON}
        target = {"defenses": known, "eot_samples": eot_samples, **common}
        for name in attacks:
            TASKS[name](adversarial=folder / name, **target, **ATTACKS[name] | changed.get(name, {}))
        attacked = [folder / name for name in attacks]
        for name, settings in dict(defenses).items():
            DEFENSES[name](dataset=self._dataset, others=attacked, defended=folder / name, **settings, **APPLIED)
        infer(others=[*attacked, *(folder / name for name in dict(defenses))], evaluation=folder / "infer", **common)
        security_curve(curve=folder / "curve", **target, **CURVE | changed.get("curve", {}))
        report(
            evaluation=folder / "infer",
            evaluation_shards=[],
            curve=folder / "curve",
            curve_shards=[],
            html=folder / "report.html",
            summary=folder / "report.json",
            clean_accuracy_floor=0.5,
        )
        content = json.loads((folder / "report.json").read_text())
        self.checks, self.evaluations = content["checks"], content["evaluations"]
        made = [check for check in self.checks if check["status"] != "pass"]
        assert all(check["advice"] for check in made)
        print(*made, sep="\n")
        return {check["name"] for check in made} - {SO_FEW_IMAGES}

    def statuses(self, name):
        """Return the status of one check by its attack."""
        return {check["subject"].split()[0]: check["status"] for check in self.checks if check["name"] == name}


@pytest.fixture
def tripped(mlflow_store, network, digits_tar, tmp_path):
    (tmp_path / "model").mkdir()
    return Tripped(network, digits_tar, tmp_path)


def test_a_clean_run_trips_none(tripped):
    assert tripped(defenses={"jpeg_compression": JPEG, "gaussian_augmentation": NOISE}) == set()
    saved = [each["attack_distances"] for each in tripped.evaluations if each["attack_distances"]]
    assert len(saved) == 8  # two attacks by two attackers behind two defenses
    assert {each["l_infinity_norm"]["max"] for each in saved} == {EPS}


def test_square_alone_tells_nothing_of_gradients(tripped):
    assert tripped(auto_attack={"members": "square"}) == {"gradients not masked"}
    assert tripped.statuses("gradients not masked") == {"all": "warn"}


def test_steps_ten_times_too_small(tripped):
    pgd = {"eps_step": EPS / 50, "max_iter": 10, "num_random_init": 0}
    assert tripped(attacks=("fgm", "auto_attack", "pgd"), pgd=pgd) == {"loss converged"}


def test_quantised_weights_and_activations(tripped, network):
    """Outputs are constant between the levels, so they have no gradient."""
    model = built(lambda values: keras.ops.round(keras.ops.relu(values) * 2) / 2)
    model.set_weights([np.round(each * 8) / 8 for each in network.get_weights()])
    assert tripped(model) == {"gradients not zero"}


def test_quantised_weights_alone_hide_no_gradient(tripped, network):
    model = built()
    model.set_weights([np.round(each * 8) / 8 for each in network.get_weights()])
    assert tripped(model) == set()


def test_k_winners_take_all(tripped, digits):
    def winners(values):
        least = keras.ops.min(keras.ops.top_k(values, values.shape[-1] // 10)[0], axis=-1, keepdims=True)
        return keras.ops.where(values >= least, values, 0.0)

    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    values = winners(keras.layers.Flatten()(keras.layers.Conv2D(8, 3)(inputs)))
    model = trained(keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(values)), digits)
    # So large an attack that it succeeds all the same.
    larger = {stage: {"eps": 0.4} for stage in ("fgm", "auto_attack", "curve")}
    assert tripped(model, **larger) == {"loss is smooth around the image"}


def test_gradients_that_point_elsewhere_are_told_by_both_checks_of_them(tripped, network):
    """In 8 bits the model is the plain one, but the gradient of a random half of the pixels points the other way."""
    sign = np.random.default_rng(0).choice([-1.0, 1.0], (28, 28, 1)).astype(np.float32)
    inputs = keras.Input((28, 28, 1))
    wave = keras.ops.sin(inputs * (2 * np.pi * 255)) / (2 * np.pi * 255)
    model = keras.Model(inputs, network(inputs + wave * (sign - 1)))
    found = tripped(model, auto_attack={"n_queries": 500})
    assert found == {"gradients not masked", "loss is smooth around the image"}


def test_logits_times_a_thousand(tripped, times_a_thousand):
    """Advice that is followed opens the gate: it stays shut until a member attacks whose loss keeps its gradient."""
    assert tripped(times_a_thousand) == {"cross-entropy not saturated"}
    assert tripped.statuses("cross-entropy not saturated") == {"fgm": "warn", "auto_attack": "pass"}
    assert "fail" not in {check["status"] for check in tripped.checks}


@pytest.mark.parametrize("attacks", [("fgm", "pgd"), ("fgm", "auto_attack")])
def test_logits_times_a_thousand_close_the_gate_where_no_member_withstands_them(tripped, times_a_thousand, attacks):
    found = tripped(times_a_thousand, attacks=attacks, auto_attack={"members": "apgd-ce,square"})
    unchecked = set() if "auto_attack" in attacks else {"gradients not masked"}
    assert found == {"cross-entropy not saturated"} | unchecked
    assert tripped.statuses("cross-entropy not saturated") == dict.fromkeys(attacks, "fail")


def test_a_random_defense_without_expectation_over_draws(tripped):
    noise = {**NOISE, "sigma": 0.3}
    found = tripped(defenses={"gaussian_augmentation": noise}, eot_samples=1)
    assert found == {"enough draws of a random defense"}


def test_steps_that_are_lost_in_8_bits(tripped):
    lost = {"eps": 0.003}
    assert tripped(fgm=lost, auto_attack=lost) == {"attack survives 8 bits"}
