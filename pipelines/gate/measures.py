"""The numbers of a report that a threshold can apply to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from evasion.components.common.data.provenance import AWARE, KNOWLEDGE
from evasion.components.common.results.curve import FGM, PGD
from evasion.components.common.results.paired import ABSENT, Correctness, Difference, under_each
from evasion.components.common.results.report import Report
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Attacked, Row
from evasion.components.common.results.treatments import NONE, Treatment, worst_case
from evasion.pipelines.gate.selector import selects
from evasion.pipelines.gate.threshold import (
    ATTACK_SUCCESS_RATE,
    CLEAN_ACCURACY,
    CLEAN_ACCURACY_DROP,
    DIFFERENCES,
    GAIN,
    ROBUST_ACCURACY,
    Threshold,
)

SAME_EPS = 1e-3
"""Two eps that differ by less than this share of themselves are one: 0.0314 is 8/255."""


class Doubt(Enum):
    """Why a good value proves nothing."""

    ONLY_OBLIVIOUS = "only an attacker who does not know the defense attacked it, which is the best case"
    NOT_APPLIED = "the defense was not applied to these images"
    APART = "which images withstand all attacks and attackers is not known"
    CURVE_ALONE = "the security curve alone attacked at this eps, and the table has stronger attacks"
    SINGLE_STEP = "only a single step attacked, and an attacker who iterates does better"


@dataclass(frozen=True, eq=False)
class Measure:
    """One number with its 95 % interval.

    Attributes:
        metric: Which.
        value: The share or the difference.
        low: Lower end of its interval.
        high: Upper end.
        n: Of how many images.
        attacks: The attacks that an image must withstand; none without an attack.
        eps: The attacks' size, where it is known and one.
        defense: The defense, or None.
        attackers: What each attacker knew of the defense; none where there is none.
        doubts: Why a good value proves nothing.
        drawn: Whether it is a point of the security curve.
        together: Whether it is such a point of all attacks and attackers together.
        outcome: Of each image, whether it counts: that it is robust, or for the success rate that it stands, among
            those that were right before; None where that is not known.
        reference: The same without the defense, for a difference.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    attacks: tuple[Treatment, ...] = ()
    eps: float | None = None
    defense: Treatment | None = None
    attackers: tuple[str, ...] = ()
    doubts: frozenset[Doubt] = frozenset()
    drawn: bool = False
    together: bool = False
    outcome: Correctness | None = None
    reference: Correctness | None = None

    @property
    def attack(self) -> Treatment | None:
        """The attack, or all of them together."""
        if len(self.attacks) > 1:
            return worst_case(self.attacks)
        return self.attacks[0] if self.attacks else None

    @property
    def attacker(self) -> str | None:
        """What the attacker knew of the defense, if there is one attacker."""
        return self.attackers[0] if len(self.attackers) == 1 else None

    @property
    def norm(self) -> Any:
        """The norm of the attacks, where they have one in common."""
        norms = {step.settings.get("norm") for attack in self.attacks for step in attack.steps}
        return norms.pop() if len(norms) == 1 else None

    @property
    def line(self) -> tuple[str | None, str | None, str | None]:
        """The line of the security curve that it is a point of."""
        return label_of(self.attack), label_of(self.defense), self.attacker

    @property
    def attack_name(self) -> str | None:
        """The name of the attack without its settings."""
        if self.attack is None:
            return None
        return self.attack.steps[0].name if len(self.attack.steps) == 1 else self.attack.name

    @property
    def subject(self) -> str:
        """What it was measured under."""
        attack = label_of(self.attack) or "no attack"
        if self.drawn:
            attack += f" eps={self.eps:.4g}"
        with_defense = f" + {self.defense.label}" if self.defense else ""
        knowledge = f" ({' and '.join(self.attackers)})" if self.attackers else ""
        return f"{attack}{with_defense}{knowledge}"

    def to_json(self) -> dict[str, Any]:
        """Return the measure as the gate's JSON holds it."""
        numbers = {name: getattr(self, name) for name in ("metric", "value", "low", "high", "n")}
        return {
            **numbers,
            "attack": label_of(self.attack),
            "attack_name": self.attack_name,
            "eps": self.eps,
            "defense": label_of(self.defense),
            "attacker": self.attacker,
        }


def measures(report: Report) -> list[Measure]:
    """Return everything that the report measured."""
    return [*_clean(report), *_attacked(report), *_curve(report)]


def matching(measured: list[Measure], threshold: Threshold) -> list[Measure]:
    """Return those of the table that a threshold applies to.

    Where it names no attack or no attacker, an image must withstand all of them, so that they are taken together.
    """
    by_defense: dict[str | None, list[Measure]] = {}
    for measure in measured:
        if not measure.drawn and is_meant(measure, threshold):
            by_defense.setdefault(label_of(measure.defense), []).append(measure)
    return [measure for alike in by_defense.values() for measure in take_together(alike)]


def take_together(alike: list[Measure]) -> list[Measure]:
    """Return several measures of one metric and one defense as one; in doubt where images are not known."""
    outcomes = [measure.outcome for measure in alike if measure.outcome is not None]
    references = [measure.reference for measure in alike if measure.reference is not None]
    if len(alike) < 2:
        return alike
    if len(outcomes) < len(alike):
        return [replace(each, doubts=each.doubts | {Doubt.APART}) for each in alike]
    outcome = under_each(*outcomes)
    reference = under_each(*references) if references else None
    number = _number(alike[0].metric, outcome, reference)
    sizes = {measure.eps for measure in alike}
    doubts = [measure.doubts for measure in alike]
    combined = _measure(
        alike[0].metric,
        number,
        attacks=tuple({each.label: each for measure in alike for each in measure.attacks}.values()),
        eps=sizes.pop() if len(sizes) == 1 else None,
        defense=alike[0].defense,
        attackers=tuple(name for name in KNOWLEDGE if any(name in measure.attackers for measure in alike)),
        # One attack that iterates, or one attacker that knows the defense, takes the doubt away.
        doubts=frozenset.intersection(*doubts),
        outcome=outcome,
        reference=reference,
    )
    return [combined]


def is_same_eps(one: float | None, other: float | None) -> bool:
    """Return whether two eps are meant to be one."""
    return one is not None and other is not None and math.isclose(one, other, rel_tol=SAME_EPS, abs_tol=1e-9)


def doubt_of(measure: Measure, threshold: Threshold) -> Doubt | None:
    """Return why a good value proves nothing, if the threshold does not ask for the very attack or attacker."""
    accepted = {
        Doubt.ONLY_OBLIVIOUS: threshold.attacker is not None,
        Doubt.CURVE_ALONE: threshold.attack is not None,
        Doubt.SINGLE_STEP: threshold.attack is not None,
    }
    return next((each for each in Doubt if each in measure.doubts and not accepted.get(each, False)), None)


def lacking(measured: list[Measure], threshold: Threshold) -> str:
    """Return what a threshold asks for that the report does not hold, and what the report holds instead."""
    alike = [measure for measure in measured if measure.metric == threshold.metric]
    if not alike:
        return f"the report holds no {threshold.metric}"
    for selector, name, treatments in (
        (threshold.defense, f"for {threshold.defense}", [measure.defense or NONE for measure in alike]),
        (threshold.attack, f"with {threshold.attack}", [measure.attack or NONE for measure in alike]),
    ):
        if selector is not None and not any(selects(selector, each) for each in treatments):
            labels = ", ".join(dict.fromkeys(each.label for each in treatments))
            return f"the report holds no {threshold.metric} {name}; it has {labels}"
    if threshold.eps is not None:
        sizes = sorted({measure.eps for measure in alike if measure.eps is not None})
        listed = ", ".join(f"{eps:.4g}" for eps in sizes)
        return f"the report holds no such {threshold.metric} at eps {threshold.eps:.4g}; it has {listed or 'none'}"
    return f"the report holds no such {threshold.metric}"


def is_meant(measure: Measure, threshold: Threshold) -> bool:
    """Return whether a threshold applies to a measure by itself or together with others."""
    if measure.metric != threshold.metric or (measure.drawn and threshold.eps is None):
        return False
    if threshold.eps is not None and not is_same_eps(measure.eps, threshold.eps):
        return False
    if threshold.defense is None:
        every = threshold.metric in DIFFERENCES and Doubt.NOT_APPLIED not in measure.doubts
        defended = every or measure.defense is None
    else:
        defended = selects(threshold.defense, measure.defense or NONE)
    if measure.drawn and measure.together != (threshold.attack is None and threshold.attacker is None):
        return False
    return (
        defended
        and (threshold.attack is None or selects(threshold.attack, measure.attack or NONE))
        and (threshold.attacker is None or measure.attacker == threshold.attacker)
    )


def _clean(report: Report) -> Iterator[Measure]:
    rows = {row.defense.label: row for row in report.table}
    for row in rows.values():
        defense, doubts = _defense(row), _doubts(row.defense, [], single_step=False)
        if row.clean_accuracy:
            yield _measure(CLEAN_ACCURACY, row.clean_accuracy, defense=defense, doubts=doubts)
        before = report.correctness.get((None, None, None))
        after = report.correctness.get((None, label_of(defense), None))
        if defense and before is not None and after is not None:
            drop = Difference.between(before, after).reversed
            yield _measure(CLEAN_ACCURACY_DROP, drop, defense=defense, doubts=doubts)


def _attacked(report: Report) -> Iterator[Measure]:
    """Yield the measures of each attack, each defense and each attacker by itself."""
    several = len(report.attacks) > 1
    for row in report.table:
        # All attacks together come first; `matching` takes together what a threshold means.
        if row.attack == NONE or (several and row.attack == report.attacks[0]):
            continue
        defense = _defense(row)
        by_attacker = list(row.attackers.items()) if defense else [(None, row.judged)]
        for attacker, attacked in by_attacker:
            under: dict[str, Any] = {
                "attacks": (row.attack,),
                "eps": _eps(row.attack),
                "defense": defense,
                "attackers": (attacker,) if attacker else (),
                "doubts": _doubts(row.defense, list(row.attackers), single_step=row.single_step),
            }
            yield from _under(report, row.attack.label, attacked, attacker, under)


def _under(
    report: Report, attack: str, attacked: Attacked, attacker: str | None, under: dict[str, Any]
) -> Iterator[Measure]:
    """Yield the measures of one attacker."""
    label = label_of(under["defense"])
    robust = report.robust(attack, label, attacker)
    if attacked.robust_accuracy:
        yield _measure(ROBUST_ACCURACY, attacked.robust_accuracy, outcome=robust, **under)
    if attacked.attack_success_rate:
        before = report.correctness.get((None, None, None))
        after = report.correctness.get((attack, label, attacker))
        stands = None if before is None or after is None else np.where(before == 1, after, np.int8(ABSENT))
        yield _measure(ATTACK_SUCCESS_RATE, attacked.attack_success_rate, outcome=stands, **under)
    reference = report.robust(attack)
    if label and reference is not None:
        gain = Difference.counted(0, 0, 0, 0) if robust is None else _number(GAIN, robust, reference)
        yield _measure(GAIN, gain, outcome=robust, reference=reference, **under)


def _number(metric: str, outcome: Correctness, reference: Correctness | None) -> Share | Difference:
    """Return the number that outcomes of images amount to."""
    if metric == GAIN and reference is not None:
        return Difference.between(reference, outcome)
    counted = 0 if metric == ATTACK_SUCCESS_RATE else 1
    known = int((outcome != ABSENT).sum())
    return Share.counted(int((outcome == counted).sum()), known) or Share(0.0, 0.0, 1.0, 0, 0)


def _curve(report: Report) -> Iterator[Measure]:
    curve = report.curve
    if curve is None:
        return
    drawn = [series for series in curve.series if not series.control]
    attacks = {each.perturbation: curve.treatment_of(each) for each in drawn if not each.worst_case}
    # The curve's PGD takes few steps. Only of single steps is it known that it does no worse.
    outdone = any(row.judged.accuracy_under_attack and not row.single_step for row in report.table)
    for series in drawn:
        step = series.defense
        defense = Treatment(step.name, step.text, (step,)) if step else None
        doubts = _doubts(
            defense or NONE,
            [each.knowledge for each in drawn if each.defense == series.defense and each.knowledge],
            single_step=PGD not in attacks if series.worst_case else series.perturbation == FGM,
        )
        if outdone:
            doubts |= {Doubt.CURVE_ALONE}
        for point in series.points:
            yield _measure(
                ROBUST_ACCURACY,
                point.accuracy,
                attacks=tuple(attacks.values()) if series.worst_case else (attacks[series.perturbation],),
                eps=point.eps,
                defense=defense,
                attackers=(series.knowledge,) if series.knowledge else (),
                # Of size 0 there is one attack, which changes nothing.
                doubts=doubts if point.eps else frozenset(),
                drawn=True,
                together=series.worst_case,
            )


def _measure(metric: str, number: Share | Difference, **under: Any) -> Measure:
    return Measure(metric, number.value, number.low, number.high, number.n, **under)


def label_of(treatment: Treatment | None) -> str | None:
    """Return the label of an attack or a defense, if there is one."""
    return treatment.label if treatment else None


def _defense(row: Row) -> Treatment | None:
    return None if row.defense == NONE else row.defense


def _doubts(defense: Treatment, attackers: list[str], *, single_step: bool) -> frozenset[Doubt]:
    """Return why a good value proves nothing.

    Args:
        defense: The defense, or `NONE`.
        attackers: What each attacker knew of it.
        single_step: Whether no attack takes more than one step.
    """
    doubts = {Doubt.SINGLE_STEP} if single_step else set()
    if not defense.applied:
        doubts.add(Doubt.NOT_APPLIED)
    elif attackers and AWARE not in attackers:
        doubts.add(Doubt.ONLY_OBLIVIOUS)
    return frozenset(doubts)


def _eps(attack: Treatment) -> float | None:
    """Return the size of an attack, if it is one attack and has a size."""
    eps = attack.steps[0].settings.get("eps") if len(attack.steps) == 1 else None
    return float(eps) if isinstance(eps, int | float) else None
