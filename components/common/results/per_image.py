"""Which images each evaluation got right, in one order for all evaluations, so that they compare image by image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.paired import ABSENT, Correctness, Paired, packed


class PerImage:
    """The correctness of every image in every evaluation of one report.

    Args:
        reference: The evaluation whose images set the order: by original path.
    """

    def __init__(self, reference: Evaluation) -> None:
        rows = sorted((reference.original(row["path"]), row["label"]) for row in reference.predictions())
        self.labels = dict(rows)
        self._places = {path: place for place, path in enumerate(self.labels)}
        self._counted: dict[Evaluation, Correctness] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Hash of the original paths with their labels, a line each: `path`, tab, `label`, newline, sorted by path."""
        digest = hashlib.sha256()
        for path, label in self.labels.items():
            digest.update(f"{path}\t{label}\n".encode())
        return digest.hexdigest()

    def of(self, evaluation: Evaluation) -> Correctness:
        """Return what an evaluation got right; images that are no originals (data augmentation) are left out."""
        if evaluation not in self._counted:
            rows = ((evaluation.original(row["path"]), row["correct"] == "1") for row in evaluation.predictions())
            self._counted[evaluation] = self.placed(rows)
        return self._counted[evaluation]

    def placed(self, rows: Iterable[tuple[str, bool]]) -> Correctness:
        """Put (original path, right) pairs in order."""
        correctness = self.nothing()
        for path, right in rows:
            place = self.place_of(path)
            if place is not None:
                correctness[place] = right
        return correctness

    def nothing(self) -> Correctness:
        """Return the correctness of an evaluation without any image."""
        return np.full(len(self), ABSENT, dtype=np.int8)

    def place_of(self, path: str) -> int | None:
        """Return the place of an original image in the order; None if it is none."""
        return self._places.get(path)

    def paired(
        self, before: Evaluation | None, after: Evaluation | None, among: Evaluation | None = None
    ) -> Paired | None:
        """Pair two evaluations, where both are known."""
        if before is None or after is None:
            return None
        return Paired.between(self.of(before), self.of(after), None if among is None else self.of(among))

    def packed(self, evaluation: Evaluation) -> str | None:
        """Return the correctness as text; None where an image is missing or there are more than the originals."""
        correctness = self.of(evaluation)
        if ABSENT in correctness or evaluation.metrics["images"] != len(self):
            return None
        return packed(correctness)
