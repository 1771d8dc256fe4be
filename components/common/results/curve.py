"""The security curve that `security_curve` wrote: robust accuracy over the size of the attack, and its controls."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evasion.components.common.results import shards
from evasion.components.common.results.evaluations import Aim, Evaluations
from evasion.components.common.results.outcomes import Outcome, Outcomes
from evasion.components.common.results.table import Share

SCHEMA_VERSION = 1
FLOOR = 1 / 510
"""Half a step of an 8-bit pixel: less is rounded away."""
NOISE = "noise"
CONTROLS = ("computed", "saved", "noise", "pgd")


@dataclass(frozen=True)
class Series:
    """One line of the curve.

    Attributes:
        perturbation: The attack's name, or "noise": the control, uniform noise of the same size.
        knowledge: What the attacker knew of the defense; None where there is none.
        defense: The defense, or None.
        points: Accuracy by eps, which grows from 0.
    """

    perturbation: str
    knowledge: str | None
    defense: Aim | None
    points: list[tuple[float, Share]]

    @property
    def control(self) -> bool:
        """Whether it is noise rather than an attack."""
        return self.perturbation == NOISE

    @property
    def name(self) -> str:
        """What the reader knows it by."""
        if self.defense is None:
            return "uniform noise (control)" if self.control else "no defense"
        return f"{self.defense.label} ({self.knowledge})" if self.knowledge else self.defense.label

    def to_json(self) -> dict[str, Any]:
        """The line as `report.json` holds it."""
        return {
            "perturbation": self.perturbation,
            "attacker": self.knowledge,
            "defense": self.defense.label if self.defense else None,
            "points": [{"eps": eps, **share.to_json()} for eps, share in self.points],
        }


@dataclass(frozen=True, eq=False)
class Curve:
    """All lines of one model on one dataset, and what their attack is held to."""

    directories: tuple[Path, ...]
    attack: str
    norm: str
    eps: float
    chance: float
    images: int
    seed: Any  # of a sharded dataset, a list where each shard drew its own
    series: list[Series]
    controls: dict[str, Share]
    settings: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, given: Sequence[Path], evaluations: Evaluations) -> Curve:
        """Read the folder, or those of all shards in any order, and hold them to the evaluations.

        Raises:
            ValueError: If it does not hold a whole curve, or one of another model or of other original images.
        """
        parts = shards.read(given, "curve.json", "a security curve", "security_curve")
        path = parts[0][0] / "curve.json"
        try:
            found = shards.curve([content for _, content in parts])
            images = int(found["images"])
            curve = cls(
                tuple(directory for directory, _ in parts),
                str(found["attack"]),
                str(found["norm"]),
                float(found["eps"]),
                float(found["chance"]),
                images,
                found.get("seed"),
                [_series(each, images) for each in found["curves"]],
                {name: _share(found["controls"][name], images) for name in CONTROLS if name in found["controls"]},
                {name: {k: v for k, v in each.items() if k != "correct"} for name, each in found["controls"].items()},
            )
            model, data, version = found["model"], found["dataset"]["sha256"], found["schema_version"]
            names = f"{model['architecture']} {model['sha256']}"
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not as security_curve writes it: {error}") from None
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} must be of schema_version {SCHEMA_VERSION}. Received: {version}")
        first = evaluations.first
        _same("model", f"{first.model['architecture']} {first.model['sha256']}", names)
        _same("original dataset", first.root_sha256, data)
        return curve

    @property
    def undefended(self) -> Series | None:
        """The attack on the model alone."""
        return next((each for each in self.series if each.defense is None and not each.control), None)

    @property
    def floor(self) -> float | None:
        """The eps below which 8 bits hold nothing of the attack, where the norm tells."""
        return FLOOR if self.norm == "inf" else None

    @property
    def label(self) -> str:
        """Attack and norm in one text."""
        return f"{self.attack} norm={self.norm}"

    def predictions(self) -> Iterator[dict[str, str]]:
        """Rows of `predictions.csv`, one after the other: path, label, and what each control was taken for."""
        for directory in self.directories:
            path = directory / "predictions.csv"
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if missing := [name for name in ("path", "label", *self.controls) if row.get(name) is None]:
                        raise ValueError(f"{path} lacks {', '.join(missing)}")
                    yield row

    def outcome(self, control: str, outcomes: Outcomes) -> Outcome | None:
        """Which images the model got right under one of the controls, if it was made."""
        if control not in self.controls:
            return None
        return outcomes.placed((row["path"], row[control] == row["label"]) for row in self.predictions())

    def to_json(self) -> dict[str, Any]:
        """The curve as `report.json` holds it."""
        return {
            "attack": self.attack,
            "norm": self.norm,
            "eps": self.eps,
            "chance": self.chance,
            "floor": self.floor,
            "images": self.images,
            "seed": self.seed,
            "curves": [each.to_json() for each in self.series],
            "controls": {name: {**self.settings[name], **share.to_json()} for name, share in self.controls.items()},
        }


def _series(found: dict[str, Any], images: int) -> Series:
    points = [(float(point["eps"]), _share(point, images)) for point in found["points"]]
    sizes = [eps for eps, _ in points]
    if not points or sizes[0] != 0 or sorted(set(sizes)) != sizes:
        raise ValueError(f"eps must grow from 0. Received: {sizes}")
    knowledge, defense = found["knowledge"], found["defense"]
    return Series(str(found["perturbation"]), knowledge, Aim.read(defense) if defense else None, points)


def _share(found: dict[str, Any], images: int) -> Share:
    correct = int(found["correct"])
    share = Share.counted(correct, images) if 0 <= correct <= images else None
    if share is None:
        raise ValueError(f"{correct} of {images} images cannot be right")
    return share


def _same(what: str, ours: str, theirs: str) -> None:
    if ours != theirs:
        raise ValueError(
            f"the security curve must be of the evaluations' {what}. Received: evaluations: {ours}; curve: {theirs}. "
            "Draw the curve from what was evaluated."
        )
