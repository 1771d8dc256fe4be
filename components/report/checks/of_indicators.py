"""Indicators that an attack failed, from what it recorded of each image.

Pintor et al. 2022, "Indicators of Attack Failure" (arXiv:2106.09947); Carlini et al. 2019, "On Evaluating Adversarial
Robustness" (arXiv:1902.06705); the checks of AutoAttack (Croce and Hein 2020, arXiv:2003.01690).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from evasion.components.common.data.provenance import AWARE
from evasion.components.common.drawing.words import percent
from evasion.components.common.results.check import Check, Status
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.treatments import Treatment

EARLIER = 0.05
"""Share of images that only an earlier iterate fools above which the steps are too long."""

RISING = (0.5, 0.02)
"""Shares of the standing images, and of all, whose loss still rises: above both, the attack needs more steps."""

BLACK_BOX = (0.01, 0.05)
"""Shares of images that only an attack without a gradient fools: above them a warning, a failure."""

SATURATED = 0.05
"""Share of images whose cross-entropy is zero, with its gradient, above which it is a failure."""

DRAWS = 4
"""Fewer draws of a random defense than this say little of its mean."""

UNCONFIRMED = 0.25
"""Share of the images that the attacker took for fooled and that another draw of the defense does not confirm."""

ZERO_GRADIENTS = 0.05
"""Share of images without a gradient above which robust accuracy says more about the attack than the model."""

ZERO_NAME, SATURATED_NAME, MASKED_NAME = "gradients not zero", "cross-entropy not saturated", "gradients not masked"
DRAWS_NAME = "enough draws of a random defense"

SCALE_FREE = "apgd-t"
"""The member of an attack whose loss a scaling of the logits does not change."""


def of_indicators(evaluations: Evaluations, attack: Treatment) -> Iterator[Check]:
    """Check one attack by all its evaluations."""
    of_attack = evaluations.of(attack)
    # Behind a random defense the loss of an iterate is a sample: of two alike, one may fool and the other not.
    repeatable = [evaluation for evaluation in of_attack if _draws_of(evaluation) is None]
    yield from _best_iterate(repeatable, attack)
    yield from _converged(repeatable, attack)
    yield from _saturated(evaluations, of_attack, attack)
    yield from _masked(of_attack, attack)
    for evaluation in of_attack:
        yield from _draws(evaluation)


def unmasked(evaluations: Evaluations) -> Iterator[Check]:
    """Say where no attack tells whether gradients are masked."""
    if not evaluations.attacks or any(each.checks.black_box_only_images is not None for each in evaluations):
        return
    norms = {str(entry.parameters.get("norm")) for each in evaluations for entry in each.attacks}
    if norms == {"1"}:
        advice = "No attack without a gradient knows norm 1: evaluate the model with auto_attack in norm inf or 2 too."
    else:
        advice = "Run auto_attack with square and a member that uses gradients, apgd-ce or apgd-t."
    text = "not checked: no attack without a gradient followed one that uses it"
    yield Check(MASKED_NAME, "all attacks", "warn", text, advice)


def flat(evaluation: Evaluation) -> float:
    """Return the share of images whose gradient was zero although no confidence rounds to 1, as far as it is known."""
    zero, saturated = (share(evaluation, name) or 0.0 for name in ("zero_gradient_images", "saturated_gradient_images"))
    return zero - saturated


def judged_by(attacked: list[Evaluation]) -> str:
    """Return the check that judges that gradients are missing or are those of few draws; blank if none has to."""
    if any(flat(each) > ZERO_GRADIENTS for each in attacked):
        return ZERO_NAME
    if any((share(each, "saturated_gradient_images") or 0.0) > SATURATED for each in attacked):
        return SATURATED_NAME
    if any((_draws_of(each) or DRAWS) < DRAWS for each in attacked):
        return DRAWS_NAME
    return ""


def explains(cause: str, status: Status) -> bool:
    """Return whether what `judged_by` found stands for another check of this status: one cause is one failure.

    Few draws are only warned of, so that they are no excuse for a failure.
    """
    return bool(cause) and not (cause == DRAWS_NAME and status == "fail")


def elsewhere(cause: str) -> str:
    """Say that another check judges the cause."""
    return f"; “{cause}” judges the cause"


def share(evaluation: Evaluation, name: str) -> float | None:
    """Return the share of images that an evaluation's check counts; None where it was not counted."""
    count, images = getattr(evaluation.checks, name), evaluation.metrics["images"]
    return None if count is None or not images else float(count / images)


def _worst(of_attack: list[Evaluation], name: str) -> tuple[Evaluation, float] | None:
    """Return the evaluation in which a check counts most, with its share."""
    shares = [(each, value) for each in of_attack if (value := share(each, name)) is not None]
    return max(shares, key=lambda pair: pair[1], default=None)


def subject_of(evaluation: Evaluation, attack: Treatment) -> str:
    """Return what a check of one attacker's evaluation is about."""
    return evaluation.title if evaluation.knowledge == AWARE else attack.label


def _best_iterate(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    worst = _worst(of_attack, "fooled_earlier_images")
    if worst is None:
        return
    evaluation, value = worst
    name, subject = "best iterate kept", subject_of(evaluation, attack)
    text = f"an earlier iterate fools {percent(value)} of the images and the last one does not"
    if value > EARLIER:
        advice = "The numbers stand, for the best iterate is saved. But the steps are too long: try a smaller eps_step."
        yield Check(name, subject, "warn", text, advice)
    else:
        yield Check(name, subject, "pass", text)


def _converged(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    worst = _worst(of_attack, "rising_images")
    if worst is None:
        return
    evaluation, value = worst
    rising, standing = evaluation.checks.rising_images or 0, evaluation.checks.standing_images or 0
    name, subject = "loss converged", subject_of(evaluation, attack)
    text = f"of {standing:,} images that stand, the loss of {rising:,} still rose in the last tenth of the steps"
    if standing and rising / standing > RISING[0] and value > RISING[1]:
        advice = "The attack stopped too early, so robust accuracy looks too good: raise max_iter or eps_step."
        yield Check(name, subject, "warn", text, advice)
    else:
        yield Check(name, subject, "pass", text)


def _saturated(evaluations: Evaluations, of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    worst = _worst(of_attack, "saturated_gradient_images")
    if worst is None:
        return
    evaluation, value = worst
    name, subject = SATURATED_NAME, subject_of(evaluation, attack)
    if not value:
        yield Check(name, subject, "pass", "no image lost its gradient to a confidence that rounds to 1")
        return
    text = f"{percent(value)} of the images have no gradient, for their confidence rounds to 1"
    if all(_scale_free(each) for each in of_attack):
        yield Check(name, subject, "pass", f"{text}; harmless, for {SCALE_FREE} does not depend on the scale of logits")
    elif carrier := _carrier(evaluations, attack):
        advice = f"Go by the worst case over all attacks: {carrier.name} does not depend on the scale of the logits."
        yield Check(name, subject, "warn", f"{text}: what this attack leaves is too much", advice)
    else:
        advice = "The logits are so far apart that the cross-entropy is zero: "
        if bound_of(evaluation)[0] == "1":
            advice += "divide them by a number in the model, which changes no prediction."
        else:
            advice += f"attack with auto_attack and its member {SCALE_FREE}, which does not depend on their scale."
        yield Check(name, subject, "fail" if value > SATURATED else "warn", text, advice)


def _scale_free(evaluation: Evaluation) -> bool:
    """Return whether the attack has a member whose loss does not fade as logits grow; behind a softmax any does."""
    return any(
        entry.gradient_from_logits is True
        and entry.model_sha256 == evaluation.model.sha256
        and SCALE_FREE in str(entry.parameters.get("members", "")).split(",")
        for entry in evaluation.attacks
    )


def _carrier(evaluations: Evaluations, attack: Treatment) -> Treatment | None:
    """Return an attack by which the worst case stands: as large, on all that this one was evaluated on."""

    def covers(other: Evaluation, own: Evaluation) -> bool:
        (norm, eps), (other_norm, other_eps) = bound_of(own), bound_of(other)
        return _scale_free(other) and other_norm == norm and other_eps >= eps

    def carries(other: Treatment) -> bool:
        cells = evaluations.cells
        return all(
            covers(cells[other.key, defense, knowledge], own) if (other.key, defense, knowledge) in cells else False
            for (key, defense, knowledge), own in cells.items()
            if key == attack.key
        )

    return next((other for other in evaluations.attacks if other != attack and carries(other)), None)


def bound_of(evaluation: Evaluation) -> tuple[str, float]:
    """Return the norm and the eps of a single attack; of several there is no common bound."""
    if len(evaluation.attacks) != 1:
        return "", math.nan
    parameters = evaluation.attacks[0].parameters
    eps = parameters.get("eps")
    return str(parameters.get("norm")), float(eps) if isinstance(eps, int | float) else math.nan


def _masked(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    counted = [each for each in of_attack if each.checks.black_box_only_images is not None]
    worst = _worst([each for each in counted if not _masked_because(each)] or counted, "black_box_only_images")
    if worst is None:
        return
    evaluation, value = worst
    name, subject = MASKED_NAME, subject_of(evaluation, attack)
    text = f"only the attack without a gradient fools {percent(value)} of the images"
    if value <= BLACK_BOX[0]:
        yield Check(name, subject, "pass", text)
    elif cause := _masked_because(evaluation):
        yield Check(name, subject, "pass", text + elsewhere(cause))
    else:
        advice = (
            "An attack that sees more must not do worse: gradients are masked. Give the attack without a gradient more "
            "queries, and look for what hides gradients (rounding, saturation, randomness)."
        )
        yield Check(name, subject, _masked_status(evaluation), text, advice)


def _masked_status(evaluation: Evaluation) -> Status:
    return "fail" if (share(evaluation, "black_box_only_images") or 0.0) > BLACK_BOX[1] else "warn"


def _masked_because(evaluation: Evaluation) -> str:
    """Return the check that judges why gradients did worse; blank if there is none."""
    cause = judged_by([evaluation])
    no_excuse = cause == SATURATED_NAME and _scale_free(evaluation)
    return cause if explains(cause, _masked_status(evaluation)) and not no_excuse else ""


def _draws(evaluation: Evaluation) -> Iterator[Check]:
    """Check whether the attacker's mean over draws says what another draw of the random defense does."""
    draws = _draws_of(evaluation)
    if draws is None or evaluation.knowledge != AWARE:
        return
    name, text = DRAWS_NAME, f"eot_samples={draws}"
    claimed, unconfirmed = evaluation.checks.claimed_images, evaluation.checks.unconfirmed_images or 0
    value = unconfirmed / claimed if claimed else 0.0
    if claimed:
        text += f"; another draw does not confirm {percent(value)} of the {claimed:,} images that the attacker fooled"
    if draws < DRAWS or value > UNCONFIRMED:
        advice = "The attacker fooled its own draws rather than the defense: raise eot_samples."
        yield Check(name, evaluation.title, "warn", text, advice)
    else:
        yield Check(name, evaluation.title, "pass", text)


def _draws_of(evaluation: Evaluation) -> int | None:
    """Over how many draws of a random defense the attack averaged; None without one."""
    return next((entry.draws for entry in evaluation.attacks if entry.draws is not None), None)
