"""Counts of predictions, exact and additive, and the metrics that follow from them."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from evasion.components.common.results.scores import Scores, log_odds, log_odds_of_logits
from evasion.components.common.results.shares import accuracy_name, share


class Tally:
    """Counts predictions batch by batch, exactly; what it holds does not grow with the number of images.

    Tallies of parts of a dataset, saved and read back, add up to that of the whole, to the last bit.

    Precision, recall, AUC and the four counts are defined as in the original demo: over all (image, class)
    pairs together, a class being predicted where its probability is above 0.5. The AUC is that of the ROC curve
    over the log-odds of the probabilities (`Scores`); ties count half.

    Args:
        classes: Number of the model's classes.
    """

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)
        self._loss = Fraction()  # a sum of floats depends on their order
        self._scores = Scores()
        self._above = np.zeros(2, dtype=np.int64)

    def add(
        self,
        labels: npt.NDArray[np.int32],
        probabilities: npt.NDArray[np.float64],
        logits: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Count one batch and return its predicted classes.

        Args:
            labels: True class indices, shape (images,).
            probabilities: Shape (images, classes).
            logits: What the probabilities are the softmax of, if known: a gap of 100 between logits still orders
                pairs whose probabilities are all 0 or 1.
        """
        predicted: npt.NDArray[np.int64] = probabilities.argmax(axis=1)
        np.add.at(self.confusion, (labels, predicted), 1)
        right = np.zeros(probabilities.shape, dtype=bool)
        right[np.arange(len(labels)), labels] = True
        losses = -np.log(np.maximum(probabilities[right], np.finfo(np.float64).tiny))
        self._loss += sum(map(Fraction, losses.tolist()))
        self._scores.add(log_odds(probabilities) if logits is None else log_odds_of_logits(logits), right)
        for truth, chosen in enumerate((~right, right)):
            self._above[truth] += np.count_nonzero(probabilities[chosen] > 0.5)
        return predicted

    def save(self, path: Path) -> None:
        """Write all counts to a file that `read` adds up with others."""
        keys, pairs, level = self._scores.parts()
        np.savez_compressed(
            path,
            confusion=np.array(list(nonzero(self.confusion)), dtype=np.int64).reshape(-1, 3),
            keys=keys,
            pairs=pairs,
            level=np.array(level),
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
                whole._scores.merge(part["keys"], part["pairs"], int(part["level"]))
                whole._above += part["above"]
                whole._loss += Fraction(str(part["loss"]))
        return whole

    def result(self, *, attacked: bool = False) -> dict[str, float]:
        """Return the metrics of all batches as plain numbers; one that has nothing to divide by is left out.

        Args:
            attacked: Whether the images were attacked.
        """
        images, correct = int(self.confusion.sum()), int(np.trace(self.confusion))
        wrong, right = self._scores.counts()
        wrong_pairs, right_pairs = int(wrong.sum()), int(right.sum())
        false_positives, true_positives = (int(count) for count in self._above)
        metrics: dict[str, float] = {"images": images, "correct": correct}
        metrics |= share(accuracy_name(attacked=attacked), correct, images)
        metrics["loss"] = float(self._loss / max(images, 1))
        if true_positives + false_positives:
            metrics["precision"] = true_positives / (true_positives + false_positives)
        if right_pairs and wrong_pairs:
            metrics["recall"] = true_positives / right_pairs
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
