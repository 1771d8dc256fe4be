"""Reports read back: what each says of its model."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evasion.components.common.results.outcomes import Outcome, unpacked
from evasion.components.common.results.table import Share

READABLE = 2
"""The schema_version of report.json that is read."""
NO_DEFENSE = "none"

Treated = tuple[str | None, str | None, str | None]
"""An attack, a defense, and what the attacker knew of it."""


@dataclass(frozen=True)
class Case:
    """One model under one attack with one defense, or without."""

    defense: str
    attacker: str | None
    clean: Share | None
    robust: Share | None
    success: Share | None
    helps: bool


@dataclass(frozen=True, eq=False)
class Model:
    """One model with its report.

    Attributes:
        name: What the comparison calls it.
        path: Its report.
        report: What that holds.
    """

    name: str
    path: Path
    report: dict[str, Any]

    @property
    def card(self) -> dict[str, Any]:
        """The model itself."""
        card: dict[str, Any] = self.report["models"][0]
        return card

    @property
    def images(self) -> int:
        """How many original images it was evaluated on."""
        return int(self.report["originals"]["images"])

    @property
    def originals(self) -> str:
        """Hash of the original images' paths and labels."""
        return str(self.report["originals"]["sha256"])

    @cached_property
    def attacks(self) -> list[str]:
        """Every attack, with its settings."""
        return list(dict.fromkeys(label(row["attack"], row["attack_settings"]) for row in self._attacked))

    @property
    def clean(self) -> Share | None:
        """Accuracy without attack and defense."""
        found = [share(row["clean_accuracy"]) for row in self.report["table"] if row["defense"] == NO_DEFENSE]
        return next((each for each in found if each), None)

    def undefended(self, attack: str) -> Case | None:
        """How it fares under an attack without a defense."""
        return next((case for case in self._cases(attack) if case.defense == NO_DEFENSE), None)

    def best(self, attack: str) -> Case | None:
        """The defense that leaves most under an attack, by its worst attacker, if one helps beyond chance."""
        helping = [case for case in self._cases(attack) if case.helps and case.robust]
        return max(helping, key=lambda case: case.robust.value if case.robust else 0.0, default=None)

    @cached_property
    def outcomes(self) -> dict[Treated, Outcome]:
        """Which images it got right by attack, defense and attacker, where that is known of each image."""
        return {
            (each["attack"], each["defense"], each["attacker"]): unpacked(each["right"], self.images)
            for each in self.report["evaluations"]
            if each["right"]
        }

    @property
    def failed(self) -> list[dict[str, str]]:
        """The report's checks that failed: its numbers are not to be trusted yet."""
        return [check for check in self.report["checks"] if check["status"] == "fail"]

    @property
    def _attacked(self) -> list[dict[str, Any]]:
        return [row for row in self.report["table"] if row["robust_accuracy"]]

    def _cases(self, attack: str) -> list[Case]:
        return [_case(row) for row in self._attacked if label(row["attack"], row["attack_settings"]) == attack]


def _case(row: dict[str, Any]) -> Case:
    change = row["robust_accuracy_change"]
    return Case(
        label(row["defense"], row["settings"]),
        row["attacker"],
        share(row["clean_accuracy"]),
        share(row["robust_accuracy"]),
        share(row["attack_success_rate"]),
        bool(row["applied"] and change and change["value"] > 0 and not change["may_be_chance"]),
    )


def label(name: str, settings: str) -> str:
    """Name and settings in one text, as the report has them."""
    return f"{name} {settings}".strip()


def share(found: dict[str, Any] | None) -> Share | None:
    """A share as the report has it, if it has one.

    Raises:
        ValueError: If its numbers cannot be those of a share.
    """
    if not found:
        return None
    made = Share(found["count"], found["n"], found["value"], found["low"], found["high"])
    if not (0 <= made.low <= made.value <= made.high <= 1 and math.isclose(made.value * made.n, made.count)):
        raise ValueError(f"{made.count} of {made.n} is no share of {made.value} in [{made.low}, {made.high}]")
    return made


def read(paths: list[Path], names: list[str]) -> list[Model]:
    """Read reports and hold them to each other.

    Args:
        paths: Each a report.json.
        names: What to call the models in this order, or nothing for their own names.

    Raises:
        ValueError: If there are fewer than two, a name is missing or there twice, a report cannot be read, or they
            are of different original images.
    """
    if len(paths) < 2:
        raise ValueError(f"compare needs at least two reports. Received: {len(paths)}")
    if names and len(names) != len(paths):
        raise ValueError(f"names must be as many as reports, {len(paths)}. Received: {', '.join(names)}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"names must differ. Received more than once: {', '.join(repeated)}")
    reports = [load(path) for path in paths]
    own = names or _names([report["models"][0] for report in reports])
    models = [Model(name, path, report) for name, path, report in zip(own, paths, reports, strict=True)]
    if len({model.originals for model in models}) > 1:
        listed = "; ".join(f"{model.name}: {model.images:,} images, sha256 {model.originals[:12]}" for model in models)
        raise ValueError(
            f"reports must be of the same original images (file names and labels). Received: {listed}. "
            "Evaluate the models on the same data."
        )
    return models


def load(path: Path) -> dict[str, Any]:
    """Read a report.json.

    Raises:
        ValueError: If there is none, or it is damaged or of another schema_version.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = found["schema_version"]
        if version == READABLE:
            _whole(Model("", path, found))
            return found
    except FileNotFoundError:
        raise ValueError(f"there is no report at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} is no report.json: it lacks {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as report writes it: {error}") from None
    raise ValueError(
        f"{path} must be of schema_version {READABLE}, which holds the outcome of each image. Received: {version}. "
        "Draw the report again."
    )


def _whole(model: Model) -> None:
    """Read all that will be used, so that what is wrong is said of the file it is in."""
    cases = [case for attack in model.attacks for case in model._cases(attack)]
    numbers = [each.value for case in cases for each in (case.clean, case.robust) if each]
    curve = model.report["curve"]
    lines = curve["curves"] if curve else []
    numbers += [point[key] for line in lines for point in line["points"] for key in ("eps", "value", "low", "high")]
    for evaluation in model.report["evaluations"]:
        right, correct = evaluation["right"], evaluation["metrics"]["correct"]
        if right and unpacked(right, model.images).sum() != correct:
            raise ValueError(f"the outcomes of {evaluation['title']} do not count {correct} right images")
    if not (model.card["architecture"] and model.originals and model.report["headline"]):
        raise ValueError("a name or a hash is empty")
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number is not finite")
    texts = [check[key] for check in model.report["checks"] for key in ("name", "subject", "status", "found", "advice")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a check has no outcome")


def _names(cards: list[dict[str, Any]]) -> list[str]:
    """A name for each: the registered one, or the architecture; with its version or a number where two share it."""
    names = [str(card.get("name") or card["architecture"]) for card in cards]
    versioned = [
        f"{name} {card['version']}" if names.count(name) > 1 and card.get("version") else name
        for name, card in zip(names, cards, strict=True)
    ]
    seen: Counter[str] = Counter()
    told = []
    for name in versioned:
        seen[name] += 1
        told.append(f"{name} ({seen[name]})" if versioned.count(name) > 1 else name)
    return told
