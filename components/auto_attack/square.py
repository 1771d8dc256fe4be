"""The Square attack, which needs no gradient (Andriushchenko et al. 2020, arXiv:1912.00049), on groups of images.

Each image has its own random numbers. Candidates are judged as they would be saved, with 8 bits.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from evasion.components.common.attacks import draws
from evasion.components.common.data.pixels import Floats, Pixels, to_float

INITIAL_SHARE = 0.8  # of the pixels, that the first squares cover
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, where the share is halved
_BLOCK = 256  # candidates whose random numbers are drawn at once
_TINY = 1e-12

Judge = Callable[[Pixels, npt.NDArray[np.int32]], tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]
"""Takes images and the numbers of those they are candidates for; returns margins and whether they are settled."""


def share_of_pixels(query: int, queries: int) -> float:
    """Return the share of the pixels that a square covers at a query, counted from 0."""
    place = int(query / queries * 10_000)
    return float(INITIAL_SHARE / 2 ** sum(place > halving for halving in _HALVINGS))


def side(query: int, queries: int, height: int, width: int, *, norm: str) -> int:
    """Return the side of the squares at a query, in pixels."""
    size = round(math.sqrt(share_of_pixels(query, queries) * height * width))
    if norm == "2":  # two halves of opposite sign, around a middle
        size = max(size, 3)
        size += 1 - size % 2
    limit = min(height, width)
    return max(min(size, limit), 1)


def square(
    pixels: Pixels, judge: Judge, *, norm: str, eps: float, n_queries: int, seed: int, stream: tuple[int, ...]
) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Attack images by random search.

    Args:
        pixels: The images, uint8.
        judge: Judges candidates; a settled image leaves the search.
        norm: inf or 2.
        eps: Size of the attack; for inf a whole number of 8-bit steps.
        n_queries: Candidates tried after the first one.
        seed: The stage's seed.
        stream: What tells apart the draws of several searches.

    Returns:
        The best candidates, and by how much the best other class leads there.
    """
    random = draws.generators(seed, pixels, *stream)
    search = (_SearchInf if norm == "inf" else _SearchTwo)(pixels, eps, random)
    everything = np.arange(len(pixels), dtype=np.int32)
    margins, settled = judge(search.best, everything)
    active = everything[~settled]
    for query in range(n_queries):
        if not len(active):
            break
        if query % _BLOCK == 0:  # for images that left, nothing needs to be drawn
            drawn = np.zeros((len(pixels), min(_BLOCK, n_queries - query), search.numbers), np.float32)
            for image in active:
                drawn[image] = random[image].random(drawn.shape[1:], np.float32)
        size = side(query, n_queries, *pixels.shape[1:3], norm=norm)
        candidates, accept = search.candidates(active, size, drawn[active, query % _BLOCK])
        found, ended = judge(candidates, active)
        better = found > margins[active]
        accept(better)
        margins[active[better]] = found[better]
        active = active[~ended]
    return search.best, margins


Candidates = tuple[Pixels, Callable[[npt.NDArray[np.bool_]], None]]


class _SearchInf:
    """Squares of constant change in norm inf.

    Args:
        pixels: The images, uint8.
        eps: Size of the attack, a whole number of 8-bit steps.
        random: A generator for each image.

    Attributes:
        best: The best candidates.
        numbers: Random numbers that a candidate takes.
    """

    def __init__(self, pixels: Pixels, eps: float, random: list[np.random.Generator]) -> None:
        steps, levels = round(eps * 255), pixels.astype(np.int16)
        self._low = np.maximum(levels - steps, 0).astype(np.uint8)
        self._high = np.minimum(levels + steps, 255).astype(np.uint8)
        _, _, width, channels = pixels.shape
        # The first candidates have vertical stripes.
        stripes = np.stack([each.random((1, width, channels)) < 0.5 for each in random])
        self.best: Pixels = np.where(stripes, self._low, self._high)
        self.numbers = 2 + channels

    def candidates(self, images: npt.NDArray[np.int32], size: int, drawn: Floats) -> Candidates:
        """Return a candidate for each of the images, and the function that accepts some of them."""
        rows, columns = _windows(self.best.shape, size, drawn)
        where = images[:, None, None], rows, columns
        sign = drawn[:, None, None, 2:] < 0.5
        patch = np.where(sign, self._low[where], self._high[where])
        result = self.best[images]
        result[np.arange(len(images))[:, None, None], rows, columns] = patch

        def accept(better: npt.NDArray[np.bool_]) -> None:
            self.best[images[better]] = result[better]

        return result, accept


class _SearchTwo:
    """Squares that take over the change of another place, in norm 2. The arguments are those of `_SearchInf`."""

    def __init__(self, pixels: Pixels, eps: float, random: list[np.random.Generator]) -> None:
        self._pixels, self._origin, self._eps = pixels, to_float(pixels), np.float32(eps)
        count, height, width, channels = pixels.shape
        self.numbers = 5 + channels
        size = max(min(height, width) // 5, 1)
        change: Floats = np.zeros(pixels.shape, np.float32)
        for top in range((height - height // size * size) // 2, height - size + 1, size):
            for left in range((width - width // size * size) // 2, width - size + 1, size):
                turned = np.array([each.random() < 0.5 for each in random])
                signs = np.stack([np.sign(each.random(channels, np.float32) - 0.5) for each in random])
                change[:, top : top + size, left : left + size] = _bump(size, turned) * signs[:, None, None]
        self._x = self._at_distance(np.arange(count), change)
        self.best: Pixels = self._saved(np.arange(count), self._x)

    def candidates(self, images: npt.NDArray[np.int32], size: int, drawn: Floats) -> Candidates:
        """Return a candidate for each of the images, and the function that accepts some of them."""
        change = self._x[images] - self._origin[images]
        number = np.arange(len(images))[:, None, None]
        target = (number, *_windows(change.shape, size, drawn))
        source = (number, *_windows(change.shape, size, drawn[:, 2:]))
        both = np.zeros(change.shape[:3], bool)
        both[target] = both[source] = True
        spare = np.maximum(self._eps**2 - np.square(change).sum(axis=(1, 2, 3), keepdims=True), 0)
        inside = np.square(change * both[..., None]).sum(axis=(1, 2), keepdims=True)
        signs = np.sign(drawn[:, 5:] - np.float32(0.5))[:, None, None]
        old = change[target]
        patch = _bump(size, drawn[:, 4] < 0.5) * signs + old / (_window_length(old) + _TINY)
        length = np.sqrt(spare / change.shape[3] + inside)
        change[source] = 0
        change[target] = patch / (_window_length(patch) + _TINY) * length
        x = self._at_distance(images, change)
        result = self._saved(images, x)

        def accept(better: npt.NDArray[np.bool_]) -> None:
            self._x[images[better]], self.best[images[better]] = x[better], result[better]

        return result, accept

    def _at_distance(self, images: npt.NDArray[Any], change: Floats) -> Floats:
        """Return images with a change scaled to eps, cut off at 0 and 1."""
        size = np.sqrt(np.square(change).sum(axis=(1, 2, 3), keepdims=True))
        x: Floats = np.clip(self._origin[images] + change * (self._eps / (size + np.float32(_TINY))), 0, 1)
        return x

    def _saved(self, images: npt.NDArray[Any], x: Floats) -> Pixels:
        """Return points in 8 bits, not farther from the images than before."""
        levels, pixels = x * np.float32(255), self._pixels[images]
        saved: Pixels = np.where(levels > pixels, np.floor(levels), np.ceil(levels)).astype(np.uint8)
        return saved


def _windows(shape: tuple[int, ...], size: int, drawn: Floats) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return rows (images, size, 1) and columns (images, 1, size) of a random square in each image."""
    _, height, width, _ = shape
    corners = (drawn[:, :2] * np.array([height - size + 1, width - size + 1], np.float32)).astype(np.int64)
    corners = np.minimum(corners, [height - size, width - size])  # a product of floats may round up
    offsets = np.arange(size)
    return corners[:, 0, None, None] + offsets[:, None], corners[:, 1, None, None] + offsets[None, :]


def _window_length(windows: Floats) -> Floats:
    """Return the Euclidean norm of each channel of each window, shape (images, 1, 1, channels)."""
    length: Floats = np.sqrt(np.square(windows).sum(axis=(1, 2), keepdims=True))
    return length


def _bump(size: int, turned: npt.NDArray[np.bool_]) -> Floats:
    """Return the paper's change of a window, of norm 1: two bumps of opposite sign, one above or beside the other.

    Args:
        size: Side of the window.
        turned: For each image, whether they are side by side.

    Returns:
        Shape (images, size, size, 1).
    """
    half = size // 2
    upper, lower = _pyramid(half, size), -_pyramid(size - half, size)
    bump = np.concatenate([upper, lower])
    bump /= np.sqrt(np.square(bump).sum()) + np.float32(_TINY)
    return np.where(turned[:, None, None], bump.T, bump)[..., None]


def _pyramid(height: int, width: int) -> Floats:
    """Return nested rectangles of decreasing weight around the middle, of norm 1."""
    result: Floats = np.zeros((height, width), np.float32)
    middle, centre = height // 2, width // 2
    for ring in range(max(middle, centre) + 1):
        top, left = middle - ring, centre - ring
        rows = slice(max(top, 0), min(top + 2 * ring + 1, height))
        columns = slice(max(left, 0), min(left + 2 * ring + 1, width))
        result[rows, columns] += np.float32(1 / (ring + 1) ** 2)
    length = np.sqrt(np.square(result).sum())
    return result / length if length else result
