"""Checks of the model and the original images: clean accuracy, unreadable files, saturation, how many images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

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
    yield from _class_names(evaluations, floor)
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
        advice = (
            _other_range(evaluations)
            or _other_order(evaluations)
            or "Train the model further, or check labels, class order and preprocessing, before judging robustness."
        )
        return Check(name, "clean", "fail", text, advice)
    if share.low < floor:
        advice = "The interval reaches below the floor: evaluate more images."
        return Check(name, "clean", "warn", f"{text}, interval from {percent(share.low)}", advice)
    return Check(name, "clean", "pass", text)


def _other_range(evaluations: Evaluations) -> str:
    """Return the advice to take another range of input values, or nothing if none would be right much more often."""
    clean = evaluations.clean
    if clean is None or not clean.input_ranges:
        return ""
    name, trial = max(clean.input_ranges.items(), key=lambda each: each[1].correct / each[1].images)
    share = Share.counted(trial.correct, trial.images)
    own = accuracy(clean)
    if share is None or own is None or share.value < 2 * own.value or share.overlaps(own):
        return ""
    of = "" if trial.images == own.n else f", on {trial.images:,} of the images"
    return (
        f"With --input-range {name} it would be {percent(share.value)}{of}: the model takes other values than "
        f"{clean.model.input_range}."
    )


MOST_NAMES = 30
"""How many class names an advice lists."""


def _other_order(evaluations: Evaluations) -> str:
    """Return the advice to name the classes in another order, or nothing if no order explains what is predicted.

    With few images of each class some order always explains much, so five of each are needed.
    """
    clean, share = evaluations.clean, accuracy(evaluations.clean)
    if clean is None or share is None or share.n < 5 * len(clean.model.class_names):
        return ""
    from scipy.optimize import linear_sum_assignment

    names = clean.model.class_names
    counts = np.zeros((len(names), len(names)), np.int64)
    for true, predicted, count in clean.confusion:
        counts[true, predicted] = count
    true_classes, outputs = linear_sum_assignment(counts, maximize=True)
    permuted = Share.counted(int(counts[true_classes, outputs].sum()), share.n)
    if permuted is None or permuted.value < max(0.6, 2 * share.value):
        return ""
    by_output = {int(output): names[true] for true, output in zip(true_classes, outputs, strict=True)}
    listed = ",".join(by_output[output] for output in range(len(names)))
    how = f"--class-names {listed}" if len(names) <= MOST_NAMES else "the classes in another order"
    return (
        f"With {how} it would be {percent(permuted.value)}: the model's outputs are in another order. Compare it with "
        "how the model was trained."
    )


def _class_names(evaluations: Evaluations, floor: float) -> Iterator[Check]:
    """Say that class names were assumed; an accuracy above the floor could not come from another order."""
    model, share = evaluations.first.model, accuracy(evaluations.clean)
    if model.class_names_origin != "folders":
        return
    text = (
        "assumed: the dataset's class folders in sorted order, as image_dataset_from_directory numbers them, for the "
        "model has no class names"
    )
    supported = share is not None and share.value >= floor
    advice = "" if supported else "Give them with --class-names in the order of the model's outputs."
    yield Check("class names", model.title, "pass" if supported else "warn", text, advice)


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
