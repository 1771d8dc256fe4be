"""The security curve of one model on one dataset: one gradient an image for all sizes, batch by batch.

The gradient of an FGM step does not depend on eps, so it is computed once.
"""

import csv
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from evasion.components.common import versions
from evasion.components.common.attacks import runner
from evasion.components.common.attacks.norms import moved
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import Floats, to_float, to_pixels
from evasion.components.common.data.provenance import AWARE, OBLIVIOUS
from evasion.components.common.defenses.known import Defense
from evasion.components.common.defenses.transformations import generator
from evasion.components.common.models import classifier
from evasion.components.common.models.artifact import Card
from evasion.components.common.models.classifier import Classifier
from evasion.components.common.progress import track
from evasion.components.common.results import json_file
from evasion.components.common.results.curve import (
    COMPUTED,
    NOISE,
    PGD,
    SAVED,
    ControlCount,
    CurveFile,
    CurveLine,
    CurvePoint,
)
from evasion.components.common.results.evaluation import DatasetRecord, ModelRecord
from evasion.components.common.results.treatments import Aim
from evasion.components.pgd import task as pgd

LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
"""Sizes in 8-bit levels, so that rounding loses nothing: about half as much again from point to point."""
STACKED_BYTES = 16 << 20
"""Bytes of images that the model is given at once."""
PGD_STEPS = 4
"""So many PGD steps bridge eps."""

Labels = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveSettings:
    """What decides the curve.

    Attributes:
        norm: inf, 1 or 2.
        eps: The size of the controls.
        batch_size: Images attacked at a time.
        eot_samples: Draws of a random defense that the defense-aware attacker averages over.
        seed: Of noise and draws.
        sizes: The sizes of the curve, rising, `eps` among them.
        pgd_max_iter: PGD steps in the control; 0 for none.
    """

    norm: str
    eps: float
    batch_size: int
    eot_samples: int
    seed: int
    sizes: tuple[float, ...]
    pgd_max_iter: int


def grid(norm: str, eps: float, sizes: Sequence[float], image_shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Return the sizes of the curve, rising, `eps` among them.

    Args:
        norm: inf, 1 or 2.
        eps: The size of the controls.
        sizes: Those asked for; empty for `LEVELS` of every pixel.
        image_shape: (height, width, channels).
    """
    # A change by one level of every pixel, measured in the norm.
    unit = {"inf": 1.0, "2": math.sqrt(math.prod(image_shape)), "1": float(math.prod(image_shape))}[norm]
    points = sizes or [level / 255 * unit for level in LEVELS]
    return tuple(sorted({eps, *(size for size in points if not math.isclose(size, eps, rel_tol=1e-6))}))


@dataclasses.dataclass
class _Line:
    """One line of the curve: what perturbs the images, what the attacker knows, and the defense before the model.

    Attributes:
        target: What the attacker follows the gradient of; lines with the same target share a direction.
        correct: How many images are right without perturbation, and at each size.
    """

    perturbation: str
    knowledge: str | None
    defense: Defense | None
    target: Classifier
    correct: list[int]

    def measured(self, sizes: Sequence[float]) -> CurveLine:
        points = [CurvePoint(size, count) for size, count in zip([0.0, *sizes], self.correct, strict=True)]
        aim = Aim(self.defense.stage, dict(self.defense.parameters)) if self.defense else None
        return CurveLine(self.perturbation, self.knowledge, aim, points)


def measure(
    data: Dataset,
    model: Path,
    card: Card,
    defenses: Sequence[Defense],
    predictions: Path,
    sizes: Sequence[float],
    used: Mapping[str, Any],
) -> CurveFile:
    """Return what `curve.json` holds, and write the controls' predictions.

    Args:
        data: The images to attack.
        model: The model artifact.
        card: Its description.
        defenses: What else to draw curves of, oblivious and defense-aware.
        predictions: Where the class predicted under each control goes, a row an image.
        sizes: The sizes of the attack; empty for the default ones.
        used: The parameters of the step, with the seed that is used.
    """
    settings = CurveSettings(
        **{name: used[name] for name in ("norm", "eps", "batch_size", "eot_samples", "seed", "pgd_max_iter")},
        sizes=grid(used["norm"], used["eps"], sizes, data.header.image_shape),
    )
    curve = _Measurement(classifier.load(model), card, defenses, settings)
    _count(data, card, curve, settings.batch_size, predictions)
    return CurveFile(
        attack="fgm",
        **used,
        chance=1 / sum(count > 0 for count in data.header.counts),
        images=len(data),
        dataset=DatasetRecord.of(data.header, data.sha256),
        model=json_file.from_value(ModelRecord, dataclasses.asdict(card)),
        versions=versions.recorded(model=True),
        curves=curve.lines(),
        controls=curve.control_counts(),
    )


def _count(data: Dataset, card: Card, curve: "_Measurement", batch_size: int, predictions: Path) -> None:
    """Count batch by batch, and write the rows of the controls."""
    places = card.indices_of(data.header.class_names, data.header.image_shape)
    batches = track(data.batches(batch_size), -(-len(data) // batch_size), "batches")
    with predictions.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["path", "label", *curve.controls])
        rows.writeheader()
        for batch in batches:
            labels = places[[sample.label for sample in batch]]
            guesses = curve.count(batch, labels)
            for place, sample in enumerate(batch):
                guessed = {name: card.class_names[guesses[name][place]] for name in curve.controls}
                rows.writerow({"path": sample.source, "label": card.class_names[labels[place]], **guessed})


class _Measurement:
    """Counts what the model gets right, batch by batch.

    Args:
        bare: The model.
        card: Its description.
        defenses: What else to draw curves of.
        settings: What decides the curve.
    """

    def __init__(self, bare: Classifier, card: Card, defenses: Sequence[Defense], settings: CurveSettings) -> None:
        self._bare, self._settings = bare, settings
        self._one_hot: npt.NDArray[np.float32] = np.eye(len(card.class_names), dtype=np.float32)
        self._lines = [self._line(perturbation, None, None, None) for perturbation in ("fgm", NOISE)]
        for defense in defenses:
            self._lines.append(self._line("fgm", OBLIVIOUS, defense, None))
            self._lines.append(self._line("fgm", AWARE, defense, defense))
        make = pgd.make(
            norm=settings.norm,
            eps=settings.eps,
            eps_step=settings.eps / PGD_STEPS,
            max_iter=max(1, settings.pgd_max_iter),
            num_random_init=0,
            batch_size=settings.batch_size,
        )
        self._pgd = make(bare, settings.seed)
        self.controls = {COMPUTED: 0, SAVED: 0, NOISE: 0} | ({PGD: 0} if settings.pgd_max_iter else {})

    def _line(
        self, perturbation: str, knowledge: str | None, defense: Defense | None, aimed_at: Defense | None
    ) -> _Line:
        target = runner.aimed(self._bare, aimed_at, eot_samples=self._settings.eot_samples, seed=self._settings.seed)
        return _Line(perturbation, knowledge, defense, target, [0] * (len(self._settings.sizes) + 1))

    def lines(self) -> list[CurveLine]:
        """Return the lines as they were counted."""
        return [line.measured(self._settings.sizes) for line in self._lines]

    def control_counts(self) -> dict[str, ControlCount]:
        """Return the controls as they were counted."""
        counts = {name: ControlCount(count) for name, count in self.controls.items()}
        if PGD in counts:
            counts[PGD] = ControlCount(self.controls[PGD], self._settings.pgd_max_iter, self._settings.eps / PGD_STEPS)
        return counts

    def count(self, batch: list[Sample], labels: npt.NDArray[np.int32]) -> dict[str, Labels]:
        """Count one batch, and return the classes predicted under each control."""
        pixels = classifier.stack(batch)
        x = to_float(pixels)
        before = self._bare.attacked_outputs(x).argmax(axis=1)
        guesses = stacked_predictions(self._predicted, self._versions(batch, x, before))
        for line in self._lines:
            points = [guesses[id(line.defense)], *(guesses[id(line), size] for size in self._settings.sizes)]
            for point, guess in enumerate(points):
                line.correct[point] += int((guess == labels).sum())
        attacked, noise = (guesses[id(line), self._settings.eps] for line in self._lines[:2])
        by_control = {COMPUTED: guesses[COMPUTED], SAVED: attacked, NOISE: noise}
        if PGD in self.controls:
            by_control[PGD] = self._predicted(to_float(self._pgd.generate(pixels).pixels))
        for name in self.controls:
            self.controls[name] += int((by_control[name] == labels).sum())
        return by_control

    def _predicted(self, x: Floats) -> Labels:
        classes: Labels = self._bare.outputs(x).argmax(axis=1)
        return classes

    def _saved(self, x: Floats, batch: list[Sample], defense: Defense | None) -> Floats:
        """Return images as the model meets them: in 8 bits, and through the defense as its stage would draw it."""
        pixels = to_pixels(x)
        if defense:
            transform = defense.transformation.of
            pairs = zip(pixels, batch, strict=True)
            pixels = np.stack([transform(image, self._settings.seed, sample.source) for image, sample in pairs])
        return to_float(pixels)

    def _versions(self, batch: list[Sample], x: Floats, before: Labels) -> Iterator[tuple[Any, Floats]]:
        """Yield the images as the model meets them: by defense, by line and size, and attacked but not saved."""
        directions: dict[int, Floats] = {}
        yielded: set[int] = set()
        for line in self._lines:
            step = self._direction(line, batch, x, before, directions)
            if id(line.defense) not in yielded:
                yielded.add(id(line.defense))
                yield id(line.defense), self._saved(x, batch, line.defense)
            for size in self._settings.sizes:
                if line.perturbation == NOISE:
                    changed = np.clip(x + np.float32(size) * step, 0, 1)
                else:
                    changed = moved(x, tf.constant(step), self._settings.norm, size).numpy()
                yield (id(line), size), self._saved(changed, batch, line.defense)
                if line is self._lines[0] and size == self._settings.eps:
                    yield COMPUTED, changed

    def _direction(
        self, line: _Line, batch: list[Sample], x: Floats, before: Labels, directions: dict[int, Floats]
    ) -> Floats:
        """Return the noise of size 1 of a line, or the gradient, which is the same before several defenses."""
        norm, seed, target = self._settings.norm, self._settings.seed, line.target
        if line.perturbation == NOISE:
            return np.stack([_noise(generator(seed, sample.source), x.shape[1:], norm) for sample in batch])
        if id(target) not in directions:
            own = before if target is self._bare else target.attacked_outputs(x).argmax(axis=1)
            gradient = target.loss_gradient(x, self._one_hot[own])
            directions[id(target)] = np.where(np.isnan(gradient), np.float32(0), gradient)
        return directions[id(target)]


def stacked_predictions(
    predicted: Callable[[Floats], Labels], batches: Iterable[tuple[Any, Floats]]
) -> dict[Any, Labels]:
    """Return what `predicted` says of each batch, by its key.

    Several small batches go through the model at once, which keeps its cores busy.
    """
    guesses: dict[Any, Labels] = {}
    waiting: dict[Any, Floats] = {}

    def predict() -> None:
        if waiting:
            ends = np.cumsum([len(batch) for batch in waiting.values()])[:-1]
            parts = np.split(predicted(np.concatenate(list(waiting.values()))), ends)
            guesses.update(zip(waiting, parts, strict=True))
            waiting.clear()

    for key, batch in batches:
        waiting[key] = batch
        if sum(one.nbytes for one in waiting.values()) + batch.nbytes > STACKED_BYTES:
            predict()
    predict()
    return guesses


def _noise(random: np.random.Generator, shape: tuple[int, ...], norm: str) -> Floats:
    """Return noise of size 1: uniform in [-1, 1] for inf, else a random direction of length 1 in the norm."""
    if norm == "inf":
        return random.uniform(-1, 1, shape).astype(np.float32)
    step = random.laplace(size=shape) if norm == "1" else random.standard_normal(shape)
    unit: Floats = (step / np.linalg.norm(step.ravel(), int(norm))).astype(np.float32)
    return unit
