"""Batches for Keras, read from the dataset's tar in random order; nothing is held but the batch."""

import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import Floats, to_float
from evasion.components.common.progress import Meter


class Feed(keras.utils.PyDataset):  # type: ignore[misc]
    """Some images of a dataset as (x, y) batches: float32 in [0, 1] and one-hot float32.

    Args:
        data: The dataset, open.
        places: Which images, shape (images,).
        batch_size: Images a batch; the last one may be smaller.
        shuffle_seed: Draws a new order for each epoch; None keeps the order of `places`.
        replicas: Into how many parts Keras divides a batch: fewer images than that, at the end, go into the last batch.
    """

    def __init__(
        self,
        data: Dataset,
        places: npt.NDArray[np.int64],
        batch_size: int,
        shuffle_seed: int | None = None,
        replicas: int = 1,
    ) -> None:
        super().__init__()
        self._batches = math.ceil(len(places) / batch_size) - int(0 < len(places) % batch_size < replicas)
        self._data, self._places, self._batch_size = data, places, batch_size
        self._random = None if shuffle_seed is None else np.random.default_rng([shuffle_seed, 1])
        self._classes = np.eye(len(data.header.class_names), dtype=np.float32)
        self._shuffle()

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> tuple[Floats, npt.NDArray[np.float32]]:
        end = None if index == len(self) - 1 else (index + 1) * self._batch_size
        places = self._places[index * self._batch_size : end]
        x = to_float(np.stack([self._data.pixels(place) for place in places]))
        return x, self._classes[self._data.labels[places]]

    def on_epoch_end(self) -> None:
        """Draw the next epoch's order."""
        self._shuffle()

    def _shuffle(self) -> None:
        if self._random is not None:
            self._places = self._random.permutation(self._places)


class Fraction(keras.callbacks.Callback):  # type: ignore[misc]
    """Stop after `total` batches, which may end amid an epoch, and report progress on the way.

    Args:
        total: Batches to train in all: 2.5 epochs are two epochs and half of a third.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self._total, self._done, self._meter = total, 0, Meter(total, "batches")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Count a batch."""
        self._meter.advance()
        self._done += 1
        if self._done >= self._total:
            self.model.stop_training = True
