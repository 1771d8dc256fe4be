"""Pixels in 8 bits, as they are saved, and in [0, 1], as models take them."""

import math

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""Images of shape (height, width, channels), or a batch of them, 8-bit."""

Floats = npt.NDArray[np.float32]
"""The same in [0, 1]."""


def to_float(pixels: Pixels) -> Floats:
    """Return 8-bit pixels as float32 in [0, 1]."""
    x = pixels.astype(np.float32)
    x /= np.float32(255)
    return x


def to_pixels(x: Floats) -> Pixels:
    """Return float pixels in [0, 1] as 8 bits, *rounded*: truncation would break an eps bound by a level."""
    levels = np.clip(x, np.float32(0), np.float32(1))
    levels *= np.float32(255)
    return np.rint(levels, out=levels).astype(np.uint8)


def towards(x: Floats, originals: Pixels) -> Pixels:
    """Return attacked float pixels in 8 bits, rounded towards the pixels that they were made from.

    So no image is farther from its original, in any norm, than it was before: rounding to the nearest level would add
    up to half a level and break the bound eps. A fraction of a level that is due to float32 is not cut off.

    Args:
        x: The attacked images, in [0, 1].
        originals: What they were made from, of the same shape.
    """
    levels = np.clip(x, np.float32(0), np.float32(1)) * np.float32(255)
    up, down = np.ceil(levels - ROUNDING_ERROR), np.floor(levels + ROUNDING_ERROR)
    rounded: Pixels = np.where(levels > originals, down, up).astype(np.uint8)
    return rounded


ROUNDING_ERROR = np.float32(2**-11)
"""Levels that sums of float32 pixels in [0, 1] err by at most: eps = 51/255 moves a pixel by 51 levels, not by 50."""

CHUNK_BYTES = 64 << 10  # of pixels that a thread takes at once
AHEAD_BYTES = 32 << 20  # of decoded pixels that wait for the consumer


def ahead(image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return arguments of `ordered_map` for images of this shape: enough work ahead, in bounded memory.

    Small images take little time, so two threads would mostly wait for the interpreter lock: they get one thread and
    large chunks.
    """
    size = math.prod(image_shape)
    chunk = min(max(CHUNK_BYTES // size, 8), 64)
    return {
        "threads": 1 if size < CHUNK_BYTES // 8 else 2,
        "ahead": min(max(AHEAD_BYTES // size, 2 * chunk), 512),
        "chunk": chunk,
    }
