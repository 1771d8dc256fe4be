"""Evaluate a model on packed datasets: what it predicts of every image, and the numbers of it all."""

import csv
import heapq
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.data import sampling

EVALUATIONS = "evaluations.json"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
COUNTS = "counts.npz"
IMAGES = "images"
SATURATED = 1 - 2**-24  # a probability that float32 cannot tell from 1


def check(*, batch_size: int, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    validate.positive_integer("batch_size", batch_size)
    validate.seed(seed)


def infer(
    *, dataset: Path, others: Sequence[Path], model: Path, evaluation: Path, batch_size: int, seed: int
) -> dict[str, Any]:
    """Write the evaluation of a model on datasets; the parameters are those of the step of this name.

    `evaluation` becomes a folder of one folder a dataset, named after it, and `evaluations.json`, which lists them.
    Of several datasets in a tar those are left out that an attack aimed at a defense which they have not met.

    Returns:
        `metrics`: flat numbers, of the first dataset by their names, of each further one with its name before;
        `categories` and `matrix`: the confusion matrix of the first, to be shown.

    Raises:
        ValueError: If two datasets have one name, or one does not suit the model.
    """
    check(batch_size=batch_size, seed=seed)

    from contextlib import ExitStack

    from evasion.components.common import seeding, tracking
    from evasion.components.common.data.distances import flat
    from evasion.components.common.files import replacing
    from evasion.components.common.models.artifact import Card

    used = {"batch_size": batch_size, "seed": seeding.resolve(seed)}
    with tracking.stage("infer", used) as run, ExitStack() as stack, replacing(evaluation) as folder:
        card = Card.read(model)
        datasets = [stack.enter_context(data) for data in _to_evaluate([dataset, *others])]
        for data in datasets:  # refused before TensorFlow is loaded
            card.indices_of(data.header.class_names, data.header.image_shape)
        first, several = datasets[0], len(datasets) > 1
        run.tag({"dataset_sha256": first.sha256}, name="infer" if several else f"infer {first.header.title}")

        from evasion.components.common.models import classifier

        loaded = classifier.load(model)
        shown: dict[str, Any] = {}
        for place, data in enumerate(datasets):
            name = data.header.name
            (folder / name / IMAGES).mkdir(parents=True)
            result = _evaluate(data, loaded, card, folder / name, used, f"batches of {name}" if several else "batches")
            text = json.dumps(result, indent=1, allow_nan=False)
            (folder / name / EVALUATION).write_text(text, encoding="utf-8")
            before = f"{name}/" if place else ""
            described = {f"{before}{key}": value for key, value in result["metrics"].items()}
            distances = {f"{before}{key}": value for key, value in flat(result["distances"]).items()}
            run.log_metrics(described | distances)
            for file in (EVALUATION, PREDICTIONS):
                run.log_file(folder / name / file, f"{name}/{file}" if several else file)
            if not place:
                categories, matrix = _shown(result["confusion"], card.class_names)
                shown = {"metrics": {}, "categories": categories, "matrix": matrix}
            shown["metrics"] |= described
        names = [data.header.name for data in datasets]
        (folder / EVALUATIONS).write_text(json.dumps(names, indent=1), encoding="utf-8")
    return shown


def _to_evaluate(tars: Sequence[Path]) -> list[Any]:
    """Return the datasets, not yet opened."""
    from evasion.components.common.data.dataset import Dataset

    chosen = Dataset.to_work_on(tars)
    names = [data.header.name for data in chosen]
    if len({*names, EVALUATIONS}) <= len(names):
        raise ValueError(
            f"Datasets to evaluate must have names of their own, none of them {EVALUATIONS}. "
            f"Received: {', '.join(names)}"
        )
    return chosen


def _evaluate(data: Any, loaded: Any, card: Any, folder: Path, used: Mapping[str, int], what: str) -> dict[str, Any]:
    """Predict every image, write the rows and the sample of images, and return what `evaluation.json` holds."""
    import dataclasses

    from evasion.components.common import versions
    from evasion.components.common.data.distances import Summary
    from evasion.components.common.data.images import encode_png
    from evasion.components.common.data.pixels import to_float
    from evasion.components.common.models import classifier
    from evasion.components.common.progress import track
    from evasion.components.common.results import shares
    from evasion.components.common.results.tally import Tally, nonzero

    header = data.header
    places = card.indices_of(header.class_names, header.image_shape)
    attack = next((entry for entry in reversed(header.provenance) if entry["kind"] == "attack"), None)
    aimed_here = attack is not None and attack.get("model_sha256") == card.sha256
    tally, distances = Tally(len(card.class_names)), Summary()
    saturated = right_before = fooled = unmoved = 0
    shown: list[tuple[int, str, bytes]] = []

    with (folder / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
        rows: csv.DictWriter[str] | None = None
        batches = track(data.batches(used["batch_size"]), -(-len(data) // used["batch_size"]), what)
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
        found |= shares.success(fooled, right_before)
    return {
        "dataset": dataclasses.asdict(header) | {"sha256": data.sha256},
        "model": dataclasses.asdict(card),
        **used,
        "versions": versions.recorded(model=True),
        "metrics": found,
        "distances": distances.describe(),
        "confusion": list(nonzero(tally.confusion)),
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
