"""The security curve of one model on one dataset, batch by batch.

FGM takes one gradient an image for all sizes, PGD goes from size to size, and noise is the control.
"""

import csv
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evasion.components.common import versions
from evasion.components.common.attacks import runner
from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import Floats, Pixels, to_float, to_pixels, towards
from evasion.components.common.defenses.known import Defense
from evasion.components.common.defenses.transformations import generator
from evasion.components.common.models import classifier
from evasion.components.common.models.artifact import Card
from evasion.components.common.models.classifier import Classifier
from evasion.components.common.progress import track
from evasion.components.common.results import json_file
from evasion.components.common.results.curve import (
    CLEAN,
    COMPUTED,
    FGM,
    NOISE,
    PGD,
    SAVED,
    SMOOTHNESS,
    ControlCount,
    CurveFile,
    CurveLine,
    chance,
    of_defense,
)
from evasion.components.common.results.evaluation import DatasetRecord, ModelRecord
from evasion.components.security_curve import lines
from evasion.components.security_curve.attackers import CONFIDENT, AttackedBatch, Attacker, Labels, step_size
from evasion.components.security_curve.lines import Line
from evasion.components.security_curve.smoothness import Sampled, Smoothness

LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
"""Sizes in 8-bit levels, so that rounding loses nothing: about half as much again from point to point."""
STACKED_BYTES = 16 << 20
"""Bytes of images that the model is given at once."""


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
        pgd_max_iter: PGD steps at each size; 0 for no PGD.
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
    curve = _Measurement(classifier.load(model), card, data, defenses, settings)
    batches = track(data.batches(settings.batch_size), -(-len(data) // settings.batch_size), "batches")
    # Two small batches at once, so that no core waits for the other's part; large ones take memory.
    small = settings.batch_size * math.prod(data.header.image_shape) <= runner.SMALL_BATCH_BYTES
    threads = 2 if small else 1
    sampled = Sampled()
    numbered = ((batch, sampled.places([data.header.original(each.source) for each in batch])) for batch in batches)
    with predictions.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, curve.columns)
        rows.writeheader()
        with closing(ordered_map(lambda each: curve.outcome(*each), numbered, threads=threads, ahead=threads)) as done:
            for outcome in done:
                rows.writerows(curve.count(outcome))
    return CurveFile(
        attack=FGM,
        **used,
        chance=chance(data.header.counts),
        images=len(data),
        dataset=DatasetRecord.of(data.header, data.sha256),
        model=json_file.from_value(ModelRecord, dataclasses.asdict(card)),
        versions=versions.recorded(model=True),
        curves=curve.lines(),
        controls=curve.controls(),
    )


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What one batch gives.

    Attributes:
        paths: Of the images.
        labels: Their classes, as the model numbers them.
        predicted: The classes predicted, (points, images), by line.
        controls: Those predicted under each control.
        smoothness: How smooth the loss is, by the place of each image that it is measured of.
    """

    paths: list[str]
    labels: npt.NDArray[np.int32]
    predicted: Mapping[Line, Labels]
    controls: Mapping[str, Labels]
    smoothness: Mapping[int, float]


class _Measurement:
    """Counts what the model gets right, batch by batch.

    Args:
        bare: The model.
        card: Its description.
        data: The images.
        defenses: What else to draw curves of.
        settings: What decides the curve.
    """

    def __init__(
        self, bare: Classifier, card: Card, data: Dataset, defenses: Sequence[Defense], settings: CurveSettings
    ) -> None:
        self._bare, self._card, self._settings = bare, card, settings
        self._defenses: dict[str | None, Defense | None] = {None: None, **{each.stage: each for each in defenses}}
        self._places = card.indices_of(data.header.class_names, data.header.image_shape)
        self._attackers = {stage: self._attacker(defense) for stage, defense in self._defenses.items()}
        self._lines = lines.lines_of(defenses, len(settings.sizes) + 1, pgd=settings.pgd_max_iter > 0)
        self._smoothness = Smoothness(bare, settings.seed)
        self._clean_of = dict(self._controls_and_clean())
        self._correct, self._robust = dict.fromkeys(self._clean_of, 0), dict.fromkeys(self._clean_of, 0)

    def _attacker(self, defense: Defense | None) -> Attacker:
        settings = self._settings
        target = runner.aimed(self._bare, defense, eot_samples=settings.eot_samples, seed=settings.seed)
        # The images made against the bare model are shown to the defended ones as well.
        shared = defense is None and len(self._defenses) > 1
        random = defense is not None and defense.transformation.random
        leave_below = 0 if shared else CONFIDENT if random else 1
        return Attacker(target, norm=settings.norm, max_iter=settings.pgd_max_iter, leave_below=leave_below)

    def _controls_and_clean(self) -> Iterator[tuple[str, str]]:
        """Yield each control with the one without an attack and with the same defense."""
        names = (CLEAN, SAVED, NOISE, *([PGD] if self._settings.pgd_max_iter else []))
        for stage in self._defenses:
            yield from ((of_defense(name, stage), of_defense(CLEAN, stage)) for name in names)
        yield COMPUTED, CLEAN

    @property
    def columns(self) -> list[str]:
        """The columns of the table that `count` returns rows of."""
        return ["path", "label", *self._clean_of, SMOOTHNESS]

    def lines(self) -> list[CurveLine]:
        """Return the lines as they were counted."""
        return [line.measured(self._settings.sizes) for line in self._lines]

    def controls(self) -> dict[str, ControlCount]:
        """Return the controls as they were counted."""
        max_iter = self._settings.pgd_max_iter
        counts = {name: ControlCount(self._correct[name], self._robust[name]) for name in self._clean_of}
        if PGD in counts:
            eps_step = step_size(self._settings.eps, max_iter)
            counts[PGD] = dataclasses.replace(counts[PGD], max_iter=max_iter, eps_step=eps_step)
        return counts

    def outcome(self, batch: list[Sample], sampled: list[int]) -> "_Outcome":
        """Return what one batch gives. Several threads may call it.

        Args:
            batch: The images.
            sampled: The places in the batch of those whose smoothness to measure.
        """
        labels = self._places[[sample.label for sample in batch]]
        pixels = classifier.stack(batch)
        x = to_float(pixels)
        attacks = {stage: attacker.on(x) for stage, attacker in self._attackers.items()}
        guesses = stacked_predictions(self._predicted, self._single_steps(batch, pixels, attacks))
        predicted = {
            line: np.stack([guesses[line.stage], *(guesses[line, size] for size in self._settings.sizes)])
            for line in self._lines
            if line.perturbation in (FGM, NOISE)
        }
        predicted |= self._grown(batch, pixels, labels, attacks, guesses)
        own = self._attackers[None].one_hot[attacks[None].own[sampled]]
        smooth = dict(
            zip(sampled, self._smoothness.of([batch[place] for place in sampled], x[sampled], own), strict=True)
        )
        controls = {COMPUTED: guesses[COMPUTED], **self._controlled(predicted)}
        return _Outcome([sample.source for sample in batch], labels, predicted, controls, smooth)

    def count(self, outcome: "_Outcome") -> list[dict[str, str]]:
        """Count one batch, and return its rows: the class predicted under each control, and the smoothness."""
        lines.count(self._lines, {line: guess == outcome.labels for line, guess in outcome.predicted.items()})
        right = {name: guess == outcome.labels for name, guess in outcome.controls.items()}
        for name, clean in self._clean_of.items():
            self._correct[name] += int(right[name].sum())
            self._robust[name] += int((right[name] & right[clean]).sum())
        names = self._card.class_names
        return [
            {
                "path": path,
                "label": names[outcome.labels[place]],
                **{name: names[outcome.controls[name][place]] for name in self._clean_of},
                # In three digits: how outputs are rounded depends on the batch, and shards make other batches.
                SMOOTHNESS: f"{outcome.smoothness[place]:.3f}" if place in outcome.smoothness else "",
            }
            for place, path in enumerate(outcome.paths)
        ]

    def _controlled(self, predicted: Mapping[Line, Labels]) -> dict[str, Labels]:
        """Return what is predicted under each control: at `eps`, by the attacker who knows the defense."""
        at_eps = self._settings.sizes.index(self._settings.eps) + 1
        controls = {}
        for line, guess in predicted.items():
            if line.aimed_at == line.stage or line.perturbation == NOISE:
                name = {FGM: SAVED}.get(line.perturbation, line.perturbation)
                controls[of_defense(name, line.stage)] = guess[at_eps]
                controls[of_defense(CLEAN, line.stage)] = guess[0]
        return controls

    def _predicted(self, x: Floats) -> Labels:
        classes: Labels = self._bare.outputs(x).argmax(axis=1)
        return classes

    def _defended(self, pixels: Pixels, batch: Sequence[Sample], defense: Defense | None) -> Floats:
        """Return saved images as the model meets them: through the defense as its stage would draw it."""
        if defense:
            transform = defense.transformation.of
            pairs = zip(pixels, batch, strict=True)
            pixels = np.stack([transform(image, self._settings.seed, sample.source) for image, sample in pairs])
        return to_float(pixels)

    def _single_steps(
        self, batch: list[Sample], pixels: Pixels, attacks: Mapping[str | None, AttackedBatch]
    ) -> Iterator[tuple[Any, Floats]]:
        """Yield images as the model meets them: by defense, by line and size, and attacked but not saved."""
        settings, x = self._settings, attacks[None].x
        noise = np.stack([_noise(generator(settings.seed, each.source), x.shape[1:], settings.norm) for each in batch])
        for stage, defense in self._defenses.items():
            yield stage, self._defended(pixels, batch, defense)
        for size in settings.sizes:
            # Noise is rounded to the nearest level: towards the image, noise of one level would be none.
            noisy = to_pixels(x + np.float32(size) * noise)
            moved = {stage: attack.fgm(size) for stage, attack in attacks.items()}
            if size == settings.eps:
                yield COMPUTED, moved[None]
            attacked = {stage: towards(images, pixels) for stage, images in moved.items()}
            for line in self._lines:
                if line.perturbation in (FGM, NOISE):
                    saved = noisy if line.perturbation == NOISE else attacked[line.aimed_at]
                    yield (line, size), self._defended(saved, batch, line.defense)

    def _grown(
        self,
        batch: list[Sample],
        pixels: Pixels,
        labels: npt.NDArray[np.int32],
        attacks: Mapping[str | None, AttackedBatch],
        clean: Mapping[Any, Labels],
    ) -> dict[Line, Labels]:
        """Return what is predicted of the images of PGD, by line and point.

        An image that a line has wrong stays wrong: whoever may change more can change less.
        """
        grown = [line for line in self._lines if line.perturbation == PGD]
        predicted = {line: [clean[line.stage]] for line in grown}
        for size in self._settings.sizes if grown else ():
            standing = {line: predicted[line][-1] == labels for line in grown}
            for stage, attack in attacks.items():
                attack.grow(size, np.logical_or.reduce([standing[line] for line in grown if line.aimed_at == stage]))
            saved = {stage: towards(attack.images, pixels) for stage, attack in attacks.items()}

            def standing_images(
                standing: Mapping[Line, Any] = standing, saved: Mapping[Any, Pixels] = saved
            ) -> Iterator[tuple[Line, Floats]]:
                for line, places in standing.items():
                    if places.any():
                        rest = [batch[place] for place in np.flatnonzero(places)]
                        yield line, self._defended(saved[line.aimed_at][places], rest, line.defense)

            guesses = stacked_predictions(self._predicted, standing_images())
            for line in grown:
                guess = predicted[line][-1].copy()
                if line in guesses:
                    guess[standing[line]] = guesses[line]
                predicted[line].append(guess)
        return {line: np.stack(guess) for line, guess in predicted.items()}


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
