"""The steps of APGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1), compiled.

The state of all runs lies in TensorFlow variables, a row for each run, and a step works on some of the rows. So only
the numbers of the rows travel between Python and TensorFlow, and runs that ended cost nothing.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from evasion.components.auto_attack.batches import Batches
from evasion.components.auto_attack.objective import Objective
from evasion.components.common.data.pixels import Floats, Pixels, to_float

Rows = npt.NDArray[np.int32]

_TINY = 1e-12
_FIRST_STEP = 2.0  # times eps
_RISES = 0.75  # share of the steps since the last check that must raise the loss


class Runs:
    """Runs of APGD side by side, and their steps.

    A point is judged as it would be saved, with 8 bits: outputs, loss and gradient of the target are those of the saved
    image, and what fools the target in the attack fools it afterwards.

    Args:
        target: The `Classifier` that is attacked.
        objective: Its losses.
        norm: inf or 2.
        eps: Size of the attack; for inf a whole number of 8-bit steps.
        capacity: Largest number of runs. There is one row more, for padding.
        batches: How images pass through the target.
    """

    def __init__(
        self,
        target: Any,
        objective: Objective,
        *,
        norm: str,
        eps: float,
        capacity: int,
        batches: Batches,
    ) -> None:
        self._batches, self._padding = batches, capacity
        shape = target.model.input_shape[1:]

        # All are float32: GPUs have no kernels that write rows of most other types.
        def images() -> Any:
            return tf.Variable(tf.zeros((capacity + 1, *shape)), trainable=False)

        def numbers() -> Any:
            return tf.Variable(tf.zeros(capacity + 1), trainable=False)

        self._target, self._objective, self._norm, self._eps = target, objective, norm, eps
        self._pass = target.loss_pass(objective.loss, objective.over_draws)
        self._original, self._kept = images(), images()  # in 8-bit steps
        self._x, self._previous, self._gradient, self._best, self._best_gradient = (images() for _ in range(5))
        self._label, self._aim, self._decay = numbers(), numbers(), numbers()
        self._loss, self._best_loss, self._checked_loss, self._margin = (numbers() for _ in range(4))
        self._rises, self._size, self._reduced = numbers(), numbers(), numbers()
        # A variable: TensorFlow would turn the division by a constant into a product, which rounds differently.
        self._levels = tf.Variable(255.0, trainable=False)
        self._compile(shape)

    def _compile(self, shape: Any) -> None:
        """Make the compiled functions, for any number of rows."""
        rows = tf.TensorSpec((None,), tf.int32)
        images, outputs = tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None, None), tf.float32)
        numbers, share = tf.TensorSpec((None,), tf.float32), tf.TensorSpec((), tf.float32)
        # Nothing here branches on tensors in Python, so that AutoGraph would only take a second to find out.
        function = functools.partial(tf.function, autograph=False)
        self.check = function(self._check, input_signature=[rows, share])
        self._step = self._in_parts
        self._move = function(self._move, input_signature=[rows, share])  # type: ignore[method-assign]
        self._update = function(  # type: ignore[method-assign]
            self._update, input_signature=[rows, images, outputs, numbers, images]
        )
        if self._target.compiled:
            # Traced first, the pass is compiled for batches of every size, and once. A concrete function is called in
            # half the time.
            self._step = function(self._in_parts, input_signature=[rows, share]).get_concrete_function()

    def begin(
        self, rows: Rows, original: Pixels, start: Floats, labels: Rows, aims: Rows, *, decay: float = 0.0
    ) -> None:
        """Begin runs. It is not compiled, since it happens once.

        Args:
            rows: Numbers of the rows, int32.
            original: The images, uint8.
            start: The first points, in [0, 1] and within eps of the images.
            labels: The classes to move away from.
            aims: The classes to move towards; the labels for any other class.
            decay: Weight of the gradients before beside the next one, in [0, 1); only behind a defense.
        """
        zeros = tf.zeros_like(rows, tf.float32)
        for variable in (self._original, self._kept):
            _put(variable, rows, tf.cast(original, tf.float32))
        for variable in (self._x, self._previous, self._best):
            _put(variable, rows, start)
        _put(self._gradient, rows, tf.zeros_like(start))
        _put(self._label, rows, tf.cast(labels, tf.float32))
        _put(self._aim, rows, tf.cast(aims, tf.float32))
        _put(self._decay, rows, zeros + decay)
        for variable in (self._best_loss, self._margin):
            _put(variable, rows, zeros - np.inf)
        _put(self._loss, rows, zeros + np.inf)  # nothing rises above it, so that the start counts as no rise
        _put(self._checked_loss, rows, zeros - np.inf)
        _put(self._rises, rows, zeros)
        _put(self._size, rows, zeros + _FIRST_STEP * self._eps)
        _put(self._reduced, rows, zeros + 1)  # so that the first check has condition 1 alone

    def _in_parts(self, rows: Any, share: Any) -> Any:
        """Take one step of some rows."""
        saved, labels, aims = self._move(rows, share)
        outputs, loss, gradient = self._pass(saved, labels, aims)
        return self._update(rows, saved, outputs, loss, gradient)

    def _move(self, rows: Any, share: Any) -> tuple[Any, Any, Any]:
        """Move to the next points; return them as they would be saved, in [0, 1], with labels and aims."""
        original, x, previous = (_get(variable, rows) for variable in (self._original, self._x, self._previous))
        origin = original / self._levels
        size = tf.reshape(_get(self._size, rows), (-1, 1, 1, 1))
        gradient = _get(self._gradient, rows)
        stepped = self._projected(origin, x + size * self._direction(gradient))
        moved = self._projected(origin, x + share * (stepped - x) + (1 - share) * (x - previous))
        _put(self._previous, rows, x)
        _put(self._x, rows, moved)
        labels, aims = (tf.cast(_get(variable, rows), tf.int32) for variable in (self._label, self._aim))
        return self._rounded(moved, original) / self._levels, labels, aims

    def _direction(self, gradient: Any) -> Any:
        return tf.sign(gradient) if self._norm == "inf" else gradient / (_length(gradient) + _TINY)

    def _projected(self, origin: Any, x: Any) -> Any:
        """Return the points nearest to `x` within eps of the images, then cut off at 0 and 1."""
        if self._norm == "inf":
            change = tf.clip_by_value(x - origin, -self._eps, self._eps)
        else:
            change = (x - origin) * tf.minimum(1.0, self._eps / (_length(x - origin) + _TINY))
        return tf.clip_by_value(origin + change, 0.0, 1.0)

    def _rounded(self, x: Any, original: Any) -> Any:
        """Return points in 8-bit steps, in no norm farther from the images than eps."""
        levels = x * self._levels
        if self._norm == "inf":  # eps is a whole number of steps, which rounding to the nearest one cannot exceed
            return tf.round(levels)
        return tf.where(levels > original, tf.floor(levels), tf.math.ceil(levels))

    def _update(self, rows: Any, saved: Any, outputs: Any, loss: Any, gradient: Any) -> Any:
        """Take in what the target says of the points."""
        gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
        if self._target.straight_through:
            # Of one size, so that each has its weight: the loss is much steeper at some points than at others.
            size = tf.reduce_mean(tf.abs(gradient), axis=(1, 2, 3), keepdims=True)
            decay = tf.reshape(_get(self._decay, rows), (-1, 1, 1, 1))
            gradient = gradient / tf.maximum(size, _TINY) + decay * _get(self._gradient, rows)
        rises = tf.cast(loss > _get(self._loss, rows), tf.float32)
        _put(self._rises, rows, _get(self._rises, rows) + rises)
        _put(self._loss, rows, loss)
        _put(self._gradient, rows, gradient)
        # Only the rows that change are written: for images that costs less than a choice for all rows.
        better = tf.where(loss > _get(self._best_loss, rows))[:, 0]
        changed = tf.gather(rows, better)
        _put(self._best, changed, _get(self._x, changed))
        _put(self._best_gradient, changed, tf.gather(gradient, better))
        _put(self._best_loss, changed, tf.gather(loss, better))
        labels = tf.cast(_get(self._label, rows), tf.int32)
        margins = self._objective.margins(outputs, labels)
        nearer = tf.where(margins > _get(self._margin, rows))[:, 0]
        changed = tf.gather(rows, nearer)
        _put(self._kept, changed, tf.round(tf.gather(saved, nearer) * self._levels))
        _put(self._margin, changed, tf.gather(margins, nearer))
        return self._objective.settled(outputs, labels)

    def _check(self, rows: Any, steps: Any) -> None:
        """Halve the step of the runs that stagnate, and send them back to their best point.

        Behind a random defense a run stays where it is: the best point of many is the one that its draws favoured most.

        Args:
            rows: Numbers of the rows, int32.
            steps: Number of steps since the last check.
        """
        best_loss = _get(self._best_loss, rows)
        few_rises = _get(self._rises, rows) <= _RISES * steps
        no_gain = tf.logical_and(_get(self._reduced, rows) == 0, _get(self._checked_loss, rows) >= best_loss)
        reduce = tf.logical_or(few_rises, no_gain)
        size = _get(self._size, rows)
        _put(self._size, rows, tf.where(reduce, size / 2, size))
        if not self._target.random:
            whole = tf.reshape(reduce, (-1, 1, 1, 1))
            _put(self._x, rows, tf.where(whole, _get(self._best, rows), _get(self._x, rows)))
            _put(self._gradient, rows, tf.where(whole, _get(self._best_gradient, rows), _get(self._gradient, rows)))
        _put(self._reduced, rows, tf.cast(reduce, tf.float32))
        _put(self._checked_loss, rows, best_loss)
        _put(self._rises, rows, tf.zeros_like(best_loss))

    def step(self, rows: Rows, share: float) -> npt.NDArray[np.bool_]:
        """Take one step and return for each run whether it has ended, because its image is fooled.

        Args:
            rows: Numbers of the rows.
            share: Of the step, the rest being momentum: 0.75; 1 for the first step; 0 evaluates the start, where there
                is no momentum yet.
        """
        weight = tf.constant(share, tf.float32)

        def one(part: Rows) -> tuple[npt.NDArray[np.bool_]]:
            return (self._step(tf.constant(part), weight).numpy(),)

        ended: npt.NDArray[np.bool_] = self._batches.apply(one, rows, padding=self._padding)[0]
        return ended

    def evaluate(self, pixels: Pixels, labels: Rows) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """Return outputs and losses of images that belong to no run, and whether their gradients are zero everywhere.

        Args:
            pixels: The images, uint8.
            labels: The classes to move away from, or `OWN_PREDICTION`.
        """

        def one(part: Pixels, label: Rows) -> tuple[Any, ...]:
            outputs, loss, gradient = map(np.asarray, self._pass(tf.constant(to_float(part)), label, label))
            return outputs, loss, np.logical_not(np.nan_to_num(gradient).any(axis=(1, 2, 3)))

        return self._batches.apply(one, pixels, labels)

    def kept(self, rows: Rows) -> tuple[Pixels, npt.NDArray[np.float32]]:
        """Return of each run the point farthest behind the boundary, as it would be saved, and its margin."""
        return tf.gather(self._kept, rows).numpy().astype(np.uint8), tf.gather(self._margin, rows).numpy()

    def ends(self, rows: Rows) -> Pixels:
        """Return the last point of each run, as it would be saved."""
        pixels: Pixels = self._rounded(_get(self._x, rows), _get(self._original, rows)).numpy().astype(np.uint8)
        return pixels

    def losses(self, rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the loss of the last point and that of the best point of each run."""
        return tf.gather(self._loss, rows).numpy(), tf.gather(self._best_loss, rows).numpy()


def _get(variable: Any, rows: Any) -> Any:
    return tf.gather(variable, rows)


def _put(variable: Any, rows: Any, values: Any) -> None:
    variable.scatter_update(tf.IndexedSlices(values, rows))


def _length(images: Any) -> Any:
    """Return the Euclidean norm of each image, shape (images, 1, 1, 1)."""
    return tf.sqrt(tf.reduce_sum(tf.square(images), axis=(1, 2, 3), keepdims=True))
