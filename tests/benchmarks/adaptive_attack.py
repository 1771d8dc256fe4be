"""An adaptive attack in norm inf, by which `judges.py` judges `auto_attack`. It shares no code with it.

Momentum PGD on images in 8 bits, with steps that become smaller: 20 steps on the cross-entropy, 30 on the margin, then
100 on each from every random start. Behind a defense the model gets the defended 8-bit image, and its gradient there is
taken for that of the image itself (BPDA: Athalye et al. 2018, arXiv:1802.00420); behind a random one it is the mean
over draws (EOT). Each run attacks only the images that still stand. The labels are the true ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

SHORT = (("cross-entropy", 20), ("margin", 30))
LONG = (("cross-entropy", 100), ("margin", 100))
DRAWS = 4  # a step, behind a random defense
CHECKED = 32  # draws by which images behind a random defense are compared
MOMENTUM = 0.75
FIRST_STEP, LAST_STEP = 0.5, 0.01  # shares of eps
BATCH = 200


class AdaptiveAttack:
    """The attack on one model behind one defense.

    Args:
        logits: A `keras.Model`, float32 images in [0, 1] to logits.
        defense: Takes an 8-bit image and a random generator; returns the defended image, 8-bit. None for no defense.
        random: Whether the defense draws from the generator.
        eps: Largest change of a pixel, a share of 255.
        starts: Random starts of the long runs.
        seed: Seed of the starts and of the draws.
    """

    def __init__(
        self,
        logits: Any,
        defense: Callable[[np.ndarray, Any], np.ndarray] | None,
        *,
        random: bool,
        eps: float,
        starts: int,
        seed: int,
    ) -> None:
        self.defense, self.random, self.starts = defense, random, starts
        self.levels = int(255 * eps + 1e-6)
        self.draws = DRAWS if random else 1
        self.generator = np.random.default_rng(seed)
        signature = [
            tf.TensorSpec((None, *logits.input_shape[1:]), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ]

        def margins_and_outputs(x: Any, labels: Any) -> tuple[Any, Any]:
            outputs = logits(x, training=False)
            label = tf.one_hot(labels, outputs.shape[1])
            return tf.reduce_sum(outputs * label, 1) - tf.reduce_max(outputs - 1e9 * label, 1), outputs

        def one_pass(loss: str) -> Any:
            @tf.function(input_signature=signature)
            def compiled(x: Any, labels: Any) -> tuple[Any, Any]:
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    margins, outputs = margins_and_outputs(x, labels)
                    if loss == "margin":
                        value = -margins
                    else:
                        value = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)
                return margins, tape.gradient(value, x)

            return compiled

        self._passes = {loss: one_pass(loss) for loss, _ in LONG}
        self._margins = tf.function(lambda x, labels: margins_and_outputs(x, labels)[0], input_signature=signature)

    def generate(self, originals: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the attacked images, 8-bit, no pixel farther than eps from that of the original."""
        low = np.maximum(originals.astype(np.float32) - self.levels, 0)
        high = np.minimum(originals.astype(np.float32) + self.levels, 255)
        best = originals.copy()
        fooled = self._fooled(best, labels)
        for number, (loss, steps) in enumerate([*SHORT, *LONG * self.starts]):
            left = np.flatnonzero(fooled < 1)
            if not len(left):
                break
            start = originals[left].astype(np.float32)
            if number >= len(SHORT):
                start = self.generator.uniform(low[left], high[left]).astype(np.float32)
            for attacked in self._run(start, low[left], high[left], labels[left], loss, steps):
                share = self._fooled(attacked, labels[left])
                better = share > fooled[left]
                best[left[better]], fooled[left[better]] = attacked[better], share[better]
        return best

    def _run(
        self, x: np.ndarray, low: np.ndarray, high: np.ndarray, labels: np.ndarray, loss: str, steps: int
    ) -> list[np.ndarray]:
        """Return the images of the smallest margins on the way from `x`, and the last ones if the defense is random."""
        kept, smallest = np.rint(x).astype(np.uint8), np.full(len(x), np.inf)
        last = kept.copy()
        momentum = np.zeros_like(x)
        left = np.arange(len(x))
        for step in range(steps + 1):
            candidates = np.rint(x[left]).astype(np.uint8)
            last[left] = candidates
            margins, gradient = self._pass(candidates, labels[left], loss)
            better = margins < smallest[left]
            kept[left[better]], smallest[left[better]] = candidates[better], margins[better]
            if not self.random:
                stands = margins > 0
                left, gradient = left[stands], gradient[stands]
            if step == steps or not len(left):
                break
            size = np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
            momentum[left] = MOMENTUM * momentum[left] + gradient / np.maximum(size, np.finfo(np.float32).tiny)
            share = LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + np.cos(np.pi * step / steps)) / 2
            moved = x[left] + np.float32(self.levels * share) * np.sign(momentum[left])
            x[left] = np.clip(moved, low[left], high[left])
        return [kept, last] if self.random else [kept]

    def _pass(self, pixels: np.ndarray, labels: np.ndarray, loss: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the margins and the gradients of the loss, means over draws."""
        margins, gradients = np.zeros(len(pixels)), np.zeros(pixels.shape, np.float32)
        for begin in range(0, len(pixels), BATCH):
            part = slice(begin, begin + BATCH)
            for _ in range(self.draws):
                defended = self._defended(pixels[part])
                of_draw, gradient = self._passes[loss](defended, labels[part].astype(np.int32))
                margins[part] += of_draw.numpy() / self.draws
                gradients[part] += gradient.numpy() / self.draws
        return margins, gradients

    def _fooled(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the share of draws in which each image is taken for another class: 0 or 1 if nothing is random."""
        draws = CHECKED if self.random else 1
        margins = [self._margins(self._defended(pixels), labels.astype(np.int32)).numpy() for _ in range(draws)]
        return (np.stack(margins) <= 0).mean(axis=0)

    def _defended(self, pixels: np.ndarray) -> np.ndarray:
        if self.defense is not None:
            pixels = np.stack([self.defense(image, self.generator) for image in pixels])
        return pixels.astype(np.float32) / np.float32(255)
