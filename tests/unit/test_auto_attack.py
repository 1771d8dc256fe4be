"""The ensemble `auto_attack`: APGD-CE, APGD-T and Square, each on the images that still stand."""

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evasion.components.auto_attack import apgd, budgets, square
from evasion.components.auto_attack import task as auto_attack
from evasion.components.auto_attack.batches import Batches
from evasion.components.auto_attack.budgets import MEMBERS, Budget
from evasion.components.auto_attack.compiled import Runs
from evasion.components.auto_attack.objective import Objective
from evasion.components.common.attacks.defense_aware import Defended
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import to_float
from evasion.components.common.models import classifier
from evasion.components.common.results.treatments import ProvenanceEntry
from evasion.components.gaussian_augmentation import task as gaussian
from evasion.components.jpeg_compression import task as jpeg
from evasion.components.pgd import task as pgd_task
from evasion.components.spatial_smoothing import task as smoothing

SMALL = Budget(max_iter=10, num_random_init=1, n_target_classes=3, n_queries=20)
PARAMETERS = {
    "batch_size": 32,
    "eps": 0.1,
    "norm": "inf",
    "budget": "light",
    "max_iter": 6,
    "num_random_init": 0,
    "n_target_classes": 2,
    "n_queries": 10,
    "members": "apgd-ce,apgd-t,square",
    "eot_samples": 3,
    "seed": 3,
}
TRANSFORMATIONS = {
    "spatial_smoothing": smoothing.transformation(window_size=3),
    "jpeg_compression": jpeg.transformation(quality=50, channels_first=False),
    "gaussian_augmentation": gaussian.transformation(sigma=0.2),
}


def attack_on(target, *, members=MEMBERS, budget=SMALL, norm="inf", eps=0.1, batch_size=32, seed=3):
    make = auto_attack.make(members=members, budget=budget, norm=norm, eps=eps, batch_size=batch_size)
    return make(target, seed)


def attacked(target, pixels, **settings):
    return attack_on(target, **settings).generate(pixels)


def fooled_by(result):
    return np.array(result.columns["fooled_by"])


def predicted(target, pixels):
    return target.outputs(to_float(pixels)).argmax(axis=1)


def distances(result, pixels, norm):
    change = (result.pixels.astype(float) - pixels).reshape(len(pixels), -1) / 255
    return np.linalg.norm(change, ord=np.inf if norm == "inf" else 2, axis=1)


@pytest.fixture
def bare(le_net):
    return classifier.Classifier(le_net)


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.1), ("inf", 26 / 255), ("2", 1.0)])
@pytest.mark.parametrize("member", MEMBERS)
def test_what_is_saved_keeps_the_bound_and_fools_as_the_attack_says(bare, digits, norm, eps, member):
    pixels = digits.pixels[:70]
    result = attacked(bare, pixels, members=(member,), norm=norm, eps=eps)
    assert distances(result, pixels, norm).max() <= eps + 1e-9
    assert set(result.columns["fooled_by"]) == {"", member}
    changed = predicted(bare, result.pixels) != predicted(bare, pixels)
    assert changed.tolist() == (fooled_by(result) == member).tolist()
    assert result.columns["fooled_best"] == changed.astype(int).tolist()
    np.testing.assert_allclose(result.outputs, bare.outputs(to_float(pixels)), rtol=1e-4, atol=1e-4)
    assert not result.without_gradient.any()


def test_norm_inf_spends_all_that_survives_rounding(bare, digits):
    pixels = digits.pixels[:40]
    result = attacked(bare, pixels, eps=0.1)  # 25.5 steps of 8 bits
    assert np.abs(result.pixels.astype(int) - pixels).max() == 25


def test_what_cannot_be_saved_is_no_attack(bare, digits):
    pixels = digits.pixels[:5]
    result = attacked(bare, pixels, eps=0.003)
    assert np.array_equal(result.pixels, pixels)
    assert set(result.columns["fooled_by"]) == {""}


class Estimator:
    """ART's class, with its loss of each image, which needs Keras 2."""

    def __new__(cls, le_net):
        import keras
        from art.estimators.classification import TensorFlowV2Classifier

        target = classifier.Classifier(le_net)

        class WithLosses(TensorFlowV2Classifier):
            def compute_loss(self, x, y, **_):
                return keras.losses.categorical_crossentropy(y, target.outputs(x), from_logits=True).numpy()

        return WithLosses(
            model=target.logits,
            nb_classes=10,
            input_shape=(28, 28, 1),
            loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
            clip_values=(0.0, 1.0),
        )


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("inf", 20 / 255), ("2", 1.0)])
def test_apgd_on_the_cross_entropy_leaves_no_more_than_arts(le_net, bare, digits, norm, eps):
    from art.attacks.evasion import AutoProjectedGradientDescent

    pixels = digits.pixels[:160]
    before = predicted(bare, pixels)
    oracle = AutoProjectedGradientDescent(
        Estimator(le_net),
        norm=np.inf if norm == "inf" else 2,
        eps=eps,
        eps_step=2 * eps,
        max_iter=20,
        nb_random_init=1,
        batch_size=160,
        loss_type=None,
        verbose=False,
    )
    np.random.seed(0)  # noqa: NPY002  (where ART draws from)
    x_adv = oracle.generate(to_float(pixels), y=np.eye(10, dtype=np.float32)[before])
    theirs = (bare.outputs(x_adv).argmax(axis=1) != before).mean()
    budget = Budget(max_iter=20, num_random_init=1, n_target_classes=1, n_queries=1)
    ours = (fooled_by(attacked(bare, pixels, members=("apgd-ce",), budget=budget, norm=norm, eps=eps)) != "").mean()
    assert 0.1 < theirs < 1
    # Ours ends at 8-bit images, and stops at the first that fools, which ART may pass by.
    assert theirs - 0.02 <= ours <= theirs + 0.08


@pytest.mark.parametrize("eps", [13 / 255, 20 / 255])
def test_it_fools_at_least_what_as_many_steps_of_pgd_fool(bare, digits, eps):
    pixels = digits.pixels[:160]
    one = pgd_task.make(norm="inf", eps=eps, eps_step=eps / 4, max_iter=10, num_random_init=1)(bare, 3)
    by_pgd = predicted(bare, one.generate(pixels).pixels) != predicted(bare, pixels)
    ours = fooled_by(attacked(bare, pixels, members=("apgd-ce",), eps=eps)) != ""
    assert by_pgd.any()
    assert ours.sum() >= by_pgd.sum() - 1  # another start decides over an image at the boundary


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_an_image_is_attacked_the_same_whatever_is_attacked_with_it(bare, digits, norm):
    pixels = digits.pixels[:75]
    settings = {"norm": norm, "eps": 0.06 if norm == "inf" else 0.6}
    whole = attacked(bare, pixels, **settings)
    again = attacked(bare, pixels, **settings)
    assert np.array_equal(whole.pixels, again.pixels)
    attack = attack_on(bare, **settings)
    parts = [attack.generate(part) for part in (pixels[:10], pixels[10:11], pixels[11:])]
    # Some CPUs round the sums of the last images of a batch in another order, so that no two places are quite the same.
    assert (np.concatenate([part.pixels for part in parts]) == whole.pixels).mean() >= 0.999
    for name, values in whole.columns.items():
        of_parts = list(itertools.chain(*(part.columns[name] for part in parts)))
        if name in ("loss_start", "loss_end", "loss_best"):
            np.testing.assert_allclose(*(np.array(each, float) for each in (of_parts, values)), rtol=1e-2, err_msg=name)
        else:
            assert of_parts == values, name
    # So do batches of another size.
    other = attacked(bare, pixels, batch_size=10, **settings)
    assert other.columns["fooled_by"] == whole.columns["fooled_by"]
    assert (other.pixels == whole.pixels).mean() >= 0.999
    assert not np.array_equal(attacked(bare, pixels, seed=4, **settings).pixels, whole.pixels)
    assert len({*whole.columns["fooled_by"]}) > 1


class Counting:
    """A target that notes the images of each pass."""

    compiled, random, draws = False, False, 1

    def __init__(self, target):
        self._target, self.forward, self.both = target, [], []

    def __getattr__(self, name):
        return getattr(self._target, name)

    def redrawn(self):
        return self

    def outputs(self, x):
        self.forward.append(np.asarray(x))
        return self._target.outputs(x)

    def loss_pass(self, loss, over_draws=None):
        one_pass = self._target.loss_pass(loss, over_draws)

        def noted(x, labels, aims):
            self.both.append((np.asarray(x), np.asarray(labels), np.asarray(aims)))
            return one_pass(x, labels, aims)

        return noted


def test_members_attack_in_order_and_only_what_stands(bare, digits):
    # A batch as large as the group is not filled up, so that every image of a pass counts.
    pixels = digits.pixels[:60]
    target = Counting(bare)
    result = attacked(target, pixels, eps=0.05, batch_size=2000)
    by = fooled_by(result)
    assert {"apgd-ce", ""} <= set(by)
    aimed = [(aims != labels) & (labels >= 0) for _, labels, aims in target.both]
    assert all(one.all() or not one.any() for one in aimed)
    kinds = [bool(one.any()) for one in aimed]
    assert kinds == sorted(kinds)  # apgd-ce before apgd-t
    # The first pass evaluates the images, the next the starts; after that only those that are not fooled.
    sizes = [len(one[0]) for one in target.both]
    untargeted, targeted = sizes[: kinds.count(False)], sizes[kinds.count(False) :]
    assert untargeted[:2] == [60, 60]
    assert untargeted == sorted(untargeted, reverse=True)
    standing = int((by != "apgd-ce").sum())
    assert targeted[0] == standing * SMALL.n_target_classes
    assert targeted == sorted(targeted, reverse=True)
    left = int(np.isin(by, ["square", ""]).sum())
    queries = [len(x) for x in target.forward if len(x) <= left]
    assert queries.count(left) >= 1
    assert sum(len(x) for x in target.forward) <= (SMALL.n_queries + 1) * left + 60


def test_nothing_is_asked_for_images_that_are_fooled(bare, digits):
    target = Counting(bare)
    result = attacked(target, digits.pixels[:40], eps=0.6, batch_size=2000)
    assert set(fooled_by(result)) == {"apgd-ce"}
    assert [len(x) for x in target.forward] == [40]  # each saved image once more


def test_another_start_is_tried_for_what_stands(bare, digits):
    pixels = digits.pixels[:160]
    once, twice = (
        attacked(bare, pixels, eps=0.05, members=("apgd-ce",), budget=Budget(5, starts, 3, 20)) for starts in (1, 3)
    )
    first, second = fooled_by(once) != "", fooled_by(twice) != ""
    assert second[first].all()
    assert np.array_equal(once.pixels[first], twice.pixels[first])
    assert second.sum() >= first.sum()


def small_model(classes, before=(), after=()):
    """A network of random weights, with further functions of the images before it and of the probabilities after."""
    import keras

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    dense = keras.layers.Dense(16, activation="relu"), keras.layers.Dense(classes, activation="softmax")
    for layer in (*map(keras.layers.Lambda, before), keras.layers.Flatten(), *dense, *map(keras.layers.Lambda, after)):
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
@pytest.mark.parametrize("member", MEMBERS)
def test_models_of_few_classes_are_attacked(classes, member):
    target = classifier.Classifier(small_model(classes))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    budget = budgets.resolved(
        "light", classes=classes, max_iter=10, num_random_init=1, n_target_classes=9, n_queries=100
    )
    assert budget.n_target_classes == classes - 1
    result = attacked(target, pixels, members=(member,), budget=budget, eps=0.3)
    assert ((predicted(target, result.pixels) != predicted(target, pixels)) == (fooled_by(result) != "")).all()
    assert (fooled_by(result) != "").any() == (classes > 1)


def test_a_model_whose_logits_are_hidden_is_attacked_by_its_probabilities():
    target = classifier.Classifier(small_model(5, after=[lambda x: x * 1.0]))
    assert not target.from_logits
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    ours = attacked(target, pixels, members=("apgd-ce", "apgd-t"), eps=0.1)
    same = attacked(classifier.Classifier(small_model(5)), pixels, members=("apgd-ce", "apgd-t"), eps=0.1)
    assert (fooled_by(ours) != "").tolist() == (fooled_by(same) != "").tolist()


class Jumping:
    """A target of two pixels whose gradient differs from one step to the next, as behind JPEG.

    Attributes:
        points: The images that passed, in levels of 8 bits.
    """

    model = type("Model", (), {"input_shape": (None, 1, 2, 1), "output_shape": (None, 10)})
    compiled, random, from_logits, draws = False, False, True, 1

    def __init__(self, straight_through):
        self.straight_through, self.points = straight_through, []
        self._gradients = itertools.cycle([[3.0, 1.0], [-1.0, 3.0]])

    def loss_pass(self, loss, over_draws=None):
        def one_pass(x, labels, aims):
            self.points.append(np.rint(255 * np.asarray(x)[0, 0, :, 0]).astype(int).tolist())
            gradient = np.array(next(self._gradients), np.float32).reshape(1, 1, 2, 1)
            return classifier.Pass(np.eye(1, 10, dtype=np.float32), np.zeros(1, np.float32), gradient)

        return one_pass


@pytest.mark.parametrize(
    ("straight_through", "decay", "second"),
    [
        pytest.param(True, 0.9, 120, id="the sum of the gradients"),
        pytest.param(True, 0.0, 95, id="the last gradient"),
        pytest.param(False, 0.9, 95, id="without a defense the last gradient"),
    ],
)
def test_a_gradient_that_jumps_is_summed(straight_through, decay, second):
    target = Jumping(straight_through)
    runs = Runs(target, Objective(target), norm="inf", eps=20 / 255, capacity=1, batches=Batches(1, full=False))
    row, original = np.zeros(1, np.int32), np.full((1, 1, 2, 1), 100, np.uint8)
    runs.begin(row, original, to_float(original), row, np.ones(1, np.int32), decay=decay)
    for share in (0, 1, 0.75):
        runs.step(row, share)

    # The step of 2 eps goes to the bound; the second one turns the first pixel if only the last gradient counts:
    # by 0.75 of the way to the other bound, and 0.25 of the step before.
    assert target.points == [[100, 100], [120, 120], [second, 120]]


class Misleading(classifier.Classifier):
    """A classifier whose gradients behind a defense say little, each for itself.

    To each one is added what is much larger. It has the opposite sign at the next step, so that their sum is right.

    Args:
        model: The model.
        random: Whether the defense counts as random.
    """

    compiled, straight_through, draws = False, True, 2

    def __init__(self, model, *, random=False):
        super().__init__(model)
        self.random = random

    def redrawn(self):
        return self

    def loss_pass(self, loss, over_draws=None):
        one_pass, signs = super().loss_pass(loss, over_draws), itertools.cycle([1, -1])

        def passes(x, labels, aims):
            outputs, losses, gradients = one_pass(x, labels, aims)
            size = np.abs(gradients).mean(axis=(1, 2, 3), keepdims=True)
            return classifier.Pass(outputs, losses, gradients + 5 * next(signs) * size)

        return passes


@pytest.mark.parametrize(
    ("member", "random"),
    [
        pytest.param("apgd-t", False, id="APGD-T, nothing random"),
        pytest.param("apgd-ce", True, id="APGD-CE, random"),
        pytest.param("apgd-t", True, id="APGD-T, random"),
    ],
)
def test_behind_a_defense_a_sum_of_gradients_counts(le_net, digits, member, random):
    target = Misleading(le_net, random=random)
    pixels = digits.pixels[:10]
    settings = {"members": (member,), "budget": Budget(100, 1, 3, 1), "eps": 0.2}
    by_the_sum = (fooled_by(attacked(target, pixels, **settings)) != "").sum()
    target.straight_through = False
    by_the_last = (fooled_by(attacked(target, pixels, **settings)) != "").sum()
    assert by_the_sum >= by_the_last + 3


class Falling(Jumping):
    """A target whose gradient leads upwards and whose losses fall, so that the first point stays the best one."""

    def __init__(self, *, random):
        super().__init__(straight_through=True)
        self.random = random
        self._gradients = itertools.repeat([1.0, 1.0])
        self._losses = itertools.count(0, -1)

    def loss_pass(self, loss, over_draws=None):
        one_pass = super().loss_pass(loss, over_draws)
        return lambda *arguments: one_pass(*arguments)._replace(loss=np.full(1, next(self._losses), np.float32))


@pytest.mark.parametrize(
    ("random", "after"), [pytest.param(False, 110, id="not random"), pytest.param(True, 120, id="random")]
)
def test_a_run_goes_back_to_its_best_point_unless_draws_chose_it(random, after):
    target = Falling(random=random)
    runs = Runs(target, Objective(target), norm="inf", eps=20 / 255, capacity=1, batches=Batches(1, full=False))
    row, original = np.zeros(1, np.int32), np.full((1, 1, 2, 1), 100, np.uint8)
    runs.begin(row, original, to_float(original), row, np.ones(1, np.int32))
    for share in (0, 1):
        runs.step(row, share)
    runs.check(row, 1)
    runs.step(row, 0.5)
    assert target.points == [[100, 100], [120, 120], [after, after]]


def test_behind_a_defense_apgd_t_also_fools_what_the_last_gradient_fools(le_net, digits):
    target = Defended(le_net, TRANSFORMATIONS["spatial_smoothing"], eot_samples=1, seed=0)
    pixels = digits.pixels[:60]
    budget = Budget(20, 1, 3, 1)
    settings = {"members": ("apgd-t",), "budget": budget, "eps": 0.08}
    ours = attacked(target, pixels, **settings)
    target.straight_through = False
    last = attacked(target, pixels, **settings)
    fooled = fooled_by(last) != ""
    assert 0 < fooled.sum() < len(pixels)
    assert np.array_equal(ours.pixels[fooled], last.pixels[fooled])
    assert (fooled_by(ours) != "")[fooled].all()


class Random(classifier.Classifier):
    """A target that is taken for random, and knows how often it was redrawn."""

    compiled, random, draws = False, True, 2
    redraws = 0

    def redrawn(self):
        other = copy.copy(self)
        other.redraws += 1
        return other


class Lucky(Random):
    """A random target. Draws of the attack say once that a point is behind the boundary, other draws never do.

    Args:
        model: The model.
        lucky: The number of the pass with gradients that says so, or "queries" for the passes without, after those.
    """

    def __init__(self, model, lucky):
        super().__init__(model)
        self.lucky, self.passes = lucky, 0

    def outputs(self, x):
        outputs = super().outputs(x)
        return self._behind(outputs) if self.lucky == "queries" and self.passes and not self.redraws else outputs

    def loss_pass(self, loss, over_draws=None):
        one_pass = super().loss_pass(loss, over_draws)

        def passes(x, labels, aims):
            result = one_pass(x, labels, aims)
            self.passes += 1
            return result._replace(outputs=self._behind(result.outputs)) if self.passes == self.lucky else result

        return passes

    def _behind(self, outputs):
        first, second = np.sort(outputs, axis=1)[:, :-3:-1].T
        lead = 0.5 + first - second  # too little for the run to end
        return outputs + lead[:, None] * (np.asarray(outputs) == second[:, None])


@pytest.mark.parametrize(
    ("lucky", "members"),
    [
        pytest.param(2, ("apgd-ce",), id="the start of APGD"),
        pytest.param("queries", ("apgd-ce", "square"), id="candidates of Square"),
    ],
)
def test_a_point_that_was_lucky_is_not_kept(le_net, bare, digits, lucky, members):
    pixels = digits.pixels[:30]
    settings = {"members": members, "eps": 0.03, "batch_size": 30}
    result = attacked(Lucky(le_net, lucky), pixels, **settings)
    honest = attacked(Lucky(le_net, None), pixels, **settings)
    standing = fooled_by(honest) == ""
    assert standing.sum() > 15
    assert (fooled_by(result) == "").tolist() == standing.tolist()

    def margins(images):
        ordered = np.sort(bare.outputs(to_float(images[standing])), axis=1)
        return ordered[:, -2] - ordered[:, -1]

    nearer = margins(honest.pixels) - margins(pixels)
    assert (margins(result.pixels) - margins(pixels)).mean() >= 0.95 * nearer.mean() > 0


def test_the_loss_over_draws_is_that_of_the_mean_probability(bare):
    import tensorflow as tf

    losses = tf.constant(np.random.default_rng(0).exponential(3, (4, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(losses)
        expected = -tf.math.log(tf.reduce_mean(tf.exp(-losses), axis=0))
    labels = np.array([5, 6, 7])
    of_images, weights = Objective(bare).over_draws(losses.numpy(), labels, labels)
    np.testing.assert_allclose(of_images, expected, rtol=1e-5)
    np.testing.assert_allclose(weights, tape.gradient(expected, losses), rtol=1e-5)

    aimed, weights = Objective(bare).over_draws(losses.numpy(), labels, labels + 1)
    np.testing.assert_allclose(aimed, losses.numpy().mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(weights, 1 / 4)


def test_losses_behind_a_random_defense_are_those_of_the_mean_probability(le_net, digits):
    target = Defended(le_net, TRANSFORMATIONS["gaussian_augmentation"], eot_samples=4, seed=0)
    runs = Runs(target, Objective(target), norm="inf", eps=0.1, capacity=1, batches=Batches(32, full=False))
    labels = digits.labels[:20].astype(np.int32)
    # The outputs are the logarithms of the mean probabilities.
    outputs, losses, _ = runs.evaluate(digits.pixels[:20], labels)
    np.testing.assert_allclose(losses, -outputs[np.arange(20), labels], rtol=1e-4, atol=1e-6)


def test_gradients_of_draws_are_weighted(le_net, digits):
    import tensorflow as tf

    target = Defended(le_net, TRANSFORMATIONS["gaussian_augmentation"], eot_samples=3, seed=0)
    images, labels = tf.constant(to_float(digits.pixels[:5])), tf.constant(digits.labels[:5])
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits

    def of_draw(number):
        def over_draws(losses, labels):
            assert losses.shape == (3, len(labels))
            return losses[number], np.eye(3)[number][:, None] * np.ones(len(labels))

        return target.loss_pass(lambda outputs, labels: loss(labels, outputs), over_draws)(images, labels)

    each = [of_draw(number) for number in range(3)]
    mean = target.loss_pass(lambda outputs, labels: loss(labels, outputs))(images, labels)
    assert not np.allclose(each[0].gradient, each[1].gradient)
    np.testing.assert_allclose(np.mean([one.gradient for one in each], axis=0), mean.gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.mean([one.loss for one in each], axis=0), mean.loss, rtol=1e-4)


def test_behind_a_random_defense_what_some_draws_take_back_is_attacked_on(le_net, bare, digits):
    transformation = TRANSFORMATIONS["gaussian_augmentation"]
    target = Defended(le_net, transformation, eot_samples=8, seed=0)
    pixels = digits.pixels[:60]
    settings = {"budget": Budget(20, 1, 3, 1), "eps": 0.12}
    first = attacked(target, pixels, members=("apgd-ce",), **settings)
    both = attacked(target, pixels, members=("apgd-ce", "apgd-t"), **settings)
    fooled = fooled_by(first) != ""
    changed = (first.pixels != both.pixels).any(axis=(1, 2, 3))
    assert (fooled & changed).any()
    assert (fooled & ~changed).any()

    before = predicted(bare, pixels)
    generator = np.random.default_rng(1)

    def wrong(images):
        draws = (np.stack([transformation.apply(image, generator) for image in images]) for _ in range(50))
        return np.mean([predicted(bare, draw) != before for draw in draws])

    assert wrong(both.pixels) > wrong(first.pixels)


class Fickle(Random):
    """A random target. The draws with the last word fool once, by a hair's breadth, and never again."""

    calls = 0

    def outputs(self, x):
        outputs = super().outputs(x)
        if self.redraws < 2:
            return outputs
        self.calls += 1
        if self.calls > 1:
            return np.zeros_like(outputs)
        first, second = np.sort(outputs, axis=1)[:, :-3:-1].T[:, :, None]
        return np.where(outputs == first, 0.1, np.where(outputs == second, 0, -50)).astype(np.float32)


def test_behind_a_random_defense_no_member_takes_back_what_another_has_fooled(le_net, digits):
    pixels = digits.pixels[:30]
    settings = {"eps": 0.12, "batch_size": 30}
    first = attacked(Fickle(le_net), pixels, members=("apgd-ce",), **settings)
    both = attacked(Fickle(le_net), pixels, members=("apgd-ce", "apgd-t"), **settings)
    fooled = fooled_by(first) != ""
    assert fooled.sum() > 5
    assert set(fooled_by(both)[fooled]) == {"apgd-ce"}
    assert np.array_equal(both.pixels[fooled], first.pixels[fooled])


@pytest.mark.parametrize("stage", ["spatial_smoothing", "jpeg_compression"])
@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.1), ("2", 1.0)])
def test_it_fools_the_model_together_with_the_defense(le_net, bare, digits, stage, norm, eps):
    pixels = digits.pixels[:40]
    target = Defended(le_net, TRANSFORMATIONS[stage], eot_samples=1, seed=0)
    result = attacked(target, pixels, norm=norm, eps=eps)
    assert distances(result, pixels, norm).max() <= eps + 1e-9
    defended = np.stack([TRANSFORMATIONS[stage].apply(image, None) for image in result.pixels])
    before = np.stack([TRANSFORMATIONS[stage].apply(image, None) for image in pixels])
    changed = predicted(bare, defended) != predicted(bare, before)
    assert changed.tolist() == (fooled_by(result) != "").tolist()
    oblivious = np.stack(
        [TRANSFORMATIONS[stage].apply(i, None) for i in attacked(bare, pixels, norm=norm, eps=eps).pixels]
    )
    assert changed.sum() > (predicted(bare, oblivious) != predicted(bare, before)).sum()


@pytest.mark.slow
def test_behind_a_random_defense_other_draws_are_fooled_as_well(le_net, digits):
    pixels = digits.pixels[:60]
    target = Defended(le_net, TRANSFORMATIONS["gaussian_augmentation"], eot_samples=4, seed=0)
    before = predicted(target, pixels)
    result = attacked(target, pixels, eps=0.08)
    fooled = fooled_by(result) != ""
    assert fooled.sum() > 5
    # A single draw of somebody else's, as the defense will draw.
    single = Defended(le_net, TRANSFORMATIONS["gaussian_augmentation"], eot_samples=1, seed=99)
    changed = predicted(single, result.pixels) != before
    assert changed[fooled].mean() > 0.75  # points at the boundary would fool half of the draws
    again = attacked(target, pixels[20:30], eps=0.08)
    assert np.array_equal(again.pixels, result.pixels[20:30])


def test_square_alone_fools_a_model_that_hides_its_gradient():
    """Rounding has a gradient of zero everywhere, and undoes most of what a random start changes."""
    import keras

    target = classifier.Classifier(small_model(4, before=[lambda x: keras.ops.round(x * 4) / 4]))
    pixels = np.random.default_rng(0).choice(np.array([64, 128, 191], np.uint8), (30, 8, 8, 1))
    budget = Budget(max_iter=5, num_random_init=1, n_target_classes=2, n_queries=200)
    result = attacked(target, pixels, budget=budget, eps=34 / 255)
    assert result.without_gradient.all()
    by_square, by_start = fooled_by(result) == "square", np.isin(fooled_by(result), ["apgd-ce", "apgd-t"])
    assert by_square.sum() >= by_start.sum() + 5
    assert set(result.columns["loss_rises"]) == {0}


def test_the_columns_tell_how_the_loss_went(bare, digits):
    pixels = digits.pixels[:80]
    result = attacked(bare, pixels, eps=0.05)
    start, end, best = (np.array(result.columns[f"loss_{when}"], float) for when in ("start", "end", "best"))
    logits = bare.outputs(to_float(pixels)).astype(float)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits.max(axis=1)
    np.testing.assert_allclose(start, losses, rtol=1e-3, atol=1e-5)
    assert (best >= start - 1e-9).all()
    assert (best >= end - 1e-9).all()
    assert (best > start).mean() > 0.9
    assert not np.array(result.columns["loss_rises"])[fooled_by(result) == "apgd-ce"].any()
    assert "fooled_end" not in result.columns
    assert set(attacked(bare, pixels[:9], members=("square",)).columns) == {"fooled_best", "fooled_by"}


def test_a_loss_that_still_rises_is_noted(bare, digits):
    """A few small steps, from which the loss can only rise."""
    result = attacked(bare, digits.pixels[:40], eps=2 / 255, members=("apgd-ce",), budget=Budget(10, 1, 1, 1))
    standing = fooled_by(result) == ""
    assert not np.array(result.columns["loss_rises"])[~standing].any()
    assert standing.any()


def test_checks_of_the_step_are_where_the_paper_has_them():
    places = itertools.accumulate(apgd.checkpoints(100))
    assert [*itertools.takewhile(lambda place: place <= 100, places)] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [*itertools.islice(apgd.checkpoints(1), 3)] == [1, 1, 1]


def test_squares_shrink_as_in_the_paper():
    queries = (0, 5, 6, 25, 26, 100, 101, 4999)
    halvings = (0, 0, 1, 1, 2, 2, 3, 9)
    shares = [square.share_of_pixels(query, 5000) for query in queries]
    assert shares == pytest.approx([0.8 / 2**halved for halved in halvings])
    assert square.side(0, 5000, 28, 28, norm="inf") == 25
    assert square.side(0, 5000, 28, 28, norm="2") == 25
    assert square.side(4999, 5000, 28, 28, norm="inf") == 1
    assert square.side(4999, 5000, 28, 28, norm="2") == 3
    assert square.side(0, 5000, 2, 2, norm="2") == 2


@pytest.mark.parametrize(("norm", "eps"), [("inf", 20 / 255), ("2", 1.5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_square_changes_squares_of_single_images(norm, eps, channels):
    pixels = np.random.default_rng(0).integers(60, 190, (6, 12, 14, channels), dtype=np.uint8)
    asked = []

    def judge(candidates, images):
        asked.append((candidates.copy(), images.copy()))
        # Brighter is better; the first image leaves with its third candidate.
        return candidates.astype(np.float32).mean(axis=(1, 2, 3)), (images == 0) & (len(asked) == 3)

    best, margins = square.square(pixels, judge, norm=norm, eps=eps, n_queries=40, seed=1, stream=(2, 0))
    assert len(asked) == 41
    assert [len(images) for _, images in asked] == [6] * 3 + [5] * 38
    for candidates, images in asked:
        change = (candidates.astype(float) - pixels[images]) / 255
        length = np.abs(change).max() if norm == "inf" else np.sqrt(np.square(change).sum(axis=(1, 2, 3))).max()
        assert length <= eps + 1e-9
    assert margins == pytest.approx(best.mean(axis=(1, 2, 3)), rel=1e-5)
    assert (margins[1:] > asked[0][0][1:].mean(axis=(1, 2, 3))).all()
    if norm == "inf":
        first, second = asked[0][0][1], asked[1][0][1]
        assert set(np.unique(np.abs(first.astype(int) - pixels[1]))) == {20}
        assert (first.astype(int) - pixels[1] == (first.astype(int) - pixels[1])[:1]).all()  # vertical stripes
        rows, columns, _ = np.nonzero(first != second)
        assert max(np.ptp(rows), np.ptp(columns)) < square.side(0, 40, 12, 14, norm=norm)
    alone, _ = square.square(
        pixels[3:4], lambda c, i: (c.astype(np.float32).mean(axis=(1, 2, 3)), i < 0), norm=norm, eps=eps,
        n_queries=40, seed=1, stream=(2, 0),
    )  # fmt: skip
    assert np.array_equal(alone[0], best[3])


def test_the_losses_are_those_of_the_paper(bare):
    import tensorflow as tf

    from evasion.components.auto_attack.objective import OWN_PREDICTION, Objective

    objective = Objective(bare)
    logits = tf.constant([[3.0, 5.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]])

    def loss(outputs, label, aim):
        return objective.loss(outputs, tf.constant([label]), tf.constant([aim])).numpy()[0]

    cross_entropy = -tf.nn.log_softmax(logits).numpy()[0, 1]
    assert loss(logits, 1, 1) == pytest.approx(cross_entropy, rel=1e-5)
    assert loss(logits, OWN_PREDICTION, OWN_PREDICTION) == pytest.approx(cross_entropy, rel=1e-5)
    assert loss(logits, 1, 2) == pytest.approx((1 - 5) / (5 - (1 + 0) / 2))
    assert loss(logits * 1000, 1, 2) == pytest.approx(loss(logits, 1, 2), rel=1e-5)
    assert objective.margins(logits, tf.constant([1])).numpy() == pytest.approx([-2])
    assert objective.likely(logits.numpy(), np.array([1]), 3).tolist() == [[0, 2, 3]]


@pytest.fixture
def run(run_stage, le_net_artifact, digits_tar):
    def attack(out="attacked", defenses="", dataset=digits_tar, **changed):
        parameters = {"dataset": dataset, "model": le_net_artifact, "defenses": defenses, **PARAMETERS, **changed}
        tar = run_stage(auto_attack.auto_attack, out="adversarial", **parameters)
        return tar.rename(tar.with_name(out))

    return attack


def test_the_dataset_records_what_was_done(run, le_net_artifact):
    with Dataset(run()) as data:
        rows = list(data.samples())
        entry = data.header.provenance[-1]
    assert entry["stage"] == "auto_attack"
    assert entry["iterates"] is True
    assert entry["effort"] == "apgd-ce (6 steps), apgd-t (6 steps, 2 classes), square (10 queries)"
    assert entry["stronger"] == (
        "--auto-attack-budget standard --auto-attack-max-iter 0 --auto-attack-n-target-classes 0 "
        "--auto-attack-n-queries 0"
    )
    assert entry["parameters"] == {
        "batch_size": 32, "eps": 0.1, "norm": "inf", "eot_samples": 3, "members": "apgd-ce,apgd-t,square",
        "max_iter": 6, "num_random_init": 1, "n_target_classes": 2, "n_queries": 10,
    }  # fmt: skip
    assert ProvenanceEntry(stage="auto_attack", kind="attack", parameters=entry["parameters"]).step.label == (
        "auto_attack eps=0.1 norm=inf members=apgd-ce,apgd-t,square max_iter=6 num_random_init=1 "
        "n_target_classes=2 n_queries=10"
    )
    assert len(rows) == 80
    target = classifier.load(le_net_artifact)
    names = np.array([row.fields["clean_prediction"] for row in rows])
    now = predicted(target, classifier.stack(rows)).astype(str)
    assert (now != names).tolist() == [row.fields["fooled_by"] != "" for row in rows]
    assert {row.fields["fooled_by"] for row in rows} >= {"apgd-ce", ""}
    losses = {"loss_start", "loss_end", "loss_best", "loss_rises", "fooled_best", "fooled_by"}
    assert losses <= rows[0].fields.keys()


def test_numbers_that_no_member_uses_are_not_recorded(run):
    with Dataset(run(members=" square ", n_queries=3)) as data:
        parameters = data.header.provenance[-1]["parameters"]
    assert parameters["members"] == "square"
    assert (parameters["n_queries"], parameters["num_random_init"]) == (3, 1)
    assert not {"max_iter", "n_target_classes", "budget"} & parameters.keys()


@pytest.mark.slow
def test_every_attacker_makes_the_same_alone_and_among_others(run):
    known = {
        "spatial_smoothing": {"window_size": 3},
        "jpeg_compression": {"quality": 50, "channels_first": False},
        "gaussian_augmentation": {"sigma": 0.1},
    }
    together = Dataset.all_in(run(defenses=json.dumps(known)))
    names = ["auto_attack", *(f"auto_attack_aware_of_{stage}" for stage in known)]
    assert [dataset.header.name for dataset in together] == names
    hashes = []
    for dataset in together:
        with dataset:
            hashes.append(dataset.sha256)
    assert len(set(hashes)) == 4
    for place, (stage, settings) in enumerate(known.items(), 1):
        with Dataset(run(stage, json.dumps({stage: settings})), names[place]) as alone:
            assert alone.sha256 == hashes[place]


BAD = [
    ({"norm": "1"}, "norm must be inf or 2 for auto_attack; fgm and pgd attack in norm 1: use --attacks fgm,pgd. "
     "Received: norm='1'"),
    ({"norm": "3"}, "norm must be one of inf, 1, 2. Received: norm='3'"),
    ({"eps": 1.5}, r"eps must be in \(0, 1\], a share .*Received: eps=1.5"),
    ({"budget": "huge"}, "budget must be one of standard, light. Received: budget='huge'"),
    ({"max_iter": -1}, "max_iter must be an integer of at least 0. Received: max_iter=-1"),
    ({"num_random_init": True}, "num_random_init must be an integer of at least 0. Received: num_random_init=True"),
    ({"n_target_classes": -2}, "n_target_classes must be an integer of at least 0. Received: n_target_classes=-2"),
    ({"n_queries": -1}, "n_queries must be an integer of at least 0. Received: n_queries=-1"),
    ({"members": ""}, "members must name one or more of apgd-ce, apgd-t, square, each once. Received: members=''"),
    ({"members": "square,fab"}, "Received: members='square,fab'"),
    ({"members": "square,square"}, "Received: members='square,square'"),
    ({"eot_samples": 0}, "eot_samples must be a positive integer. Received: eot_samples=0"),
    ({"batch_size": 0}, "batch_size must be a positive integer. Received: batch_size=0"),
    ({"seed": -2}, r"seed must be an integer in \[-1, 4294967295\]. Received: seed=-2"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_bad_parameters_are_refused_before_anything_is_read(changed, message):
    nowhere = Path("/nowhere")
    with pytest.raises(ValueError, match=message):
        auto_attack.auto_attack(
            dataset=nowhere, model=nowhere, adversarial=nowhere, defenses="", **PARAMETERS | changed
        )


def test_checking_parameters_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from evasion.components.auto_attack import task\n"
        f"task.check(**{PARAMETERS!r})\n"
        "assert not {'tensorflow', 'numpy', 'art', 'mlflow', 'scipy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("square,apgd-ce", ("apgd-ce", "square")),
        (" apgd-t ", ("apgd-t",)),
        ("apgd-ce,apgd-t,square", MEMBERS),
    ],
)
def test_members_keep_their_order(text, members):
    assert budgets.chosen_members(text) == members


def test_numbers_given_replace_those_of_the_budget():
    nothing = dict.fromkeys(("max_iter", "num_random_init", "n_target_classes", "n_queries"), 0)
    assert budgets.resolved("standard", classes=1000, **nothing) == Budget(100, 1, 9, 5000)
    assert budgets.resolved("light", classes=1000, **nothing) == budgets.BUDGETS["light"]
    given = budgets.resolved("light", classes=3, **nothing | {"max_iter": 7, "n_target_classes": 5})
    assert (given.max_iter, given.n_target_classes) == (7, 2)


@pytest.mark.parametrize(
    ("budget", "members", "changed", "options"),
    [
        ("light", budgets.MEMBERS, {}, "--auto-attack-budget standard"),
        ("standard", budgets.MEMBERS, {}, ""),
        ("standard", budgets.MEMBERS, {"max_iter": 200, "num_random_init": 5}, ""),
        # The budget is followed already: a number given beside it is what is missing.
        ("standard", budgets.MEMBERS, {"n_queries": 4999}, "--auto-attack-n-queries 0"),
        ("light", budgets.MEMBERS, {"max_iter": 50}, "--auto-attack-budget standard --auto-attack-max-iter 0"),
        ("light", budgets.MEMBERS, {"max_iter": 100, "n_target_classes": 9, "n_queries": 5000}, ""),
        ("standard", ("apgd-ce",), {}, "--auto-attack-members apgd-ce,apgd-t,square"),
        # What a member that does not attack would do is no lack of the others.
        ("standard", ("apgd-ce",), {"n_queries": 1}, "--auto-attack-members apgd-ce,apgd-t,square"),
        (
            "light",
            ("apgd-ce", "square"),
            {},
            "--auto-attack-budget standard --auto-attack-members apgd-ce,apgd-t,square",
        ),
    ],
)
@pytest.mark.parametrize("classes", [10, 1000])
def test_a_budget_below_that_of_the_paper_says_what_is_missing(budget, members, changed, options, classes):
    nothing = dict.fromkeys(("max_iter", "num_random_init", "n_target_classes", "n_queries"), 0)
    assert budgets.stronger(members, budget, classes=classes, **nothing | changed) == options


def test_few_classes_are_no_lack_of_a_budget():
    nothing = dict.fromkeys(("max_iter", "num_random_init", "n_target_classes", "n_queries"), 0)
    work = budgets.resolved("standard", classes=3, **nothing)
    assert work.n_target_classes == 2
    assert budgets.stronger(budgets.MEMBERS, "standard", classes=3, **nothing) == ""


def test_a_budget_is_described_in_words():
    assert budgets.described(budgets.MEMBERS, budgets.BUDGETS["standard"]) == (
        "apgd-ce (100 steps), apgd-t (100 steps, 9 classes), square (5,000 queries)"
    )
    small = Budget(max_iter=1, num_random_init=2, n_target_classes=1, n_queries=1)
    assert budgets.described(budgets.MEMBERS, small) == (
        "apgd-ce (1 step, 2 starts), apgd-t (1 step, 1 class, 2 starts), square (1 query, 2 starts)"
    )


def test_an_evaluation_in_norm_1_says_which_attacks_have_it(tmp_path):
    from evasion.pipelines import catalog, plan

    (tmp_path / "0").mkdir()
    given = {"data_dir_test": str(tmp_path), "model": "m", "model_architecture": "le_net", "norm": "1", "eps": 20.0}
    pipeline = catalog.evaluation("registered")
    with pytest.raises(plan.BadArgumentsError) as refused:
        plan.check(plan.planned_steps(pipeline, plan.complete(pipeline, given)))
    (problem,) = refused.value.problems
    assert "use --attacks fgm,pgd. Received: norm='1'" in problem.message
    assert problem.parameters == ("norm",)
    other = catalog.evaluation("registered", ["fgm", "pgd"])
    plan.check(plan.planned_steps(other, plan.complete(other, given)))
