"""A report beside an earlier one of the same images: is a drop more than noise?"""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.results.outcomes import SIGNIFICANCE, Paired, holm, probability
from evasion.components.common.results.paired import Difference
from evasion.components.common.results.report import Model, Treated
from evasion.components.common.results.table import percent, points
from evasion.pipelines.gate.verdict import Outcome, Verdict

BASELINE = "baseline"


def of_baseline(model: Model, baseline: Model, allowed_drop: float) -> Iterator[Verdict]:
    """Test each row of the baseline against the report's, image by image.

    Args:
        model: The report.
        baseline: The earlier one.
        allowed_drop: A drop that is surely no larger passes, even if it is more than noise.
    """
    if model.originals != baseline.originals:
        found = f"it is of {baseline.images:,} other images than the report's {model.images:,} (file names and labels)"
        yield Verdict(BASELINE, BASELINE, Outcome.UNKNOWN, found, "Evaluate both models on the same data.")
        return
    if not baseline.outcomes:
        found = "it does not say of each image whether it was right"
        yield Verdict(BASELINE, BASELINE, Outcome.UNKNOWN, found, "Take another baseline.")
    common = [treated for treated in baseline.outcomes if treated in model.outcomes]
    paired = [Paired.between(baseline.outcomes[treated], model.outcomes[treated]) for treated in common]
    for treated, pair, p in zip(common, paired, holm([pair.p for pair in paired]), strict=True):
        difference = Difference.between(baseline.outcomes[treated], model.outcomes[treated])
        before = float((baseline.outcomes[treated] == 1).mean())
        yield _verdict(treated, pair, p, before, difference, allowed_drop)
    for treated in baseline.outcomes:
        if treated not in model.outcomes:
            found = "the baseline has it, the report does not"
            advice = "Evaluate the same attacks and defenses with the same settings, or renew the baseline."
            yield Verdict(BASELINE, _name(treated), Outcome.UNKNOWN, found, advice)


def _verdict(
    treated: Treated, pair: Paired, p: float, before: float, difference: Difference, allowed_drop: float
) -> Verdict:
    outcome, drop = Outcome.PASS, difference.reversed
    told = (
        f"{percent(before)} → {percent(before + difference.value)}, {points(difference.value)} points "
        f"[{points(difference.low)}, {points(difference.high)}]"
    )
    if p >= SIGNIFICANCE:
        said = "no more than noise"
    elif difference.value > 0:
        said = "a rise beyond noise"
    elif drop.high <= allowed_drop:
        said = f"a drop beyond noise, surely within the {100 * allowed_drop:.3g} points allowed"
    else:
        outcome, said = Outcome.FAIL, "a drop beyond noise"
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
    return Verdict(BASELINE, _name(treated), outcome, f"{said}: {told}, {probability(p)}", numbers=numbers)


def _name(treated: Treated) -> str:
    attack, defense, attacker = treated
    with_defense = f" + {defense}" if defense else ""
    return f"{attack or 'clean images'}{with_defense}{f' ({attacker})' if attacker else ''}"
