"""The models that are compared: their reports, and what to call them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evasion.components.common.results import report
from evasion.components.common.results.evaluation import ModelRecord
from evasion.components.common.results.report import Report


@dataclass(frozen=True, eq=False)
class Model:
    """One model with its report.

    Attributes:
        name: What the comparison calls it.
        report: Its report.
    """

    name: str
    report: Report

    @cached_property
    def attack_labels(self) -> list[str]:
        """Every attack, with its settings."""
        return [attack.label for attack in self.report.attacks]


def read_models(paths: list[Path], names: list[str]) -> list[Model]:
    """Read reports of models that compare.

    Args:
        paths: Each a report.json.
        names: What to call the models in this order, or nothing for their own names.

    Raises:
        ValueError: If there are fewer than two, a name is missing or repeated, a report cannot be read, or they are of
            different original images.
    """
    if len(paths) < 2:
        raise ValueError(f"compare needs at least two reports. Received: {len(paths)}")
    if names and len(names) != len(paths):
        raise ValueError(f"names must be as many as reports, {len(paths)}. Received: {', '.join(names)}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"names must differ. Received more than once: {', '.join(repeated)}")
    reports = [report.read(path) for path in paths]
    own = names or _own_names([each.model for each in reports])
    models = [Model(name, each) for name, each in zip(own, reports, strict=True)]
    if len({model.report.originals.sha256 for model in models}) > 1:
        listed = "; ".join(
            f"{model.name}: {model.report.originals.images:,} images, sha256 {model.report.originals.sha256[:12]}"
            for model in models
        )
        raise ValueError(
            f"reports must be of the same original images (file names and labels). Received: {listed}. "
            "Evaluate the models on the same data."
        )
    return models


def _own_names(cards: list[ModelRecord]) -> list[str]:
    """Return a name for each: its title; with version or number where two share it."""
    names = [card.title for card in cards]
    versioned = [
        f"{name} {card.version}" if names.count(name) > 1 and card.version else name
        for name, card in zip(names, cards, strict=True)
    ]
    seen: Counter[str] = Counter()
    unique = []
    for name in versioned:
        seen[name] += 1
        unique.append(f"{name} ({seen[name]})" if versioned.count(name) > 1 else name)
    return unique
