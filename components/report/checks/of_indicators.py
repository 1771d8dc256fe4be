"""Indicators that an attack failed, from what it recorded of each image.

Pintor et al. 2022, "Indicators of Attack Failure" (arXiv:2106.09947); Carlini et al. 2019, "On Evaluating Adversarial
Robustness" (arXiv:1902.06705); the checks of AutoAttack (Croce and Hein 2020, arXiv:2003.01690).
"""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.data.provenance import AWARE
from evasion.components.common.drawing.words import percent
from evasion.components.common.results.check import Check, Status
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


def of_indicators(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    """Check one attack by all its evaluations."""
    # Behind a random defense the loss of an iterate is a sample: of two alike, one may fool and the other not.
    repeatable = [evaluation for evaluation in of_attack if _draws_of(evaluation) is None]
    yield from _best_iterate(repeatable, attack)
    yield from _converged(repeatable, attack)
    yield from _saturated(of_attack, attack)
    yield from _masked(of_attack, attack)
    for evaluation in of_attack:
        yield from _draws(evaluation)


def share(evaluation: Evaluation, name: str) -> float | None:
    """Return the share of images that an evaluation's check counts; None where it was not counted."""
    count, images = getattr(evaluation.checks, name), evaluation.metrics["images"]
    return None if count is None or not images else float(count / images)


def _worst(of_attack: list[Evaluation], name: str) -> tuple[Evaluation, float] | None:
    """Return the evaluation in which a check counts most, with its share."""
    shares = [(each, value) for each in of_attack if (value := share(each, name)) is not None]
    return max(shares, key=lambda pair: pair[1], default=None)


def _subject(evaluation: Evaluation, attack: Treatment) -> str:
    return evaluation.title if evaluation.knowledge == AWARE else attack.label


def _best_iterate(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    worst = _worst(of_attack, "fooled_earlier_images")
    if worst is None:
        return
    evaluation, value = worst
    name, subject = "best iterate kept", _subject(evaluation, attack)
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
    name, subject = "loss converged", _subject(evaluation, attack)
    text = f"of {standing:,} images that stand, the loss of {rising:,} still rose in the last tenth of the steps"
    if standing and rising / standing > RISING[0] and value > RISING[1]:
        advice = "The attack stopped too early, so robust accuracy looks too good: raise max_iter or eps_step."
        yield Check(name, subject, "warn", text, advice)
    else:
        yield Check(name, subject, "pass", text)


def _saturated(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    worst = _worst(of_attack, "saturated_gradient_images")
    if worst is None:
        return
    evaluation, value = worst
    name, subject = "cross-entropy not saturated", _subject(evaluation, attack)
    if not value:
        yield Check(name, subject, "pass", "no image lost its gradient to a confidence that rounds to 1")
        return
    text = f"{percent(value)} of the images have no gradient, for their confidence rounds to 1"
    advice = (
        "The logits are so far apart that the cross-entropy is zero: attack with auto_attack, whose "
        "difference-of-logits ratio does not depend on their scale."
    )
    yield Check(name, subject, "fail" if value > SATURATED else "warn", text, advice)


def _masked(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    worst = _worst(of_attack, "black_box_only_images")
    if worst is None:
        return
    evaluation, value = worst
    name, subject = "gradients not masked", _subject(evaluation, attack)
    text = f"only the attack without a gradient fools {percent(value)} of the images"
    if value > BLACK_BOX[0]:
        status: Status = "fail" if value > BLACK_BOX[1] else "warn"
        advice = (
            "An attack that sees more must not do worse: gradients are masked. Give the attack without a gradient more "
            "queries, and look for what hides gradients (rounding, saturation, randomness)."
        )
        yield Check(name, subject, status, text, advice)
    else:
        yield Check(name, subject, "pass", text)


def _draws(evaluation: Evaluation) -> Iterator[Check]:
    """Check whether the attacker's mean over draws says what another draw of the random defense does."""
    draws = _draws_of(evaluation)
    if draws is None or evaluation.knowledge != AWARE:
        return
    name, text = "enough draws of a random defense", f"eot_samples={draws}"
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
