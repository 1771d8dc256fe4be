"""Checks that the security curve and its controls allow (Carlini et al. 2019; Pintor et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.data.provenance import AWARE, DEFENSE
from evasion.components.common.drawing.words import percent, probability
from evasion.components.common.results.check import Check, Status
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.curve import (
    CLEAN,
    COMPUTED,
    NOISE,
    PGD,
    SAVED,
    Curve,
    MeasuredCurve,
    Point,
    Series,
    of_defense,
)
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.paired import Correctness, Paired
from evasion.components.common.results.treatments import TreatmentStep
from evasion.components.report.checks.of_indicators import SATURATED_NAME, elsewhere, explains, judged_by

ROUNDING = (0.01, 0.05)
"""Differences between saved and computed images beyond chance: from here on a warning, from here on a failure."""

KEPT = 0.5
"""Share of the accuracy above chance that, left at eps = 1, is a failure of the attack."""

UNBOUNDED = (0.01, 0.05)
"""Shares of images that PGD leaves without a bound: a warning if their interval is above the first, a failure if it is
above the second."""

SMOOTH = (0.55, 0.4)
"""Shares of the loss's change that its gradient tells: below the first a warning, below the second a failure.

Measured on digits: convolutional and dense networks, plain and trained against PGD, 0.68 to 0.98; networks whose
winners, 10 or 20 %, take all 0.19 to 0.25.
"""

REPEATED = 0.01
"""Share of predictions that another process may make differently before it is a failure."""


def of_curve(evaluations: Evaluations, curve: MeasuredCurve) -> Iterator[Check]:
    """Make every check that the curve's data allows."""
    yield from _falls(evaluations, curve)
    yield from _whole_range(curve, _lacks_gradients(evaluations, None))
    correctness = curve.correctness(evaluations.per_image)
    for defense in curve.defenses:
        cause = _lacks_gradients(evaluations, defense)
        yield from _unbounded(curve, defense, cause)
        yield from _noise(curve, correctness, defense, cause)
        yield from _pgd(curve, correctness, defense)
    yield from _smooth(curve)
    yield from _rounding(curve, correctness)
    yield from _repeated(evaluations, curve)


def _lacks_gradients(evaluations: Evaluations, defense: TreatmentStep | None) -> str:
    """Return the check that judges that an attacker who knows the defense has no gradients; blank if it has.

    The curve follows the same gradients as the attacks of the evaluation: one cause is one failure.
    """
    attacked = [each for each in evaluations if each.attacks]
    if defense is None:
        return judged_by([each for each in attacked if each.knowledge != AWARE])
    return judged_by([each for each in attacked if each.knowledge == AWARE and each.defense.steps == (defense,)])


def _falls(evaluations: Evaluations, curve: MeasuredCurve) -> Iterator[Check]:
    """Whoever may change more can change less, so a rise says that the attack lost its way.

    Where PGD has fooled a model once, that counts for all larger sizes, so only the single step can rise. It may where
    it has left no more than chance: one step that is too long leads past the mark.
    """
    name, falling = "accuracy falls as eps grows", []
    for series in curve.series:
        if series.perturbation != curve.attack:
            continue
        subject = f"{curve.label}, {series.name}"
        serious: Status = "warn" if series.defense else "fail"
        first, last = series.points[0], series.points[-1]
        rise = _rise(curve, series)
        if rise:
            low, high = rise
            text = f"it rises from {_point(low)} to {_point(high)}"
            advice = (
                "The gradient leads astray there (masked, or too long a step): trust smaller eps, compare with PGD."
            )
            yield Check(name, subject, serious, text, advice)
        elif min(point.accuracy.high for point in series.points) >= first.accuracy.low > curve.chance:
            text = f"{_point(first)}, {_point(last)}"
            cause = _lacks_gradients(evaluations, series.defense if series.knowledge == AWARE else None)
            if explains(cause, serious):
                yield Check(name, subject, "pass", text + elsewhere(cause))
                continue
            advice = "No eps hurts: check that the attack reaches the model and that gradients are not zero."
            yield Check(name, subject, serious, text, advice)
        else:
            falling.append(series)
    if falling:
        first, last = falling[0].points[0], falling[0].points[-1]
        text = f"{falling[0].name}: from {_point(first)} to {_point(last)}"
        subject = f"{curve.label}, {len(falling)} curve{'s' * (len(falling) > 1)}"
        yield Check(name, subject, "pass", f"none rises above chance; {text}")


def _point(point: Point) -> str:
    return f"{percent(point.accuracy.value)} at eps {point.eps:.3g}"


def _rise(curve: Curve, series: Series) -> tuple[Point, Point] | None:
    """Return the largest rise from above chance that intervals do not explain."""
    rises, lowest = [], series.points[0]
    for point in series.points[1:]:
        if point.accuracy.low > lowest.accuracy.high and lowest.accuracy.low > curve.chance:
            rises.append((lowest, point))
        lowest = min(lowest, point, key=lambda each: each.accuracy.value)
    return max(rises, key=lambda pair: pair[1].accuracy.value - pair[0].accuracy.value, default=None)


def _whole_range(curve: MeasuredCurve, cause: str) -> Iterator[Check]:
    undefended = curve.line(curve.attack)
    if curve.norm != "inf" or undefended is None or undefended.points[-1].eps < 1:
        return
    clean, share = (point.accuracy for point in (undefended.points[0], undefended.points[-1]))
    name, subject = "at or under chance at eps = 1", f"{curve.label}, no defense"
    text = f"{percent(share.value)}, chance is {percent(curve.chance)}"
    if share.low <= curve.chance:
        yield Check(name, subject, "pass", text)
        return
    # One long step may miss where many short ones do not, above all with a model trained against attacks.
    kept = (share.value - curve.chance) / max(clean.value - curve.chance, share.value - curve.chance)
    status: Status = "fail" if kept > KEPT else "warn"
    if explains(cause, status):
        yield Check(name, subject, "pass", text + elsewhere(cause))
        return
    advice = "Whoever may change every pixel at will fools any model; one step need not: trust PGD at large eps."
    yield Check(name, subject, status, text, advice)


def _unbounded(curve: MeasuredCurve, defense: TreatmentStep | None, cause: str) -> Iterator[Check]:
    """Whoever may change every pixel at will fools any model: what is left is a failure of the attack.

    PGD follows the logits where the cross-entropy has no gradient, so a saturated one is no excuse.
    """
    series = _known(curve, PGD, defense)
    if curve.norm != "inf" or series is None:
        return
    name, last = "PGD reaches 0 without a bound", series.points[-1]
    subject, share = f"norm={curve.norm}, {series.name}", last.accuracy
    if last.eps < 1:
        advice = "Add 1 to eps_values, or leave them blank."
        yield Check(name, subject, "warn", f"not checked: the largest eps is {last.eps:.4g}", advice)
        return
    text, (warned, failed) = f"{percent(share.value)} are left at eps = 1", UNBOUNDED
    status: Status = "fail" if share.low > failed else "warn"
    if share.low <= warned:
        yield Check(name, subject, "pass", text)
    elif cause != SATURATED_NAME and explains(cause, status):
        yield Check(name, subject, "pass", text + elsewhere(cause))
    else:
        advice = (
            "The attack fails, not the model: check its gradients, raise pgd_max_iter, and use an attack without them."
        )
        yield Check(name, subject, status, text, advice)


def _noise(
    curve: MeasuredCurve, correctness: dict[str, Correctness], defense: TreatmentStep | None, cause: str
) -> Iterator[Check]:
    paired = _paired(correctness, defense, NOISE, SAVED)
    if paired is None:
        return
    name, subject = "noise hurts less than the attack", _at(curve, defense)
    text = _left(curve, paired, defense, SAVED, NOISE)
    status: Status = "fail" if paired.rises else "warn"
    if paired.falls:
        yield Check(name, subject, "pass", text)
    elif explains(cause, status):
        yield Check(name, subject, "pass", text + elsewhere(cause))
    else:
        advice = "The attack is no better than chance directions: check its gradients, or take a larger eps."
        yield Check(name, subject, status, text, advice)


def _pgd(curve: MeasuredCurve, correctness: dict[str, Correctness], defense: TreatmentStep | None) -> Iterator[Check]:
    paired = _paired(correctness, defense, SAVED, PGD)
    if paired is None:
        return
    name, subject = "PGD hurts no less", _at(curve, defense)
    text = _left(curve, paired, defense, PGD, SAVED)
    settings = " ".join(f"{name}={value:.4g}" for name, value in curve.controls[PGD].settings.items())
    text += f" ({settings})" if settings else ""
    if paired.rises:
        advice = "Steps must not do worse than one step: the gradient is masked; try random starts or no gradient."
        yield Check(name, subject, "fail", text, advice)
    else:
        yield Check(name, subject, "pass", text)


def _smooth(curve: MeasuredCurve) -> Iterator[Check]:
    """A loss that jumps within one level leads steps along its gradient nowhere (Pintor et al. 2022)."""
    if curve.smoothness is None:
        return
    name, subject = "loss is smooth around the image", "no defense"
    value, images = curve.smoothness.value, curve.smoothness.images
    text = f"the gradient tells {percent(value)} of how the loss changes within one 8-bit level, {images} images"
    warned, failed = SMOOTH
    if value >= warned:
        yield Check(name, subject, "pass", text)
    else:
        advice = "Steps along such gradients lead nowhere: use an attack without gradients, such as Square."
        yield Check(name, subject, "fail" if value < failed else "warn", text, advice)


def _rounding(curve: MeasuredCurve, correctness: dict[str, Correctness]) -> Iterator[Check]:
    if not {CLEAN, COMPUTED, SAVED} <= correctness.keys():
        return
    paired = Paired.between(correctness[COMPUTED], correctness[SAVED], correctness[CLEAN])
    name, subject = "saved images as computed", _at(curve, None)
    computed, saved = (curve.controls[name].accuracy for name in (COMPUTED, SAVED))
    apart = abs(computed.value - saved.value)
    text = f"{percent(saved.value)} of saved and {percent(computed.value)} of computed images are robust"
    if paired.may_be_chance or apart <= ROUNDING[0]:
        yield Check(name, subject, "pass", text)
    else:
        advice = "Rounding to 8 bits decides the result: take an eps that is a multiple of 1/255, or a larger one."
        yield Check(name, subject, "fail" if apart > ROUNDING[1] else "warn", text, advice)


def _repeated(evaluations: Evaluations, curve: MeasuredCurve) -> Iterator[Check]:
    """The curve attacked the images once more, in a process of its own."""
    evaluation = next((e for e in evaluations if _is_same_attack(e, curve)), None)
    if evaluation is None or SAVED not in curve.controls:
        return
    again = {row["path"]: row[SAVED] for row in curve.predictions()}
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
        yield Check(name, evaluation.title, "pass", text)
        return
    text = f"two processes disagree on {differing:,} of {len(both):,} predictions"
    advice = "The same seed must give the same numbers: compare hardware and versions of the two steps."
    yield Check(name, evaluation.title, "fail" if differing / len(both) > REPEATED else "warn", text, advice)


def _is_same_attack(evaluation: Evaluation, curve: Curve) -> bool:
    """Return whether the evaluation is of the attack that the curve used at its `eps`, without a defense."""
    attacks = evaluation.attacks
    if len(attacks) != 1 or any(entry.kind == DEFENSE for entry in evaluation.dataset.provenance):
        return False
    (attack,) = attacks
    return (
        attack.stage == curve.attack
        and str(attack.parameters.get("norm")) == curve.norm
        and attack.parameters.get("eps") == curve.eps
        and not attack.parameters.get("minimal")
        and attack.defense is None
        and attack.seed == curve.seed
        and attack.model_sha256 == evaluation.model.sha256
    )


def _known(curve: Curve, perturbation: str, defense: TreatmentStep | None) -> Series | None:
    """Return the line of an attacker who knows the defense; without one, of the model alone."""
    return curve.line(perturbation, defense, AWARE if defense else None)


def _paired(
    correctness: dict[str, Correctness], defense: TreatmentStep | None, before: str, after: str
) -> Paired | None:
    """Pair two controls of a model, among the images that it has right without attack."""
    names = [of_defense(each, defense.name if defense else None) for each in (before, after, CLEAN)]
    if any(name not in correctness for name in names):
        return None
    return Paired.between(*(correctness[name] for name in names))


def _left(curve: MeasuredCurve, paired: Paired, defense: TreatmentStep | None, ours: str, theirs: str) -> str:
    """Say what each of two controls leaves, of the images that are right without attack."""
    names = {SAVED: curve.attack, NOISE: "uniform noise", PGD: "PGD"}
    perturbations = {SAVED: curve.attack}

    def left(control: str) -> str:
        known = None if control == NOISE else AWARE if defense else None
        series = curve.line(perturbations.get(control, control), defense, known)
        point = next((each for each in series.points if each.eps == curve.eps), None) if series else None
        return f"{percent(point.accuracy.value) if point else '–'} are left by {names[control]}"

    return f"{left(ours)}, {left(theirs)}, {probability(paired.p)}"


def _defense_name(defense: TreatmentStep | None) -> str:
    return f"aware of {defense.label}" if defense else "no defense"


def _at(curve: MeasuredCurve, defense: TreatmentStep | None) -> str:
    at = f"{curve.label} eps={curve.eps:.4g}"
    return f"{at}, {_defense_name(defense)}" if defense else at
