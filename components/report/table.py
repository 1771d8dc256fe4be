"""The table of the report: accuracies with and without attack and defense, and the sentence they amount to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from evasion.components.common import metrics
from evasion.components.report.evaluations import NONE, Evaluation, Evaluations, Treatment

SIGNIFICANCE = 0.05  # a difference that chance makes less often is called one


@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % Wilson interval."""

    count: int
    n: int
    value: float
    low: float
    high: float

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
    def between(cls, before: Share | None, after: Share | None, may_be_chance: bool) -> Change | None:
        """The change from `before` to `after`, where both are known."""
        return cls(after.value - before.value, may_be_chance) if before and after else None

    def to_json(self) -> dict[str, float | bool]:
        """The numbers as `report.json` holds them."""
        return {"value": self.value, "may_be_chance": self.may_be_chance}


@dataclass(frozen=True)
class Row:
    """One attack with one defense, or without."""

    attack: Treatment
    defense: Treatment
    clean: Share | None
    robust: Share | None
    success: Share | None
    clean_change: Change | None = None
    robust_change: Change | None = None
    success_change: Change | None = None

    @property
    def helps(self) -> bool:
        """Whether the defense raises robust accuracy by more than chance explains."""
        change = self.robust_change
        return self.defense.applied and change is not None and change.value > 0 and not change.may_be_chance

    @property
    def costs(self) -> bool:
        """Whether the defense lowers clean accuracy by more than chance explains."""
        change = self.clean_change
        return self.defense.applied and change is not None and change.value < 0 and not change.may_be_chance

    def to_json(self) -> dict[str, Any]:
        """The row as `report.json` holds it; null where there was no evaluation."""
        shares = {"clean_accuracy": self.clean, "robust_accuracy": self.robust, "attack_success_rate": self.success}
        changes = {
            "clean_accuracy_change": self.clean_change,
            "robust_accuracy_change": self.robust_change,
            "attack_success_rate_change": self.success_change,
        }
        return {
            "defense": self.defense.name,
            "settings": self.defense.settings,
            "applied": self.defense.applied,
            "attack": self.attack.name,
            "attack_settings": self.attack.settings,
            **{name: found.to_json() if found else None for name, found in {**shares, **changes}.items()},
        }


def accuracy(evaluation: Evaluation | None) -> Share | None:
    """The share of images that the model got right."""
    if evaluation is None or not evaluation.metrics["images"]:
        return None
    found = evaluation.metrics
    return Share(
        int(found["correct"]), int(found["images"]), found["accuracy"], found["accuracy_low"], found["accuracy_high"]
    )


def success(attacked: Evaluation | None, clean: Evaluation | None) -> Share | None:
    """The share of images that were right before the attack and are wrong now."""
    if attacked is None:
        return None
    found = attacked.metrics
    if found.get("right_before") and found.get("attack_success_rate") is not None:
        count, n = int(found["attack_successes"]), int(found["right_before"])
    elif clean is not None:
        right = {clean.original(row["path"]) for row in clean.predictions() if row["correct"] == "1"}
        now = [row["correct"] for row in attacked.predictions() if attacked.original(row["path"]) in right]
        count, n = now.count("0"), len(now)
    else:
        return None
    return Share(count, n, count / n, *metrics.interval(count, n)) if n else None


def rows(evaluations: Evaluations) -> list[Row]:
    """The table: for each attack a row without defense and one for each defense.

    Without any attack there is one block of rows that knows clean accuracy only.
    """
    table: list[Row] = []
    for attack in evaluations.attacks or [NONE]:
        base: Row | None = None
        for defense in evaluations.defenses:
            attacked = evaluations.get(attack, defense) if attack != NONE else None
            row = Row(
                attack,
                defense,
                clean=accuracy(evaluations.get(NONE, defense)),
                robust=accuracy(attacked),
                success=success(attacked, evaluations.clean),
            )
            if row.clean is None and row.robust is None:
                continue
            table.append(_compared(row, base, evaluations) if base else row)
            base = base or (row if defense == NONE else None)
    return table


def may_be_chance(before: Evaluation | None, after: Evaluation | None, among: Evaluation | None = None) -> bool:
    """Whether chance explains how the same images fare before and after.

    McNemar's exact test (1947) looks at the images that one got right and the other wrong: without an effect each of
    the two outcomes is as likely.

    Args:
        before: An evaluation without defense.
        after: One with a defense, of the same original images.
        among: If given, only images that this evaluation got right count.
    """
    if before is None or after is None:
        return True
    right = {before.original(row["path"]): row["correct"] for row in before.predictions()}
    if among is not None:
        kept = {among.original(row["path"]) for row in among.predictions() if row["correct"] == "1"}
        right = {path: correct for path, correct in right.items() if path in kept}
    pairs = [(right.get(after.original(row["path"])), row["correct"]) for row in after.predictions()]
    gained, lost = pairs.count(("0", "1")), pairs.count(("1", "0"))
    return not gained + lost or bool(binomtest(gained, gained + lost).pvalue >= SIGNIFICANCE)


def _compared(row: Row, base: Row, evaluations: Evaluations) -> Row:
    plain, defended = (evaluations.get(NONE, one.defense) for one in (base, row))
    before, after = (evaluations.get(row.attack, one.defense) for one in (base, row))
    return Row(
        row.attack,
        row.defense,
        row.clean,
        row.robust,
        row.success,
        Change.between(base.clean, row.clean, may_be_chance(plain, defended)),
        Change.between(base.robust, row.robust, may_be_chance(before, after)),
        Change.between(base.success, row.success, may_be_chance(before, after, evaluations.clean)),
    )


def strongest(table: list[Row]) -> Row | None:
    """The row without defense of the attack that leaves the least accuracy."""
    attacked = [row for row in table if row.defense == NONE and row.robust]
    return min(attacked, key=lambda row: row.robust.value if row.robust else 1.0, default=None)


def best(table: list[Row], attack: Treatment) -> Row | None:
    """The defense that leaves most accuracy under this attack, if one really helps."""
    helping = [row for row in table if row.attack == attack and row.helps]
    return max(helping, key=lambda row: row.robust.value if row.robust else 0.0, default=None)


def headline(table: list[Row], model: str) -> tuple[str, str]:
    """Answer "how far does the attack fool the model, and which defense really helps?".

    Args:
        table: The rows of the report.
        model: The model's name.

    Returns:
        A sentence about the attack and one about the defenses; the second may be empty.
    """
    worst = strongest(table)
    if worst is None or worst.robust is None:
        return _without_baseline(table, model), ""
    attack = worst.attack.label
    if worst.clean is None:
        first = f"Under {attack}, {model} is right on {percent(worst.robust.value)} of the images."
    elif worst.robust.value < worst.clean.value and not worst.robust.overlaps(worst.clean):
        first = (
            f"{attack} takes the accuracy of {model} from {percent(worst.clean.value)} "
            f"to {percent(worst.robust.value)}."
        )
    else:
        first = (
            f"{attack} hardly fools {model}: accuracy goes from {percent(worst.clean.value)} "
            f"to {percent(worst.robust.value)}, which may be chance."
        )
    return first, _defenses([row for row in table if row.attack == worst.attack], worst)


def _without_baseline(table: list[Row], model: str) -> str:
    attacked = [row for row in table if row.robust]
    if attacked:
        each = ", ".join(f"{percent(row.robust.value)} with {row.defense.name}" for row in attacked if row.robust)
        return f"Under attack {model} is right on {each}; the attack without a defense was not evaluated."
    clean = next((row.clean for row in table if row.clean), None)
    right = f"{model} is right on {percent(clean.value)} of {clean.n:,} images. " if clean else ""
    return f"{right}No attack was evaluated, so this says nothing about robustness."


def _defenses(table: list[Row], worst: Row) -> str:
    tried = [row for row in table if row.defense.applied and row.robust_change]
    if not tried:
        return "No defense was evaluated against it."
    gains = {row: row.robust_change.value for row in tried if row.robust_change and row.helps}
    ordered = sorted(gains, key=lambda row: -gains[row])
    rest = [row.defense.name for row in tried if not row.helps]
    if not ordered:
        if len(rest) == 1:
            return f"{rest[0]} shows no gain beyond chance."
        return f"None of the {len(rest)} defenses shows a gain beyond chance."
    lost = worst.clean.value - worst.robust.value if worst.clean and worst.robust else 0.0
    told: list[str] = []
    for row in ordered:
        words = f"{row.defense.name} {'' if told else 'gives back '}{points(gains[row])[1:]} points"
        if lost > 0 and not told:
            words += f" ({gains[row] / lost:.0%} of what the attack took)".replace("%", "\N{NO-BREAK SPACE}%")
        if row.costs and row.clean_change:
            words += f" but costs {points(row.clean_change.value)[1:]} points of clean accuracy"
        told.append(words)
    tail = f"; {_listed(rest)} {'shows' if len(rest) == 1 else 'show'} no gain beyond chance" if rest else ""
    return f"{_listed(told)}{tail}."


def _listed(words: list[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def percent(value: float) -> str:
    """A share as people read it: 96.1 %."""
    return f"{value * 100:.1f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{value * 100:+.1f}".replace("-", "\N{MINUS SIGN}")


def flat(table: list[Row]) -> dict[str, float]:
    """The table as flat metrics for trackers and gates.

    Plain names (`robust_accuracy`, `robust_accuracy_<defense>`, ...) are of the worst case over all attacks;
    with several attacks each also has its own, `robust_accuracy_against_<attack>`.
    """
    defenses = _unique([row.defense for row in table])
    attacks = _unique([row.attack for row in table])
    found: dict[str, float] = {}
    for row in table:
        defense = "" if row.defense == NONE else f"_{defenses[row.defense]}"
        against = f"_against_{attacks[row.attack]}" if len(attacks) > 1 else ""
        for name, share, worse in (
            ("clean_accuracy", row.clean, min),
            ("robust_accuracy", row.robust, min),
            ("attack_success_rate", row.success, max),
        ):
            if share is None:
                continue
            found[name + defense] = worse(found.get(name + defense, share.value), share.value)
            if against and name != "clean_accuracy":
                found[name + against + defense] = share.value
    return found


def _unique(treatments: list[Treatment]) -> dict[Treatment, str]:
    """A name for each that metrics may have; settings only where two share a name."""
    distinct = list(dict.fromkeys(treatments))
    names = [treatment.name for treatment in distinct]
    texts = [each.label if names.count(each.name) > 1 else each.name for each in distinct]
    return {each: re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_") for each, text in zip(distinct, texts, strict=True)}
