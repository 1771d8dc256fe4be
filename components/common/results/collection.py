"""All evaluations of one report: of the same model and the same original images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from evasion.components.common.data.provenance import AWARE, KNOWLEDGE, OBLIVIOUS
from evasion.components.common.results import shards
from evasion.components.common.results.evaluation import Evaluation, title
from evasion.components.common.results.per_image import PerImage
from evasion.components.common.results.treatments import NONE, Treatment


@dataclass
class Evaluations:
    """The evaluations by attack, defense and what the attacker knew.

    Attributes:
        cells: The evaluations, by the keys of attack and defense and the attacker's knowledge.
        attacks: Every attack, in the order of the table.
        defenses: `NONE` and every defense, in the order of the table.
        repeated: Titles of evaluations that were given more than once.
    """

    cells: dict[tuple[str, str, str | None], Evaluation] = field(default_factory=dict)
    attacks: list[Treatment] = field(default_factory=list)
    defenses: list[Treatment] = field(default_factory=lambda: [NONE])
    repeated: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.cells.values())

    def get(
        self, attack: Treatment = NONE, defense: Treatment = NONE, knowledge: str | None = OBLIVIOUS
    ) -> Evaluation | None:
        """Return the evaluation of this attack with this defense; `knowledge` counts where both are given."""
        return self.cells.get((attack.key, defense.key, None if NONE in (attack, defense) else knowledge))

    def attackers(self, attack: Treatment, defense: Treatment) -> dict[str, Evaluation]:
        """Return the evaluations of this attack with this defense by what the attacker knew, defense-aware first."""
        if NONE in (attack, defense):
            return {}
        evaluations = {knowledge: self.get(attack, defense, knowledge) for knowledge in KNOWLEDGE}
        return {knowledge: evaluation for knowledge, evaluation in evaluations.items() if evaluation}

    def of(self, attack: Treatment) -> list[Evaluation]:
        """Return all evaluations of this attack, whatever the defense."""
        return [evaluation for (key, _, _), evaluation in self.cells.items() if key == attack.key]

    @property
    def knowledge(self) -> list[str]:
        """Which attackers there are, the defense-aware one first."""
        present = {evaluation.knowledge for evaluation in self}
        return [knowledge for knowledge in KNOWLEDGE if knowledge in present]

    @cached_property
    def per_image(self) -> PerImage:
        """Which images each evaluation got right."""
        return PerImage(self.clean or self.first)

    @property
    def first(self) -> Evaluation:
        """Any evaluation, for what all have in common."""
        return next(iter(self))

    @property
    def clean(self) -> Evaluation | None:
        """The evaluation of the original images."""
        return self.get()

    def placed(self) -> list[tuple[str, Treatment, Treatment, Evaluation]]:
        """Return every evaluation with its title, attack and defense, in the order of the table."""
        placed = []
        for attack in [NONE, *self.attacks]:
            for defense in self.defenses:
                for knowledge in (None,) if NONE in (attack, defense) else KNOWLEDGE:
                    evaluation = self.get(attack, defense, knowledge)
                    if evaluation:
                        placed.append((title(attack, defense, knowledge), attack, defense, evaluation))
        return placed

    def titles(self) -> list[tuple[str, Evaluation]]:
        """Return every evaluation with its title, in the order of the table."""
        return [(name, evaluation) for name, _, _, evaluation in self.placed()]


def collect(directories: Iterable[Sequence[Path]]) -> Evaluations:
    """Read evaluations that belong together.

    Args:
        directories: Of each evaluation its directory, or those of its shards, all in any order.

    Returns:
        The evaluations by attack and defense.

    Raises:
        ValueError: If there is none, or if they are of different models or of different original images.
    """
    evaluations = [shards.read_evaluation(parts) for parts in directories]
    if not evaluations:
        raise ValueError("report needs at least one evaluation. Received: none. Connect the output of infer to it.")
    _same("model", "Make a report for each model.", {e: e.model.identity for e in evaluations})
    _same("original dataset", "Make a report for each dataset.", {e: e.root_sha256 for e in evaluations})

    collection = Evaluations()
    for evaluation in evaluations:
        attack = _attack(evaluation, evaluations)
        defense = _free_place(collection, attack, evaluation)
        if defense is None:
            collection.repeated.append(evaluation.title)
            continue
        collection.cells[attack.key, defense.key, evaluation.knowledge] = evaluation
        if attack != NONE and attack not in collection.attacks:
            collection.attacks.append(attack)
        if defense not in collection.defenses:
            collection.defenses.append(defense)
    collection.attacks = _distinct(collection.attacks, list(collection))
    return collection


def _same(subject: str, advice: str, values: dict[Evaluation, str]) -> None:
    if len(set(values.values())) > 1:
        listed = "; ".join(f"{evaluation.title}: {value}" for evaluation, value in values.items())
        raise ValueError(f"evaluations must be of one {subject}. Received: {listed}. {advice}")


def _attack(evaluation: Evaluation, evaluations: list[Evaluation]) -> Treatment:
    """Return the attack; of a defense-aware one the oblivious counterpart, even where each drew a seed of its own."""
    if evaluation.knowledge != AWARE:
        return evaluation.attack
    alike = [e.attack for e in evaluations if e.knowledge != AWARE and e.unseeded == evaluation.unseeded]
    return evaluation.attack if evaluation.attack in alike or not alike else alike[0]


def _free_place(collection: Evaluations, attack: Treatment, evaluation: Evaluation) -> Treatment | None:
    """Return the defense under which the evaluation has a cell of its own; None if the same data is there already."""
    defense, run = evaluation.defense, 1
    while occupant := collection.get(attack, defense, evaluation.knowledge):
        if occupant.dataset.sha256 == evaluation.dataset.sha256:
            return None
        run += 1
        plain = evaluation.defense
        defense = replace(plain, key=f"{plain.key}#{run}", name=f"{plain.name} (run {run})")
    return defense


def _distinct(attacks: list[Treatment], evaluations: list[Evaluation]) -> list[Treatment]:
    """Add the seed to the settings of attacks that would read the same."""
    labels = [attack.label for attack in attacks]
    named = []
    for attack in attacks:
        if labels.count(attack.label) > 1:
            seeds = next(
                [entry.seed for entry in evaluation.attacks]
                for evaluation in evaluations
                if evaluation.attack == attack
            )
            settings = f"{attack.settings} seed={','.join(map(str, seeds))}".strip()
            named.append(replace(attack, settings=settings))
        else:
            named.append(attack)
    return named
