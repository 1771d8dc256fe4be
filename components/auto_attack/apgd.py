"""Auto-PGD on groups of images (Croce and Hein 2020, arXiv:2003.01690, section 3)."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evasion.components.auto_attack.compiled import Rows, Runs
from evasion.components.common.attacks import draws
from evasion.components.common.data.pixels import Floats, Pixels, to_float

MOMENTUM = 0.25  # share of the step before in the next one
RISE = 0.01  # of the whole growth of the loss: what counts as a rise in the last tenth


@dataclass(frozen=True)
class Outcome:
    """What runs leave of each image; all shapes begin with (images, aims).

    Attributes:
        pixels: The point farthest behind the boundary, as it would be saved.
        margins: By how much the best other class leads there.
        ends: The last point, as it would be saved.
        last: The loss of the last point.
        best: The largest loss.
        rises: Whether that still rose in the last tenth of the steps, by over 1 % of its whole growth, in vain.
    """

    pixels: Pixels
    margins: npt.NDArray[np.float32]
    ends: Pixels
    last: npt.NDArray[np.float32]
    best: npt.NDArray[np.float32]
    rises: npt.NDArray[np.bool_]


def checkpoints(max_iter: int) -> Iterator[int]:
    """Yield the numbers of steps between the checks of the step size: first 0.22 of all steps, then fewer and fewer."""
    length = max(int(0.22 * max_iter), 1)
    while True:
        yield length
        length = max(length - max(int(0.03 * max_iter), 1), int(0.06 * max_iter), 1)


def run(
    runs: Runs,
    pixels: Pixels,
    labels: Rows,
    aims: Rows,
    starts: Floats,
    losses: npt.NDArray[np.float32],
    *,
    max_iter: int,
    decay: float,
) -> Outcome:
    """Run APGD on images, once for each aim, all at once. An image that is fooled leaves with all its runs.

    Args:
        runs: The state and the compiled steps.
        pixels: The images, uint8.
        labels: The classes to move away from, shape (images,).
        aims: The classes to move towards, shape (images, aims).
        starts: The first points of each run, shape (images, aims, height, width, channels).
        losses: Of the images before the attack, from which growth is counted.
        max_iter: Number of steps.
        decay: Weight of the gradients before beside the next one, in [0, 1); only behind a defense.
    """
    count, each = aims.shape
    rows = np.arange(count * each, dtype=np.int32)
    image_of = rows // each

    starts = starts.reshape(-1, *pixels.shape[1:])
    runs.begin(rows, pixels[image_of], starts, labels[image_of], aims.reshape(-1), decay=decay)
    schedule = itertools.accumulate(checkpoints(max_iter))
    check_at, checked, before_last_tenth = next(schedule), 0, np.full(len(rows), -np.inf, np.float32)
    fooled, active = np.zeros(count, bool), rows
    for number in range(max_iter + 1):
        ended = runs.step(active, 0 if number == 0 else 1 if number == 1 else 1 - MOMENTUM)
        fooled[image_of[active[ended]]] = True
        active = active[~fooled[image_of[active]]]
        if not len(active):
            break
        if number == math.floor(0.9 * max_iter):
            _, before_last_tenth[:] = runs.losses(rows)
        if number == check_at:
            runs.check(active, np.float32(check_at - checked))
            check_at, checked = next(schedule), check_at
    return _outcome(runs, rows.reshape(count, each), fooled, losses, before_last_tenth)


def _outcome(
    runs: Runs,
    rows: Rows,
    fooled: npt.NDArray[np.bool_],
    losses: npt.NDArray[np.float32],
    before_last_tenth: npt.NDArray[np.float32],
) -> Outcome:
    """Return what is left of each image, of whose runs `rows` has the numbers."""
    flat, shape = rows.reshape(-1), rows.shape
    pixels, margins = runs.kept(flat)
    last, best = runs.losses(flat)
    growth, late = best - losses.repeat(shape[1]), best - before_last_tenth
    rises = ~fooled.repeat(shape[1]) & (late > RISE * np.maximum(growth, 0))
    image = pixels.shape[1:]
    return Outcome(
        pixels.reshape(*shape, *image),
        margins.reshape(shape),
        runs.ends(flat).reshape(*shape, *image),
        last.reshape(shape),
        best.reshape(shape),
        rises.reshape(shape),
    )


def starting_points(seed: int, pixels: Pixels, aims: int, *streams: int, norm: str, eps: float) -> Floats:
    """Return random points at a distance of eps from images, then cut off at 0 and 1.

    Args:
        seed: The stage's seed.
        pixels: The images, uint8.
        aims: Number of points for each image.
        streams: What tells apart the draws of members and runs.
        norm: inf or 2.
        eps: Size of the attack.

    Returns:
        Shape (images, aims, height, width, channels), in [0, 1].
    """
    x = to_float(pixels)[:, None]
    shape = (aims, *pixels.shape[1:])
    random = draws.generators(seed, pixels, *streams)
    if norm == "inf":
        change = np.stack([2 * each.random(shape, np.float32) - 1 for each in random])
        size = np.abs(change).max(axis=(2, 3, 4), keepdims=True)
    else:
        change = np.stack([each.standard_normal(shape, np.float32) for each in random])
        size = np.sqrt(np.square(change).sum(axis=(2, 3, 4), keepdims=True))
    points: Floats = np.clip(x + np.float32(eps) * change / np.maximum(size, np.float32(1e-12)), 0, 1)
    return points
