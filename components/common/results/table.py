"""The table of the report: accuracies with and without attack and defense."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from evasion.components.common.data.provenance import AWARE, KNOWLEDGE
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.json_file import strict
from evasion.components.common.results.paired import Correctness, Paired, under_each
from evasion.components.common.results.shares import Change, Share
from evasion.components.common.results.treatments import NONE, Treatment, worst_case


@strict
@dataclass(frozen=True)
class Attacked:
    """How a model fares under one attacker, or under several; None where there was no evaluation.

    Attributes:
        robust_accuracy: The share of images that the model gets right without the attack (with the same defense) and
            under it; under several attackers, under each of them.
        attack_success_rate: Of the images that were right without attack and defense, the share that is wrong now.
        accuracy_under_attack: The share of attacked images that the model gets right, also of those that it got wrong
            before: what version 0.2 called robust accuracy.
        robust_accuracy_change: Against no defense.
        attack_success_rate_change: Against no defense.
    """

    robust_accuracy: Share | None = None
    attack_success_rate: Share | None = None
    accuracy_under_attack: Share | None = None
    robust_accuracy_change: Change | None = None
    attack_success_rate_change: Change | None = None


@strict
@dataclass(frozen=True, eq=False)
class Row:
    """One attack with one defense, or without.

    Attributes:
        attack: The attack; of several, `worst_case` of them.
        defense: The defense.
        clean_accuracy: Accuracy without attack.
        clean_accuracy_change: Against no defense.
        single_step: Whether no attack takes more than one step: an attacker who iterates will do better.
        attackers: With a defense, how it fares by what the attacker knew of it, the defense-aware one first.
        judged: How it fares under all of them: an image must be right under each.
    """

    attack: Treatment
    defense: Treatment
    clean_accuracy: Share | None
    clean_accuracy_change: Change | None = None
    single_step: bool = False
    attackers: dict[str, Attacked] = field(default_factory=dict)
    judged: Attacked = Attacked()

    @property
    def robust_accuracy(self) -> Share | None:
        """Robust accuracy, the worst case over the attackers."""
        return self.judged.robust_accuracy

    @property
    def attack_success_rate(self) -> Share | None:
        """Attack success rate, the worst case over the attackers."""
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


def rows(evaluations: Evaluations) -> list[Row]:
    """Return the table: for each attack a row without defense and one for each defense.

    Of several attacks, the rows of all of them together come first. Without any attack there is one block of rows that
    knows clean accuracy only.
    """
    attacks = evaluations.attacks
    together = [_Block(evaluations, worst_case(attacks), attacks)] if len(attacks) > 1 else []
    blocks = [*together, *(_Block(evaluations, attack, [attack]) for attack in attacks)]
    return [row for block in blocks or [_Block(evaluations, NONE, [])] for row in block.rows()]


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Which images are right under attackers that are taken together.

    Attributes:
        evaluations: One for each attacker.
        under: Right under each of them.
        robust: Right under each of them and, with the same defense, without an attack; None where that is not known.
    """

    evaluations: list[Evaluation]
    under: Correctness
    robust: Correctness | None

    @property
    def single_step(self) -> bool:
        """Whether no attacker takes more than one step."""
        return not any(evaluation.iterates for evaluation in self.evaluations)


class _Block:
    """The rows of one attack, or of several that are taken together.

    Args:
        evaluations: All evaluations.
        label: What the rows call the attacks.
        attacks: The attacks; none for clean accuracy only.
    """

    def __init__(self, evaluations: Evaluations, label: Treatment, attacks: list[Treatment]) -> None:
        self._evaluations, self._label, self._attacks = evaluations, label, attacks
        self._per_image = evaluations.per_image
        clean = evaluations.clean
        self._right_before = None if clean is None else self._per_image.of(clean)
        undefended = [each for attack in attacks if (each := evaluations.get(attack))]
        self._undefended = self._outcome(clean, undefended)

    def rows(self) -> Iterator[Row]:
        """Yield the row without a defense and one for each defense, as far as they were evaluated."""
        clean = accuracy(self._evaluations.clean)
        if clean or self._undefended:
            single_step = self._undefended is not None and self._undefended.single_step
            judged = self._attacked(self._undefended, None)
            yield Row(self._label, NONE, clean, single_step=single_step, judged=judged)
        for defense in self._evaluations.defenses:
            if defense != NONE and (row := self._defended(defense)):
                yield row

    def _defended(self, defense: Treatment) -> Row | None:
        """Return the row of a defense; None where it was evaluated neither on clean nor on attacked images."""
        evaluations, defended = self._evaluations, self._evaluations.get(NONE, defense)
        by_knowledge: dict[str, list[Evaluation]] = {knowledge: [] for knowledge in KNOWLEDGE}
        for attack in self._attacks:
            for knowledge, evaluation in evaluations.attackers(attack, defense).items():
                by_knowledge[knowledge].append(evaluation)
        outcomes = {name: self._outcome(defended, each) for name, each in by_knowledge.items() if each}
        together = self._outcome(defended, [each for some in by_knowledge.values() for each in some])
        clean, share = accuracy(evaluations.clean), accuracy(defended)
        if not (share or together):
            return None
        change = _change(clean, share, self._per_image.paired(evaluations.clean, defended))
        return Row(
            self._label,
            defense,
            share,
            change,
            together is not None and together.single_step,
            {name: self._attacked(outcome, self._undefended) for name, outcome in outcomes.items()},
            self._attacked(together, self._undefended),
        )

    def _outcome(self, clean: Evaluation | None, attacked: list[Evaluation]) -> _Outcome | None:
        """Count under attackers together; `clean` is the evaluation without an attack, with the same defense."""
        if not attacked:
            return None
        under = under_each(*(self._per_image.of(each) for each in attacked))
        return _Outcome(attacked, under, under_each(self._per_image.of(clean), under) if clean else None)

    def _attacked(self, outcome: _Outcome | None, reference: _Outcome | None) -> Attacked:
        """Return the shares of an outcome, and how they differ from those of the reference."""
        if outcome is None:
            return Attacked()
        single = outcome.evaluations[0] if len(outcome.evaluations) == 1 else None
        robust, success = share_of(outcome.robust), self._success(outcome)
        robust_change = success_change = None
        if reference:
            paired = None
            if reference.robust is not None and outcome.robust is not None:
                paired = Paired.between(reference.robust, outcome.robust)
            robust_change = _change(share_of(reference.robust), robust, paired)
            paired = Paired.between(reference.under, outcome.under, self._right_before)
            success_change = _change(self._success(reference), success, paired)
        under = accuracy(single) if single else share_of(outcome.under)
        return Attacked(robust, success, under, robust_change, success_change)

    def _success(self, outcome: _Outcome) -> Share | None:
        """Return the share of images that were right before (clean, no defense) and are wrong now."""
        if self._right_before is not None:
            after = outcome.under[self._right_before == 1]
            return Share.counted(int((after == 0).sum()), int((after >= 0).sum()))
        # What a defense-aware attack recorded as its clean prediction may be that of the defended model.
        single = outcome.evaluations[0] if len(outcome.evaluations) == 1 else None
        metrics = single.metrics if single and single.knowledge != AWARE else {}
        return Share.counted(int(metrics.get("attack_successes", 0)), int(metrics.get("right_before", 0)))


def share_of(correctness: Correctness | None) -> Share | None:
    """Return the share of right images among those that are known."""
    if correctness is None:
        return None
    return Share.counted(int((correctness == 1).sum()), int((correctness >= 0).sum()))


def _change(before: Share | None, after: Share | None, paired: Paired | None) -> Change | None:
    """Return the change from `before` to `after`, where both are known."""
    if before is None or after is None:
        return None
    return Change(after.value - before.value, paired is None or paired.may_be_chance)


def judged_together(table: Sequence[Row]) -> list[Row]:
    """Return the rows by which a report is judged: of all attacks together, or of the only one."""
    return [row for row in table if row.attack == table[0].attack]


def of_size(table: Sequence[Row], norm: str, eps: float) -> dict[str | None, Share]:
    """Return robust accuracy by the label of the defense, None without one, if the table is of attacks of this size."""
    judged = judged_together(table)
    steps = [step for row in judged for step in row.attack.steps]
    if not steps or any((step.settings.get("norm"), step.settings.get("eps")) != (norm, eps) for step in steps):
        return {}
    return {
        None if row.defense == NONE else row.defense.label: row.robust_accuracy for row in judged if row.robust_accuracy
    }


def undefended(table: Sequence[Row]) -> Row | None:
    """Return the row without a defense of all attacks together, or of the only one."""
    rows_without = (row for row in judged_together(table) if row.defense == NONE and row.robust_accuracy)
    return next(rows_without, None)


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
    together = judged_together(table)
    attacks = _unique([row.attack for row in table if row not in together])
    metrics: dict[str, float] = {}

    def record(name: str, share: Share | None) -> None:
        if share:
            metrics[name] = share.value

    for row in table:
        defense = "" if row.defense == NONE else f"_{defenses[row.defense]}"
        against = "" if row in together else f"_against_{attacks[row.attack]}"
        record(f"clean_accuracy{defense}", row.clean_accuracy)
        attackers = {"": row.judged} | {f"_{name.replace('-', '_')}": each for name, each in row.attackers.items()}
        for knowledge, attacked in attackers.items():
            record(f"robust_accuracy{against}{defense}{knowledge}", attacked.robust_accuracy)
            record(f"attack_success_rate{against}{defense}{knowledge}", attacked.attack_success_rate)
    return metrics


def _unique(treatments: list[Treatment]) -> dict[Treatment, str]:
    """Return a name for each that metrics may have; with settings only where two share a name."""
    distinct = list(dict.fromkeys(treatments))
    names = [treatment.name for treatment in distinct]
    texts = [each.label if names.count(each.name) > 1 else each.name for each in distinct]
    return {each: re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_") for each, text in zip(distinct, texts, strict=True)}
