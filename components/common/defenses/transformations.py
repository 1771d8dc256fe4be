"""The function that a defense applies to one image, for its stage and for an attacker who knows it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evasion.components.common.data.pixels import Pixels


@dataclass(frozen=True)
class Transformation:
    """A defense of one image.

    Attributes:
        apply: Takes an image, uint8 (height, width, channels), and a random generator; returns the defended image, of
            the same type and shape.
        random: Whether `apply` draws from the generator; if not, it is called with None.
    """

    apply: Callable[[Pixels, Any], Pixels]
    random: bool = False

    def of(self, pixels: Pixels, seed: int, original: str) -> Pixels:
        """Return the image after the defense of a stage.

        Args:
            pixels: The image, uint8 (height, width, channels).
            seed: The stage's seed.
            original: The path that the image had when it was loaded.
        """
        return self.apply(pixels, generator(seed, original) if self.random else None)


def generator(seed: int, original: str) -> np.random.Generator:
    """Return the random generator of one image.

    It depends on the stage's seed and on the path that the image had when it was loaded, but not on the order of images
    or on the stages applied to the image since.
    """
    digest = hashlib.sha256(original.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
