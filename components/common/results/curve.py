"""The security curve: robust accuracy over the size of the attack, and the controls that it is compared with."""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evasion.components.common.data import sampling
from evasion.components.common.results import json_file, shards
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import PREDICTIONS, DatasetRecord, ModelRecord, Seed
from evasion.components.common.results.json_file import strict
from evasion.components.common.results.paired import Correctness
from evasion.components.common.results.per_image import PerImage
from evasion.components.common.results.shares import Share
from evasion.components.common.results.treatments import Aim, Treatment, TreatmentStep

CURVE = "curve.json"
FLOOR = 1 / 255
"""A step of an 8-bit pixel: less is rounded away, towards the original."""
FGM, PGD, NOISE, WORST = "fgm", "pgd", "noise", "worst case"
"""What lines are of: a single step, an attack that iterates, the control, and the worst case of the two attacks.

A table has stronger attacks, so `Curve.worst_case` names those of the curve wherever a reader may see both.
"""
CLEAN, COMPUTED, SAVED, SMOOTHNESS = "clean", "computed", "saved", "smoothness"
CONTROLS = (CLEAN, COMPUTED, SAVED, NOISE, PGD)
"""What a curve is compared with: images without attack, attacked as computed and as saved, uniform noise, PGD."""
SMOOTHNESS_IMAGES = 100
"""Of so many images the smoothness of the loss is measured."""


def of_defense(control: str, stage: str | None) -> str:
    """Return the name of a control of a defended model; without a defense, of the model alone."""
    return f"{control}_{stage}" if stage else control


def chance(counts: Iterable[int]) -> float:
    """Return the accuracy of guessing among the classes that have images; 1 if none has."""
    return 1 / max(1, sum(count > 0 for count in counts))


@strict
@dataclass(frozen=True)
class CurvePoint:
    """How many images are right at one size of the attack.

    Attributes:
        eps: The size.
        correct: How many are right, whether or not they are right without the attack.
        robust: How many are right both without the attack, with the same defense, and under it.
    """

    eps: float
    correct: int
    robust: int


@strict
@dataclass(frozen=True)
class CurveLine:
    """One line of the curve as it was measured; the attributes are those of `Series`."""

    perturbation: str
    knowledge: str | None
    defense: Aim | None
    points: list[CurvePoint]


@strict
@dataclass(frozen=True)
class ControlCount:
    """How many images are right under one control, and the settings of PGD.

    Attributes:
        correct: How many are right, whether or not they are right without it.
        robust: How many are right both without it, with the same defense, and under it.
        max_iter: Of PGD.
        eps_step: Of PGD.
    """

    correct: int
    robust: int
    max_iter: int | None = None
    eps_step: float | None = None


@strict
@dataclass(frozen=True, kw_only=True)
class CurveFile:
    """What `curve.json` holds: the parameters of `security_curve`, and what it counted."""

    attack: str
    batch_size: int
    eps: float
    norm: str
    eps_values: str
    pgd_max_iter: int
    eot_samples: int
    seed: Seed
    chance: float
    images: int
    dataset: DatasetRecord
    model: ModelRecord
    versions: dict[str, str]
    curves: list[CurveLine]
    controls: dict[str, ControlCount]
    schema_version: Literal[2] = 2


@strict
@dataclass(frozen=True)
class Point:
    """Accuracy at one size of the attack.

    Attributes:
        eps: The size.
        accuracy: The share of images that are right both without the attack, with the same defense, and under it.
        correct: How many are right under the attack, whether or not they are without it.
    """

    eps: float
    accuracy: Share
    correct: int


@strict
@dataclass(frozen=True, eq=False)
class Series:
    """One line of the curve.

    Attributes:
        perturbation: The attack's name; "worst case": under every attack of the curve and every attacker, of this size
            and all smaller ones; or "noise": the control, uniform noise of the same size.
        knowledge: What the attacker knew of the defense; None without a defense, of the worst case and of noise.
        defense: The defense, or None.
        points: Accuracy by eps, which grows from 0.
    """

    perturbation: str
    knowledge: str | None
    defense: TreatmentStep | None
    points: list[Point]

    @property
    def control(self) -> bool:
        """Whether it is noise rather than an attack."""
        return self.perturbation == NOISE

    @property
    def worst_case(self) -> bool:
        """Whether it is the worst case of the attacks."""
        return self.perturbation == WORST

    @property
    def perturbation_name(self) -> str:
        """What the reader knows the perturbation by."""
        return {NOISE: "uniform noise (control)", FGM: "fgm (single step)"}.get(self.perturbation, self.perturbation)

    @property
    def name(self) -> str:
        """What the reader knows it by."""
        defense = self.defense.label if self.defense else "no defense"
        return f"{defense}: {self.perturbation_name}" + (f", {self.knowledge}" if self.knowledge else "")


@strict
@dataclass(frozen=True)
class Control:
    """Accuracy under one control.

    Attributes:
        accuracy: The share of images that are right both without it, with the same defense, and under it.
        correct: How many are right under it, whether or not they are without it.
        max_iter: Of PGD.
        eps_step: Of PGD.
    """

    accuracy: Share
    correct: int
    max_iter: int | None = None
    eps_step: float | None = None

    @property
    def settings(self) -> dict[str, float]:
        """The settings that there are, by name."""
        named = {"max_iter": self.max_iter, "eps_step": self.eps_step}
        return {name: value for name, value in named.items() if value is not None}


@strict
@dataclass(frozen=True)
class Smoothness:
    """How smooth the loss of the model alone is around images: whether it changes as its gradient says.

    Attributes:
        value: The mean over images, from 0 to 1, of 1 - |d - g| / (|d| + |g|), where d is how the loss changes from one
            image nearby to another, one 8-bit level away, and g how it would by its gradient.
        images: Of how many images.
    """

    value: float
    images: int


@strict
@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """All lines of one model on one dataset, as `report.json` holds them.

    Attributes:
        attack: The attack.
        norm: Its norm.
        eps: Its size in the controls.
        chance: Accuracy of guessing.
        floor: The eps below which 8 bits hold nothing of the attack, where the norm tells.
        images: How many images were attacked.
        seed: Of noise and draws.
        series: The lines; none if there are no images.
        controls: Accuracy under the controls, by name: `noise` of the model alone, `noise_<defense>` of a defended one.
        smoothness: Of the loss of the model alone; None if it is measured of no image.
    """

    attack: str
    norm: str
    eps: float
    chance: float
    floor: float | None
    images: int
    seed: Seed
    series: list[Series]
    controls: dict[str, Control]
    smoothness: Smoothness | None

    @property
    def undefended(self) -> Series | None:
        """The worst case of the attacks on the model alone."""
        return self.line(WORST)

    @property
    def worst_case(self) -> str:
        """What the worst case is over: `worst case of fgm and pgd (5 steps)`."""
        pgd = self.controls.get(PGD)
        steps = "single step" if pgd is None else f"{pgd.max_iter} step{'s' * (pgd.max_iter != 1)}"
        return f"{self._worst_case} ({steps})"

    @property
    def _worst_case(self) -> str:
        return f"{WORST} of {self.attack}" + (f" and {PGD}" if PGD in self.controls else "")

    def name_of(self, series: Series) -> str:
        """Return what the reader knows a line by."""
        defense = series.defense.label if series.defense else "no defense"
        return f"{defense}: {self._worst_case}" if series.worst_case else series.name

    @property
    def defenses(self) -> list[TreatmentStep | None]:
        """None, for the model alone, and each defense."""
        return [each.defense for each in self.series if each.worst_case]

    def line(
        self, perturbation: str, defense: TreatmentStep | None = None, knowledge: str | None = None
    ) -> Series | None:
        """Return a line, if there is one of this perturbation, this defense and this knowledge of it."""
        wanted = (perturbation, defense, knowledge)
        return next((each for each in self.series if (each.perturbation, each.defense, each.knowledge) == wanted), None)

    def treatment_of(self, series: Series) -> Treatment:
        """Return the perturbation of a line, of any size."""
        name = self.worst_case if series.worst_case else series.perturbation
        step = TreatmentStep(name, {"norm": self.norm})
        return Treatment(step.name, step.text, (step,))

    @property
    def label(self) -> str:
        """Attack and norm in one text."""
        return TreatmentStep(self.attack, {"norm": self.norm}).label


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredCurve(Curve):
    """A curve with the predictions of its controls, in one directory or in one for each shard."""

    directories: tuple[Path, ...]

    def predictions(self) -> Iterator[dict[str, str]]:
        """Yield the rows of `predictions.csv`: path, label, the class predicted under each control, the smoothness.

        Raises:
            ValueError: A row lacks a column.
        """
        for directory in self.directories:
            path = directory / PREDICTIONS
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if missing := [name for name in ("path", "label", *self.controls) if row.get(name) is None]:
                        raise ValueError(f"{path} lacks {', '.join(missing)}")
                    yield row

    def correctness(self, per_image: PerImage) -> dict[str, Correctness]:
        """Return which images the model got right under each control."""
        correctness = {control: per_image.nothing() for control in self.controls}
        for row in self.predictions():
            place = per_image.place_of(row["path"])
            if place is not None:
                for control in self.controls:
                    correctness[control][place] = row[control] == row["label"]
        return correctness


def read_curve(directories: Sequence[Path], evaluations: Evaluations) -> MeasuredCurve:
    """Read a curve that belongs to evaluations.

    Args:
        directories: The folder that `security_curve` wrote, or those of all shards in any order.
        evaluations: Those of the same report.

    Raises:
        ValueError: If it does not hold a whole curve, or one of another model or of other original images.
    """
    parts = shards.read(directories, CURVE, CurveFile, "a security curve", "security_curve")
    with shards.belonging_together([directory for directory, _ in parts]):
        whole = parts[0][1] if len(parts) == 1 else _whole_curve([content for _, content in parts])
    first = evaluations.first
    _same("model", first.model.identity, whole.model.identity)
    _same("original dataset", first.root_sha256, whole.dataset.sha256)
    try:
        return MeasuredCurve(
            attack=whole.attack,
            norm=whole.norm,
            eps=whole.eps,
            chance=whole.chance,
            floor=FLOOR if whole.norm == "inf" else None,
            images=whole.images,
            seed=whole.seed,
            series=[_series(line, whole.images) for line in whole.curves] if whole.images else [],
            controls={name: _control(each, whole.images) for name, each in whole.controls.items()}
            if whole.images
            else {},
            smoothness=_smoothness(directories),
            directories=tuple(directory for directory, _ in parts),
        )
    except ValueError as error:
        raise ValueError(f"{parts[0][0] / CURVE} is not as security_curve writes it: {error}") from None


def _whole_curve(parts: Sequence[CurveFile]) -> CurveFile:
    """Return what `curve.json` would hold of all images.

    Raises:
        ValueError: If the parts do not belong together.
    """
    contents: list[dict[str, Any]] = [asdict(part) for part in parts]
    common = shards.alike(contents, apart=("dataset", "seed", "chance", "images", "curves", "controls"))
    dataset = shards.whole_dataset([content["dataset"] for content in contents])
    lines = []
    for line_of_each in zip(*(content["curves"] for content in contents), strict=True):
        line = shards.alike(line_of_each, apart=("points",))
        points = zip(*(each["points"] for each in line_of_each), strict=True)
        lines.append({**line, "points": [_summed(point) for point in points]})
    controls = [content["controls"] for content in contents]
    whole = {
        **common,
        "dataset": dataset,
        "seed": shards.whole_seed(contents),
        "chance": chance(dataset["counts"]),
        "images": sum(content["images"] for content in contents),
        "curves": lines,
        "controls": {name: _summed([each[name] for each in controls]) for name in controls[0]},
    }
    return json_file.from_value(CurveFile, whole)


def _summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a point or a control of all shards."""
    counts = ("correct", "robust")
    return shards.alike(parts, apart=counts) | {name: sum(part[name] for part in parts) for name in counts}


def _smoothness(directories: Iterable[Path]) -> Smoothness | None:
    """Return the mean over the images of the lowest ranks, the same ones for any number of shards."""
    measured: list[tuple[int, float]] = []
    for directory in directories:
        with (directory / PREDICTIONS).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            measured += [(sampling.rank(row["path"]), float(row[SMOOTHNESS])) for row in rows if row.get(SMOOTHNESS)]
    values = [value for _, value in heapq.nsmallest(SMOOTHNESS_IMAGES, measured)]
    return Smoothness(math.fsum(values) / len(values), len(values)) if values else None


def _series(line: CurveLine, images: int) -> Series:
    sizes = [point.eps for point in line.points]
    if not sizes or sizes[0] != 0 or sorted(set(sizes)) != sizes:
        raise ValueError(f"eps must grow from 0. Received: {sizes}")
    points = [Point(point.eps, _share(point.robust, images), point.correct) for point in line.points]
    return Series(line.perturbation, line.knowledge, line.defense.step if line.defense else None, points)


def _control(count: ControlCount, images: int) -> Control:
    return Control(_share(count.robust, images), count.correct, count.max_iter, count.eps_step)


def _share(correct: int, images: int) -> Share:
    share = Share.counted(correct, images) if 0 <= correct <= images else None
    if share is None:
        raise ValueError(f"{correct} of {images} images cannot be right")
    return share


def _same(subject: str, ours: str, theirs: str) -> None:
    if ours != theirs:
        raise ValueError(
            f"the security curve must be of the evaluations' {subject}. Received: evaluations: {ours}; curve: "
            f"{theirs}. Draw the curve from what was evaluated."
        )
