"""Evaluate a model on a packed dataset: what it predicts of every image, and the numbers of it all."""

import csv
import heapq
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evasion.components.common import checks, sampling

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
COUNTS = "counts.npz"
IMAGES = "images"
SATURATED = 1 - 2**-24  # a probability that float32 cannot tell from 1


def check(*, batch_size: int, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    checks.positive_integer("batch_size", batch_size)
    checks.seed(seed)


def infer(*, dataset: Path, model: Path, evaluation: Path, batch_size: int, seed: int) -> dict[str, Any]:
    """Write the evaluation of a model on a dataset; the parameters are those of the step of this name.

    Returns:
        `metrics`: flat numbers; `categories` and `matrix`: the confusion matrix to be shown.
    """
    check(batch_size=batch_size, seed=seed)

    from evasion.components.common import metrics, seeding, tracking
    from evasion.components.common.dataset import Dataset
    from evasion.components.common.files import replacing
    from evasion.components.common.model import Card

    used = {"batch_size": batch_size, "seed": seeding.resolve(seed)}
    with tracking.stage("infer", used) as run, Dataset(dataset) as data, replacing(evaluation) as folder:
        card = Card.read(model)
        card.indices_of(data.header.class_names, data.header.image_shape)  # refused before TensorFlow is loaded
        (folder / IMAGES).mkdir(parents=True)
        run.tag({"dataset_sha256": data.sha256}, name=f"infer {data.header.title}")
        result = _evaluate(data, model, card, folder, used)
        (folder / EVALUATION).write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
        run.log_metrics(result["metrics"] | metrics.flat(result["distances"]))
        for name in (EVALUATION, PREDICTIONS):
            run.log_file(folder / name, name)
    categories, matrix = _shown(result["confusion"], card.class_names)
    return {"metrics": result["metrics"], "categories": categories, "matrix": matrix}


def _evaluate(data: Any, model: Path, card: Any, folder: Path, used: Mapping[str, int]) -> dict[str, Any]:
    """Predict every image, write the rows and the sample of images, and return what `evaluation.json` holds."""
    import dataclasses

    from evasion.components.common import classifier, metrics, versions
    from evasion.components.common.dataset import to_float
    from evasion.components.common.images import encode_png
    from evasion.components.common.progress import track

    loaded = classifier.load(model)
    header = data.header
    places = card.indices_of(header.class_names, header.image_shape)
    attack = next((entry for entry in reversed(header.provenance) if entry["kind"] == "attack"), None)
    aimed_here = attack is not None and attack.get("model_sha256") == card.sha256
    tally, distances = metrics.Tally(len(card.class_names)), metrics.Summary()
    saturated = right_before = fooled = unmoved = 0
    shown: list[tuple[int, str, bytes]] = []

    with (folder / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
        rows: csv.DictWriter[str] | None = None
        batches = track(data.batches(used["batch_size"]), -(-len(data) // used["batch_size"]), "batches")
        for batch in batches:
            probabilities = loaded.probabilities(to_float(classifier.stack(batch)))
            labels = places[[sample.label for sample in batch]]
            predicted = tally.add(labels, probabilities)
            for sample, label, guess, scores in zip(batch, labels, predicted, probabilities, strict=True):
                confidence = float(scores[guess])
                saturated += int(confidence >= SATURATED)
                if "l_1_norm" in sample.fields:
                    distances.add(sample.fields)
                if aimed_here:
                    was_right = sample.fields["clean_prediction"] == card.class_names[label]
                    right_before += int(was_right)
                    fooled += int(was_right and guess != label)
                    unmoved += int(sample.fields["zero_gradient"] == "1")
                row = {
                    "path": sample.source,
                    "label": card.class_names[label],
                    **sample.fields,
                    "predicted": card.class_names[guess],
                    "confidence": f"{confidence:.9g}",
                    "correct": int(guess == label),
                }
                if rows is None:
                    rows = csv.DictWriter(file, row)
                    rows.writeheader()
                rows.writerow(row)
                _keep(shown, sample.source, header.original(sample.source), sample.pixels, encode_png)

    for _, path, png in shown:
        place = folder / IMAGES / path
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png)
    tally.save(folder / COUNTS)
    found = tally.result()
    if aimed_here:
        found |= metrics.success(fooled, right_before)
    return {
        "dataset": dataclasses.asdict(header) | {"sha256": data.sha256},
        "model": dataclasses.asdict(card),
        **used,
        "versions": versions.recorded(model=True),
        "metrics": found,
        "distances": distances.describe(),
        "confusion": list(metrics.nonzero(tally.confusion)),
        "checks": {
            "zero_gradient_images": unmoved if aimed_here else None,
            "saturated_images": saturated,
            "gradient_from_logits": None if attack is None else attack.get("gradient_from_logits"),
        },
    }


def _keep(shown: list[tuple[int, str, bytes]], path: str, original: str, pixels: Any, encode: Any) -> None:
    """Keep the images whose rank is the lowest: the same ones in every evaluation of a pipeline."""
    rank = -sampling.rank(original)
    if len(shown) < sampling.SHOWN:
        heapq.heappush(shown, (rank, path, encode(pixels)))
    elif rank > shown[0][0]:
        heapq.heapreplace(shown, (rank, path, encode(pixels)))


def _shown(
    confusion: list[tuple[int, int, int]], class_names: tuple[str, ...], most: int = 30
) -> tuple[list[str], list[list[int]]]:
    """Return the confusion matrix for the dashboard.

    It has all classes, or where there are more than `most`, those with the most errors and "other" for the rest.
    """
    errors = [0] * len(class_names)
    for true, predicted, count in confusion:
        if true != predicted:
            errors[true] += count
            errors[predicted] += count
    chosen = sorted(range(len(class_names)), key=lambda index: -errors[index])[:most]
    places = {index: place for place, index in enumerate(sorted(chosen))}
    categories = [class_names[index] for index in sorted(chosen)]
    if len(class_names) > most:
        categories.append("other")
    matrix = [[0] * len(categories) for _ in categories]
    for true, predicted, count in confusion:
        matrix[places.get(true, len(places))][places.get(predicted, len(places))] += count
    return categories, matrix
