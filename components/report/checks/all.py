"""All checks that say whether the numbers of a report can be trusted.

A new check is a function of one of the modules here that yields a `Check`.
"""

from __future__ import annotations

from evasion.components.common.results.check import Check
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.curve import MeasuredCurve
from evasion.components.common.results.treatments import NONE
from evasion.components.report.checks.of_attacks import of_attack
from evasion.components.report.checks.of_curve import of_curve
from evasion.components.report.checks.of_defenses import of_defense
from evasion.components.report.checks.of_indicators import unmasked
from evasion.components.report.checks.of_model import of_model

_ORDER = ("fail", "warn", "pass")


def all_checks(evaluations: Evaluations, curve: MeasuredCurve | None, clean_accuracy_floor: float) -> list[Check]:
    """Make every check that applies, the failed ones first.

    Args:
        evaluations: All evaluations of the report.
        curve: The security curve, or None.
        clean_accuracy_floor: Clean accuracy in [0, 1] below which the numbers are not to be trusted.
    """
    checks = [*of_model(evaluations, clean_accuracy_floor)]
    if curve:
        checks += of_curve(evaluations, curve)
    for attack in evaluations.attacks:
        checks += of_attack(evaluations, attack)
    checks += unmasked(evaluations)
    for defense in evaluations.defenses:
        if defense != NONE:
            checks += of_defense(evaluations, defense)
    return sorted(checks, key=lambda check: _ORDER.index(check.status))
