"""An evaluation: one model's predictions on one dataset, as `infer` measures and writes it."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evasion.components.common.data import sampling
from evasion.components.common.data.header import SAFE_FOLDER, Header
from evasion.components.common.data.provenance import ATTACK, AWARE, DEFENSE, OBLIVIOUS
from evasion.components.common.models.artifact import Card
from evasion.components.common.results import json_file
from evasion.components.common.results.json_file import strict
from evasion.components.common.results.shares import accuracy_name
from evasion.components.common.results.treatments import NONE, ProvenanceEntry, Treatment, treatment

EVALUATIONS = "evaluations.json"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
COUNTS = "counts.npz"
IMAGES = "images"
_COLUMNS = ("path", "label", "predicted", "confidence", "correct")

Seed = int | list[int | None] | None
"""Of a sharded dataset, a list where each shard drew its own."""


@strict
@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The header of the dataset that was evaluated, and its hash."""

    name: str
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    image_shape: tuple[int, int, int]
    split: str
    prefix: str
    provenance: tuple[ProvenanceEntry, ...]
    sha256: str

    @classmethod
    def of(cls, header: Header, sha256: str) -> DatasetRecord:
        """Return the record of a dataset with this header and this hash."""
        return json_file.from_value(cls, dataclasses.asdict(header) | {"sha256": sha256})

    @property
    def images(self) -> int:
        """How many images it holds."""
        return sum(self.counts)


@strict
@dataclass(frozen=True, kw_only=True)
class ModelRecord(Card):
    """The card of the model that was evaluated."""

    @property
    def identity(self) -> str:
        """Architecture and hash."""
        return f"{self.architecture} {self.sha256}"


@strict
@dataclass(frozen=True, kw_only=True)
class AttackChecks:
    """What shows whether an attack could work.

    Attributes:
        saturated_images: How many images have a confidence that float32 cannot tell from 1.
        zero_gradient_images: How many images had a gradient of zero everywhere; None if no attack on this model.
        gradient_from_logits: Whether the attack took its loss from logits; None without an attack.
        saturated_gradient_images: How many of the images without a gradient have a confidence that float32 cannot tell
            from 1: the cross-entropy is zero there, though the logits differ.
        standing_images: How many images no iterate fools the target with, as saved; None, as are the following counts,
            if no attack on this model recorded it.
        fooled_earlier_images: How many images the best iterate fools with, but no last one.
        rising_images: How many of those that stand have a loss that still rose in the last tenth of the steps.
        claimed_images: How many images were right before, and by the attacker's own passes are fooled as saved.
        unconfirmed_images: How many of these are right all the same.
        black_box_only_images: How many images a member that uses no gradient fooled, after all others had failed; None
            if the attack has not both.
    """

    saturated_images: int | None = None
    zero_gradient_images: int | None = None
    gradient_from_logits: bool | None = None
    saturated_gradient_images: int | None = None
    standing_images: int | None = None
    fooled_earlier_images: int | None = None
    rising_images: int | None = None
    claimed_images: int | None = None
    unconfirmed_images: int | None = None
    black_box_only_images: int | None = None


@strict
@dataclass(frozen=True)
class RangeTrial:
    """How many of some images a model would get right if it took another range of input values."""

    correct: int
    images: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.images or not self.images:
            raise ValueError(f"{self.correct} of {self.images} images cannot be right")


@strict
@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What `infer` measured on one dataset.

    Attributes:
        seed: The seed of `infer`.
        batch_size: Images predicted at a time.
        versions: Of packages, by name.
        metrics: `images`, `correct`, `accuracy` with its interval, loss and more, by name; of attacked images
            `accuracy_under_attack` in place of `accuracy`.
        distances: Of the images to their parents, a summary by distance.
        attack_distances: The same of the images as the attack saved them, where a defense came after it.
        confusion: (true class, predicted class, number of images) of each pair that occurred.
        checks: Whether an attack could work.
        input_ranges: Of original images that the model is mostly wrong about, what other ranges of input values would
            give, by name.
    """

    seed: Seed
    batch_size: int | None
    versions: dict[str, str]
    metrics: dict[str, int | float]
    distances: dict[str, dict[str, float]]
    confusion: list[tuple[int, int, int]]
    checks: AttackChecks
    input_ranges: dict[str, RangeTrial] = dataclasses.field(default_factory=dict)
    attack_distances: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


@strict
@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationFile(Measured):
    """What `evaluation.json` holds, beside what was measured.

    Attributes:
        dataset: What was evaluated.
        model: What evaluated it.
        schema_version: Of this file.
    """

    dataset: DatasetRecord
    model: ModelRecord
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        attacked = any(entry.kind == ATTACK for entry in self.dataset.provenance)
        needed = ("images", "correct", accuracy_name(attacked=attacked)) if self.dataset.images else ()
        if lacking := [name for name in needed if name not in self.metrics]:
            raise ValueError(f"metrics lacks {', '.join(lacking)}")
        if not 0 <= self.metrics.get("correct", 0) <= self.metrics.get("images", 0):
            raise ValueError(f"{self.metrics['correct']} of {self.metrics.get('images')} images cannot be right")
        if not (self.dataset.sha256 and self.model.sha256 and self.model.architecture):
            raise ValueError("a hash or the architecture is blank")


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(EvaluationFile):
    """An evaluation in one directory, or in one for each shard of its dataset."""

    directories: tuple[Path, ...]

    @property
    def root_sha256(self) -> str:
        """Hash of the data as loaded, before any attack or defense."""
        later = [entry.parent_sha256 for entry in self.dataset.provenance[1:] if entry.parent_sha256]
        return later[0] if later else self.dataset.sha256

    @property
    def attacks(self) -> list[ProvenanceEntry]:
        """The attacks on the dataset."""
        return [entry for entry in self.dataset.provenance if entry.kind == ATTACK]

    @property
    def moved(self) -> dict[str, dict[str, float]]:
        """How far the last attack moved the images that it saved, as `distances`; empty if not known."""
        last = self.dataset.provenance[-1].kind if self.dataset.provenance else ""
        return self.distances if last == ATTACK else self.attack_distances

    @property
    def iterates(self) -> bool:
        """Whether an attack on the dataset takes more than one step."""
        return any(entry.iterates for entry in self.attacks)

    @cached_property
    def attack(self) -> Treatment:
        """The attack on the dataset, or `NONE`."""
        entries = self.attacks
        # An attack on a defense that these images did not meet is another attack than one on the model alone.
        aims = [entry.defense.label if entry.defense and self.knowledge != AWARE else "" for entry in entries]
        # Another seed or another model attacked makes another attack, though its settings be the same.
        key = json.dumps([[e.identity, e.seed, e.model_sha256, aim] for e, aim in zip(entries, aims, strict=True)])
        names = [f"{e.stage} (aimed at {aim})" if aim else e.stage for e, aim in zip(entries, aims, strict=True)]
        return treatment(entries, key, names)

    @cached_property
    def knowledge(self) -> str | None:
        """Which attacker attacked this data, one that knew the defense or not; None without an attack or a defense."""
        entries = [entry for entry in self.dataset.provenance if entry.kind in (ATTACK, DEFENSE)]
        kinds = [entry.kind for entry in entries]
        if len(set(kinds)) < 2:
            return None
        if kinds != [ATTACK, DEFENSE]:
            return OBLIVIOUS
        attack, defense = entries
        aimed = attack.knowledge == AWARE and attack.defense is not None and attack.defense.is_of(defense)
        return AWARE if aimed else OBLIVIOUS

    @property
    def unseeded(self) -> tuple[Any, ...]:
        """What two attackers' attack has in common even where each stage drew a seed of its own."""
        return tuple((entry.identity, entry.model_sha256) for entry in self.attacks)

    @cached_property
    def defense(self) -> Treatment:
        """The defenses that this data went through, or `NONE`."""
        provenance = self.dataset.provenance
        last_attack = max((place for place, entry in enumerate(provenance) if entry.kind == ATTACK), default=-1)
        placed = [(place, entry) for place, entry in enumerate(provenance) if entry.kind == DEFENSE]
        names = [f"{e.stage} (before the attack)" if place < last_attack else e.stage for place, e in placed]
        entries = [entry for _, entry in placed]
        return treatment(entries, json.dumps([names, [entry.identity for entry in entries]]), names)

    @property
    def title(self) -> str:
        """What was evaluated, in words."""
        return title(self.attack, self.defense, self.knowledge)

    def original(self, path: str) -> str:
        """Return the path that an image had before attacks and defenses put prefixes before its name."""
        folder, slash, name = path.rpartition("/")
        return folder + slash + name.removeprefix(self.dataset.prefix)

    def predictions(self) -> Iterator[dict[str, str]]:
        """Yield the rows of `predictions.csv`."""
        return rows_of_predictions(self.directories)

    def pictures(self) -> dict[str, Path]:
        """Return the saved sample of images, by original path; of several shards' samples the one of all images."""
        pictures = {}
        for directory in self.directories:
            folder = directory / IMAGES
            for path in sorted(path for path in folder.glob("*/*") if path.suffix.lower() == ".png"):
                pictures[self.original(path.relative_to(folder).as_posix())] = path
        if len(self.directories) > 1:
            kept = sorted(pictures, key=sampling.rank)[: sampling.SHOWN]
            pictures = {original: pictures[original] for original in kept}
        return pictures


def title(attack: Treatment, defense: Treatment, knowledge: str | None) -> str:
    """Return what was evaluated, in words."""
    parts = [each.label for each in (attack, defense) if each != NONE]
    return (" + ".join(parts) or "clean") + (f" ({AWARE})" if knowledge == AWARE else "")


def rows_of_predictions(directories: Iterable[Path]) -> Iterator[dict[str, str]]:
    """Yield the rows of the `predictions.csv` of several directories.

    Raises:
        ValueError: A row lacks a column.
    """
    for directory in directories:
        path = directory / PREDICTIONS
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if missing := [name for name in _COLUMNS if row.get(name) is None]:
                    raise ValueError(f"{path} lacks {', '.join(missing)}")
                yield row


def write_list(folder: Path, names: Sequence[str]) -> None:
    """Write which evaluations a folder of `infer` holds, a folder each."""
    (folder / EVALUATIONS).write_text(json.dumps(list(names), indent=1), encoding="utf-8")


def listed(folders: Sequence[Path]) -> list[list[Path]]:
    """Return of each evaluation its directory, or those of its shards.

    Args:
        folders: What `infer` wrote: of all datasets, or of each shard.

    Raises:
        ValueError: If one does not hold what it lists.
    """
    directories: dict[str, list[Path]] = {}
    for folder in folders:
        path = folder / EVALUATIONS
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{folder} is not an evaluation: it has no {path.name}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(names, list) or not all(
            isinstance(name, str) and SAFE_FOLDER.fullmatch(name) for name in names
        ):
            raise ValueError(f"{path} is not as infer writes it: it must list names of folders")
        for name in names:
            directories.setdefault(name, []).append(folder / name)
    return list(directories.values())
