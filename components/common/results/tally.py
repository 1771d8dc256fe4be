"""Counts of predictions, exact and additive, and the metrics that follow from them."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from evasion.components.common.results.shares import share


class Tally:
    """Counts predictions batch by batch, exactly; what it holds does not grow with the number of images.

    Tallies of parts of a dataset, saved and read back, add up to that of the whole, to the last bit.

    Precision, recall, AUC and the four counts are defined as in the original demo: over all (image, class)
    pairs together, a class being predicted where its probability is above 0.5. The AUC is that of the ROC curve
    with probabilities distinguished to one part in 2,000 of them or of what they lack to 1 (`_BITS`); ties count half.

    Args:
        classes: Number of the model's classes.
    """

    # A float32 that is not negative orders as its bits do; without the last 12 of them it is the number of one
    # of 258,049 bins up to a half, and mirrored of as many above. They are finest near 0, where most of 1,000
    # classes lie, and near 1, where a model that is sure of itself has all its predictions.
    _BITS = 12
    _HALF = int(np.float32(0.5).view(np.uint32)) >> _BITS

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)
        self._loss = Fraction()  # a sum of floats depends on their order
        self._scores = np.zeros((2, 2 * self._HALF + 1), dtype=np.int64)  # of wrong and of right (image, class) pairs
        self._above = np.zeros(2, dtype=np.int64)

    def add(self, labels: npt.NDArray[np.int32], probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Count one batch and return its predicted classes.

        Args:
            labels: True class indices, shape (images,).
            probabilities: Shape (images, classes).
        """
        predicted: npt.NDArray[np.int64] = probabilities.argmax(axis=1)
        np.add.at(self.confusion, (labels, predicted), 1)
        right = np.zeros(probabilities.shape, dtype=bool)
        right[np.arange(len(labels)), labels] = True
        losses = -np.log(np.maximum(probabilities[right], np.finfo(np.float64).tiny))
        self._loss += sum(map(Fraction, losses.tolist()))
        lacking = np.clip(1 - probabilities, 0, 1)
        bins = np.minimum(probabilities, lacking).astype(np.float32).view(np.int32) >> self._BITS
        bins = np.where(probabilities > 0.5, 2 * self._HALF - bins, bins)
        for truth, chosen in enumerate((~right, right)):
            np.add.at(self._scores[truth], bins[chosen], 1)
            self._above[truth] += np.count_nonzero(probabilities[chosen] > 0.5)
        return predicted

    def save(self, path: Path) -> None:
        """Write all counts to a file that `read` adds up with others."""
        places, bins = np.nonzero(self._scores)
        np.savez_compressed(
            path,
            confusion=np.array(list(nonzero(self.confusion)), dtype=np.int64).reshape(-1, 3),
            scores=np.stack([places, bins, self._scores[places, bins]]),
            above=self._above,
            loss=np.array(str(self._loss)),
        )

    @classmethod
    def read(cls, paths: Iterable[Path], classes: int) -> Self:
        """Return the tally of several parts, each as `save` wrote it.

        Raises:
            ValueError, KeyError, OSError: A file is damaged, is of other classes or is not there.
        """
        whole = cls(classes)
        for path in paths:
            with np.load(path, allow_pickle=False) as part:
                true, predicted, count = part["confusion"].T
                np.add.at(whole.confusion, (true, predicted), count)
                places, bins, count = part["scores"]
                np.add.at(whole._scores, (places, bins), count)
                whole._above += part["above"]
                whole._loss += Fraction(str(part["loss"]))
        return whole

    def result(self) -> dict[str, float]:
        """Return the metrics of all batches as plain numbers; one that has nothing to divide by is left out."""
        images, correct = int(self.confusion.sum()), int(np.trace(self.confusion))
        wrong_pairs, right_pairs = (int(count) for count in self._scores.sum(axis=1))
        false_positives, true_positives = (int(count) for count in self._above)
        metrics: dict[str, float] = {"images": images, "correct": correct, **share("accuracy", correct, images)}
        metrics["loss"] = float(self._loss / max(images, 1))
        if true_positives + false_positives:
            metrics["precision"] = true_positives / (true_positives + false_positives)
        if right_pairs and wrong_pairs:
            metrics["recall"] = true_positives / right_pairs
            wrong, right = self._scores
            below = np.cumsum(wrong) - wrong
            metrics["auc"] = float((right * (below + wrong / 2)).sum() / (right_pairs * wrong_pairs))
        return metrics | {
            "true_positives": true_positives,
            "false_positives": false_positives,
            "true_negatives": wrong_pairs - false_positives,
            "false_negatives": right_pairs - true_positives,
        }


def nonzero(confusion: npt.NDArray[np.int64]) -> Iterable[tuple[int, int, int]]:
    """Yield (true, predicted, count) of every pair that occurred."""
    for true, predicted in zip(*np.nonzero(confusion), strict=True):
        yield int(true), int(predicted), int(confusion[true, predicted])
