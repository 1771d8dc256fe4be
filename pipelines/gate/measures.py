"""What a report says that a threshold can be held against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Any

from evasion.components.common.results.evaluations import AWARE, OBLIVIOUS
from evasion.components.common.results.paired import Difference
from evasion.components.common.results.report import NO_DEFENSE, Model, label, share
from evasion.components.common.results.table import Share
from evasion.pipelines.gate.threshold import (
    ATTACK_SUCCESS_RATE,
    CLEAN_ACCURACY,
    CLEAN_ACCURACY_DROP,
    DIFFERENCES,
    GAIN,
    ROBUST_ACCURACY,
    Threshold,
)

NOISE = "noise"
SAME_EPS = 1e-3
"""Two eps that differ by less than this share of themselves are one: 0.0314 is 8/255."""


class Doubt(Enum):
    """Why a good value would prove nothing."""

    ONLY_OBLIVIOUS = "only an attacker who does not know the defense was let at it, which is the best case"
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
        attack: The attack with its settings, or None.
        eps: The attack's size, where it is known.
        defense: The defense with its settings, or None.
        attacker: What the attacker knew of it, or None.
        doubt: Why a good value would prove nothing, if it would.
        drawn: Whether it is a point of the security curve.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    attack: str | None = None
    eps: float | None = None
    defense: str | None = None
    attacker: str | None = None
    doubt: Doubt | None = None
    drawn: bool = False

    @property
    def line(self) -> tuple[str | None, str | None, str | None]:
        """The line of the security curve that it is a point of."""
        return self.attack, self.defense, self.attacker

    @property
    def subject(self) -> str:
        """What it was measured under."""
        attack = self.attack or "no attack"
        if self.drawn:
            attack += f" eps={self.eps:.4g}"
        with_defense = f" + {self.defense}" if self.defense else ""
        return f"{attack}{with_defense}{f' ({self.attacker})' if self.attacker else ''}"

    def to_json(self) -> dict[str, Any]:
        """The measure as the gate's JSON holds it."""
        names = ("metric", "value", "low", "high", "n", "attack", "eps", "defense", "attacker")
        return {name: getattr(self, name) for name in names}


def measures(model: Model) -> list[Measure]:
    """Everything that the report measured.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return [*_clean(model), *_attacked(model), *_curve(model)]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{model.path} is not as report writes it: {error!r}") from None


def matching(found: list[Measure], threshold: Threshold) -> list[Measure]:
    """Those that a threshold speaks of: of the table, or where that lacks the eps, of the security curve."""
    meant = [measure for measure in found if _is_meant(measure, threshold)]
    return [measure for measure in meant if not measure.drawn] or meant


def around(found: list[Measure], threshold: Threshold) -> list[tuple[Measure, Measure]]:
    """The points of each line of the security curve between which the eps of a threshold lies: below and above."""
    if threshold.eps is None or threshold.metric != ROBUST_ACCURACY:
        return []
    drawn = [measure for measure in found if measure.drawn and _is_meant(measure, replace(threshold, eps=measure.eps))]
    pairs = []
    for line in dict.fromkeys(measure.line for measure in drawn):
        points = sorted((measure for measure in drawn if measure.line == line), key=lambda each: each.eps or 0)
        pairs += [(a, b) for a, b in pairwise(points) if (a.eps or 0) < threshold.eps < (b.eps or 0)]
    return pairs


def unseen(found: list[Measure], threshold: Threshold) -> list[str]:
    """The attacks of the report a threshold speaks of that were not measured at its eps; the curve is FGM's."""
    if threshold.eps is None or threshold.attack is not None:
        return []
    meant = [each for each in found if each.attack and not each.drawn and _is_meant(each, replace(threshold, eps=None))]
    here = {str(each.attack).split()[0] for each in matching(found, threshold)}
    here |= {str(each.attack).split()[0] for pair in around(found, threshold) for each in pair}
    return sorted({str(each.attack).split()[0] for each in meant} - here)


def lacking(found: list[Measure], threshold: Threshold) -> str:
    """Say what a threshold asks for that the report does not hold, and what that holds instead."""
    alike = [measure for measure in found if measure.metric == threshold.metric]
    if not alike:
        return f"the report holds no {threshold.metric}"
    for asked, name, held in (
        (threshold.defense, f"for {threshold.defense}", [measure.defense or NO_DEFENSE for measure in alike]),
        (threshold.attack, f"with {threshold.attack}", [measure.attack for measure in alike]),
    ):
        if asked is not None and not any(_named(each, asked) for each in held):
            return f"the report holds no {threshold.metric} {name}; it has {', '.join(dict.fromkeys(map(str, held)))}"
    if threshold.eps is not None:
        sizes = sorted({measure.eps for measure in alike if measure.eps is not None})
        told = ", ".join(f"{eps:.4g}" for eps in sizes)
        return f"the report holds no such {threshold.metric} at eps {threshold.eps:.4g}; it has {told or 'none'}"
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
        defended = _named(measure.defense or NO_DEFENSE, threshold.defense)
    return (
        defended
        and (threshold.attack is None or _named(measure.attack, threshold.attack))
        and (threshold.attacker is None or measure.attacker == threshold.attacker)
    )


def _named(held: str | None, asked: str) -> bool:
    """Whether it is of that name and has all the settings that are asked for."""
    own, words = (held or "").split(), asked.split()
    return own[:1] == words[:1] and set(words) <= set(own)


def _clean(model: Model) -> Iterator[Measure]:
    for defense, row in {_defense(row): row for row in model.report["table"]}.items():
        doubt = None if row["applied"] else Doubt.NOT_APPLIED
        if found := share(row["clean_accuracy"]):
            yield _measure(CLEAN_ACCURACY, found, defense=defense, doubt=doubt)
        before, after = model.outcomes.get((None, None, None)), model.outcomes.get((None, defense, None))
        if defense and before is not None and after is not None:
            drop = Difference.between(before, after).reversed
            yield _measure(CLEAN_ACCURACY_DROP, drop, defense=defense, doubt=doubt)


def _attacked(model: Model) -> Iterator[Measure]:
    sizes = _sizes(model)
    for row in model.report["table"]:
        attack, defense = label(row["attack"], row["attack_settings"]), _defense(row)
        attackers = row["attackers"] if defense else {None: row}
        for attacker, found in attackers.items():
            told: dict[str, Any] = {"attack": attack, "eps": sizes.get(attack), "defense": defense}
            told |= {"attacker": attacker, "doubt": _doubt(row["applied"], list(attackers))}
            for metric in (ROBUST_ACCURACY, ATTACK_SUCCESS_RATE):
                if measured := share(found[metric]):
                    yield _measure(metric, measured, **told)
            before = model.outcomes.get((attack, None, None))
            after = model.outcomes.get((attack, defense, attacker))
            if defense and before is not None and after is not None:
                yield _measure(GAIN, Difference.between(before, after), **told)


def _curve(model: Model) -> Iterator[Measure]:
    curve = model.report["curve"]
    lines = [line for line in curve["curves"] if line["perturbation"] != NOISE] if curve else []
    for line in lines:
        defense = line["defense"]
        attackers = [each["attacker"] for each in lines if each["defense"] == defense]
        for point in line["points"]:
            if found := share(point):
                yield _measure(
                    ROBUST_ACCURACY,
                    found,
                    attack=f"{line['perturbation']} norm={curve['norm']}",
                    eps=point["eps"],
                    defense=defense,
                    attacker=line["attacker"],
                    doubt=_doubt(True, attackers),
                    drawn=True,
                )


def _measure(metric: str, found: Share | Difference, **told: Any) -> Measure:
    return Measure(metric, found.value, found.low, found.high, found.n, **told)


def _defense(row: dict[str, Any]) -> str | None:
    return None if row["defense"] == NO_DEFENSE else label(row["defense"], row["settings"])


def _doubt(applied: bool, attackers: list[str | None]) -> Doubt | None:
    if not applied:
        return Doubt.NOT_APPLIED
    return Doubt.ONLY_OBLIVIOUS if OBLIVIOUS in attackers and AWARE not in attackers else None


def _sizes(model: Model) -> dict[str, float]:
    """The eps of each attack, as its data says."""
    history = {each["title"]: each["provenance"] for each in model.report["datasets"]}
    found: dict[str, float] = {}
    for evaluation in model.report["evaluations"]:
        if evaluation["attack"] is None:
            continue
        stages = [stage for stage in history[evaluation["title"]] if stage["kind"] == "attack"]
        if len(stages) == 1 and isinstance(eps := stages[0]["parameters"].get("eps"), int | float):
            found[evaluation["attack"]] = float(eps)
    return found
