"""Checks of the model and the original images: clean accuracy, unreadable files, saturation, how many images."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evasion.components.common.drawing.words import percent
from evasion.components.common.results.check import Check, Status
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.shares import NORMAL, Share
from evasion.components.common.results.table import accuracy

HALF_WIDTHS = (0.05, 0.2)
"""Half-widths of an accuracy's interval: from here on a warning, from here on a failure."""


def of_model(evaluations: Evaluations, floor: float) -> Iterator[Check]:
    """Check the model and its original images.

    Args:
        evaluations: All evaluations.
        floor: Clean accuracy below which the check fails.
    """
    model = evaluations.first.model
    count = len(evaluations.cells)
    yield Check(
        "same model and data",
        f"{count} evaluation{'s' * (count != 1)}",
        "pass",
        f"model {model.sha256[:12]}, original images {evaluations.first.root_sha256[:12]}, by sha256",
    )
    if evaluations.repeated:
        listed = ", ".join(evaluations.repeated)
        yield Check(
            "each evaluation once", listed, "warn", "given more than once; shown once", "Connect each output once."
        )
    yield _clean_accuracy(evaluations, floor)
    yield from _unreadable(evaluations)
    yield from _saturation(evaluations)
    yield from _precision(evaluations)
    yield from _counts(evaluations)


def _clean_accuracy(evaluations: Evaluations, floor: float) -> Check:
    name, share = "clean accuracy above the floor", accuracy(evaluations.clean)
    if share is None:
        advice = "Evaluate the original images too: without them nobody knows what the attack took."
        return Check(name, "clean", "warn", "the original images were not evaluated", advice)
    text = f"{percent(share.value)} (floor {percent(floor)})"
    if share.value < floor:
        advice = "Train the model further, or check labels, class order and preprocessing, before judging robustness."
        return Check(name, "clean", "fail", text, advice)
    if share.low < floor:
        advice = "The interval reaches below the floor: evaluate more images."
        return Check(name, "clean", "warn", f"{text}, interval from {percent(share.low)}", advice)
    return Check(name, "clean", "pass", text)


def _unreadable(evaluations: Evaluations) -> Iterator[Check]:
    provenance = evaluations.first.dataset.provenance
    if not provenance or provenance[0].skipped is None:
        return
    skipped = len(provenance[0].skipped)
    name, subject = "every image read", "original images"
    if skipped:
        text = f"{skipped:,} image{'s were' if skipped > 1 else ' was'} left out as unreadable"
        advice = "Mend or remove what the log of load_dataset names: no number here speaks of these images."
        yield Check(name, subject, "warn", text, advice)
    else:
        yield Check(name, subject, "pass", "none was left out as unreadable")


def _saturation(evaluations: Evaluations) -> Iterator[Check]:
    evaluation = evaluations.clean or evaluations.first
    saturated, images = evaluation.checks.saturated_images, evaluation.metrics["images"]
    if saturated is None or not images:
        return
    name, share = "softmax not saturated", saturated / images
    text = f"{saturated:,} of {images:,} images ({percent(share)}) have a confidence that rounds to 1"
    logits = [each.checks.gradient_from_logits for each in evaluations]
    if not saturated:
        yield Check(name, evaluation.title, "pass", "no confidence rounds to 1")
    elif any(each.checks.saturated_gradient_images for each in evaluations):
        text += "; what that does to the attack: see “cross-entropy not saturated”"
        yield Check(name, evaluation.title, "pass", text)
    elif True in logits and False not in logits:
        yield Check(name, evaluation.title, "pass", f"{text}; harmless, for the attack used the logits")
    else:
        advice = "Gradients through a saturated softmax vanish: attack the logits, and do not read the confidences."
        yield Check(name, evaluation.title, "warn", text, advice)


def _precision(evaluations: Evaluations) -> Iterator[Check]:
    shares: list[tuple[float, str, Share]] = []
    for title, evaluation in evaluations.titles():
        share = accuracy(evaluation)
        if share:
            shares.append(((share.high - share.low) / 2, title, share))
    if not shares:
        yield Check("enough images", "all", "fail", "no images were evaluated", "Give the pipeline images.")
        return
    half, title, share = max(shares, key=lambda each: each[0])
    text = (
        f"{share.n:,} images: accuracies are known to about \N{PLUS-MINUS SIGN}{half * 100:.1f} points or better "
        f"({_needed()} at worst)"
    )
    status: Status = "fail" if half > HALF_WIDTHS[1] else "warn" if half > HALF_WIDTHS[0] else "pass"
    advice = "Evaluate more images; four times as many halve the interval." if status != "pass" else ""
    yield Check("enough images", title, status, text, advice)


def _needed() -> str:
    """How many images an interval of a given half-width takes at an accuracy of 50 %, where it takes most."""
    five, two, one = (math.ceil(round((NORMAL / (2 * half)) ** 2, 6)) for half in (0.05, 0.02, 0.01))
    return (
        f"\N{PLUS-MINUS SIGN}5 points take {five:,} images, \N{PLUS-MINUS SIGN}2 {two:,}, \N{PLUS-MINUS SIGN}1 {one:,}"
    )


def _counts(evaluations: Evaluations) -> Iterator[Check]:
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
        yield Check("the same images in every row", title, "warn", text, advice)
