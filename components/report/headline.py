"""The sentences that the table amounts to."""

from __future__ import annotations

from evasion.components.common.results.table import Row, percent, points, strongest


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
    tried = [row for row in table if row.attack == worst.attack and row.defense.applied and row.robust_change]
    if not tried:
        return first, "No defense was evaluated against it."
    aware, oblivious = ([row for row in tried if row.aware is known] for known in (True, False))
    if not aware:
        told = _defenses(oblivious, worst)
        # The name of a step keeps its small letter.
        return first, told.replace("none of", "None of", 1)
    told = f"Once the attacker knows the defense, {_defenses(aware, worst)}"
    if oblivious:
        told += f" Against an attacker who does not know it, {_defenses(oblivious, worst)}"
    return first, told


def _without_baseline(table: list[Row], model: str) -> str:
    attacked = [row for row in table if row.robust]
    if attacked:
        each = ", ".join(f"{percent(row.robust.value)} with {row.defense.name}" for row in attacked if row.robust)
        return f"Under attack {model} is right on {each}; the attack without a defense was not evaluated."
    clean = next((row.clean for row in table if row.clean), None)
    right = f"{model} is right on {percent(clean.value)} of {clean.n:,} images. " if clean else ""
    return f"{right}No attack was evaluated, so this says nothing about robustness."


def _defenses(tried: list[Row], worst: Row) -> str:
    gains = {row: row.robust_change.value for row in tried if row.robust_change}
    helping = sorted((row for row in tried if row.helps), key=lambda row: -gains[row])
    harming = [row for row in tried if row.harms]
    rest = [row.defense.name for row in tried if not row.helps and not row.harms]
    lost = worst.clean.value - worst.robust.value if worst.clean and worst.robust else 0.0
    parts: list[str] = []
    told: list[str] = []
    for row in helping:
        words = f"{row.defense.name} {'' if told else 'gives back '}{points(gains[row])[1:]} points"
        if lost > 0 and not told:
            words += f" ({gains[row] / lost:.0%} of what the attack took)".replace("%", "\N{NO-BREAK SPACE}%")
        if row.costs and row.clean_change:
            words += f" but costs {points(row.clean_change.value)[1:]} points of clean accuracy"
        told.append(words)
    if told:
        parts.append(listed(told))
    if len(rest) == len(tried) > 1:
        parts.append(f"none of the {len(rest)} defenses shows a gain beyond chance")
    elif rest:
        parts.append(f"{listed(rest)} {'shows' if len(rest) == 1 else 'show'} no gain beyond chance")
    if harming:
        parts.append(listed([f"{row.defense.name} takes {points(gains[row])[1:]} points more" for row in harming]))
    return "; ".join(parts) + "."


def listed(words: list[str]) -> str:
    """Words as a sentence lists them: a, b and c."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
