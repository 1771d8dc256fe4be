"""Selects the images that a report shows: the same in every evaluation and with any number of shards."""

import hashlib

SHOWN = 24


def rank(original: str) -> int:
    """Return a rank derived from an image's original path. The images with the lowest ranks are shown."""
    return int.from_bytes(hashlib.sha256(original.encode()).digest()[:8], "big")
