"""Checks of each defense: whether it ran, and whether its cost and its gain were measured."""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.results.check import Check
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.treatments import NONE, Treatment


def of_defense(evaluations: Evaluations, defense: Treatment) -> Iterator[Check]:
    """Check one defense."""
    name = "defense applied"
    over = [e for attack in evaluations.attacks for e in evaluations.attackers(attack, defense).values()]
    over += [e for e in [evaluations.get(NONE, defense)] if e]
    changed = [each.distances["l_infinity_norm"]["max"] for each in over if each.distances]
    if not defense.applied:
        split = evaluations.first.dataset.split
        switch = "apply_fit" if split == "training" else "apply_predict"
        advice = f"Set {switch}=true: its rows are those of no defense."
        yield Check(name, defense.label, "warn", f"{switch} is false: the images are unchanged", advice)
    elif changed and max(changed) == 0:
        yield Check(name, defense.label, "warn", "it changed no image", "Choose stronger settings.")
    else:
        yield Check(name, defense.label, "pass", "it ran over the images")
    if evaluations.clean and evaluations.get(NONE, defense) is None:
        advice = "Evaluate it on clean images too, to know what it costs."
        yield Check("cost of the defense", defense.label, "warn", "not evaluated on clean images", advice)
    for attack in evaluations.attacks:
        if not evaluations.attackers(attack, defense):
            text, advice = f"not evaluated under {attack.label}", "Evaluate it on the attacked images too."
            yield Check("gain of the defense", defense.label, "warn", text, advice)
