"""Checks of each attack: whether its gradients, its target and its size are what its numbers claim."""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.data.provenance import AWARE, OBLIVIOUS
from evasion.components.common.drawing.words import percent, probability
from evasion.components.common.results.check import Check
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.table import accuracy
from evasion.components.common.results.treatments import ProvenanceEntry, Treatment
from evasion.components.report.checks.of_indicators import of_indicators, share

LEVEL = 1 / 255
"""One step of an 8-bit pixel."""

ROUNDING = 2**-11 * LEVEL
"""By so much a change is saved larger than it is, for it may be a whole level but for the rounding of float32."""

DISTANCES = {"inf": "l_infinity_norm", "1": "l_1_norm", "2": "l_2_norm"}
"""The distance that an attack bounds, by its norm."""

ZERO_GRADIENTS = 0.05
"""Share of images without a gradient above which robust accuracy says more about the attack than the model."""

ZERO_CAUSE = "it never moved them, for their gradients are zero, which another check judges"


def of_attack(evaluations: Evaluations, attack: Treatment) -> Iterator[Check]:
    """Check one attack."""
    of_attack = evaluations.of(attack)
    attacks = of_attack[0].attacks
    yield from _zero_gradients(of_attack, attack)
    yield from of_indicators(of_attack, attack)
    yield from _logits(of_attack, attack)
    yield from _target(of_attack[0], attacks, attack)
    yield from _perturbation(evaluations.get(attack), attacks, attack)
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
        paired = evaluations.per_image.paired(attackers.get(OBLIVIOUS), attackers.get(AWARE))
        shares = [accuracy(attackers.get(knowledge)) for knowledge in (AWARE, OBLIVIOUS)]
        if paired is None or None in shares:
            continue
        aware, oblivious = (percent(share.value) for share in shares if share)
        name, subject = "defense-aware attack hurts no less", f"{attack.label} + {defense.label}"
        text = f"{aware} are left by the defense-aware attack, {oblivious} by the oblivious one"
        if paired.rises:
            advice = "The defense-aware attack is weak: give it more draws (eot_samples), or PGD's steps."
            yield Check(name, subject, "warn", f"{text}, {probability(paired.p)}", advice)
        else:
            yield Check(name, subject, "pass", text)
    if missing:
        advice = "With them robust accuracy is an upper bound: attack model and defense together."
        yield Check("defense-aware attack", attack.label, "warn", f"not run: {', '.join(missing)}", advice)


def _zero_gradients(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Check]:
    name = "gradients not zero"
    known = [e for e in of_attack if e.checks.zero_gradient_images is not None]
    if not known:
        advice = "A gradient of exactly zero looks like robustness: check that the attack reached the model."
        yield Check(name, attack.label, "warn", "the attack did not record it", advice)
        return
    worst = max(known, key=_flat)
    images, value = worst.metrics["images"], _flat(worst)
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
        subject = worst.title if worst.knowledge == AWARE else attack.label
        yield Check(name, subject, "fail" if value > ZERO_GRADIENTS else "warn", text, advice)
    elif _zero(worst):
        text = "every image had a gradient, but for those of “cross-entropy not saturated”"
        yield Check(name, attack.label, "pass", text)
    else:
        yield Check(name, attack.label, "pass", "every image had a gradient")


def _flat(evaluation: Evaluation) -> float:
    """The share of images whose gradient was zero although no confidence rounds to 1."""
    return _zero(evaluation) - (share(evaluation, "saturated_gradient_images") or 0.0)


def _zero(evaluation: Evaluation | None) -> float:
    """The share of images whose gradient was zero, as far as it is known."""
    return (share(evaluation, "zero_gradient_images") or 0.0) if evaluation else 0.0


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


def _perturbation(attacked: Evaluation | None, attacks: list[ProvenanceEntry], attack: Treatment) -> Iterator[Check]:
    """Compare what was saved, in the attack's own norm, with what was allowed: 8 bits hold whole steps only."""
    name = "attack survives 8 bits"
    norm, eps = _bound(attacks)
    saved = attacked.distances.get("l_infinity_norm") if attacked else None
    bounded = attacked.distances.get(DISTANCES.get(norm, "")) if attacked else None
    if norm == "inf" and eps is not None and eps + ROUNDING < LEVEL:
        text = f"eps={eps:g} is less than an 8-bit step (1/255 = {LEVEL:.5f})"
        advice = "Images are saved rounded towards their originals, which undoes it: take an eps of at least 1/255."
        yield Check(name, attack.label, "fail", text, advice)
    elif saved is None:
        if eps is not None and norm == "inf":
            yield Check(name, attack.label, "pass", f"eps={eps:g} is {eps / LEVEL:.3g} steps of 8 bits")
    elif saved["max"] == 0:
        text, advice = "no saved image differs from its original", "Rounding undoes the attack: take a larger eps."
        if _zero(attacked) == 1:
            yield Check(name, attack.label, "pass", f"{text}: {ZERO_CAUSE}")
        else:
            yield Check(name, attack.label, "fail", text, advice)
    elif eps is not None and bounded and bounded["max"] > eps * (1 + 1e-5) + ROUNDING:
        text = f"a saved image differs by {bounded['max']:.4g} in norm {norm}, more than eps={eps:g} allows"
        yield Check(name, attack.label, "fail", text, "The bound is broken: do not compare with other results.")
    elif saved["median"] < LEVEL / 2:
        text = (
            f"at least half of the saved images do not differ from their originals (largest change {saved['max']:.4g})"
        )
        if _zero(attacked) >= 0.5:
            yield Check(name, attack.label, "pass", f"{text}: {ZERO_CAUSE}")
        else:
            advice = "Rounding undoes the attack on these images: take a larger eps."
            yield Check(name, attack.label, "warn", text, advice)
    else:
        text = (
            f"the most changed pixel moved by {saved['median'] / LEVEL:.3g} steps of 8 bits in the median image, "
            f"{saved['max'] / LEVEL:.3g} at most"
        )
        if eps is not None and bounded:
            text += f"; largest distance saved in norm {norm}: {bounded['max']:.4g} of eps={eps:.4g}"
        yield Check(name, attack.label, "pass", text)


def _bound(attacks: list[ProvenanceEntry]) -> tuple[str, float | None]:
    """Return the norm and the eps of a single attack; of several there is no common bound."""
    if len(attacks) != 1:
        return "", None
    eps = attacks[0].parameters.get("eps")
    return str(attacks[0].parameters.get("norm")), eps if isinstance(eps, int | float) else None
