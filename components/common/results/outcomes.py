"""Which images an evaluation got right, in one order for all evaluations, so that they compare image by image."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from evasion.components.common.results.evaluations import Evaluation

SIGNIFICANCE = 0.05  # a difference that chance makes less often is called one
ABSENT = -1

Outcome = npt.NDArray[np.int8]
"""Of each original image: 1 right, 0 wrong, -1 not evaluated."""


@dataclass(frozen=True)
class Paired:
    """The same images in two evaluations: how many only one of them got right.

    McNemar's exact test (1947) asks of these whether chance explains how they are split: without an effect each of the
    two outcomes is as likely.
    """

    gained: int
    lost: int

    @classmethod
    def between(cls, before: Outcome, after: Outcome, among: Outcome | None = None) -> Paired:
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


class Outcomes:
    """The outcomes of all evaluations of one report.

    Args:
        reference: The evaluation whose images set the order: by original path.
    """

    def __init__(self, reference: Evaluation) -> None:
        rows = sorted((reference.original(row["path"]), row["label"]) for row in reference.predictions())
        self.labels = dict(rows)
        self._places = {path: place for place, path in enumerate(self.labels)}
        self._found: dict[Evaluation, Outcome] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Hash of the original paths with their labels, a line each: `path`, tab, `label`, newline, sorted by path."""
        digest = hashlib.sha256()
        for path, label in self.labels.items():
            digest.update(f"{path}\t{label}\n".encode())
        return digest.hexdigest()

    def of(self, evaluation: Evaluation) -> Outcome:
        """The outcome of an evaluation; images that are no originals (data augmentation) are left out."""
        if evaluation not in self._found:
            rows = ((evaluation.original(row["path"]), row["correct"] == "1") for row in evaluation.predictions())
            self._found[evaluation] = self.placed(rows)
        return self._found[evaluation]

    def placed(self, rows: Iterable[tuple[str, bool]]) -> Outcome:
        """Put (original path, right) pairs in order."""
        outcome = np.full(len(self), ABSENT, dtype=np.int8)
        for path, right in rows:
            if path in self._places:
                outcome[self._places[path]] = right
        return outcome

    def paired(
        self, before: Evaluation | None, after: Evaluation | None, among: Evaluation | None = None
    ) -> Paired | None:
        """Pair two evaluations, where both are known."""
        if before is None or after is None:
            return None
        return Paired.between(self.of(before), self.of(after), None if among is None else self.of(among))

    def packed(self, evaluation: Evaluation) -> str | None:
        """The outcome as text for `report.json`; None where it lacks an image or has more than the originals."""
        outcome = self.of(evaluation)
        if ABSENT in outcome or evaluation.metrics["images"] != len(self):
            return None
        return base64.b64encode(np.packbits(outcome.astype(bool)).tobytes()).decode("ascii")


def probability(p: float) -> str:
    """A p-value as people read it: `p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def unpacked(text: str, images: int) -> Outcome:
    """Read back what `Outcomes.packed` wrote.

    Raises:
        ValueError: If it is not of so many images.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8))
    if len(bits) != -(-images // 8) * 8:
        raise ValueError(f"{len(bits)} bits cannot be the outcomes of {images} images")
    return bits[:images].astype(np.int8)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values of tests made together (Holm 1979): the chance that any of them errs stays below the level."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
