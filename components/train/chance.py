"""Whether a trained model knows its own training images better than chance does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.results import shares
from evasion.components.train.feed import Feed

CHECKED = 200
"""So many training images are predicted after the training; more would take long with a large model."""


@dataclasses.dataclass(frozen=True)
class AfterTraining:
    """What a trained model knows of its own training images, without attack.

    Attributes:
        right: How many it predicts correctly.
        images: Of how many.
        most_frequent: How many belong to the most frequent class: what a constant prediction has right.
    """

    right: int
    images: int
    most_frequent: int

    @property
    def at_chance(self) -> bool:
        """Whether the 95 % interval of the accuracy reaches down to that of a constant prediction."""
        low, _ = shares.interval(self.right, self.images)
        return low <= self.most_frequent / self.images

    @property
    def warning(self) -> str:
        """What to tell the user; blank if the model is better than chance."""
        if not self.at_chance:
            return ""
        return (
            f"warning: training ended at chance: {self.right} of {self.images} of its own training images are right, "
            f"and the most frequent class alone has {self.most_frequent}. Train longer or change learning_rate; "
            "with apply_defense, lower eps or max_iter until it learns."
        )


def after_training(network: Any, data: Dataset, indices: npt.NDArray[np.int64], batch_size: int) -> AfterTraining:
    """Predict the first `CHECKED` of the training images.

    Args:
        network: The trained model.
        data: The dataset, open.
        indices: The training images, in random order.
        batch_size: Images predicted at a time.
    """
    chosen = indices[:CHECKED]
    right = 0
    feed = Feed(data, chosen, batch_size)
    for batch in range(len(feed)):
        x, y = feed[batch]
        right += int((np.asarray(network(x, training=False)).argmax(axis=1) == y.argmax(axis=1)).sum())
    return AfterTraining(right, len(chosen), int(np.bincount(data.labels[chosen]).max()))
