"""Random numbers that depend on the seed and the image alone, whatever else is attacked with it."""

import hashlib

import numpy as np

from evasion.components.common.data.pixels import Pixels


def generators(seed: int, pixels: Pixels, *streams: int) -> list[np.random.Generator]:
    """Return a generator for each image.

    Args:
        seed: The stage's seed.
        pixels: The images that the numbers depend on: before the attack, or those that a defense changes.
        streams: Numbers that tell apart what is drawn for one image, such as those of a member and of a run.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    return [np.random.default_rng([seed, *streams, int.from_bytes(digest[:8], "big")]) for digest in digests]
