"""Numbers of an evaluation, against SciPy, scikit-learn, Keras and published values."""

import decimal
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats
from scipy.spatial.distance import cosine

from evasion.components.common.data import distances
from evasion.components.common.data.distances import Summary
from evasion.components.common.results import scores, shares
from evasion.components.common.results import tally as tallies
from evasion.components.common.results.tally import Tally


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "trials", "low", "high"),
        [
            # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (29, 29, 0.8830, 1.0),
        ],
    )
    def test_published_values(self, successes, trials, low, high):
        assert shares.interval(successes, trials) == pytest.approx((low, high), abs=5e-5)

    @given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_it_holds_the_share_and_stays_within_0_and_1(self, counts):
        successes, trials = counts
        low, high = shares.interval(successes, trials)
        assert 0 <= low <= successes / trials + 1e-12
        assert successes / trials - 1e-12 <= high <= 1
        assert low < high

    def test_nothing_tried_says_nothing(self):
        assert shares.interval(0, 0) == (0.0, 1.0)
        assert shares.share("accuracy", 0, 0) == {}

    def test_share_names_its_numbers(self):
        low, high = shares.interval(961, 1000)
        assert shares.share("accuracy", 961, 1000) == {
            "accuracy": 0.961,
            "accuracy_low": low,
            "accuracy_high": high,
        }


IMAGES = arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=8))


class TestDistances:
    @staticmethod
    def expected(before, after):
        one, two = before.ravel() / 255, after.ravel() / 255
        difference = two - one
        return {
            "l_1_norm": np.linalg.norm(difference, 1),
            "l_2_norm": np.linalg.norm(difference, 2),
            "l_infinity_norm": np.linalg.norm(difference, np.inf),
            "cosine_similarity": 1 - cosine(one, two),
            "wasserstein_distance": stats.wasserstein_distance(one, two),
        }

    @settings(deadline=None)
    @given(IMAGES.flatmap(lambda image: st.tuples(st.just(image), arrays(np.uint8, image.shape))))
    def test_they_are_those_of_numpy_and_scipy_over_all_pixels(self, images):
        before, after = images
        found = distances.between(before, after)
        assert tuple(found) == distances.DISTANCES
        assert all(type(value) is float and math.isfinite(value) for value in found.values())
        assert 0 <= found["cosine_similarity"] <= 1
        if before.any() and after.any():
            assert found == pytest.approx(self.expected(before, after), rel=1e-9, abs=1e-9)

    @given(IMAGES)
    def test_an_image_is_at_no_distance_to_itself(self, image):
        found = distances.between(image, image)
        assert found.pop("cosine_similarity") == pytest.approx(1, abs=1e-12)
        assert set(found.values()) == {0.0}

    @pytest.mark.parametrize(
        ("before", "after", "similarity", "moved"), [(0, 0, 1, 0), (0, 200, 0, 200 / 255), (200, 0, 0, 200 / 255)]
    )
    def test_black_images_have_a_similarity_too(self, before, after, similarity, moved):
        """The cosine of a vector of length 0 is 0 / 0."""
        found = distances.between(*(np.full((28, 28, 1), level, np.uint8) for level in (before, after)))
        assert found["cosine_similarity"] == similarity
        assert found["wasserstein_distance"] == pytest.approx(moved)
        assert found["l_infinity_norm"] == pytest.approx(moved)

    def test_photographs(self):
        rng = np.random.default_rng(0)
        before = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        after = np.clip(before.astype(int) + rng.integers(-8, 9, before.shape), 0, 255).astype(np.uint8)
        assert distances.between(before, after) == pytest.approx(self.expected(before, after), rel=1e-9)

    def test_wasserstein_compares_levels_not_places(self):
        image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
        found = distances.between(image, image[::-1])
        assert found["wasserstein_distance"] == 0
        assert found["l_1_norm"] > 0


class TestSummary:
    def test_it_is_numpys(self):
        rows = [
            {**{name: value * (place + 1) for place, name in enumerate(distances.DISTANCES)}, "label": "cat"}
            for value in np.random.default_rng(0).random(101)
        ]
        summary = Summary()
        for row in rows:
            summary.add({name: str(value) for name, value in row.items()})  # as they come out of samples.csv
        described = summary.describe()
        assert tuple(described) == distances.DISTANCES
        for name, parts in described.items():
            values = [row[name] for row in rows]
            assert parts == pytest.approx(
                {
                    "mean": np.mean(values),
                    "median": np.median(values),
                    "stdev": np.std(values),
                    "iqr": stats.iqr(values),
                    "min": np.min(values),
                    "max": np.max(values),
                },
                rel=1e-12,
            )
            assert all(type(value) is float for value in parts.values())

    def test_one_image_has_no_spread(self):
        summary = Summary()
        summary.add(dict.fromkeys(distances.DISTANCES, 0.25))
        assert summary.describe()["l_2_norm"] == {
            "mean": 0.25,
            "median": 0.25,
            "stdev": 0.0,
            "iqr": 0.0,
            "min": 0.25,
            "max": 0.25,
        }

    def test_no_image_has_no_summary(self):
        assert Summary().describe() == {}

    def test_flat_names(self):
        assert distances.flat({"l_1_norm": {"mean": 1.0, "max": 2.0}, "l_2_norm": {"mean": 3.0}}) == {
            "l_1_norm_mean": 1.0,
            "l_1_norm_max": 2.0,
            "l_2_norm_mean": 3.0,
        }


def predictions(images, classes, seed=0, sharpness=2.0):
    """Labels with the probabilities of a model that is right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    logits = rng.normal(0, sharpness, (images, classes))
    logits[np.arange(images), labels] += sharpness * np.sqrt(np.log(classes))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return labels, exponentials / exponentials.sum(axis=1, keepdims=True)


def tallied(labels, probabilities, batch_size=32):
    tally = Tally(probabilities.shape[1])
    for start in range(0, len(labels), batch_size):
        tally.add(labels[start : start + batch_size], probabilities[start : start + batch_size])
    return tally


def one_hot(labels, classes):
    return np.eye(classes)[labels]


class TestTally:
    @pytest.mark.parametrize(("images", "classes"), [(1, 2), (50, 2), (333, 10), (200, 1000)])
    @pytest.mark.parametrize("sharpness", [0.1, 2.0, 8.0])
    def test_it_is_scikit_learns(self, images, classes, sharpness):
        from sklearn import metrics as oracle

        labels, probabilities = predictions(images, classes, sharpness=sharpness)
        found = tallied(labels, probabilities).result()
        truth, chosen = one_hot(labels, classes).ravel(), probabilities.ravel() > 0.5
        (tn, fp), (fn, tp) = oracle.confusion_matrix(truth, chosen, labels=[0, 1])
        assert found["images"] == images
        assert found["accuracy"] == oracle.accuracy_score(labels, probabilities.argmax(axis=1))
        assert found["loss"] == pytest.approx(oracle.log_loss(labels, probabilities, labels=range(classes)), rel=1e-9)
        assert found["recall"] == pytest.approx(oracle.recall_score(truth, chosen))
        assert found["auc"] == pytest.approx(oracle.roc_auc_score(truth, probabilities.ravel()), abs=1e-3)
        counts = ("true_positives", "false_positives", "true_negatives", "false_negatives")
        assert [found[name] for name in counts] == [tp, fp, tn, fn]
        if tp + fp:
            assert found["precision"] == pytest.approx(oracle.precision_score(truth, chosen))
        else:
            assert "precision" not in found

    def test_it_is_keras_as_the_original_had_it(self):
        import keras

        labels, probabilities = predictions(400, 10)
        probabilities = probabilities.astype(np.float32).astype(np.float64)
        found = tallied(labels, probabilities).result()
        truth = one_hot(labels, 10)
        oracle = {
            "accuracy": keras.metrics.CategoricalAccuracy(),
            "loss": keras.metrics.CategoricalCrossentropy(),
            "precision": keras.metrics.Precision(),
            "recall": keras.metrics.Recall(),
            "auc": keras.metrics.AUC(num_thresholds=5000),
            "true_positives": keras.metrics.TruePositives(),
            "false_positives": keras.metrics.FalsePositives(),
            "true_negatives": keras.metrics.TrueNegatives(),
            "false_negatives": keras.metrics.FalseNegatives(),
        }
        for name, metric in oracle.items():
            metric.update_state(truth, probabilities)
            assert found[name] == pytest.approx(float(metric.result()), abs=1e-3 if name == "auc" else 1e-5), name

    @pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
    def test_batches_make_no_difference(self, batch_size):
        labels, probabilities = predictions(333, 5)
        whole, parts = tallied(labels, probabilities, 333), tallied(labels, probabilities, batch_size)
        assert parts.result() == pytest.approx(whole.result(), rel=1e-12)
        np.testing.assert_array_equal(parts.confusion, whole.confusion)

    def test_order_makes_no_difference(self):
        labels, probabilities = predictions(333, 5)
        order = np.random.default_rng(1).permutation(333)
        assert tallied(labels[order], probabilities[order]).result() == pytest.approx(
            tallied(labels, probabilities).result(), rel=1e-12
        )

    def test_confusion_has_the_true_class_first(self):
        tally = Tally(3)
        returned = tally.add(np.int32([0, 0, 2]), np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]))
        assert returned.tolist() == [1, 0, 1]
        assert tally.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
        assert list(tallies.nonzero(tally.confusion)) == [(0, 0, 1), (0, 1, 1), (2, 1, 1)]
        assert all(type(number) is int for number in itertools.chain(*tallies.nonzero(tally.confusion)))

    @pytest.mark.parametrize(
        ("labels", "probabilities"),
        [
            ([], np.zeros((0, 3))),
            ([0], [[1.0, 0.0, 0.0]]),
            ([1], [[1.0, 0.0, 0.0]]),  # a loss of log 0
            ([1, 1], [[1 / 3] * 3] * 2),
            ([0, 1, 2], np.eye(3)),
            ([2, 0, 1], np.eye(3)),
            ([0], [[1.0000001, 0.0, 0.0]]),  # a model's own softmax in float32
            ([0], [[1.0]]),  # of a single class
        ],
        ids=["no image", "sure", "sure and wrong", "unsure", "all right", "all wrong", "above 1", "one class"],
    )
    def test_it_is_never_nan_and_always_plain_numbers(self, labels, probabilities):
        probabilities = np.asarray(probabilities, dtype=np.float64)
        found = tallied(np.array(labels, dtype=np.int32), probabilities).result()
        assert all(type(value) in (int, float) and math.isfinite(value) for value in found.values()), found
        assert found["images"] == len(labels)

    def test_auc_of_ties_is_a_half(self):
        assert tallied(np.int32([0, 1]), np.full((2, 2), 0.5)).result()["auc"] == 0.5

    def test_a_thousand_classes_of_small_probabilities_are_told_apart(self):
        """Of 1,000 classes most probabilities are far below any threshold of Keras' AUC."""
        from sklearn.metrics import roc_auc_score

        labels, probabilities = predictions(100, 1000, sharpness=0.05)
        assert probabilities.max() < 0.01
        found = tallied(labels, probabilities).result()["auc"]
        assert found == pytest.approx(roc_auc_score(one_hot(labels, 1000).ravel(), probabilities.ravel()), abs=1e-3)

    def test_predictions_of_a_model_that_is_sure_of_itself_are_told_apart(self):
        """Of a model trained well most predictions are above 0.9999, the wrong ones too."""
        from sklearn.metrics import roc_auc_score

        labels, probabilities = predictions(500, 2, sharpness=20)
        assert np.median(probabilities.max(axis=1)) > 0.9999
        found = tallied(labels, probabilities).result()["auc"]
        assert found == pytest.approx(roc_auc_score(one_hot(labels, 2).ravel(), probabilities.ravel()), abs=1e-3)

    @pytest.mark.parametrize(
        ("spread", "gap"), [(1e-4, 0), (1e-6, 0), (1.0, 100), (1.0, 300), (1.0, 3000)], ids=lambda value: f"{value:g}"
    )
    @pytest.mark.parametrize("classes", [2, 10])
    def test_close_and_extreme_logits_are_told_apart(self, classes, spread, gap):
        """Outputs that are almost constant, and logits whose softmax is 0 or 1 in any float."""
        from sklearn.metrics import roc_auc_score

        labels, logits = near_or_far(classes, spread, gap)
        auc = tally_of_logits(labels, logits).result()["auc"]
        assert auc == pytest.approx(roc_auc_score(one_hot(labels, classes).ravel(), exact_odds(logits)), abs=1e-9)

    def test_almost_constant_probabilities_are_told_apart(self):
        """Of a model whose logits are not known."""
        from sklearn.metrics import roc_auc_score

        labels, probabilities = predictions(500, 10, sharpness=1e-5)
        auc = tallied(labels, probabilities).result()["auc"]
        assert auc == pytest.approx(roc_auc_score(one_hot(labels, 10).ravel(), probabilities.ravel()), abs=1e-9)

    def test_what_it_holds_is_bounded(self, monkeypatch, tmp_path):
        """More scores than are told apart: their bits are dropped, by the same number in any order and in parts."""
        from sklearn.metrics import roc_auc_score

        monkeypatch.setattr(scores, "DISTINCT", 1000)
        labels, probabilities = predictions(5000, 10, sharpness=1e-5)
        tally = tallied(labels, probabilities)
        assert tally._scores.counts().shape[1] <= 1000
        truth = one_hot(labels, 10).ravel()
        assert tally.result()["auc"] == pytest.approx(roc_auc_score(truth, probabilities.ravel()), abs=1e-3)
        for part, chosen in {"1.npz": slice(0, 20), "2.npz": slice(20, 4000), "3.npz": slice(4000, None)}.items():
            tallied(labels[chosen], probabilities[chosen]).save(tmp_path / part)
        parts = Tally.read([tmp_path / f"{place}.npz" for place in (3, 1, 2)], 10)
        assert parts.result() == tally.result()
        assert parts._scores.parts()[2] == tally._scores.parts()[2] > 0
        np.testing.assert_array_equal(parts._scores.counts(), tally._scores.counts())


def near_or_far(classes, spread, gap, images=400):
    """Labels with logits of one size, the class that a good model would take `gap` above the others."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, images).astype(np.int32)
    logits = rng.normal(0, spread, (images, classes))
    taken = np.where(rng.random(images) < 0.8, labels, rng.integers(0, classes, images))
    logits[np.arange(images), taken] += gap * rng.uniform(1, 2, images) + spread
    return labels, logits.astype(np.float32)


def tally_of_logits(labels, logits, batch_size=32):
    exact = logits.astype(np.float64)
    exponentials = np.exp(exact - exact.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    tally = Tally(logits.shape[1])
    for start in range(0, len(labels), batch_size):
        batch = slice(start, start + batch_size)
        tally.add(labels[batch], probabilities[batch], logits[batch])
    return tally


def exact_odds(logits):
    """The ranks of the log-odds of every pair, computed with 50 digits; of equal ones the same."""
    with decimal.localcontext(prec=50):
        rows = [[decimal.Decimal(float(value)).exp() for value in row] for row in logits]
        odds = [row[place] / sum(row[:place] + row[place + 1 :]) for row in rows for place in range(len(row))]
    return np.unique(np.array(odds, dtype=object), return_inverse=True)[1]


def test_a_model_whose_training_diverged_is_told_before_it_is_counted():

    from evasion.components.common.models import architectures
    from evasion.components.common.models.artifact import ModelError
    from evasion.components.common.models.classifier import Classifier

    model = architectures.build("shallow_net", 10, "none", "", 0)
    model.set_weights([weights * np.nan for weights in model.get_weights()])
    with pytest.raises(ModelError, match="must be finite"):
        Classifier(model).probabilities(np.zeros((2, 28, 28, 1), np.float32))
