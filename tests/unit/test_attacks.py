"""The defense-aware attacker, PGD, and what attacks share."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from evasion.components.common import attacks, classifier, transformations
from evasion.components.common.dataset import Dataset, to_float, to_pixels
from evasion.components.common.defended import Defended
from evasion.components.fgm import task as fgm_task
from evasion.components.gaussian_augmentation import task as gaussian
from evasion.components.jpeg_compression import task as jpeg
from evasion.components.pgd import compiled
from evasion.components.pgd import task as pgd_task
from evasion.components.spatial_smoothing import task as smoothing

FGM = {"batch_size": 32, "eps": 0.2, "eps_step": 0.1, "minimal": False, "norm": "inf", "eot_samples": 4, "seed": 3}
PGD = {
    "batch_size": 32,
    "eps": 0.2,
    "eps_step": 0.05,
    "max_iter": 8,
    "num_random_init": 1,
    "norm": "inf",
    "eot_samples": 4,
    "seed": 3,
}
SPLIT = {"apply_fit": False, "apply_predict": True, "seed": 5}
TRANSFORMATIONS = {
    "spatial_smoothing": smoothing.transformation(window_size=3),
    "jpeg_compression": jpeg.transformation(quality=50, channels_first=False),
}


def labels_of(target, x):
    return np.eye(10, dtype=np.float32)[target.probabilities(x).argmax(axis=1)]


def gradient_step(target, x, **changed):
    parameters = {"norm": "inf", "eps": 0.2, "eps_step": 0.1, "minimal": False, "batch_size": 16} | changed
    return fgm_task.fast_gradient_method(target.art, **parameters).generate(x, y=labels_of(target, x))


@pytest.fixture
def defend(run_stage, digits_tar):
    """Run a defense over the digits; give its dataset."""

    def run(stage, dataset=digits_tar, out="defended", **parameters):
        task = {
            "spatial_smoothing": smoothing.spatial_smoothing,
            "jpeg_compression": jpeg.jpeg_compression,
            "gaussian_augmentation": gaussian.gaussian_augmentation,
        }[stage]
        usual = {
            "spatial_smoothing": {"window_size": 3},
            "jpeg_compression": {"quality": 50, "channels_first": False},
            "gaussian_augmentation": {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.1},
        }[stage]
        produced = run_stage(task, dataset=dataset, out="defended", **usual | SPLIT | parameters)
        return produced.rename(produced.with_name(out))

    return run


def test_straight_through_is_arts_own_where_art_is_right(le_net, digits):
    """ART's median smoothing is exact on 8-bit images, and its gradient is the identity's."""
    import keras
    from art.attacks.evasion import FastGradientMethod
    from art.defences.preprocessor import SpatialSmoothing
    from art.estimators.classification import TensorFlowV2Classifier

    x = to_float(digits.pixels[:40])
    estimator = TensorFlowV2Classifier(
        model=le_net,
        nb_classes=10,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
        preprocessing_defences=[SpatialSmoothing(window_size=3)],
    )
    expected = FastGradientMethod(estimator, norm=np.inf, eps=0.2, batch_size=16).generate(x)
    target = Defended(le_net, TRANSFORMATIONS["spatial_smoothing"], eot_samples=1, seed=0)
    assert np.isclose(gradient_step(target, x), expected, rtol=0, atol=2e-6).mean() >= 0.999


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_gradient_is_the_models_at_the_defended_image(le_net, digits, name):
    bare, transformation = classifier.Classifier(le_net), TRANSFORMATIONS[name]
    target = Defended(le_net, transformation, eot_samples=7, seed=0)
    x = to_float(digits.pixels[:16])
    defended = to_float(np.stack([transformation.apply(image, None) for image in to_pixels(x)]))
    y = labels_of(target, x)
    assert np.array_equal(target.outputs(x), bare.outputs(defended))
    assert np.array_equal(target.loss_gradient(x, y), bare.loss_gradient(defended, y))
    assert not np.array_equal(target.loss_gradient(x, y), bare.loss_gradient(x, y))


def test_expectation_over_noise_comes_nearer_with_more_draws(le_net, digits):
    x = to_float(digits.pixels[:16])
    y = labels_of(classifier.Classifier(le_net), x)

    def gradient(draws, seed):
        return Defended(le_net, gaussian.transformation(sigma=0.3), eot_samples=draws, seed=seed).loss_gradient(x, y)

    reference = gradient(256, 1)
    few, many = (np.linalg.norm(gradient(draws, 2) - reference) for draws in (1, 64))
    assert many < few / 3  # a mean of 64 draws strays an eighth as far
    assert np.array_equal(gradient(4, 3), gradient(4, 3))
    assert not np.array_equal(gradient(4, 3), gradient(4, 4))


def test_outputs_over_draws_are_the_mean_probability(le_net, digits):
    x = to_float(digits.pixels[:8])
    target = Defended(le_net, gaussian.transformation(sigma=0.2), eot_samples=3, seed=0)
    bare = classifier.Classifier(le_net)
    drawn = [
        bare.probabilities(noisy)
        for noisy in Defended(le_net, target._transformation, eot_samples=3, seed=0)._defended(x)
    ]
    assert np.allclose(target.probabilities(x), np.mean(drawn, axis=0), atol=1e-6)


@pytest.mark.parametrize("stage", ["spatial_smoothing", "jpeg_compression", "gaussian_augmentation"])
def test_an_aware_attack_says_what_it_knows(run_stage, defend, le_net_artifact, digits_tar, stage):
    defended = defend(stage)
    common = {"dataset": digits_tar, "model": le_net_artifact, "out": "adversarial", **FGM}
    oblivious = run_stage(fgm_task.fgm, defense=None, **common)
    oblivious = oblivious.rename(oblivious.with_name("oblivious"))
    aware = run_stage(fgm_task.fgm, defense=defended, **common)
    with Dataset(oblivious) as one, Dataset(aware) as other:
        blind, knowing = one.header.provenance[-1], other.header.provenance[-1]
        assert (blind["knowledge"], blind["defense"]) == ("oblivious", None)
        assert knowing["knowledge"] == "defense-aware"
        assert knowing["defense"]["stage"] == stage
        assert knowing["parameters"] == blind["parameters"]
        rows = list(zip(one.samples(), other.samples(), strict=True))
    # The same images were right before, whatever the attacker knows; the attacked ones differ.
    assert all(a.fields["clean_prediction"] == b.fields["clean_prediction"] for a, b in rows)
    assert any(not np.array_equal(a.pixels, b.pixels) for a, b in rows)


def test_knowing_the_noise_makes_the_attack_stronger(le_net, digits):
    """Robust accuracy behind the defense: lower for the attacker who knows it."""
    transformation = gaussian.transformation(sigma=0.3)
    x, labels = to_float(digits.pixels[:300]), digits.labels[:300]
    bare = classifier.Classifier(le_net)

    def robust(target):
        pixels, random = to_pixels(gradient_step(target, x, eps=0.15)), np.random.default_rng(9)
        met = to_float(np.stack([transformation.apply(image, random) for image in pixels]))
        return (bare.probabilities(met).argmax(axis=1) == labels).mean()

    assert robust(Defended(le_net, transformation, eot_samples=16, seed=1)) < robust(bare) - 0.02


REFUSED = [
    ({"apply_predict": False}, "takes a dataset that a defense has changed. Received: one by gaussian_augmentation"),
    ({"perform_data_augmentation": True}, "turns each image into one. Received: perform_data_augmentation=True"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_a_defense_that_cannot_be_aimed_at_is_refused(run_stage, defend, le_net_artifact, digits_tar, changed, message):
    defended = defend("gaussian_augmentation", **changed)
    with pytest.raises(ValueError, match=message):
        run_stage(fgm_task.fgm, dataset=digits_tar, model=le_net_artifact, defense=defended, out="adversarial", **FGM)


def test_a_dataset_without_defense_is_refused(digits_tar):
    with Dataset(digits_tar) as plain, pytest.raises(ValueError, match="Received: one by load_dataset"):
        transformations.defense_of(plain.header)


@pytest.mark.parametrize("stage", ["os", "../fgm", "no_such_stage", "fgm"])
def test_a_stage_that_is_no_defense_is_refused(digits_tar, stage):
    """The name comes out of a file that others made."""
    entry = {"stage": stage, "kind": "defense", "parameters": {}, "seed": 1, "applied": True}
    with Dataset(digits_tar) as plain:
        header = plain.header.derive(name="x", prefix="def_", entry=entry)
    with pytest.raises(ValueError, match=re.escape(repr(stage))):
        transformations.defense_of(header)


def test_minimal_records_the_smallest_size_that_succeeded(run_stage, le_net_artifact, digits_tar):
    attacked = run_stage(
        fgm_task.fgm,
        dataset=digits_tar,
        model=le_net_artifact,
        defense=None,
        out="adversarial",
        **FGM | {"minimal": True, "eps_step": 0.05},
    )
    with Dataset(attacked) as data:
        rows = list(data.samples())
    sizes = [row.fields["minimal_eps"] for row in rows]
    assert {size for size in sizes if size} <= {"0.05", "0.1", "0.15", "0.2"}
    assert len(set(sizes)) > 2
    for row in rows:
        largest = float(row.fields["minimal_eps"] or 0.2)
        assert float(row.fields["l_infinity_norm"]) == pytest.approx(largest, abs=1 / 510 + 1e-6)


def pgd_itself(le_net, x, norm, parameters):
    """ART as a user would call it, on ART's own classifier, with the labels that ART takes by itself."""
    import keras
    from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_numpy import (
        ProjectedGradientDescentNumpy,
    )
    from art.estimators.classification import TensorFlowV2Classifier

    estimator = TensorFlowV2Classifier(
        model=le_net,
        nb_classes=10,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
    )
    return ProjectedGradientDescentNumpy(estimator, norm=norm, verbose=False, **parameters).generate(x)


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.1), ("2", 2.0), ("1", 20.0)])
def test_pgd_is_arts_own(le_net, digits, norm, eps):
    x = to_float(digits.pixels[:20])
    target = classifier.Classifier(le_net)
    parameters = {"eps": eps, "eps_step": eps / 4, "max_iter": 5, "num_random_init": 0, "batch_size": 8}
    found = pgd_task.projected_gradient_descent(target.art, norm=norm, **parameters).generate(x, y=labels_of(target, x))
    expected = pgd_itself(le_net, x, math.inf if norm == "inf" else int(norm), parameters)
    assert np.isclose(found, expected, rtol=0, atol=1e-4 * eps).mean() >= 0.999


@pytest.mark.parametrize("num_random_init", [0, 1, 3])
@pytest.mark.parametrize("eps", [0.1, 0.2])
def test_compiled_pgd_is_arts_own(le_net, digits, eps, num_random_init):
    pixels = digits.pixels[:20]
    x, target = to_float(pixels), classifier.Classifier(le_net)
    parameters = {"eps": eps, "eps_step": eps / 4, "max_iter": 6, "num_random_init": num_random_init}
    attack = compiled.projected_gradient_descent(
        target, starting_points=lambda x: pgd_task.starting_points(5, x), **parameters
    )
    outputs, found, unmoved = attack(pixels)
    np.random.set_state(pgd_task.starting_points(5, x).get_state())  # noqa: NPY002  (where ART draws from)
    expected = pgd_itself(le_net, x, math.inf, parameters | {"batch_size": 20})
    assert (found == to_pixels(expected)).mean() >= 0.999
    assert (found != pixels).any()
    np.testing.assert_allclose(outputs, target.outputs(x), rtol=1e-5)
    assert not unmoved.any()


@pytest.mark.parametrize("num_random_init", [0, 2])
def test_pgd_keeps_the_bound_repeats_itself_and_beats_fgm(run_stage, le_net_artifact, digits_tar, num_random_init):
    def attacked(task, out, **parameters):
        found = run_stage(
            task, dataset=digits_tar, model=le_net_artifact, defense=None, out="adversarial", **parameters
        )
        return found.rename(found.with_name(out))

    eps = 26 / 255
    mine = PGD | {"eps": eps, "eps_step": 6 / 255, "num_random_init": num_random_init}
    first, second = (attacked(pgd_task.pgd, out, **mine) for out in ("first", "second"))
    single = attacked(fgm_task.fgm, "single", **FGM | {"eps": eps})
    assert first.read_bytes() == second.read_bytes()
    target = classifier.load(le_net_artifact)

    def right(path):
        with Dataset(path) as data:
            rows = list(data.samples())
        assert max(float(row.fields["l_infinity_norm"]) for row in rows) <= eps + 1e-6
        predicted = target.probabilities(classifier.stack(rows)).argmax(axis=1)
        return int((predicted == [row.label for row in rows]).sum())

    assert right(first) <= right(single)


BAD = [
    ({"eps": 1.5}, r"eps must be in \(0, 1\]. Received: eps=1.5"),
    ({"eps_step": 0.3}, r"eps_step must not exceed eps. Received: eps_step=0.3, eps=0.2"),
    ({"max_iter": 0}, r"max_iter must be a positive integer. Received: max_iter=0"),
    ({"num_random_init": -1}, r"num_random_init must be an integer of at least 0. Received: num_random_init=-1"),
    ({"eot_samples": 0}, r"eot_samples must be a positive integer. Received: eot_samples=0"),
    ({"norm": "3"}, r"norm must be one of inf, 1, 2. Received: norm='3'"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_bad_parameters_are_refused_before_anything_is_read(changed, message):
    nowhere = Path("/nowhere")
    with pytest.raises(ValueError, match=message):
        pgd_task.pgd(dataset=nowhere, model=nowhere, adversarial=nowhere, defense=None, **PGD | changed)


def test_an_image_without_gradient_is_counted_though_pgd_starts_elsewhere(digits_tar):
    """A model that ignores its images has no gradient; a random start moves them all the same."""

    class Flat(classifier.Classifier):
        def __init__(self):
            pass

        def outputs(self, x):
            return np.tile(np.arange(10, dtype=np.float32), (len(x), 1))

        attacked_outputs = outputs

        def loss_gradient(self, x, y):
            return np.zeros_like(x)

        from_logits = True

    attack = attacks.Attack(lambda x, _: np.clip(x + 0.1, 0, 1), stays_without_gradient=False)
    with Dataset(digits_tar) as data:
        batches = list(attacks._changes(data, Flat(), Flat(), attack, 32, data.header.class_names))
    assert {change.fields["zero_gradient"] for batch in batches for change in batch} == {1}
