"""The best of an attack's iterates, image by image."""

from typing import Any

import numpy as np
import tensorflow as tf

from evasion.components.common.attacks.predicted import Labels
from evasion.components.common.data.pixels import Floats, Pixels, to_float, towards

RISE = 0.01
"""Share of its whole growth by which a loss must grow in the last tenth of the steps to count as still rising."""


class Best:
    """Keeps of each image an iterate that fools the target as saved in 8 bits; among equals that of the highest loss.

    An iterate that fools in floats is asked about as saved only while no other one of its image does so: this costs an
    image one more prediction, not one a step. The one of the highest loss is asked about at the end; if it does not
    fool as saved, the first one that did is kept.

    Args:
        target: What is attacked.
        pixels: The original images, uint8.
        labels: What the attack moves away from.
        loss: Of the original images.
        max_iter: The number of steps from each start.
    """

    def __init__(self, target: Any, pixels: Pixels, labels: Labels, loss: Floats, max_iter: int) -> None:
        self._target, self._pixels, self._labels, self._loss_start = target, pixels, labels, loss
        self._before_last_tenth = max_iter * 9 // 10
        self._x: Any = None
        self._loss = np.full(len(pixels), -np.inf)
        self._fooled, self._fooling = np.zeros(len(pixels), dtype=bool), pixels.copy()
        self._fooling_loss = self._loss.copy()
        self._fooled_end, self._loss_end = self._fooled.copy(), self._loss.copy()
        self._highest, self._rises = self._loss.copy(), self._fooled.copy()
        self.begin()

    def begin(self) -> None:
        """Start to count the steps from a starting point."""
        self._step = 0
        self._run = np.full(len(self._pixels), -np.inf)

    def offer(self, x_adv: Any, outputs: Any, losses: Any) -> None:
        """Take one iterate, in the order of the steps.

        Args:
            x_adv: float32 tensor, (images, height, width, channels), in [0, 1].
            outputs: The target's, (images, classes).
            losses: Of each image.
        """
        losses = np.asarray(losses)
        fooled = np.asarray(outputs).argmax(axis=1) != self._labels
        self._ask_as_saved(x_adv, losses, np.flatnonzero(fooled & ~self._fooled))
        better = (fooled | ~self._fooled) & (losses > self._loss)
        self._loss[better] = losses[better]
        if self._x is None or better.all():
            self._x = x_adv
        elif better.any():
            self._x = tf.where(better[:, None, None, None], x_adv, self._x)
        self._run = np.fmax(self._run, losses)
        if self._step == 0:
            self._first = losses
        if self._step == self._before_last_tenth:
            self._before = self._run
        self._last = fooled, losses
        self._step += 1

    def end(self) -> None:
        """Take note of the last iterate that was offered as the last one from its starting point."""
        fooled, losses = self._last
        self._fooled_end |= fooled
        self._loss_end = np.fmax(self._loss_end, losses)
        highest = self._run > self._highest
        rises = self._run - self._before > RISE * (self._run - self._first)
        self._rises[highest] = rises[highest]
        self._highest = np.fmax(self._highest, self._run)

    def pixels(self) -> Pixels:
        """Return the best iterates as they are saved; call it once, at the end."""
        saved = towards(self._x.numpy(), self._pixels)
        asked = np.flatnonzero(self._fooled)
        if asked.size:
            back = asked[~self._fools(saved[asked], asked)]
            saved[back] = self._fooling[back]
            self._loss[back] = self._fooling_loss[back]
        return saved

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `samples.csv`; of several starts, the end is that of the one which came farthest."""
        return {
            **{
                name: [f"{value:.6g}" for value in values]
                for name, values in (
                    ("loss_start", self._loss_start),
                    ("loss_end", self._loss_end),
                    ("loss_best", self._loss),
                )
            },
            "fooled_best": self._fooled.astype(int).tolist(),
            "fooled_end": self._fooled_end.astype(int).tolist(),
            "loss_rises": (self._rises & ~self._fooled).astype(int).tolist(),
        }

    def _ask_as_saved(self, x_adv: Any, losses: Floats, places: Any) -> None:
        """Ask whether those iterates fool as saved that are the first of their image to fool in floats."""
        if not places.size:
            return
        saved = towards(tf.gather(x_adv, places).numpy(), self._pixels[places])
        fools = self._fools(saved, places)
        first = places[fools]
        self._fooled[first] = True
        self._fooling[first] = saved[fools]
        self._fooling_loss[first] = losses[first]
        self._loss[first] = -np.inf  # only iterates that fool compete from now on

    def _fools(self, saved: Pixels, places: Any) -> Any:
        return self._target.outputs(to_float(saved)).argmax(axis=1) != self._labels[places]
