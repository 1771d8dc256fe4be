"""Shares of images with their 95 % intervals, and the changes between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import binomtest

from evasion.components.common.results.json_file import strict

CONFIDENCE = 0.95
NORMAL = 1.96
"""So many standard deviations hold 95 % of a normal distribution."""


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share; (0, 1) where nothing was tried.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if trials == 0:
        return 0.0, 1.0
    low, high = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


@strict
@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % Wilson interval.

    Attributes:
        value: `count` divided by `n`, in [0, 1].
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: How many images there are.
        count: How many of them are meant.
    """

    value: float
    low: float
    high: float
    n: int
    count: int

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.value <= self.high <= 1 and math.isclose(self.value * self.n, self.count)):
            raise ValueError(f"{self.count} of {self.n} is not a share of {self.value} in [{self.low}, {self.high}]")

    @classmethod
    def counted(cls, count: int, n: int) -> Share | None:
        """Return the share of `count` in `n`, or None if `n` is 0."""
        return cls(count / n, *interval(count, n), n, count) if n else None

    def overlaps(self, other: Share) -> bool:
        """Return whether the two intervals have a value in common, so that the difference may be chance."""
        return self.low <= other.high and other.low <= self.high

    def named(self, name: str) -> dict[str, float]:
        """Return the share as flat metrics: `name`, `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def share(name: str, successes: int, trials: int) -> dict[str, float]:
    """Return a share as flat metrics with its interval; empty where nothing was tried."""
    counted = Share.counted(successes, trials)
    return counted.named(name) if counted else {}


def accuracy_name(*, attacked: bool) -> str:
    """Return what to call the share of right images: of attacked ones it is no robust accuracy, and says so."""
    return "accuracy_under_attack" if attacked else "accuracy"


def under_attack(successes: int, right_before: int, images: int, *, defended: bool) -> dict[str, float]:
    """Return what an attack leaves, as flat metrics.

    Args:
        successes: How many of the images that were right before the attack are wrong after it.
        right_before: How many were right before it: clean, without a defense.
        images: How many there are.
        defended: Whether they went through a defense. Then robust accuracy is not known: it asks whether they are right
            without the attack, but with the defense.
    """
    metrics: dict[str, float] = {"right_before": right_before, "attack_successes": successes}
    metrics |= share("attack_success_rate", successes, right_before)
    return metrics if defended else metrics | share("robust_accuracy", right_before - successes, images)


@strict
@dataclass(frozen=True)
class Change:
    """How a share differs from the one without a defense.

    Attributes:
        value: The difference.
        may_be_chance: Whether McNemar's exact test on the same images explains it by chance.
    """

    value: float
    may_be_chance: bool

    @property
    def rises(self) -> bool:
        """Whether the share is larger, by more than chance."""
        return self.value > 0 and not self.may_be_chance

    @property
    def falls(self) -> bool:
        """Whether the share is smaller, by more than chance."""
        return self.value < 0 and not self.may_be_chance
