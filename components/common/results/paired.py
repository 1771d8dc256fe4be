"""Two evaluations of the same images, compared image by image: McNemar's test, Holm's adjustment, differences."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from evasion.components.common.results.shares import interval

SIGNIFICANCE = 0.05  # a difference that chance makes less often is called one

ABSENT = -1

Correctness = npt.NDArray[np.int8]
"""Of each original image: 1 right, 0 wrong, -1 not evaluated."""


def under_each(*outcomes: Correctness) -> Correctness:
    """Return which images are right in every one of several outcomes.

    This is how robust images are counted: right without an attack and right under each attack (`robust_flags` of
    AutoAttack, Croce and Hein 2020, arXiv:2003.01690). An image that is wrong in one is wrong, whatever else is known
    of it; else one that is absent in one is absent.

    Args:
        outcomes: At least one, all in the same order of images.
    """
    return np.where(
        np.any([each == 0 for each in outcomes], axis=0),
        0,
        np.min(outcomes, axis=0),  # ABSENT is below 1
    ).astype(np.int8)


@dataclass(frozen=True)
class Paired:
    """The same images in two evaluations: how many only one of them got right.

    McNemar's exact test (1947) asks of these whether chance explains how they are split: without an effect each of the
    two outcomes is as likely.
    """

    gained: int
    lost: int

    @classmethod
    def between(cls, before: Correctness, after: Correctness, among: Correctness | None = None) -> Paired:
        """Pair two outcomes in one order.

        Args:
            before: Of one evaluation.
            after: Of another one.
            among: If given, only images that this one got right count.
        """
        counted = (before != ABSENT) & (after != ABSENT)
        if among is not None:
            counted &= among == 1
        gained, lost = (np.count_nonzero(counted & (after - before == sign)) for sign in (1, -1))
        return cls(int(gained), int(lost))

    @cached_property
    def p(self) -> float:
        """How often chance alone makes a split as uneven."""
        differing = self.gained + self.lost
        return float(binomtest(self.gained, differing).pvalue) if differing else 1.0

    @property
    def may_be_chance(self) -> bool:
        """Whether chance explains the difference."""
        return self.p >= SIGNIFICANCE

    @property
    def rises(self) -> bool:
        """Whether the second is right more often, by more than chance."""
        return self.gained > self.lost and not self.may_be_chance

    @property
    def falls(self) -> bool:
        """Whether the second is right less often, by more than chance."""
        return self.gained < self.lost and not self.may_be_chance


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values of tests made together (Holm 1979): the chance that any of them errs stays below the level."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Difference:
    """How much larger a share of images is than another one of the same images, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def between(cls, before: Correctness, after: Correctness) -> Difference:
        """The share that is right after, less the share that was right before."""
        both, gained = (int(np.count_nonzero((after == 1) & (before == was))) for was in (1, 0))
        lost, neither = (int(np.count_nonzero((after == 0) & (before == was))) for was in (1, 0))
        return cls.counted(both, gained, lost, neither)

    @classmethod
    def counted(cls, both: int, gained: int, lost: int, neither: int) -> Difference:
        """The same, from how many images were right both times, after only, before only and never.

        Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
        data", method 10: the Wilson intervals of both shares, put together by how far the images fare alike.
        """
        n = both + gained + lost + neither
        if not n:
            return cls(0.0, -1.0, 1.0, 0)
        after, before = (both + gained) / n, (both + lost) / n
        (after_low, after_high), (before_low, before_high) = interval(both + gained, n), interval(both + lost, n)
        alike = _correlation(both, gained, lost, neither)

        def distance(one: float, other: float) -> float:
            return math.sqrt(max(one**2 - 2 * alike * one * other + other**2, 0.0))

        value = after - before
        low = value - distance(after - after_low, before_high - before)
        high = value + distance(after_high - after, before - before_low)
        return cls(value, max(low, -1.0), min(high, 1.0), n)

    @property
    def reversed(self) -> Difference:
        """How much smaller it is."""
        return Difference(-self.value, -self.high, -self.low, self.n)


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Return phi, corrected for continuity where it is positive; 0 where every image fares alike."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    product = float(both * neither - gained * lost)
    if product > 0:
        product = max(product - (both + gained + lost + neither) / 2, 0.0)
    return product / math.sqrt(margins) if margins else 0.0


def packed(correctness: Correctness) -> str:
    """Return what is right as text: a bit an image, the first one highest, packed into bytes, as base64."""
    return base64.b64encode(np.packbits(correctness.astype(bool)).tobytes()).decode("ascii")


def unpacked(text: str, images: int) -> Correctness:
    """Read what `packed` returned.

    Raises:
        ValueError: If it is not of so many images.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8))
    if len(bits) != -(-images // 8) * 8:
        raise ValueError(f"{len(bits)} bits cannot be the outcomes of {images} images")
    return bits[:images].astype(np.int8)
