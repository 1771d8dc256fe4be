"""The table of the report: accuracies with and without attack and defense."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from evasion.components.common.data.provenance import AWARE
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.json_file import strict
from evasion.components.common.results.paired import Paired
from evasion.components.common.results.per_image import PerImage
from evasion.components.common.results.shares import Change, Share
from evasion.components.common.results.treatments import NONE, Treatment


@strict
@dataclass(frozen=True)
class Attacked:
    """How a model fares under one attacker; None where there was no evaluation.

    Attributes:
        robust_accuracy: The share of attacked images that the model gets right.
        attack_success_rate: Of the images that were right before the attack, the share that is wrong after it.
        robust_accuracy_change: Against no defense.
        attack_success_rate_change: Against no defense.
    """

    robust_accuracy: Share | None = None
    attack_success_rate: Share | None = None
    robust_accuracy_change: Change | None = None
    attack_success_rate_change: Change | None = None


@strict
@dataclass(frozen=True, eq=False)
class Row:
    """One attack with one defense, or without.

    Attributes:
        attack: The attack.
        defense: The defense.
        clean_accuracy: Accuracy without attack.
        clean_accuracy_change: Against no defense.
        attackers: With a defense, how it fares by what the attacker knew of it, the defense-aware one first.
        attacker: Which of them the row is judged by: the one that leaves less accuracy.
        judged: How it fares under that one.
    """

    attack: Treatment
    defense: Treatment
    clean_accuracy: Share | None
    clean_accuracy_change: Change | None = None
    attackers: dict[str, Attacked] = field(default_factory=dict)
    attacker: str | None = None
    judged: Attacked = Attacked()

    @property
    def robust_accuracy(self) -> Share | None:
        """Accuracy under the attack, the worst case over the attackers."""
        return self.judged.robust_accuracy

    @property
    def attack_success_rate(self) -> Share | None:
        """Success rate of the attacker that leaves less accuracy."""
        return self.judged.attack_success_rate

    @property
    def aware(self) -> bool:
        """Whether an attacker that knows the defense attacked it."""
        return AWARE in self.attackers

    @property
    def helps(self) -> bool:
        """Whether the defense raises robust accuracy by more than chance explains."""
        change = self.judged.robust_accuracy_change
        return self.defense.applied and change is not None and change.rises

    @property
    def harms(self) -> bool:
        """Whether the defense lowers robust accuracy by more than chance explains."""
        change = self.judged.robust_accuracy_change
        return self.defense.applied and change is not None and change.falls

    @property
    def costs(self) -> bool:
        """Whether the defense lowers clean accuracy by more than chance explains."""
        change = self.clean_accuracy_change
        return self.defense.applied and change is not None and change.falls


def accuracy(evaluation: Evaluation | None) -> Share | None:
    """Return the share of images that the model got right."""
    if evaluation is None:
        return None
    return Share.counted(int(evaluation.metrics["correct"]), int(evaluation.metrics["images"]))


def success_rate(attacked: Evaluation | None, clean: Evaluation | None, per_image: PerImage) -> Share | None:
    """Return the share of images that were right before the attack (clean, no defense) and are wrong after it."""
    if attacked is None:
        return None
    metrics = attacked.metrics
    # What a defense-aware attack recorded as its clean prediction may be that of the defended model.
    counted = attacked.knowledge != AWARE or clean is None
    if counted and metrics.get("right_before") and metrics.get("attack_success_rate") is not None:
        return Share.counted(int(metrics["attack_successes"]), int(metrics["right_before"]))
    if clean is None:
        return None
    after = per_image.of(attacked)[per_image.of(clean) == 1]
    return Share.counted(int((after == 0).sum()), int((after >= 0).sum()))


def rows(evaluations: Evaluations) -> list[Row]:
    """Return the table: for each attack a row without defense and one for each defense.

    Without any attack there is one block of rows that knows clean accuracy only.
    """
    return [row for attack in evaluations.attacks or [NONE] for row in _rows(evaluations, attack)]


def _rows(evaluations: Evaluations, attack: Treatment) -> Iterator[Row]:
    clean = accuracy(evaluations.clean)
    undefended = Attacked() if attack == NONE else _attacked(evaluations, evaluations.get(attack), None, Attacked())
    if clean or undefended.robust_accuracy:
        yield Row(attack, NONE, clean, judged=undefended)
    for defense in evaluations.defenses:
        if defense != NONE and (row := _defended_row(evaluations, attack, defense, undefended)):
            yield row


def _defended_row(evaluations: Evaluations, attack: Treatment, defense: Treatment, undefended: Attacked) -> Row | None:
    """Return the row of a defense; None where it was evaluated neither on clean nor on attacked images."""
    defended = evaluations.get(NONE, defense)
    attackers = {
        knowledge: _attacked(evaluations, evaluation, evaluations.get(attack), undefended)
        for knowledge, evaluation in evaluations.attackers(attack, defense).items()
    }
    left = {name: each.robust_accuracy.value for name, each in attackers.items() if each.robust_accuracy}
    # Of equals it is the first, the defense-aware one.
    worst = min(left, key=left.__getitem__, default=None)
    clean, share = accuracy(evaluations.clean), accuracy(defended)
    if not (share or worst):
        return None
    change = _change(clean, share, evaluations.per_image.paired(evaluations.clean, defended))
    return Row(attack, defense, share, change, attackers, worst, attackers[worst] if worst else Attacked())


def _attacked(
    evaluations: Evaluations, evaluation: Evaluation | None, reference: Evaluation | None, undefended: Attacked
) -> Attacked:
    per_image, clean = evaluations.per_image, evaluations.clean
    robust, success = accuracy(evaluation), success_rate(evaluation, clean, per_image)
    return Attacked(
        robust,
        success,
        _change(undefended.robust_accuracy, robust, per_image.paired(reference, evaluation)),
        _change(undefended.attack_success_rate, success, per_image.paired(reference, evaluation, clean)),
    )


def _change(before: Share | None, after: Share | None, paired: Paired | None) -> Change | None:
    """Return the change from `before` to `after`, where both are known."""
    if before is None or after is None:
        return None
    return Change(after.value - before.value, paired is None or paired.may_be_chance)


def strongest(table: Iterable[Row]) -> Row | None:
    """Return the row without defense of the attack that leaves the least accuracy."""
    attacked = [row for row in table if row.defense == NONE and row.robust_accuracy]
    return min(attacked, key=lambda row: row.robust_accuracy.value if row.robust_accuracy else 1.0, default=None)


def best(table: Iterable[Row], attack: Treatment) -> Row | None:
    """Return the defense that leaves most accuracy under this attack, if one really helps."""
    helping = [row for row in table if row.attack == attack and row.helps]
    return max(helping, key=lambda row: row.robust_accuracy.value if row.robust_accuracy else 0.0, default=None)


def flat(table: list[Row]) -> dict[str, float]:
    """Return the table as flat metrics for trackers and gates.

    Plain names (`robust_accuracy`, `robust_accuracy_<defense>`, ...) are of the worst case over all attacks and
    attackers. With a defense there are also those of each attacker, `robust_accuracy_<defense>_defense_aware` and
    `..._oblivious`; with several attacks each also has its own, `robust_accuracy_against_<attack>...`.
    """
    defenses = _unique([row.defense for row in table])
    attacks = _unique([row.attack for row in table])
    metrics: dict[str, float] = {}

    def record(name: str, share: Share | None, worse: Callable[[float, float], float]) -> None:
        if share:
            metrics[name] = worse(metrics.get(name, share.value), share.value)

    for row in table:
        defense = "" if row.defense == NONE else f"_{defenses[row.defense]}"
        against = [""] if len(attacks) == 1 else ["", f"_against_{attacks[row.attack]}"]
        record(f"clean_accuracy{defense}", row.clean_accuracy, min)
        attackers = {"": row.judged} | {f"_{name.replace('-', '_')}": each for name, each in row.attackers.items()}
        for middle in against:
            for knowledge, attacked in attackers.items():
                record(f"robust_accuracy{middle}{defense}{knowledge}", attacked.robust_accuracy, min)
                record(f"attack_success_rate{middle}{defense}{knowledge}", attacked.attack_success_rate, max)
    return metrics


def _unique(treatments: list[Treatment]) -> dict[Treatment, str]:
    """Return a name for each that metrics may have; with settings only where two share a name."""
    distinct = list(dict.fromkeys(treatments))
    names = [treatment.name for treatment in distinct]
    texts = [each.label if names.count(each.name) > 1 else each.name for each in distinct]
    return {each: re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_") for each, text in zip(distinct, texts, strict=True)}
