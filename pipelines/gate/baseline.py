"""A report beside an earlier one of the same images: is a drop more than noise?"""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.drawing.words import percent, points, probability
from evasion.components.common.results.paired import SIGNIFICANCE, Difference, Paired, holm
from evasion.components.common.results.report import Cell, Report
from evasion.pipelines.gate.verdict import Judgement, Verdict

BASELINE = "baseline"


def compare_with_baseline(report: Report, baseline: Report, allowed_drop: float) -> Iterator[Verdict]:
    """Test each row of the baseline against the report's, image by image: which are right clean, which are robust.

    Args:
        report: The report.
        baseline: The earlier one.
        allowed_drop: A drop that is surely no larger passes, even if it is more than noise.
    """
    if report.originals.sha256 != baseline.originals.sha256:
        finding = (
            f"it is of {baseline.originals.images:,} other images than the report's {report.originals.images:,} "
            "(file names and labels)"
        )
        yield Verdict(BASELINE, BASELINE, Judgement.UNKNOWN, finding, "Evaluate both models on the same data.")
        return
    if not baseline.outcomes:
        finding = "it does not say of each image whether it was right"
        yield Verdict(BASELINE, BASELINE, Judgement.UNKNOWN, finding, "Take another baseline.")
    common = [cell for cell in baseline.outcomes if cell in report.outcomes]
    paired = [Paired.between(baseline.outcomes[cell], report.outcomes[cell]) for cell in common]
    for cell, pair, p in zip(common, paired, holm([pair.p for pair in paired]), strict=True):
        difference = Difference.between(baseline.outcomes[cell], report.outcomes[cell])
        before = float((baseline.outcomes[cell] == 1).mean())
        yield _verdict(cell, pair, p, before, difference, allowed_drop)
    for cell in baseline.outcomes:
        if cell not in report.outcomes:
            finding = "the baseline has it, the report does not"
            advice = "Evaluate the same attacks and defenses with the same settings, or renew the baseline."
            yield Verdict(BASELINE, _name(cell), Judgement.UNKNOWN, finding, advice)


def _verdict(cell: Cell, pair: Paired, p: float, before: float, difference: Difference, allowed_drop: float) -> Verdict:
    judgement, drop = Judgement.PASS, difference.reversed
    change = (
        f"{percent(before)} → {percent(before + difference.value)}, {points(difference.value)} points "
        f"[{points(difference.low)}, {points(difference.high)}]"
    )
    if p >= SIGNIFICANCE:
        result = "no more than noise"
    elif difference.value > 0:
        result = "a rise beyond noise"
    elif drop.high <= allowed_drop:
        result = f"a drop beyond noise, surely within the {100 * allowed_drop:.3g} points allowed"
    else:
        judgement, result = Judgement.FAIL, "a drop beyond noise"
    numbers = {
        "before": before,
        "after": before + difference.value,
        "change": difference.value,
        "low": difference.low,
        "high": difference.high,
        "n": difference.n,
        "only_before_right": pair.lost,
        "only_after_right": pair.gained,
        "p": pair.p,
        "p_adjusted": p,
    }
    return Verdict(BASELINE, _name(cell), judgement, f"{result}: {change}, {probability(p)}", numbers=numbers)


def _name(cell: Cell) -> str:
    attack, defense, attacker = cell
    with_defense = f" + {defense}" if defense else ""
    return f"{attack or 'clean images'}{with_defense}{f' ({attacker})' if attacker else ''}"
