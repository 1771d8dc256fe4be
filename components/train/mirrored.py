"""Training on all devices of a machine at once: each takes a part of every batch (`tf.distribute`)."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def strategy(batches: Sequence[int]) -> Any | None:
    """Return the `MirroredStrategy` over the GPUs, or None if only one device can be used.

    Several logical CPUs, which TensorFlow has only if it is configured so, are used in the same way.

    Args:
        batches: Sizes of the first batch of each dataset. Keras divides them only into equal parts, so the number of
            devices is the largest that divides them all.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    used = max(number for number in range(1, len(devices) + 1) if not any(size % number for size in batches))
    return tf.distribute.MirroredStrategy([device.name for device in devices[:used]]) if used > 1 else None


def synchronize(model: Any, on: bool) -> None:
    """Set whether BatchNormalization computes its statistics over all parts of a batch."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = on


class MeanOverReplicas(keras.losses.Loss):  # type: ignore[misc]
    """Categorical cross-entropy, the mean over the whole batch.

    Keras takes the mean of the parts' means, in which an image of a smaller part, as in the last batch, would count
    more. Keras multiplies the reported value by the number of parts, and adds up the parts' gradients.
    """

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:  # noqa: ARG002
        """Return this part's share of the mean over the batch."""
        losses = keras.losses.categorical_crossentropy(y_true, y_pred)
        replica = tf.distribute.get_replica_context()
        if replica is None:  # Keras builds the model; there is no batch
            return tf.reduce_mean(losses)
        images = replica.all_reduce("sum", tf.cast(tf.shape(losses)[0], losses.dtype))
        part = tf.reduce_sum(losses) / images
        whole = replica.all_reduce("sum", tf.stop_gradient(part))
        return part + tf.stop_gradient(whole / replica.num_replicas_in_sync - part)
