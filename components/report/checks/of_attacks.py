"""Checks of each attack: whether its gradients, its target and its size are what its numbers claim."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evasion.components.common.data.provenance import AWARE, OBLIVIOUS
from evasion.components.common.drawing.words import percent, probability
from evasion.components.common.results.check import Check, Status
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.paired import Correctness, Paired, under_each
from evasion.components.common.results.table import share_of
from evasion.components.common.results.treatments import NONE, ProvenanceEntry, Treatment
from evasion.components.report.checks.of_indicators import (
    ZERO_GRADIENTS,
    ZERO_NAME,
    bound_of,
    flat,
    of_indicators,
    share,
    subject_of,
)

LEVEL = 1 / 255
"""One step of an 8-bit pixel."""

ROUNDING = 2**-11 * LEVEL
"""By so much a change is saved larger than it is, for it may be a whole level but for the rounding of float32."""

DISTANCES = {"inf": "l_infinity_norm", "1": "l_1_norm", "2": "l_2_norm"}
"""The distance that an attack bounds, by its norm."""

ZERO_CAUSE = "it never moved them, for their gradients are zero, which another check judges"


def of_attack(evaluations: Evaluations, attack: Treatment) -> Iterator[Check]:
    """Check one attack."""
    of_attack = evaluations.of(attack)
    attacks = of_attack[0].attacks
    yield from _zero_gradients(of_attack, attack)
    yield from of_indicators(evaluations, attack)
    yield from _logits(of_attack, attack)
    yield from _target(of_attack[0], attacks, attack)
    yield from _perturbation(of_attack, attack)
    if evaluations.get(attack) is None:
        advice = "Evaluate the attacked images without a defense too: else nobody knows what a defense gives back."
        yield Check("attack without a defense", attack.label, "warn", "it was not evaluated", advice)
    yield from _knowledge(evaluations, attack)


def _knowledge(evaluations: Evaluations, attack: Treatment) -> Iterator[Check]:
    """Compare the two attackers: the one that knows more must not do worse."""
    missing = []
    for defense in evaluations.defenses:
        attackers = evaluations.attackers(attack, defense)
        if attackers and AWARE not in attackers and defense.applied:
            missing.append(defense.name)
        if AWARE not in attackers or OBLIVIOUS not in attackers:
            continue
        # Counted as the table does: an image that was wrong before the attack is no success of a defense.
        clean = evaluations.get(NONE, defense)
        aware, oblivious = (_left(evaluations, attackers[each], clean) for each in (AWARE, OBLIVIOUS))
        shares = [share for each in (aware, oblivious) if (share := share_of(each))]
        if len(shares) < 2:
            continue
        paired = Paired.between(oblivious, aware)
        name, subject = "defense-aware attack hurts no less", f"{attack.label} + {defense.label}"
        by_aware, by_oblivious = (percent(each.value) for each in shares)
        text = f"{by_aware} are left by the defense-aware attack, {by_oblivious} by the oblivious one"
        if paired.rises:
            advice = "The defense-aware attack is weak: give it more draws (eot_samples), or PGD's steps."
            yield Check(name, subject, "warn", f"{text}, {probability(paired.p)}", advice)
        else:
            yield Check(name, subject, "pass", text)
    if missing:
        advice = "With them robust accuracy is an upper bound: attack model and defense together."
        yield Check("defense-aware attack", attack.label, "warn", f"not run: {', '.join(missing)}", advice)


def _left(evaluations: Evaluations, attacked: Evaluation, clean: Evaluation | None) -> Correctness:
    """Return which images are right under an attack and, where that is known, without it."""
    outcomes = [evaluations.per_image.of(each) for each in (clean, attacked) if each]
    return under_each(*outcomes)


def _zero_gradients(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    name = ZERO_NAME
    known = [e for e in of_attack if e.checks.zero_gradient_images is not None]
    if not known:
        advice = "A gradient of exactly zero looks like robustness: check that the attack reached the model."
        yield Check(name, attack.label, "warn", "the attack did not record it", advice)
        return
    worst = max(known, key=flat)
    images, value = worst.metrics["images"], flat(worst)
    text = f"{round(value * images):,} of {images:,} images ({percent(value)}) had a gradient of exactly zero"
    advice = "The attack could not move them, so robust accuracy looks too good: "
    if worst.checks.gradient_from_logits is True:
        advice += (
            "the loss was taken from the logits, so the network itself lets none through. Check that its weights are "
            "trained and its inputs are those it was made for; else use an attack that needs no gradient."
        )
    else:
        advice += "take the loss from the logits."
    if value:
        yield Check(name, subject_of(worst, attack), "fail" if value > ZERO_GRADIENTS else "warn", text, advice)
    elif _zero(worst):
        text = "every image had a gradient, but for those of “cross-entropy not saturated”"
        yield Check(name, attack.label, "pass", text)
    else:
        yield Check(name, attack.label, "pass", "every image had a gradient")


def _zero(evaluation: Evaluation) -> float:
    """The share of images whose gradient was zero, as far as it is known."""
    return share(evaluation, "zero_gradient_images") or 0.0


def _logits(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    name = "gradient from logits"
    recorded = [evaluation.checks.gradient_from_logits for evaluation in of_attack]
    advice = "A loss behind a softmax loses its gradient where the model is sure: attack the logits."
    if False in recorded:
        yield Check(name, attack.label, "fail", "the gradient went through the softmax", advice)
    elif True in recorded:
        yield Check(name, attack.label, "pass", "the loss was taken from the logits")
    else:
        yield Check(name, attack.label, "warn", "the attack did not record it", advice)


def _target(evaluation: Evaluation, attacks: list[ProvenanceEntry], attack: Treatment) -> Iterator[Check]:
    name, model = "attack aimed at this model", evaluation.model.sha256
    aimed = {entry.model_sha256 for entry in attacks if entry.model_sha256}
    if aimed == {model}:
        yield Check(name, attack.label, "pass", f"model {model[:12]} was attacked and judges the images")
    elif aimed:
        others = ", ".join(sorted(digest[:12] for digest in aimed))
        advice = "This is a transfer attack; an attack on the model itself would fool it more."
        yield Check(name, attack.label, "warn", f"model {others} was attacked, judged by {model[:12]}", advice)


def _perturbation(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    """Compare what each attacker saved with what was allowed, in the attack's norm: 8 bits hold whole steps only."""
    name, (norm, eps) = "attack survives 8 bits", bound_of(of_attack[0])
    known = [each for each in of_attack if "l_infinity_norm" in each.moved]
    distances = [each.moved[DISTANCES[norm]]["max"] for each in known if DISTANCES.get(norm, "") in each.moved]
    largest = ""
    if distances and not math.isnan(eps):
        largest = f"; largest distance saved in norm {norm}: {max(distances):.4g} of eps={eps:.4g}"
    if norm == "inf" and eps + ROUNDING < LEVEL:
        text = f"eps={eps:g} is less than an 8-bit step (1/255 = {LEVEL:.5f}){largest}"
        advice = "Images are saved rounded towards their originals, which undoes it: take an eps of at least 1/255."
        yield Check(name, attack.label, "fail", text, advice)
    elif known:
        judged = [(_saved(each, norm, eps), subject_of(each, attack)) for each in known]
        (status, text, advice), subject = max(judged, key=lambda each: ("pass", "warn", "fail").index(each[0][0]))
        yield Check(name, subject, status, text + largest, advice)
    elif norm == "inf" and not math.isnan(eps):
        yield Check(name, attack.label, "pass", f"eps={eps:g} is {eps / LEVEL:.3g} steps of 8 bits")


def _saved(evaluation: Evaluation, norm: str, eps: float) -> tuple[Status, str, str]:
    """Judge the images that one attacker saved: status, finding and advice."""
    changed, zero = evaluation.moved["l_infinity_norm"], _zero(evaluation)
    bounded = evaluation.moved.get(DISTANCES.get(norm, ""))
    if changed["max"] == 0:
        text, advice = "no saved image differs from its original", "Rounding undoes the attack: take a larger eps."
        return ("pass", f"{text}: {ZERO_CAUSE}", "") if zero == 1 else ("fail", text, advice)
    if bounded and bounded["max"] > eps * (1 + 1e-5) + ROUNDING:
        text = f"a saved image is farther from its original than eps={eps:g} allows in norm {norm}"
        return "fail", text, "The bound is broken: do not compare with other results."
    if changed["median"] < LEVEL / 2:
        text = (
            "at least half of the saved images do not differ from their originals "
            f"(largest change {changed['max']:.4g})"
        )
        advice = "Rounding undoes the attack on these images: take a larger eps."
        return ("pass", f"{text}: {ZERO_CAUSE}", "") if zero >= 0.5 else ("warn", text, advice)
    text = (
        f"the most changed pixel moved by {changed['median'] / LEVEL:.3g} steps of 8 bits in the median image, "
        f"{changed['max'] / LEVEL:.3g} at most"
    )
    return "pass", text, ""
