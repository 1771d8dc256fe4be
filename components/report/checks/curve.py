"""The checks that the security curve and its controls allow (Carlini et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.results.curve import Curve, Series
from evasion.components.common.results.evaluations import Evaluation, Evaluations
from evasion.components.common.results.outcomes import Outcome, Paired, probability
from evasion.components.common.results.table import Share, percent
from evasion.components.report.checks.check import Finding, Status

ROUNDING = (0.01, 0.05)
"""Differences between saved and computed images beyond chance: from here on a warning, from here on a failure."""
KEPT = 0.5
"""Share of the accuracy above chance that, left at eps = 1, is a failure of the attack."""
REPEATED = 0.01
"""Share of predictions that another process may make differently before it is a failure."""


def findings(evaluations: Evaluations, curve: Curve) -> Iterator[Finding]:
    """Make every check that the curve's data allows."""
    yield from _falls(curve)
    yield from _whole_range(curve)
    outcomes = {name: curve.outcome(name, evaluations.outcomes) for name in curve.controls}
    yield from _noise(curve, outcomes)
    yield from _pgd(curve, outcomes)
    yield from _rounding(curve, outcomes)
    yield from _repeated(evaluations, curve)


def _falls(curve: Curve) -> Iterator[Finding]:
    """Whoever may change more can change less, so a rise says that the attack lost its way."""
    name, falling = "accuracy falls as eps grows", []
    for series in curve.series:
        if series.control:
            continue
        subject = f"{curve.label}, {series.name}"
        serious: Status = "fail" if series is curve.undefended else "warn"
        (start, first), (end, last) = series.points[0], series.points[-1]
        rise = _rise(curve, series)
        if rise:
            (before, low), (after, high) = rise
            text = f"it rises from {percent(low.value)} at eps {before:.3g} to {percent(high.value)} at {after:.3g}"
            advice = (
                "The gradient leads astray there (masked, or too long a step): trust smaller eps, compare with PGD."
            )
            # Where the attack has left no more than chance, one step that is too long leads past the mark.
            yield Finding(name, subject, serious if low.low > curve.chance else "warn", text, advice)
        elif min(share.high for _, share in series.points) >= first.low > curve.chance:
            text = f"{percent(first.value)} at eps {start:g}, {percent(last.value)} at {end:g}"
            advice = "No eps hurts: check that the attack reaches the model and that gradients are not zero."
            yield Finding(name, subject, serious, text, advice)
        else:
            falling.append(series)
    if falling:
        (start, first), (end, last) = falling[0].points[0], falling[0].points[-1]
        text = f"{falling[0].name}: from {percent(first.value)} at eps {start:g} to {percent(last.value)} at {end:g}"
        subject = f"{curve.label}, {len(falling)} curve{'s' * (len(falling) > 1)}"
        yield Finding(name, subject, "pass", f"none rises above chance; {text}")


def _rise(curve: Curve, series: Series) -> tuple[tuple[float, Share], tuple[float, Share]] | None:
    """The largest rise above chance that intervals do not explain."""
    found, lowest = [], series.points[0]
    for point in series.points[1:]:
        if point[1].low > max(lowest[1].high, curve.chance):
            found.append((lowest, point))
        lowest = min(lowest, point, key=lambda each: each[1].value)
    return max(found, key=lambda pair: pair[1][1].value - pair[0][1].value, default=None)


def _whole_range(curve: Curve) -> Iterator[Finding]:
    if curve.norm != "inf" or curve.undefended is None or curve.undefended.points[-1][0] < 1:
        return
    (_, clean), (_, share) = curve.undefended.points[0], curve.undefended.points[-1]
    name, subject = "at or under chance at eps = 1", f"{curve.label}, no defense"
    text = f"{percent(share.value)}, chance is {percent(curve.chance)}"
    if share.low <= curve.chance:
        yield Finding(name, subject, "pass", text)
        return
    # One long step may miss where many short ones do not, above all with a model trained against attacks.
    kept = (share.value - curve.chance) / max(clean.value - curve.chance, share.value - curve.chance)
    advice = "Whoever may change every pixel at will fools any model; one step need not: trust PGD at large eps."
    yield Finding(name, subject, "fail" if kept > KEPT else "warn", text, advice)


def _noise(curve: Curve, outcomes: dict[str, Outcome | None]) -> Iterator[Finding]:
    paired = _paired(outcomes, "noise", "saved")
    if paired is None:
        return
    name, subject, text = "noise hurts less than the attack", _at(curve), _left(curve, paired, "saved", "noise")
    if paired.falls:
        yield Finding(name, subject, "pass", text)
    else:
        advice = "The attack is no better than chance directions: check its gradients, or take a larger eps."
        yield Finding(name, subject, "fail" if paired.rises else "warn", text, advice)


def _pgd(curve: Curve, outcomes: dict[str, Outcome | None]) -> Iterator[Finding]:
    paired = _paired(outcomes, "saved", "pgd")
    if paired is None:
        return
    name, subject, text = "PGD hurts no less", _at(curve), _left(curve, paired, "pgd", "saved")
    settings = " ".join(f"{name}={value:.4g}" for name, value in curve.settings["pgd"].items())
    text += f" ({settings})" if settings else ""
    if paired.rises:
        advice = "Steps must not do worse than one step: the gradient is masked; try random starts or no gradient."
        yield Finding(name, subject, "fail", text, advice)
    else:
        yield Finding(name, subject, "pass", text)


def _rounding(curve: Curve, outcomes: dict[str, Outcome | None]) -> Iterator[Finding]:
    paired = _paired(outcomes, "computed", "saved")
    if paired is None:
        return
    name, subject = "saved images as computed", _at(curve)
    computed, saved = curve.controls["computed"], curve.controls["saved"]
    apart = abs(computed.value - saved.value)
    text = f"{percent(saved.value)} of saved and {percent(computed.value)} of computed images are right"
    if paired.may_be_chance or apart <= ROUNDING[0]:
        yield Finding(name, subject, "pass", text)
    else:
        advice = "Rounding to 8 bits decides the result: take an eps that is a multiple of 1/255, or a larger one."
        yield Finding(name, subject, "fail" if apart > ROUNDING[1] else "warn", text, advice)


def _repeated(evaluations: Evaluations, curve: Curve) -> Iterator[Finding]:
    """The curve attacked the images once more, in a process of its own."""
    evaluation = next((e for e in evaluations if _is_same_attack(e, curve)), None)
    if evaluation is None or "saved" not in curve.controls:
        return
    again = {row["path"]: row["saved"] for row in curve.predictions()}
    both = [
        (row["predicted"], again[original])
        for row in evaluation.predictions()
        if (original := evaluation.original(row["path"])) in again
    ]
    differing, name = sum(one != other for one, other in both), "attack repeated"
    if not both:
        return
    if not differing:
        text = f"two processes agree on all {len(both):,} predictions"
        yield Finding(name, evaluation.title, "pass", text)
        return
    text = f"two processes disagree on {differing:,} of {len(both):,} predictions"
    advice = "The same seed must give the same numbers: compare hardware and versions of the two steps."
    yield Finding(name, evaluation.title, "fail" if differing / len(both) > REPEATED else "warn", text, advice)


def _is_same_attack(evaluation: Evaluation, curve: Curve) -> bool:
    attacks = [stage for stage in evaluation.stages if stage.kind == "attack"]
    if len(attacks) != 1 or any(stage.kind == "defense" for stage in evaluation.stages):
        return False
    (attack,) = attacks
    return (
        attack.name == curve.attack
        and str(attack.parameters.get("norm")) == curve.norm
        and attack.parameters.get("eps") == curve.eps
        and not attack.parameters.get("minimal")
        and attack.aim is None
        and attack.seed == curve.seed
        and attack.model_sha256 == evaluation.model["sha256"]
    )


def _paired(outcomes: dict[str, Outcome | None], before: str, after: str) -> Paired | None:
    one, other = outcomes.get(before), outcomes.get(after)
    return None if one is None or other is None else Paired.between(one, other)


def _left(curve: Curve, paired: Paired, ours: str, theirs: str) -> str:
    """Say what each of two controls leaves."""
    names = {"saved": curve.attack, "noise": "uniform noise", "pgd": "PGD"}
    one, other = (f"{percent(curve.controls[each].value)} are left by {names[each]}" for each in (ours, theirs))
    return f"{one}, {other}, {probability(paired.p)}"


def _at(curve: Curve) -> str:
    return f"{curve.label} eps={curve.eps:.4g}"
