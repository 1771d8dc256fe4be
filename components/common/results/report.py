"""A report: what `report` writes as `report.json`, and `compare` and the gate read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

from evasion.components.common.results import json_file
from evasion.components.common.results.check import Check
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.curve import Curve
from evasion.components.common.results.evaluation import DatasetRecord, Measured, ModelRecord
from evasion.components.common.results.json_file import strict
from evasion.components.common.results.minimal import Distribution
from evasion.components.common.results.paired import Correctness, under_each, unpacked
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Row, best
from evasion.components.common.results.treatments import NONE, Treatment
from evasion.components.common.validate import shown

Cell = tuple[str | None, str | None, str | None]
"""The labels of an attack and of a defense, or None, and what the attacker knew of the defense, or None."""

MAX_ENTRIES = 1024
"""Rows, checks, datasets and evaluations that a report may have, each; what is judged grows with their square."""


@strict
@dataclass(frozen=True)
class AttackerNote:
    """What the attackers of the report knew and did.

    Attributes:
        knowledge: defense-aware, oblivious or both.
        labels: Which labels the attacks moved images away from.
        note: The same for people.
        effort: How much the attacks did, of those whose names do not say it.
        advice: What a number to publish needs beyond that; blank for nothing.
    """

    knowledge: list[str]
    labels: str
    note: str
    effort: str = ""
    advice: str = ""


@strict
@dataclass(frozen=True)
class Prediction:
    """What the model took one version of an image for."""

    title: str
    predicted: str
    confidence: float
    right: bool


@strict
@dataclass(frozen=True)
class Picture:
    """One original image of the page's gallery."""

    path: str
    label: str
    shown: list[Prediction]


@strict
@dataclass(frozen=True)
class Pictures:
    """The gallery of one attack.

    Attributes:
        attack: The attack's label; None without an attack.
        saved: How many images the evaluations saved.
        magnified: By what factor the differences are magnified.
        images: Those that the page shows.
    """

    attack: str | None
    saved: int
    magnified: int
    images: list[Picture]


@strict
@dataclass(frozen=True)
class Originals:
    """The original images.

    Attributes:
        images: How many there are.
        sha256: Hash of `path<tab>label<newline>` of each, sorted by path. Equal hashes mean equal images and order, so
            that evaluations pair across reports.
    """

    images: int
    sha256: str


@strict
@dataclass(frozen=True)
class TitledDataset:
    """A dataset that was evaluated, and the title of its evaluation."""

    title: str
    dataset: DatasetRecord


@strict
@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationRecord(Measured):
    """One evaluation, beside what was measured.

    Attributes:
        title: Attack, defense and attacker in words.
        attack: The attack's label, or None.
        defense: The defense's label, or None.
        attacker: What the attacker knew of the defense, or None.
        right: A bit an image, the first one highest, packed into bytes, as base64: 1 where the model was right, images
            sorted by original path. None where an image is missing or there are more than the originals.
    """

    title: str
    attack: str | None
    defense: str | None
    attacker: str | None
    dataset_sha256: str
    model_sha256: str
    right: str | None

    @property
    def cell(self) -> Cell:
        """What was evaluated."""
        return self.attack, self.defense, self.attacker


@strict
@dataclass(frozen=True, kw_only=True)
class Report:
    """What `report.json` holds.

    Attributes:
        headline: What the table amounts to, in words.
        attacker: What the attackers knew and did; None without an attack.
        clean_accuracy_floor: Clean accuracy below which the report is not to be trusted.
        metrics: The main numbers, flat.
        table: A row for each attack and defense.
        curve: The security curve, or None.
        minimal: How small an attack each image withstands, where an attack looked for it.
        pictures: What the page shows.
        checks: Whether the numbers can be trusted, the failed ones first.
        model: The model.
        originals: The original images.
        datasets: What was evaluated.
        evaluations: Every evaluation.
        schema_version: Of this file.
    """

    headline: str
    attacker: AttackerNote | None
    clean_accuracy_floor: float
    metrics: dict[str, float]
    table: list[Row]
    curve: Curve | None
    minimal: list[Distribution]
    pictures: list[Pictures]
    checks: list[Check]
    model: ModelRecord
    originals: Originals
    datasets: list[TitledDataset]
    evaluations: list[EvaluationRecord]
    schema_version: Literal[4]

    def __post_init__(self) -> None:
        self._check_complete()
        for evaluation in self.evaluations:
            correct = evaluation.metrics.get("correct")
            if evaluation.right and unpacked(evaluation.right, self.originals.images).sum() != correct:
                raise ValueError(f"the bits of {evaluation.title} do not count {correct} right images")
        if not (self.headline and self.originals.sha256):
            raise ValueError("the headline or a hash is blank")

    def _check_complete(self) -> None:
        """Refuse a report from which something was removed: a gate would judge what is left as if it were all.

        Raises:
            ValueError: If it lacks checks, rows or evaluations that its other parts speak of.
        """
        for name in ("table", "checks", "datasets", "evaluations"):
            count = len(getattr(self, name))
            least = 0 if name == "table" and not self.originals.images else 1  # a dataset without images has no rows
            if not least <= count <= MAX_ENTRIES:
                raise ValueError(f"{name} must have {least} to {MAX_ENTRIES:,} entries. Received: {count:,}")
        for status, metric in (("fail", "checks_failed"), ("warn", "checks_warned")):
            count, counted = sum(check.status == status for check in self.checks), self.metrics.get(metric)
            if count != counted:
                raise ValueError(f"checks must be those that {metric} counts, {counted}. Received: {count}")
        _same("datasets", {each.title for each in self.datasets}, {each.title for each in self.evaluations})
        evaluated = {each.cell for each in self.evaluations if each.metrics.get("images")}
        of_table = {cell for row in self.table for cell in cells(row)}
        _same("the table", {_title(cell) for cell in of_table}, {_title(cell) for cell in evaluated})

    @property
    def clean(self) -> Share | None:
        """Accuracy without attack and defense."""
        return next((row.clean_accuracy for row in self.table if row.defense == NONE and row.clean_accuracy), None)

    @cached_property
    def attacks(self) -> list[Treatment]:
        """Every attack of the table, each label once; of several attacks, all of them together come first."""
        by_label = {row.attack.label: row.attack for row in self.table if row.robust_accuracy}
        return list(by_label.values())

    def undefended(self, attack: str) -> Row | None:
        """Return how the model fares under the attack of this label without a defense."""
        return next((row for row in self._under(attack) if row.defense == NONE), None)

    def best(self, attack: str) -> Row | None:
        """Return the defense that leaves most under an attack and all its attackers, if one helps beyond chance."""
        rows = self._under(attack)
        return best(rows, rows[0].attack) if rows else None

    @cached_property
    def correctness(self) -> dict[Cell, Correctness]:
        """Which images the model got right by attack, defense and attacker, where that is known of each image."""
        return {each.cell: unpacked(each.right, self.originals.images) for each in self.evaluations if each.right}

    def robust(self, attack: str, defense: str | None = None, attacker: str | None = None) -> Correctness | None:
        """Return which images are right without an attack and under one, with the same defense.

        Args:
            attack: The label of an attack, or that of all attacks of the report together.
            defense: The label of a defense, or None.
            attacker: What the attacker knew of the defense; None for every attacker.

        Returns:
            None where an evaluation is not there or does not tell of each image.
        """
        worst = next((each for each in self.attacks if each.is_worst_case), None)
        together = worst is not None and attack == worst.label
        under = [
            self.correctness.get(each.cell)
            for each in self.evaluations
            if each.attack and (together or each.attack == attack)
            if each.defense == defense and attacker in (None, each.attacker)
        ]
        known = [each for each in (self.correctness.get((None, defense, None)), *under) if each is not None]
        return under_each(*known) if under and len(known) == len(under) + 1 else None

    @property
    def failed(self) -> list[Check]:
        """The checks that failed: the numbers are not to be trusted yet."""
        return [check for check in self.checks if check.status == "fail"]

    def _under(self, attack: str) -> list[Row]:
        return [row for row in self.table if row.robust_accuracy and row.attack.label == attack]


def cells(row: Row) -> Iterator[Cell]:
    """Yield the evaluations that a row rests on; of a row of several attacks only the one without an attack."""
    defense = None if row.defense == NONE else row.defense.label
    if row.clean_accuracy:
        yield None, defense, None
    if row.attack.is_worst_case or row.attack == NONE:
        return
    if defense is None and row.judged.accuracy_under_attack:
        yield row.attack.label, None, None
    for attacker, attacked in row.attackers.items():
        if attacked.accuracy_under_attack:
            yield row.attack.label, defense, attacker


def _title(cell: Cell) -> str:
    attack, defense, attacker = cell
    return " + ".join(part for part in (attack, defense) if part) + (f" ({attacker})" if attacker else "") or "clean"


def _same(where: str, titles: set[str], evaluated: set[str]) -> None:
    """Require the same titles in some part of a report as in its evaluations."""
    for holder, more in ((where, titles - evaluated), ("evaluations", evaluated - titles)):
        if more:
            raise ValueError(f"{where} and evaluations must be of the same. Only {holder} has {shown(min(more))}")


def path_of(path: Path) -> Path:
    """Return the path of a report: in a folder of a run, its `report.json`.

    Raises:
        ValueError: If the system takes no such path.
    """
    try:
        return path / "report.json" if path.is_dir() else path
    except OSError as error:
        raise ValueError(
            f"a report must be a file or a folder: {error.strerror}. Received: {shown(str(path))}"
        ) from None


def records(evaluations: Evaluations) -> list[EvaluationRecord]:
    """Return what `report.json` says of every evaluation."""
    return [
        EvaluationRecord(
            title=title,
            attack=attack.label if attack != NONE else None,
            defense=defense.label if defense != NONE else None,
            attacker=evaluation.knowledge,
            dataset_sha256=evaluation.dataset.sha256,
            model_sha256=evaluation.model.sha256,
            **{one.name: getattr(evaluation, one.name) for one in fields(Measured)},
            right=evaluations.per_image.packed(evaluation),
        )
        for title, attack, defense, evaluation in evaluations.placed()
    ]


def read(path: Path) -> Report:
    """Read a `report.json`.

    Raises:
        ValueError: If there is none, or it is damaged, incomplete or of another schema_version.
    """
    try:
        return json_file.read(path, Report, "report")
    except FileNotFoundError:
        raise ValueError(f"there is no report at {path}") from None
    except OSError as error:
        raise ValueError(f"the report {shown(str(path))} cannot be read: {error.strerror}") from None
