"""The sentences that the table amounts to."""

from __future__ import annotations

from evasion.components.common.drawing.words import listed, percent, points
from evasion.components.common.results.table import Row, strongest


def headline(table: list[Row], model: str) -> tuple[str, str]:
    """Answer "how far does the attack fool the model, and which defense really helps?".

    Args:
        table: The rows of the report.
        model: The model's name.

    Returns:
        A sentence about the attack and one about the defenses; the second may be empty.
    """
    worst = strongest(table)
    if worst is None:
        return _without_baseline(table, model), ""
    return _of_the_attack(worst, model), _of_the_defenses(table, worst)


def _without_baseline(table: list[Row], model: str) -> str:
    attacked = [(row.defense.name, row.robust_accuracy) for row in table if row.robust_accuracy]
    if attacked:
        each = ", ".join(f"{percent(robust.value)} with {defense}" for defense, robust in attacked)
        return f"Under attack {model} is right on {each}; the attack without a defense was not evaluated."
    clean = next((row.clean_accuracy for row in table if row.clean_accuracy), None)
    right = f"{model} is right on {percent(clean.value)} of {clean.n:,} images. " if clean else ""
    return f"{right}No attack was evaluated, so this says nothing about robustness."


def _of_the_attack(worst: Row, model: str) -> str:
    attack, clean, robust = worst.attack.label, worst.clean_accuracy, worst.robust_accuracy
    if robust is None:
        return ""
    if clean is None:
        return f"Under {attack}, {model} is right on {percent(robust.value)} of the images."
    if robust.value < clean.value and not robust.overlaps(clean):
        return f"{attack} takes the accuracy of {model} from {percent(clean.value)} to {percent(robust.value)}."
    return (
        f"{attack} hardly fools {model}: accuracy goes from {percent(clean.value)} to {percent(robust.value)}, which "
        "may be chance."
    )


def _of_the_defenses(table: list[Row], worst: Row) -> str:
    judged = [row for row in table if row.attack == worst.attack and row.defense.applied and _gain(row) is not None]
    if not judged:
        return "No defense was evaluated against it."
    aware, oblivious = ([row for row in judged if row.aware is knows] for knows in (True, False))
    if not aware:
        # The name of a step keeps its small letter.
        return _gains(oblivious, worst).replace("none of", "None of", 1)
    sentence = f"Once the attacker knows the defense, {_gains(aware, worst)}"
    if oblivious:
        sentence += f" Against an attacker who does not know it, {_gains(oblivious, worst)}"
    return sentence


def _gain(row: Row) -> float | None:
    change = row.judged.robust_accuracy_change
    return change.value if change else None


def _gains(rows: list[Row], worst: Row) -> str:
    """Say what each defense gives back or takes."""
    gains = {row: _gain(row) or 0.0 for row in rows}
    helping = sorted((row for row in rows if row.helps), key=lambda row: -gains[row])
    harming = [row for row in rows if row.harms]
    rest = [row.defense.name for row in rows if not row.helps and not row.harms]
    clean, robust = worst.clean_accuracy, worst.robust_accuracy
    lost = clean.value - robust.value if clean and robust else 0.0
    parts: list[str] = []
    if helping:
        parts.append(listed([_help(row, gains[row], lost, first=row is helping[0]) for row in helping]))
    if len(rest) == len(rows) > 1:
        parts.append(f"none of the {len(rest)} defenses shows a gain beyond chance")
    elif rest:
        parts.append(f"{listed(rest)} {'shows' if len(rest) == 1 else 'show'} no gain beyond chance")
    if harming:
        parts.append(listed([f"{row.defense.name} takes {points(gains[row])[1:]} points more" for row in harming]))
    return "; ".join(parts) + "."


def _help(row: Row, gain: float, lost: float, *, first: bool) -> str:
    words = f"{row.defense.name} {'gives back ' if first else ''}{points(gain)[1:]} points"
    if lost > 0 and first:
        words += f" ({gain / lost:.0%} of what the attack took)".replace("%", "\N{NO-BREAK SPACE}%")
    if row.costs and row.clean_accuracy_change:
        words += f" but costs {points(row.clean_accuracy_change.value)[1:]} points of clean accuracy"
    return words
