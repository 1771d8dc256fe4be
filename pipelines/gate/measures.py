"""The numbers of a report that a threshold can apply to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Any

from evasion.components.common.data.provenance import AWARE, OBLIVIOUS
from evasion.components.common.results.paired import Difference
from evasion.components.common.results.report import Report
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Row
from evasion.components.common.results.treatments import NONE, Treatment
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


@dataclass(frozen=True)
class Measure:
    """One number with its 95 % interval.

    Attributes:
        metric: Which.
        value: The share or the difference.
        low: Lower end of its interval.
        high: Upper end.
        n: Of how many images.
        attack: The attack, or None.
        eps: The attack's size, where it is known.
        defense: The defense, or None.
        attacker: What the attacker knew of it, or None.
        doubt: Why a good value proves nothing, or None.
        drawn: Whether it is a point of the security curve.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    attack: Treatment | None = None
    eps: float | None = None
    defense: Treatment | None = None
    attacker: str | None = None
    doubt: Doubt | None = None
    drawn: bool = False

    @property
    def line(self) -> tuple[str | None, str | None, str | None]:
        """The line of the security curve that it is a point of."""
        return _label(self.attack), _label(self.defense), self.attacker

    @property
    def attack_name(self) -> str | None:
        """The name of the attack without its settings."""
        if self.attack is None:
            return None
        return self.attack.steps[0].name if len(self.attack.steps) == 1 else self.attack.name

    @property
    def subject(self) -> str:
        """What it was measured under."""
        attack = _label(self.attack) or "no attack"
        if self.drawn:
            attack += f" eps={self.eps:.4g}"
        with_defense = f" + {self.defense.label}" if self.defense else ""
        return f"{attack}{with_defense}{f' ({self.attacker})' if self.attacker else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return the measure as the gate's JSON holds it."""
        numbers = {name: getattr(self, name) for name in ("metric", "value", "low", "high", "n")}
        return {
            **numbers,
            "attack": _label(self.attack),
            "attack_name": self.attack_name,
            "eps": self.eps,
            "defense": _label(self.defense),
            "attacker": self.attacker,
        }


def measures(report: Report) -> list[Measure]:
    """Return everything that the report measured."""
    return [*_clean(report), *_attacked(report), *_curve(report)]


def matching(measured: list[Measure], threshold: Threshold) -> list[Measure]:
    """Return those that a threshold applies to: of the table, or where that lacks the eps, of the security curve."""
    meant = [measure for measure in measured if _is_meant(measure, threshold)]
    return [measure for measure in meant if not measure.drawn] or meant


def around(measured: list[Measure], threshold: Threshold) -> list[tuple[Measure, Measure]]:
    """Return the points of each line of the curve between which the eps of a threshold lies: below and above."""
    if threshold.eps is None or threshold.metric != ROBUST_ACCURACY:
        return []
    drawn = [each for each in measured if each.drawn and _is_meant(each, replace(threshold, eps=each.eps))]
    pairs = []
    for line in dict.fromkeys(measure.line for measure in drawn):
        points = sorted((measure for measure in drawn if measure.line == line), key=lambda each: each.eps or 0)
        pairs += [(a, b) for a, b in pairwise(points) if (a.eps or 0) < threshold.eps < (b.eps or 0)]
    return pairs


def unseen(measured: list[Measure], threshold: Threshold) -> list[str]:
    """Return the attacks that a threshold applies to and that were not measured at its eps; the curve is FGM's."""
    if threshold.eps is None or threshold.attack is not None:
        return []
    any_eps = replace(threshold, eps=None)
    meant = {each.attack_name for each in measured if each.attack and not each.drawn and _is_meant(each, any_eps)}
    here = {each.attack_name for each in matching(measured, threshold)}
    here |= {each.attack_name for pair in around(measured, threshold) for each in pair}
    return sorted(name for name in meant - here if name)


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


def _is_meant(measure: Measure, threshold: Threshold) -> bool:
    if measure.metric != threshold.metric or (measure.drawn and threshold.eps is None):
        return False
    if threshold.eps is not None and (
        measure.eps is None or not math.isclose(measure.eps, threshold.eps, rel_tol=SAME_EPS, abs_tol=1e-9)
    ):
        return False
    if threshold.defense is None:
        every = threshold.metric in DIFFERENCES and measure.doubt is not Doubt.NOT_APPLIED
        defended = every or measure.defense is None
    else:
        defended = selects(threshold.defense, measure.defense or NONE)
    return (
        defended
        and (threshold.attack is None or selects(threshold.attack, measure.attack or NONE))
        and (threshold.attacker is None or measure.attacker == threshold.attacker)
    )


def _clean(report: Report) -> Iterator[Measure]:
    rows = {row.defense.label: row for row in report.table}
    for row in rows.values():
        defense, doubt = _defense(row), None if row.defense.applied else Doubt.NOT_APPLIED
        if row.clean_accuracy:
            yield _measure(CLEAN_ACCURACY, row.clean_accuracy, defense=defense, doubt=doubt)
        before = report.correctness.get((None, None, None))
        after = report.correctness.get((None, _label(defense), None))
        if defense and before is not None and after is not None:
            drop = Difference.between(before, after).reversed
            yield _measure(CLEAN_ACCURACY_DROP, drop, defense=defense, doubt=doubt)


def _attacked(report: Report) -> Iterator[Measure]:
    for row in report.table:
        if row.attack == NONE:
            continue
        defense = _defense(row)
        attackers = row.attackers if defense else {None: row.judged}
        for attacker, attacked in attackers.items():
            under: dict[str, Any] = {"attack": row.attack, "eps": _eps(row.attack), "defense": defense}
            under |= {"attacker": attacker, "doubt": _doubt(row.defense.applied, list(attackers))}
            if attacked.robust_accuracy:
                yield _measure(ROBUST_ACCURACY, attacked.robust_accuracy, **under)
            if attacked.attack_success_rate:
                yield _measure(ATTACK_SUCCESS_RATE, attacked.attack_success_rate, **under)
            before = report.correctness.get((row.attack.label, None, None))
            after = report.correctness.get((row.attack.label, _label(defense), attacker))
            if defense and before is not None and after is not None:
                yield _measure(GAIN, Difference.between(before, after), **under)


def _curve(report: Report) -> Iterator[Measure]:
    curve = report.curve
    lines = [series for series in curve.series if not series.control] if curve else []
    for series in lines:
        attackers = [each.knowledge for each in lines if each.defense == series.defense]
        step = series.defense
        defense = Treatment(step.name, step.text, (step,)) if step else None
        for point in series.points:
            yield _measure(
                ROBUST_ACCURACY,
                point.accuracy,
                attack=curve.treatment if curve else None,
                eps=point.eps,
                defense=defense,
                attacker=series.knowledge,
                doubt=_doubt(True, attackers),
                drawn=True,
            )


def _measure(metric: str, number: Share | Difference, **under: Any) -> Measure:
    return Measure(metric, number.value, number.low, number.high, number.n, **under)


def _label(treatment: Treatment | None) -> str | None:
    return treatment.label if treatment else None


def _defense(row: Row) -> Treatment | None:
    return None if row.defense == NONE else row.defense


def _doubt(applied: bool, attackers: list[str | None]) -> Doubt | None:
    if not applied:
        return Doubt.NOT_APPLIED
    return Doubt.ONLY_OBLIVIOUS if OBLIVIOUS in attackers and AWARE not in attackers else None


def _eps(attack: Treatment) -> float | None:
    """Return the size of an attack, if it is one attack and has a size."""
    eps = attack.steps[0].settings.get("eps") if len(attack.steps) == 1 else None
    return float(eps) if isinstance(eps, int | float) else None
