"""The table of the report: accuracies with and without attack and defense."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from evasion.components.common.results.evaluations import AWARE, NONE, Evaluation, Evaluations, Treatment
from evasion.components.common.results.outcomes import Outcomes, Paired
from evasion.components.common.results.shares import interval


@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % Wilson interval."""

    count: int
    n: int
    value: float
    low: float
    high: float

    @classmethod
    def counted(cls, count: int, n: int) -> Share | None:
        """The share of `count` in `n`, if there is anything to share."""
        return cls(count, n, count / n, *interval(count, n)) if n else None

    def overlaps(self, other: Share) -> bool:
        """Whether the two intervals have a value in common, so that the difference may be chance."""
        return self.low <= other.high and other.low <= self.high

    def to_json(self) -> dict[str, float]:
        """The numbers as `report.json` holds them."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "count": self.count}


@dataclass(frozen=True)
class Change:
    """How a share differs from the one without defense."""

    value: float
    may_be_chance: bool

    @classmethod
    def between(cls, before: Share | None, after: Share | None, paired: Paired | None) -> Change | None:
        """The change from `before` to `after`, where both are known."""
        if before is None or after is None:
            return None
        return cls(after.value - before.value, paired is None or paired.may_be_chance)

    def to_json(self) -> dict[str, float | bool]:
        """The numbers as `report.json` holds them."""
        return {"value": self.value, "may_be_chance": self.may_be_chance}


@dataclass(frozen=True)
class Attacked:
    """How a model fares under one attacker."""

    robust: Share | None = None
    success: Share | None = None
    robust_change: Change | None = None
    success_change: Change | None = None

    def to_json(self) -> dict[str, Any]:
        """The numbers as `report.json` holds them; null where there was no evaluation."""
        found = {
            "robust_accuracy": self.robust,
            "attack_success_rate": self.success,
            "robust_accuracy_change": self.robust_change,
            "attack_success_rate_change": self.success_change,
        }
        return {name: each.to_json() if each else None for name, each in found.items()}


@dataclass(frozen=True, eq=False)
class Row:
    """One attack with one defense, or without.

    Attributes:
        attack: The attack.
        defense: The defense.
        clean: Accuracy without attack.
        clean_change: Against no defense.
        attackers: With a defense, how it fares by what the attacker knew of it, the defense-aware one first.
        attacker: Which of them the row is judged by: the one that leaves less accuracy.
        judged: How it fares under that one.
    """

    attack: Treatment
    defense: Treatment
    clean: Share | None
    clean_change: Change | None = None
    attackers: dict[str, Attacked] = field(default_factory=dict)
    attacker: str | None = None
    judged: Attacked = Attacked()

    @property
    def robust(self) -> Share | None:
        """Accuracy under the attack, the worst case over the attackers."""
        return self.judged.robust

    @property
    def success(self) -> Share | None:
        """Success rate of the attacker that leaves less accuracy."""
        return self.judged.success

    @property
    def robust_change(self) -> Change | None:
        """Against no defense."""
        return self.judged.robust_change

    @property
    def success_change(self) -> Change | None:
        """Against no defense."""
        return self.judged.success_change

    @property
    def aware(self) -> bool:
        """Whether an attacker that knows the defense was let at it."""
        return AWARE in self.attackers

    @property
    def helps(self) -> bool:
        """Whether the defense raises robust accuracy by more than chance explains."""
        change = self.robust_change
        return self.defense.applied and change is not None and change.value > 0 and not change.may_be_chance

    @property
    def harms(self) -> bool:
        """Whether the defense lowers robust accuracy by more than chance explains."""
        change = self.robust_change
        return self.defense.applied and change is not None and change.value < 0 and not change.may_be_chance

    @property
    def costs(self) -> bool:
        """Whether the defense lowers clean accuracy by more than chance explains."""
        change = self.clean_change
        return self.defense.applied and change is not None and change.value < 0 and not change.may_be_chance

    def to_json(self) -> dict[str, Any]:
        """The row as `report.json` holds it; null where there was no evaluation."""
        clean = {"clean_accuracy": self.clean, "clean_accuracy_change": self.clean_change}
        return {
            "defense": self.defense.name,
            "settings": self.defense.settings,
            "applied": self.defense.applied,
            "attack": self.attack.name,
            "attack_settings": self.attack.settings,
            **{name: found.to_json() if found else None for name, found in clean.items()},
            **self.judged.to_json(),
            "attacker": self.attacker,
            "attackers": {knowledge: attacked.to_json() for knowledge, attacked in self.attackers.items()},
        }


def accuracy(evaluation: Evaluation | None) -> Share | None:
    """The share of images that the model got right."""
    if evaluation is None or not evaluation.metrics["images"]:
        return None
    found = evaluation.metrics
    return Share(
        int(found["correct"]), int(found["images"]), found["accuracy"], found["accuracy_low"], found["accuracy_high"]
    )


def success(attacked: Evaluation | None, clean: Evaluation | None, outcomes: Outcomes) -> Share | None:
    """The share of images that were right before the attack (clean, no defense) and are wrong now."""
    if attacked is None:
        return None
    found = attacked.metrics
    # What a defense-aware attack recorded as its clean prediction may be that of the defended model.
    counted = attacked.knowledge != AWARE or clean is None
    if counted and found.get("right_before") and found.get("attack_success_rate") is not None:
        return Share.counted(int(found["attack_successes"]), int(found["right_before"]))
    if clean is None:
        return None
    now = outcomes.of(attacked)[outcomes.of(clean) == 1]
    return Share.counted(int((now == 0).sum()), int((now >= 0).sum()))


def rows(evaluations: Evaluations) -> list[Row]:
    """The table: for each attack a row without defense and one for each defense.

    Without any attack there is one block of rows that knows clean accuracy only.
    """
    return [row for attack in evaluations.attacks or [NONE] for row in _rows(evaluations, attack)]


def _rows(evaluations: Evaluations, attack: Treatment) -> Iterator[Row]:
    paired, clean = evaluations.outcomes.paired, evaluations.clean
    base = Row(attack, NONE, accuracy(clean))
    if attack != NONE:
        base = replace(base, judged=_attacked(evaluations, evaluations.get(attack), None, Attacked()))
    if base.clean or base.robust:
        yield base
    for defense in evaluations.defenses:
        if defense == NONE:
            continue
        defended = evaluations.get(NONE, defense)
        share = accuracy(defended)
        attackers = {
            knowledge: _attacked(evaluations, evaluation, evaluations.get(attack), base.judged)
            for knowledge, evaluation in evaluations.attackers(attack, defense).items()
        }
        known = {knowledge: each.robust.value for knowledge, each in attackers.items() if each.robust}
        # Of equals it is the first, the defense-aware one.
        worst = min(known, key=known.__getitem__, default=None)
        if share or worst:
            yield Row(
                attack,
                defense,
                share,
                Change.between(base.clean, share, paired(clean, defended)),
                attackers,
                worst,
                attackers[worst] if worst else Attacked(),
            )


def _attacked(
    evaluations: Evaluations, evaluation: Evaluation | None, undefended: Evaluation | None, base: Attacked
) -> Attacked:
    outcomes, clean = evaluations.outcomes, evaluations.clean
    robust, fooled = accuracy(evaluation), success(evaluation, clean, outcomes)
    return Attacked(
        robust,
        fooled,
        Change.between(base.robust, robust, outcomes.paired(undefended, evaluation)),
        Change.between(base.success, fooled, outcomes.paired(undefended, evaluation, clean)),
    )


def strongest(table: list[Row]) -> Row | None:
    """The row without defense of the attack that leaves the least accuracy."""
    attacked = [row for row in table if row.defense == NONE and row.robust]
    return min(attacked, key=lambda row: row.robust.value if row.robust else 1.0, default=None)


def best(table: list[Row], attack: Treatment) -> Row | None:
    """The defense that leaves most accuracy under this attack, if one really helps."""
    helping = [row for row in table if row.attack == attack and row.helps]
    return max(helping, key=lambda row: row.robust.value if row.robust else 0.0, default=None)


def percent(value: float) -> str:
    """A share as people read it: 96.1 %."""
    return f"{value * 100:.1f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{value * 100:+.1f}".replace("-", "\N{MINUS SIGN}")


def flat(table: list[Row]) -> dict[str, float]:
    """The table as flat metrics for trackers and gates.

    Plain names (`robust_accuracy`, `robust_accuracy_<defense>`, ...) are of the worst case over all attacks and
    attackers. With a defense there are also those of each attacker, `robust_accuracy_<defense>_defense_aware` and
    `..._oblivious`; with several attacks each also has its own, `robust_accuracy_against_<attack>...`.
    """
    defenses = _unique([row.defense for row in table])
    attacks = _unique([row.attack for row in table])
    found: dict[str, float] = {}

    def note(name: str, share: Share | None, worse: Callable[[float, float], float]) -> None:
        if share:
            found[name] = worse(found.get(name, share.value), share.value)

    for row in table:
        defense = "" if row.defense == NONE else f"_{defenses[row.defense]}"
        against = [""] if len(attacks) == 1 else ["", f"_against_{attacks[row.attack]}"]
        note(f"clean_accuracy{defense}", row.clean, min)
        attackers = {"": row.judged} | {f"_{name.replace('-', '_')}": each for name, each in row.attackers.items()}
        for middle in against:
            for knowledge, attacked in attackers.items():
                note(f"robust_accuracy{middle}{defense}{knowledge}", attacked.robust, min)
                note(f"attack_success_rate{middle}{defense}{knowledge}", attacked.success, max)
    return found


def _unique(treatments: list[Treatment]) -> dict[Treatment, str]:
    """A name for each that metrics may have; settings only where two share a name."""
    distinct = list(dict.fromkeys(treatments))
    names = [treatment.name for treatment in distinct]
    texts = [each.label if names.count(each.name) > 1 else each.name for each in distinct]
    return {each: re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_") for each, text in zip(distinct, texts, strict=True)}
