"""The evaluation of one model on one dataset, batch by batch."""

import csv
import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from evasion.components.common import versions
from evasion.components.common.data import sampling
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.distances import OF_ATTACK, Summary
from evasion.components.common.data.header import ROWS, DatasetError, Sample
from evasion.components.common.data.images import encode_png
from evasion.components.common.data.pixels import to_float
from evasion.components.common.data.provenance import ATTACK, DEFENSE
from evasion.components.common.data.rows import has_distances
from evasion.components.common.models.artifact import Card
from evasion.components.common.models.classifier import Classifier, stack
from evasion.components.common.progress import track
from evasion.components.common.results import json_file, shares
from evasion.components.common.results.evaluation import (
    COUNTS,
    EVALUATION,
    IMAGES,
    PREDICTIONS,
    AttackChecks,
    DatasetRecord,
    EvaluationFile,
    ModelRecord,
)
from evasion.components.common.results.tally import Tally, nonzero
from evasion.components.infer.ranges import DOUBTFUL, other_ranges

SATURATED = 1 - 2**-24
"""A probability from here on is one that float32 cannot tell from 1."""

BLACK_BOX = {"square"}
"""Members of an attack, by their names in the column `fooled_by`, that use no gradient."""


def _compares(attack: Mapping[str, Any]) -> bool:
    """Return whether an attack has members that use gradients and members that use none: only then does it compare."""
    members = {name for name in str(attack.get("parameters", {}).get("members", "")).split(",") if name}
    return bool(members & BLACK_BOX) and bool(members - BLACK_BOX)


@dataclasses.dataclass
class _Counts:
    """What is counted of an attack on the model that is evaluated, and of its confidences.

    Attributes:
        compares: Whether the attack tells what gradients add.
        saturated: Images whose confidence float32 cannot tell from 1.
        right_before: Images that were right before the attack.
        fooled: Those of them that are wrong now.
        checks: The counts of `AttackChecks`.
    """

    compares: bool = False
    saturated: int = 0
    right_before: int = 0
    fooled: int = 0
    checks: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, sample: Sample, label: str, predicted: str) -> None:
        """Count one attacked image."""
        fields = sample.fields
        for column in ("clean_prediction", "clean_confidence", "zero_gradient"):
            if column not in fields:
                raise DatasetError(f"{ROWS} must have the column {column}, for the images were attacked.")
        was_right = fields["clean_prediction"] == label
        self.right_before += was_right
        self.fooled += was_right and predicted != label
        zero = fields["zero_gradient"] == "1"
        self._count("zero_gradient_images", zero)
        self._count("saturated_gradient_images", zero and float(fields["clean_confidence"]) >= SATURATED)
        best, end, rises = (fields.get(name) for name in ("fooled_best", "fooled_end", "loss_rises"))
        if best:
            self._count("standing_images", best == "0")
            self._count("claimed_images", was_right and best == "1")
            self._count("unconfirmed_images", was_right and best == "1" and predicted == label)
        if best and end:
            self._count("fooled_earlier_images", best == "1" and end == "0")
        if rises:
            self._count("rising_images", rises == "1" and best != "1")  # later members may have fooled it
        if self.compares and "fooled_by" in fields:
            self._count("black_box_only_images", fields["fooled_by"] in BLACK_BOX)

    def _count(self, name: str, counts: bool) -> None:
        """Count an image; a count of zero is kept, for it says that the column was there."""
        self.checks[name] += int(counts)


class _Pictures:
    """Keeps the images whose rank is the lowest: the same ones in every evaluation of a pipeline."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str, bytes]] = []

    def offer(self, sample: Sample, original: str) -> None:
        """Keep an image if its rank is among the lowest so far."""
        rank = -sampling.rank(original)
        if len(self._kept) < sampling.SHOWN:
            heapq.heappush(self._kept, (rank, sample.source, encode_png(sample.pixels)))
        elif rank > self._kept[0][0]:
            heapq.heapreplace(self._kept, (rank, sample.source, encode_png(sample.pixels)))

    def write(self, folder: Path) -> None:
        """Write the images that were kept, a folder a class."""
        folder.mkdir()
        for _, path, png in self._kept:
            file = folder / path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png)


def evaluate(
    data: Dataset, classifier: Classifier, card: Card, folder: Path, used: Mapping[str, int], unit: str
) -> EvaluationFile:
    """Predict every image, and write the rows, the counts, the sample of images and `evaluation.json`.

    Args:
        data: The images.
        classifier: The model.
        card: Its description.
        folder: Where the files go; it is created.
        used: The parameters of the stage, `batch_size` and `seed`.
        unit: What the progress counts.
    """
    folder.mkdir(parents=True)
    attack = next((entry for entry in reversed(data.header.provenance) if entry["kind"] == ATTACK), None)
    last = data.header.provenance[-1] if data.header.provenance else None
    attacked_here = attack is not None and attack.get("model_sha256") == card.sha256
    tally, pictures = Tally(len(card.class_names)), _Pictures()
    counts = _Counts(compares=attack is not None and _compares(attack))
    distances, of_attack = Summary(), Summary()
    batches = track(
        _predicted(data, classifier, card, tally, used["batch_size"]), -(-len(data) // used["batch_size"]), unit
    )
    with _table(folder / PREDICTIONS) as write_row:
        for batch in batches:
            for sample, label, predicted, confidence in batch:
                if has_distances(sample.fields):
                    distances.add(sample.fields)
                if attack is not last and has_distances(sample.fields, OF_ATTACK):
                    of_attack.add(sample.fields, OF_ATTACK)
                if attacked_here:
                    counts.add(sample, label, predicted)
                counts.saturated += confidence >= SATURATED
                write_row(_row(sample, label, predicted, confidence))
                pictures.offer(sample, data.header.original(sample.source))
    pictures.write(folder / IMAGES)
    tally.save(folder / COUNTS)
    metrics = tally.result(attacked=attack is not None)
    if attacked_here:
        defended = any(entry["kind"] == DEFENSE for entry in data.header.provenance)
        metrics |= shares.under_attack(counts.fooled, counts.right_before, len(data), defended=defended)
    trials = {}
    if len(data.header.provenance) <= 1 and metrics.get("accuracy", 1) < DOUBTFUL:
        trials = other_ranges(data, classifier, card, used["batch_size"])
    result = EvaluationFile(
        dataset=DatasetRecord.of(data.header, data.sha256),
        model=json_file.from_value(ModelRecord, dataclasses.asdict(card)),
        seed=used["seed"],
        batch_size=used["batch_size"],
        versions=versions.recorded(model=True),
        metrics=metrics,
        distances=distances.describe(),
        attack_distances=of_attack.describe(),
        confusion=list(nonzero(tally.confusion)),
        checks=AttackChecks(
            saturated_images=counts.saturated,
            gradient_from_logits=None if attack is None else attack.get("gradient_from_logits"),
            **counts.checks,
        ),
        input_ranges=trials,
    )
    (folder / EVALUATION).write_text(json_file.to_text(result), encoding="utf-8")
    return result


def _predicted(
    data: Dataset, classifier: Classifier, card: Card, tally: Tally, batch_size: int
) -> Iterator[list[tuple[Sample, str, str, float]]]:
    """Yield each batch: of every image its class, the class that the model predicts and its confidence."""
    places = card.indices_of(data.header.class_names, data.header.image_shape)
    names = card.class_names
    for batch in data.batches(batch_size):
        outputs = classifier.outputs(to_float(stack(batch)))
        probabilities: npt.NDArray[np.float64] = classifier.probabilities_of(outputs)
        labels = places[[sample.label for sample in batch]]
        predicted = tally.add(labels, probabilities, outputs if classifier.from_logits else None)
        confidences = probabilities[np.arange(len(batch)), predicted]
        yield [
            (sample, names[label], names[guess], float(confidence))
            for sample, label, guess, confidence in zip(batch, labels, predicted, confidences, strict=True)
        ]


def _row(sample: Sample, label: str, predicted: str, confidence: float) -> dict[str, Any]:
    """Return the row of an image in `predictions.csv`."""
    return {
        "path": sample.source,
        "label": label,
        **sample.fields,
        "predicted": predicted,
        "confidence": f"{confidence:.9g}",
        "correct": int(predicted == label),
    }


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    """Open `predictions.csv` and yield what writes a row; the first row decides the columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        yield _RowWriter(file).write


class _RowWriter:
    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._rows: csv.DictWriter[str] | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        if self._rows is None:
            self._rows = csv.DictWriter(self._file, list(row))
            self._rows.writeheader()
        self._rows.writerow(row)
