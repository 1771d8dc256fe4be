"""Scores of (image, class) pairs, counted so that their order survives: what the area under a ROC curve needs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

DISTINCT = 1 << 18
"""How many scores are told apart at most; with more, neighbouring ones count as equal."""


def log_odds(probabilities: Floats) -> Floats:
    """Return the log-odds of probabilities: the same order, as fine near 1 as near 0."""
    probabilities = np.clip(probabilities, 0, 1)
    with np.errstate(divide="ignore"):
        odds: Floats = np.log(probabilities) - np.log1p(-probabilities)
    return odds


def log_odds_of_logits(logits: npt.NDArray[np.float32]) -> Floats:
    """Return the log-odds of the softmax of logits, shape (images, classes), also where the softmax is 0 or 1."""
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    shares = np.exp(exact)
    # What a class leaves to the others is the sum without it, but of the largest class this would be all rounding.
    odds: Floats = exact - np.log(np.maximum(shares.sum(axis=1, keepdims=True) - shares, np.finfo(np.float64).tiny))
    rows, largest = np.arange(len(exact)), exact.argmax(axis=1)
    exact[rows, largest] = -np.inf
    odds[rows, largest] = -logsumexp(exact, axis=1)
    return odds


class Scores:
    """Counts how often each score occurs, of wrong and of right pairs, in bounded memory.

    Up to `DISTINCT` different scores are kept exactly, as the bits of their floats. With more, the lowest bit of all is
    dropped until they fit, so that most of the places are always taken, however close together the scores are. How
    many bits are dropped depends on the set of scores alone, not on their order: parts add up to the whole exactly.
    """

    def __init__(self) -> None:
        self._keys = np.zeros(0, dtype=np.int64)  # sorted, different
        self._counts = np.zeros((2, 0), dtype=np.int64)  # of wrong and of right pairs
        self._level = 0  # bits dropped
        self._waiting: list[tuple[Counts, Counts]] = []
        self._waits = 0

    def add(self, scores: Floats, right: npt.NDArray[np.bool_]) -> None:
        """Count scores, and which of them belong to right pairs."""
        keys, places = np.unique(_ordered(scores).ravel() >> self._level, return_inverse=True)
        counts = [np.bincount(places[chosen.ravel()], minlength=len(keys)) for chosen in (~right, right)]
        self._wait(keys, np.stack(counts))

    def merge(self, keys: Counts, counts: Counts, level: int) -> None:
        """Count what `parts` returned of other scores."""
        common = max(level, self._level)
        self._add_up()
        self._keys >>= common - self._level
        self._level = common
        self._wait(keys >> (common - level), counts)

    def counts(self) -> Counts:
        """Return how many wrong and right pairs there are of each score, ascending; shape (2, scores)."""
        self._add_up()
        return self._counts

    def parts(self) -> tuple[Counts, Counts, int]:
        """Return the arguments of `merge`."""
        self._add_up()
        return self._keys, self._counts, self._level

    def _wait(self, keys: Counts, counts: Counts) -> None:
        """Keep counts until there are many: adding them up takes as long for few as for many."""
        self._waiting.append((keys, counts))
        self._waits += len(keys)
        if self._waits >= DISTINCT:
            self._add_up()

    def _add_up(self) -> None:
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._waiting)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._waiting)], axis=1)
        self._waiting, self._waits = [], 0
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[:, order]
        # A key begins where it differs from the one before.
        while len(starts := np.flatnonzero(np.diff(keys, prepend=~keys[:1]))) > DISTINCT:
            keys, self._level = keys >> 1, self._level + 1
        self._keys = keys[starts]
        self._counts = np.add.reduceat(counts, starts, axis=1) if len(starts) else counts


def _ordered(scores: Floats) -> Counts:
    """Return integers in the order of floats: their bits, which of negative floats are in reverse."""
    bits = (scores + 0.0).view(np.int64)  # a negative zero becomes the positive one
    ordered: Counts = np.where(bits < 0, bits ^ np.iinfo(np.int64).max, bits)
    return ordered
