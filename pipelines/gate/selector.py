"""Which attacks or defenses a threshold means: `fgm eps=8/255`, `jpeg_compression + spatial_smoothing`."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from evasion.components.common.results.treatments import Treatment, TreatmentStep, setting_text


def selects(selector: str, treatment: Treatment) -> bool:
    """Return whether a treatment is the one that a selector names.

    Args:
        selector: The names of all its steps in their order, with ` + ` between, each with any of its settings; or the
            whole label, as the gate prints it; `none` for no attack or no defense.
        treatment: All attacks or all defenses of an evaluation. A stack of two is not selected by the name of one.
    """
    if " ".join(selector.split()) == treatment.label:
        return True
    names = [part.split() for part in re.split(r"\s+\+\s+", selector)]
    if not treatment.steps:
        return names == [[treatment.name]]
    return len(names) == len(treatment.steps) and all(
        _selects_step(words, step) for words, step in zip(names, treatment.steps, strict=True)
    )


def _selects_step(words: list[str], step: TreatmentStep) -> bool:
    """Return whether a step has this name and all of these settings."""
    return words[:1] == [step.name] and all(_has(step, word) for word in words[1:])


def _has(step: TreatmentStep, word: str) -> bool:
    """Return whether a step has a setting, written as the report shows it or with an equal number."""
    name, _, value = word.partition("=")
    if name not in step.settings:
        return False
    held = step.settings[name]
    return word == setting_text(name, held) or _same_number(value, held)


def _same_number(text: str, held: Any) -> bool:
    if isinstance(held, bool) or not isinstance(held, int | float):
        return False
    try:
        # Fraction() would compute all digits of 1e999999999, float() does not.
        number = float(Fraction(text)) if "/" in text else float(text)
        return math.isclose(number, held, rel_tol=1e-6)
    except (ValueError, ZeroDivisionError, OverflowError):
        return False
