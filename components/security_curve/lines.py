"""The lines of the curve: what perturbs the images, what the attacker knows, the defense before the model, counts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evasion.components.common.data.provenance import AWARE, OBLIVIOUS
from evasion.components.common.defenses.known import Defense
from evasion.components.common.results.curve import FGM, NOISE, PGD, WORST, CurveLine, CurvePoint
from evasion.components.common.results.treatments import Aim

Outcomes = npt.NDArray[np.bool_]
"""Which images are right, (points, images); the first point is without perturbation."""


@dataclasses.dataclass(eq=False)
class Line:
    """One line of the curve.

    Attributes:
        perturbation: The attack, noise, or the worst case of the attacks.
        knowledge: What the attacker knows of the defense; None where it does not apply.
        defense: The defense, or None.
        correct: How many images are right, at each point.
        robust: How many are right without perturbation as well, at each point.
    """

    perturbation: str
    knowledge: str | None
    defense: Defense | None
    correct: npt.NDArray[np.int64]
    robust: npt.NDArray[np.int64]

    @property
    def stage(self) -> str | None:
        """The name of the defense, or None."""
        return self.defense.stage if self.defense else None

    @property
    def aimed_at(self) -> str | None:
        """The name of the defense that the attacker follows the gradient through; None for the model alone."""
        return self.stage if self.knowledge == AWARE else None

    def count(self, right: Outcomes) -> None:
        """Count one batch: of each image, whether it is right at each point."""
        self.correct += right.sum(axis=1)
        self.robust += robust(right).sum(axis=1)

    def measured(self, sizes: Sequence[float]) -> CurveLine:
        """Return the line as `curve.json` holds it."""
        points = [
            CurvePoint(size, int(correct), int(robust))
            for size, correct, robust in zip([0.0, *sizes], self.correct, self.robust, strict=True)
        ]
        aim = Aim(self.defense.stage, dict(self.defense.parameters)) if self.defense else None
        return CurveLine(self.perturbation, self.knowledge, aim, points)


def robust(right: Outcomes) -> Outcomes:
    """Return at which points an image is right that is also right without perturbation."""
    both: Outcomes = right & right[0]
    return both


def worst_case(lines: Iterable[Outcomes]) -> Outcomes:
    """Return at which points an image is right under every attack, of this size and of all smaller ones.

    An attacker who may change an image by more may also change it by less.
    """
    worst: Outcomes = np.logical_and.accumulate(np.logical_and.reduce(list(lines)), axis=0)
    return worst


def lines_of(defenses: Sequence[Defense], points: int, *, pgd: bool) -> list[Line]:
    """Return all lines, nothing counted: of the model alone first, then of each defense.

    Args:
        defenses: The defenses.
        points: How many points each has.
        pgd: Whether PGD attacks.
    """
    lines: list[tuple[str, str | None, Defense | None]] = []
    for defense in (None, *defenses):
        for attack in (FGM, PGD) if pgd else (FGM,):
            lines += [(attack, knowledge, defense) for knowledge in ((OBLIVIOUS, AWARE) if defense else (None,))]
        lines += [(WORST, None, defense), (NOISE, None, defense)]
    return [Line(*line, np.zeros(points, dtype=np.int64), np.zeros(points, dtype=np.int64)) for line in lines]


def count(lines: Sequence[Line], right: Mapping[Line, Outcomes]) -> None:
    """Count one batch on every line.

    Args:
        lines: All lines.
        right: Outcomes of those that something was measured of; the worst case follows from them.
    """
    for line in lines:
        if line in right:
            line.count(right[line])
        else:
            attacks = [
                robust(outcome)
                for other, outcome in right.items()
                if other.stage == line.stage and other.perturbation != NOISE
            ]
            line.count(worst_case(attacks))
