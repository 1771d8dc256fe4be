"""The sentences that the table amounts to."""

from __future__ import annotations

from evasion.components.common.drawing.words import listed, percent, points
from evasion.components.common.results.table import Row, judged_together, undefended


def headline(table: list[Row], model: str) -> tuple[str, str]:
    """Answer "how far does the attack fool the model, and which defense really helps?".

    Args:
        table: The rows of the report.
        model: The model's name.

    Returns:
        A sentence about the attack and one about the defenses; the second may be empty.
    """
    worst = undefended(table)
    if worst is None:
        return _without_baseline(table, model), ""
    return _of_the_attack(worst, model), _of_the_defenses(table, worst)


def _without_baseline(table: list[Row], model: str) -> str:
    attacked = [(row.defense.name, row.robust_accuracy) for row in judged_together(table) if row.robust_accuracy]
    if attacked:
        each = ", ".join(f"{percent(robust.value)} with {defense}" for defense, robust in attacked)
        return f"Under attack {model} is right on {each}; the attack without a defense was not evaluated."
    if any(row.judged.accuracy_under_attack for row in table):
        return (
            f"{model} was attacked, but not evaluated on the original images: which images are robust is not known, "
            "since they must be right without an attack too."
        )
    clean = next((row.clean_accuracy for row in table if row.clean_accuracy), None)
    right = f"{model} is right on {percent(clean.value)} of {clean.n:,} images. " if clean else ""
    return f"{right}No attack was evaluated, so this says nothing about robustness."


def _of_the_attack(worst: Row, model: str) -> str:
    clean, robust = worst.clean_accuracy, worst.robust_accuracy
    attack = f"The {worst.attack.label}" if worst.attack.is_worst_case else worst.attack.label
    if robust is None or clean is None:
        return ""
    if robust.value < clean.value and not robust.overlaps(clean):
        step = ", a single step," if worst.single_step else ""
        text = f"{attack}{step} takes the accuracy of {model} from {percent(clean.value)} to {percent(robust.value)}."
    else:
        text = (
            f"{attack} hardly fools {model}: accuracy goes from {percent(clean.value)} to {percent(robust.value)}, "
            "which may be chance."
        )
    if worst.single_step:
        text += " An attacker who iterates will do better: no number here bounds what is left then."
    return text


def _of_the_defenses(table: list[Row], worst: Row) -> str:
    judged = [row for row in table if row.attack == worst.attack and row.defense.applied and _gain(row) is not None]
    if not judged:
        return "No defense was evaluated against it."
    aware, oblivious = ([row for row in judged if row.aware is knows] for knows in (True, False))
    # The name of a step keeps its small letter.
    under = "against this single step " if worst.single_step else ""
    if not aware:
        return _gains(oblivious, worst, under).replace("none of", "None of", 1)
    sentence = f"Once the attacker knows the defense, {_gains(aware, worst, under)}"
    if oblivious:
        sentence += f" Against an attacker who does not know it, {_gains(oblivious, worst, under)}"
    return sentence


def _gain(row: Row) -> float | None:
    change = row.judged.robust_accuracy_change
    return change.value if change else None


def _gains(rows: list[Row], worst: Row, under: str) -> str:
    """Say what each defense gives back or takes; `under` says against what, or is blank."""
    gains = {row: _gain(row) or 0.0 for row in rows}
    helping = sorted((row for row in rows if row.helps), key=lambda row: -gains[row])
    harming = [row for row in rows if row.harms]
    rest = [row.defense.name for row in rows if not row.helps and not row.harms]
    clean, robust = worst.clean_accuracy, worst.robust_accuracy
    lost = clean.value - robust.value if clean and robust else 0.0
    parts: list[str] = []
    if helping:
        parts.append(listed([_help(row, gains[row], lost, under if row is helping[0] else None) for row in helping]))
    if len(rest) == len(rows) > 1:
        parts.append(f"none of the {len(rest)} defenses shows a gain beyond chance")
    elif rest:
        parts.append(f"{listed(rest)} {'shows' if len(rest) == 1 else 'show'} no gain beyond chance")
    if harming:
        parts.append(listed([f"{row.defense.name} takes {points(gains[row])[1:]} points more" for row in harming]))
    return "; ".join(parts) + "."


def _help(row: Row, gain: float, lost: float, under: str | None) -> str:
    """Say what a defense gives back: the first one in a whole clause, with `under`; the others, with None, in short."""
    words = f"{row.defense.name} {'' if under is None else f'gives back {under}'}{points(gain)[1:]} points"
    if lost > 0 and under is not None:
        words += f" ({gain / lost:.0%} of what the attack took)".replace("%", "\N{NO-BREAK SPACE}%")
    if row.costs and row.clean_accuracy_change:
        words += f" but costs {points(row.clean_accuracy_change.value)[1:]} points of clean accuracy"
    return words
