"""The difference between two shares of the same images, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evasion.components.common.results.outcomes import Outcome
from evasion.components.common.results.shares import interval


@dataclass(frozen=True)
class Difference:
    """How much larger a share of images is than another one of the same images, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def between(cls, before: Outcome, after: Outcome) -> Difference:
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
