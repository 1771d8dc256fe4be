"""Batches for Keras, read from the dataset's tar in random order. Only one batch is in memory."""

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
        indices: The indices of the images, shape (images,).
        batch_size: Images in a batch; the last batch may be smaller.
        shuffle_seed: Seed of a new order for each epoch; None keeps the order of `indices`.
        replicas: The number of parts into which Keras divides a batch. If fewer images than that remain at the end, the
            last batch includes them.
    """

    def __init__(
        self,
        data: Dataset,
        indices: npt.NDArray[np.int64],
        batch_size: int,
        shuffle_seed: int | None = None,
        replicas: int = 1,
    ) -> None:
        super().__init__()
        self._batches = math.ceil(len(indices) / batch_size) - int(0 < len(indices) % batch_size < replicas)
        self._data, self._indices, self._batch_size = data, indices, batch_size
        self._random = None if shuffle_seed is None else np.random.default_rng([shuffle_seed, 1])
        self._classes = np.eye(len(data.header.class_names), dtype=np.float32)
        self._shuffle()

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> tuple[Floats, npt.NDArray[np.float32]]:
        end = None if index == len(self) - 1 else (index + 1) * self._batch_size
        indices = self._indices[index * self._batch_size : end]
        x = to_float(np.stack([self._data.pixels(index) for index in indices]))
        return x, self._classes[self._data.labels[indices]]

    def on_epoch_end(self) -> None:
        """Draw the next epoch's order."""
        self._shuffle()

    def _shuffle(self) -> None:
        if self._random is not None:
            self._indices = self._random.permutation(self._indices)


class Fraction(keras.callbacks.Callback):  # type: ignore[misc]
    """Stop training after `total` batches, possibly within an epoch, and report progress.

    Args:
        total: The total number of batches: 2.5 epochs are two epochs and half of a third.
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


class BestWeights(keras.callbacks.Callback):  # type: ignore[misc]
    """Give the model, at the end of training, the weights of the epoch with the lowest loss.

    Args:
        monitored: Name of that loss: `loss` or `val_loss`.
    """

    def __init__(self, monitored: str) -> None:
        super().__init__()
        self._monitored, self._lowest = monitored, math.inf
        self._weights: list[Any] | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Keep the weights of the best epoch so far."""
        loss = (logs or {})[self._monitored]
        if loss < self._lowest:
            self._lowest, self._weights = loss, self.model.get_weights()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Set them."""
        if self._weights is not None:
            self.model.set_weights(self._weights)
