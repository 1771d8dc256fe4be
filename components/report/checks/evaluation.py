"""The checks that say whether an evaluation can be trusted: what was found and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evasion.components.common.results.curve import Curve
from evasion.components.common.results.evaluations import (
    AWARE,
    NONE,
    OBLIVIOUS,
    Evaluation,
    Evaluations,
    Stage,
    Treatment,
)
from evasion.components.common.results.outcomes import probability
from evasion.components.common.results.table import Share, accuracy, percent
from evasion.components.report.checks import curve as curve_checks
from evasion.components.report.checks.check import Finding, Status

LEVEL = 1 / 255
"""One step of an 8-bit pixel."""
ZERO_GRADIENTS = 0.05
"""Share of images without a gradient above which robust accuracy says more about the attack than the model."""
HALF_WIDTHS = (0.05, 0.2)
"""Half-widths of an accuracy's interval: from here on a warning, from here on a failure."""
ZERO_CAUSE = "The attack never moved them, for their gradients are zero: see “gradients not zero”."
NORMAL = 1.96
"""So many standard deviations hold 95 % of a normal distribution."""


def findings(evaluations: Evaluations, curve: Curve | None, clean_accuracy_floor: float) -> list[Finding]:
    """Make every check that applies, the failed ones first."""
    made = [*_of_all(evaluations, clean_accuracy_floor)]
    if curve:
        made += curve_checks.findings(evaluations, curve)
    for attack in evaluations.attacks:
        made += _of_attack(evaluations, attack)
    for defense in evaluations.defenses:
        if defense != NONE:
            made += _of_defense(evaluations, defense)
    order = ("fail", "warn", "pass")
    return sorted(made, key=lambda finding: order.index(finding.status))


def _of_all(evaluations: Evaluations, floor: float) -> Iterator[Finding]:
    model = evaluations.first.model
    count = len(evaluations.cells)
    yield Finding(
        "same model and data",
        f"{count} evaluation{'s' * (count != 1)}",
        "pass",
        f"model {model['sha256'][:12]}, original images {evaluations.first.root_sha256[:12]}, by sha256",
    )
    if evaluations.repeated:
        listed = ", ".join(evaluations.repeated)
        yield Finding(
            "each evaluation once", listed, "warn", "given more than once; shown once", "Connect each output once."
        )
    yield _clean_accuracy(evaluations, floor)
    yield from _unreadable(evaluations)
    yield from _saturation(evaluations)
    yield from _precision(evaluations)
    yield from _counts(evaluations)


def _clean_accuracy(evaluations: Evaluations, floor: float) -> Finding:
    name, found = "clean accuracy above the floor", accuracy(evaluations.clean)
    if found is None:
        advice = "Evaluate the original images too: without them nobody knows what the attack took."
        return Finding(name, "clean", "warn", "the original images were not evaluated", advice)
    text = f"{percent(found.value)} (floor {percent(floor)})"
    if found.value < floor:
        advice = "Train the model further, or check labels, class order and preprocessing, before judging robustness."
        return Finding(name, "clean", "fail", text, advice)
    if found.low < floor:
        advice = "The interval reaches below the floor: evaluate more images."
        return Finding(name, "clean", "warn", f"{text}, interval from {percent(found.low)}", advice)
    return Finding(name, "clean", "pass", text)


def _unreadable(evaluations: Evaluations) -> Iterator[Finding]:
    skipped = evaluations.first.stages[0].skipped if evaluations.first.stages else None
    if skipped is None:
        return
    name, subject = "every image read", "original images"
    if skipped:
        text = f"{skipped:,} image{'s were' if skipped > 1 else ' was'} left out as unreadable"
        advice = "Mend or remove what the log of load_dataset names: no number here speaks of these images."
        yield Finding(name, subject, "warn", text, advice)
    else:
        yield Finding(name, subject, "pass", "none was left out as unreadable")


def _saturation(evaluations: Evaluations) -> Iterator[Finding]:
    evaluation = evaluations.clean or evaluations.first
    saturated, images = evaluation.checks.get("saturated_images"), evaluation.metrics["images"]
    if saturated is None or not images:
        return
    name, share = "softmax not saturated", saturated / images
    text = f"{saturated:,} of {images:,} images ({percent(share)}) have a confidence that rounds to 1"
    logits = [evaluations_of.checks.get("gradient_from_logits") for evaluations_of in evaluations]
    if not saturated:
        yield Finding(name, evaluation.title, "pass", "no confidence rounds to 1")
    elif True in logits and False not in logits:
        yield Finding(name, evaluation.title, "pass", f"{text}; harmless, for the attack used the logits")
    else:
        advice = "Gradients through a saturated softmax vanish: attack the logits, and do not read the confidences."
        yield Finding(name, evaluation.title, "warn", text, advice)


def _precision(evaluations: Evaluations) -> Iterator[Finding]:
    shares: list[tuple[float, str, Share]] = []
    for title, evaluation in evaluations.titles():
        found = accuracy(evaluation)
        if found:
            shares.append(((found.high - found.low) / 2, title, found))
    if not shares:
        yield Finding("enough images", "all", "fail", "no images were evaluated", "Give the pipeline images.")
        return
    half, title, found = max(shares, key=lambda each: each[0])
    text = (
        f"{found.n:,} images: accuracies are known to about \N{PLUS-MINUS SIGN}{half * 100:.1f} points or better "
        f"({_needed()} at worst)"
    )
    status: Status = "fail" if half > HALF_WIDTHS[1] else "warn" if half > HALF_WIDTHS[0] else "pass"
    advice = "Evaluate more images; four times as many halve the interval." if status != "pass" else ""
    yield Finding("enough images", title, status, text, advice)


def _needed() -> str:
    """How many images an interval of a given half-width takes at an accuracy of 50 %, where it takes most."""
    five, two, one = (math.ceil(round((NORMAL / (2 * half)) ** 2, 6)) for half in (0.05, 0.02, 0.01))
    return (
        f"\N{PLUS-MINUS SIGN}5 points take {five:,} images, \N{PLUS-MINUS SIGN}2 {two:,}, \N{PLUS-MINUS SIGN}1 {one:,}"
    )


def _counts(evaluations: Evaluations) -> Iterator[Finding]:
    base = evaluations.clean
    if base is None:
        return
    expected = base.metrics["images"]
    for title, evaluation in evaluations.titles():
        images = evaluation.metrics["images"]
        if images == expected:
            continue
        text = f"{images:,} images, but {expected:,} originals"
        if images > expected:
            advice = "It also holds unchanged or repeated images (data augmentation): not comparable with the others."
        else:
            advice = "Images were left out on the way: compare only what covers the same images."
        yield Finding("the same images in every row", title, "warn", text, advice)


def _of_attack(evaluations: Evaluations, attack: Treatment) -> Iterator[Finding]:
    of_attack = evaluations.of(attack)
    stages = [stage for stage in of_attack[0].stages if stage.kind == "attack"]
    yield from _zero_gradients(of_attack, attack)
    yield from _logits(of_attack, attack)
    yield from _target(of_attack[0], stages, attack)
    yield from _perturbation(evaluations.get(attack), stages, attack)
    if evaluations.get(attack) is None:
        advice = "Evaluate the attacked images without a defense too: else nobody knows what a defense gives back."
        yield Finding("attack without a defense", attack.label, "warn", "it was not evaluated", advice)
    yield from _knowledge(evaluations, attack)


def _knowledge(evaluations: Evaluations, attack: Treatment) -> Iterator[Finding]:
    """Hold the two attackers to each other: who knows more must not do worse."""
    missing = []
    for defense in evaluations.defenses:
        attackers = evaluations.attackers(attack, defense)
        if attackers and AWARE not in attackers and defense.applied:
            missing.append(defense.name)
        paired = evaluations.outcomes.paired(attackers.get(OBLIVIOUS), attackers.get(AWARE))
        told = [accuracy(attackers.get(knowledge)) for knowledge in (AWARE, OBLIVIOUS)]
        if paired is None or None in told:
            continue
        aware, oblivious = (percent(share.value) for share in told if share)
        name, subject = "defense-aware attack hurts no less", f"{attack.label} + {defense.label}"
        text = f"{aware} are left by the defense-aware attack, {oblivious} by the oblivious one"
        if paired.rises:
            advice = "The defense-aware attack is weak: give it more draws (eot_samples), or PGD's steps."
            yield Finding(name, subject, "warn", f"{text}, {probability(paired.p)}", advice)
        else:
            yield Finding(name, subject, "pass", text)
    if missing:
        advice = "With them robust accuracy is an upper bound: attack model and defense together."
        yield Finding("defense-aware attack", attack.label, "warn", f"not run: {', '.join(missing)}", advice)


def _zero_gradients(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Finding]:
    name = "gradients not zero"
    known = [e for e in of_attack if e.checks.get("zero_gradient_images") is not None]
    if not known:
        advice = "A gradient of exactly zero looks like robustness: check that the attack reached the model."
        yield Finding(name, attack.label, "warn", "the attack did not record it", advice)
        return
    worst = max(known, key=_zero)
    zero, images, share = worst.checks["zero_gradient_images"], worst.metrics["images"], _zero(worst)
    text = f"{zero:,} of {images:,} images ({percent(share)}) had a gradient of exactly zero"
    advice = "The attack could not move them, so robust accuracy looks too good: "
    if worst.checks.get("gradient_from_logits") is True:
        advice += (
            "the loss was taken from the logits, so the network itself lets none through. Check that its weights are "
            "trained and its inputs are those it was made for; else use an attack that needs no gradient."
        )
    else:
        advice += "take the loss from the logits."
    if zero:
        subject = worst.title if worst.knowledge == AWARE else attack.label
        yield Finding(name, subject, "fail" if share > ZERO_GRADIENTS else "warn", text, advice)
    else:
        yield Finding(name, attack.label, "pass", "every image had a gradient")


def _zero(evaluation: Evaluation | None) -> float:
    """The share of images whose gradient was zero, as far as it is known."""
    if evaluation is None or not evaluation.metrics["images"]:
        return 0.0
    return float((evaluation.checks.get("zero_gradient_images") or 0) / evaluation.metrics["images"])


def _logits(of_attack: list[Evaluation], attack: Treatment) -> Iterator[Finding]:
    name = "gradient from logits"
    told = [evaluation.checks.get("gradient_from_logits") for evaluation in of_attack]
    advice = "A loss behind a softmax loses its gradient where the model is sure: attack the logits."
    if False in told:
        yield Finding(name, attack.label, "fail", "the gradient went through the softmax", advice)
    elif True in told:
        yield Finding(name, attack.label, "pass", "the loss was taken from the logits")
    else:
        yield Finding(name, attack.label, "warn", "the attack did not record it", advice)


def _target(evaluation: Evaluation, stages: list[Stage], attack: Treatment) -> Iterator[Finding]:
    name, model = "attack aimed at this model", evaluation.model["sha256"]
    aimed = {stage.model_sha256 for stage in stages if stage.model_sha256}
    if aimed == {model}:
        yield Finding(name, attack.label, "pass", f"model {model[:12]} made and judged the images")
    elif aimed:
        others = ", ".join(sorted(digest[:12] for digest in aimed))
        advice = "This is a transfer attack; an attack on the model itself would fool it more."
        yield Finding(name, attack.label, "warn", f"made with model {others}, judged by {model[:12]}", advice)


def _perturbation(attacked: Evaluation | None, stages: list[Stage], attack: Treatment) -> Iterator[Finding]:
    """Hold what was saved to what was allowed: 8 bits cannot hold less than half a step."""
    name = "attack survives 8 bits"
    saved = attacked.distances.get("l_infinity_norm") if attacked else None
    bounds = [stage.parameters["eps"] for stage in stages if str(stage.parameters.get("norm")) == "inf"]
    eps = bounds[0] if len(stages) == len(bounds) == 1 and isinstance(bounds[0], int | float) else None
    if eps is not None and eps < LEVEL / 2:
        text = f"eps={eps:g} is less than half an 8-bit step (1/510 = {LEVEL / 2:.5f})"
        yield Finding(name, attack.label, "fail", text, "Rounding undoes it: take an eps of at least 1/255.")
    elif saved is None:
        if eps is not None:
            yield Finding(name, attack.label, "pass", f"eps={eps:g} is {eps / LEVEL:.3g} steps of 8 bits")
    elif saved["max"] == 0:
        advice = "Nothing is left of the attack after rounding: take a larger eps."
        if _zero(attacked) == 1:
            advice = ZERO_CAUSE
        yield Finding(name, attack.label, "fail", "no saved image differs from its original", advice)
    elif eps is not None and saved["max"] > eps + LEVEL / 2 + 1e-6:
        text = f"a saved pixel differs by {saved['max']:.4g}, more than eps={eps:g} and rounding allow"
        yield Finding(name, attack.label, "fail", text, "The bound is broken: do not compare with other results.")
    elif saved["median"] < LEVEL / 2:
        text = (
            f"at least half of the saved images do not differ from their originals (largest change {saved['max']:.4g})"
        )
        advice = "Rounding undoes the attack on these images: take a larger eps."
        if _zero(attacked) >= 0.5:
            advice = ZERO_CAUSE
        yield Finding(name, attack.label, "warn", text, advice)
    else:
        text = (
            f"the most changed pixel moved by {saved['median'] / LEVEL:.3g} steps of 8 bits in the median image, "
            f"{saved['max'] / LEVEL:.3g} at most"
        )
        yield Finding(name, attack.label, "pass", text)


def _of_defense(evaluations: Evaluations, defense: Treatment) -> Iterator[Finding]:
    name = "defense applied"
    over = [e for attack in evaluations.attacks for e in evaluations.attackers(attack, defense).values()]
    over += [e for e in [evaluations.get(NONE, defense)] if e]
    changed = [each.distances["l_infinity_norm"]["max"] for each in over if each.distances]
    if not defense.applied:
        split = evaluations.first.dataset.get("split")
        switch = "apply_fit" if split == "training" else "apply_predict"
        advice = f"Set {switch}=true: its rows are those of no defense."
        yield Finding(name, defense.label, "warn", f"{switch} is false: the images are unchanged", advice)
    elif changed and max(changed) == 0:
        yield Finding(name, defense.label, "warn", "it changed no image", "Choose stronger settings.")
    else:
        yield Finding(name, defense.label, "pass", "it ran over the images")
    if evaluations.clean and evaluations.get(NONE, defense) is None:
        advice = "Evaluate it on clean images too, to know what it costs."
        yield Finding("cost of the defense", defense.label, "warn", "not evaluated on clean images", advice)
    for attack in evaluations.attacks:
        if not evaluations.attackers(attack, defense):
            text, advice = f"not evaluated under {attack.label}", "Evaluate it on the attacked images too."
            yield Finding("gain of the defense", defense.label, "warn", text, advice)
