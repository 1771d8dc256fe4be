"""PGD: the steps of ART's own class, and of each image the best iterate."""

import arts
import numpy as np
import pytest
import tensorflow as tf

from evasion.components.common.attacks import draws, norms
from evasion.components.common.attacks.defense_aware import Defended
from evasion.components.common.attacks.predicted import cross_entropy_pass, one_hot, predicted
from evasion.components.common.data.pixels import to_float, towards
from evasion.components.common.models import classifier
from evasion.components.fgm.compiled import fast_gradient_step
from evasion.components.gaussian_augmentation import task as gaussian
from evasion.components.jpeg_compression import task as jpeg
from evasion.components.pgd import compiled
from evasion.components.pgd.best import Best
from evasion.components.spatial_smoothing import task as smoothing

EPS = {"inf": 0.1, "1": 20.0, "2": 2.0}
ORDER = {"inf": np.inf, "1": 1, "2": 2}
TRANSFORMATIONS = {
    "spatial_smoothing": smoothing.transformation(window_size=3),
    "jpeg_compression": jpeg.transformation(quality=50, channels_first=False),
    "gaussian_augmentation": gaussian.transformation(sigma=0.2),
}


def generated(target, pixels, norm="inf", seed=5, **changed):
    eps = changed.pop("eps", EPS[norm])
    parameters = {"eps": eps, "eps_step": eps / 4, "max_iter": 8, "num_random_init": 1} | changed
    return compiled.projected_gradient_descent(target, norm=norm, seed=seed, **parameters).generate(pixels)


def all_iterates(target, pixels, starts, *, norm, eps, eps_step, max_iter):
    """The iterates from each starting point, and their outputs."""
    passes, x = cross_entropy_pass(target), to_float(pixels)
    labels, before = predicted(target, passes, x)
    y = one_hot(labels, 10)
    advance = compiled.step(pixels.shape[1:], norm=norm, eps=eps, eps_step=eps_step)
    return [
        [
            (np.asarray(x_adv), at)
            for x_adv, at in compiled.iterates(lambda each: passes(each, y), advance, x, start, max_iter, before)
        ]
        for start in starts
    ]


def drawn_starts(pixels, norm, eps, seed, number):
    """Starting points as the attack draws them."""
    generators = draws.generators(seed, pixels, 3)
    changes = [np.stack([norms.drawn(each, (28, 28, 1), norm, eps) for each in generators]) for _ in range(number)]
    return [np.clip(to_float(pixels) + change, 0, 1) for change in changes]


def sizes(pixels, originals, norm):
    change = (pixels.astype(np.float64) - originals).reshape(len(pixels), -1) / 255
    return np.linalg.norm(change, ord=ORDER[norm], axis=1)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("scale", [1, 2])
def test_the_last_iterate_is_arts_own(le_net, digits, monkeypatch, norm, scale, random_start):
    from art.attacks.evasion import fast_gradient

    pixels, eps = digits.pixels[:20], EPS[norm] * scale
    x = to_float(pixels)
    parameters = {"norm": norm, "eps": eps, "eps_step": eps / 4, "max_iter": 6}
    starts = drawn_starts(pixels, norm, eps, 5, 1) if random_start else [None]
    monkeypatch.setattr(fast_gradient, "random_sphere", lambda *_: starts[0] - x)
    (mine,) = all_iterates(classifier.Classifier(le_net), pixels, starts, **parameters)
    art = arts.projected_gradient_descent(le_net, batch_size=20, num_random_init=int(random_start), **parameters)
    assert np.isclose(mine[-1][0], art.generate(x), rtol=0, atol=1e-4 * eps).mean() >= 0.999
    assert not np.allclose(mine[-1][0], x)


@pytest.mark.parametrize("num_random_init", [0, 3])
@pytest.mark.parametrize("norm", EPS)
def test_of_each_image_the_best_iterate_is_saved(le_net, digits, norm, num_random_init):
    """The oracle asks about every iterate as saved. Steps as long as eps overshoot."""
    pixels, target = digits.pixels[:40], classifier.Classifier(le_net)
    parameters = {"eps": EPS[norm] / 2, "eps_step": EPS[norm] / 2, "max_iter": 5}
    attack = generated(target, pixels, norm, num_random_init=num_random_init, **parameters)
    starts = drawn_starts(pixels, norm, parameters["eps"], 5, num_random_init) or [None]
    paths = all_iterates(target, pixels, starts, norm=norm, **parameters)
    labels = target.outputs(to_float(pixels)).argmax(axis=1)

    def fools(saved):
        return target.outputs(to_float(saved)).argmax(axis=1) != labels

    as_saved = np.stack([fools(towards(x_adv, pixels)) for path in paths for x_adv, _ in path])
    np.testing.assert_array_equal(fools(attack.pixels), as_saved.any(axis=0))
    np.testing.assert_array_equal(attack.columns["fooled_best"], as_saved.any(axis=0))
    ends = np.stack([np.asarray(path[-1][1].outputs).argmax(axis=1) != labels for path in paths])
    np.testing.assert_array_equal(attack.columns["fooled_end"], ends.any(axis=0))
    losses = np.stack([np.asarray(at.loss) for path in paths for _, at in path])
    best = np.array(attack.columns["loss_best"], dtype=float)
    standing = ~as_saved.any(axis=0)
    np.testing.assert_allclose(best[standing], losses.max(axis=0)[standing], rtol=1e-4)
    highest_fooling = np.where(as_saved, losses, -np.inf).max(axis=0)
    assert best[~standing] == pytest.approx(highest_fooling[~standing], rel=1e-4)
    assert 0 < standing.sum() < len(pixels)


def test_what_an_earlier_iterate_fools_is_kept_and_counted():
    """Six images of one pixel before a model that says 1 above 100 levels; the iterates are written down here."""

    class Above:
        def outputs(self, x):
            return np.eye(2, dtype=np.float32)[(x[:, 0, 0, 0] > 100 / 255).astype(int)]

    pixels = np.full((6, 1, 1, 1), 90, np.uint8)
    best = Best(Above(), pixels, np.zeros(6, dtype=int), np.zeros(6, np.float32), 2)
    for path in (
        # Levels of the images, and whether they fool in floats; 100.9 does not do so as saved.
        ([90, 90, 90, 90, 90, 90], [0, 1, 2, 0, 0, 0]),
        ([101, 101, 90, 100.9, 102, 90], [1, 1, 1, 1, 3, 2]),
        ([90, 105, 90, 100.9, 105, 95], [5, 2, 0, 2, 1, 1]),
    ):
        x_adv = tf.constant(np.array(path[0], np.float32).reshape(6, 1, 1, 1) / 255)
        best.offer(x_adv, Above().outputs(x_adv.numpy()), np.array(path[1], np.float32))
    best.end()
    assert best.pixels().ravel().tolist() == [101, 105, 90, 100, 102, 90]
    columns = best.columns()
    assert columns["fooled_best"] == [1, 1, 0, 0, 1, 0]
    assert columns["fooled_end"] == [0, 1, 0, 1, 1, 0]
    assert columns["loss_best"] == ["1", "2", "2", "2", "3", "2"]
    assert columns["loss_end"] == ["5", "2", "0", "2", "1", "1"]
    assert columns["loss_rises"] == [0, 0, 0, 1, 0, 0]  # the fourth stands as saved, and its loss grew in the last step


def test_a_loss_that_still_rises_is_recorded(le_net, digits):
    pixels, target = digits.pixels[:40], classifier.Classifier(le_net)
    slow, enough = (
        generated(target, pixels, eps=0.1, eps_step=step, max_iter=40, num_random_init=0).columns
        for step in (0.0005, 0.02)
    )
    standing = np.array(slow["fooled_best"]) == 0
    np.testing.assert_array_equal(slow["loss_rises"], standing.astype(int))
    assert sum(enough["loss_rises"]) <= 0.05 * len(pixels)
    start, best = (np.array(slow[name], dtype=float) for name in ("loss_start", "loss_best"))
    assert (best > start).all()


@pytest.mark.parametrize("norm", EPS)
def test_an_image_is_attacked_alike_in_any_batch(le_net, digits, norm):
    pixels, target = digits.pixels[:20], classifier.Classifier(le_net)
    whole = generated(target, pixels, norm, num_random_init=2)
    parts = [generated(target, pixels[start : start + 7], norm, num_random_init=2) for start in range(0, 20, 7)]
    # A float that is about a whole level may be saved as that level or as the one before.
    apart = np.abs(np.concatenate([part.pixels for part in parts]).astype(int) - whole.pixels)
    assert apart.max() <= (1 if norm == "2" else 24)
    assert (apart == 0).mean() >= 0.98
    assert not np.array_equal(generated(target, pixels, norm, seed=6).pixels, whole.pixels)


@pytest.mark.parametrize("name", [None, *TRANSFORMATIONS])
@pytest.mark.parametrize("norm", EPS)
def test_what_is_saved_keeps_the_bound_and_hurts_more_than_one_step(le_net, digits, norm, name):
    pixels = digits.pixels[:40]
    target = classifier.Classifier(le_net)
    if name:
        target = Defended(le_net, TRANSFORMATIONS[name], eot_samples=3, seed=1)
    single = fast_gradient_step(target, norm=norm, eps=EPS[norm])
    labels = target.outputs(to_float(pixels)).argmax(axis=1)
    fooled = []
    for attack in (single.generate(pixels), generated(target, pixels, norm)):
        assert (sizes(attack.pixels, pixels, norm) <= EPS[norm] * (1 + 1e-5) + 1e-6).all()
        fooled.append((target.outputs(to_float(attack.pixels)).argmax(axis=1) != labels).sum())
    assert fooled[1] > fooled[0]


@pytest.mark.parametrize("num_random_init", [0, 1])
def test_nan_gradients_are_taken_for_zero(le_net, digits, with_nan_gradients, num_random_init):
    pixels = digits.pixels[:20]
    target = classifier.Classifier(le_net)
    mask = with_nan_gradients(target, to_float(pixels))
    attack = generated(target, pixels, num_random_init=num_random_init)
    assert attack.without_gradient.tolist() == [True] + [False] * 19
    (start,) = drawn_starts(pixels, "inf", EPS["inf"], 5, 1) if num_random_init else [to_float(pixels)]
    np.testing.assert_array_equal(attack.pixels[mask], towards(start, pixels)[mask])
    assert (attack.pixels[1:] != pixels[1:]).any(axis=(1, 2, 3)).all()
