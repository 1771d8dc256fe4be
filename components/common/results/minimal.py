"""How small an attack each image withstands, where the attack looked for it (`minimal`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from evasion.components.common.results.evaluations import Evaluation, Evaluations, Treatment
from evasion.components.common.results.table import Share

BARS = 25
"""More tried sizes than this are drawn several to a bar."""
MOST = 100_000
"""More sizes than this are not listed one by one."""


@dataclass(frozen=True)
class Bar:
    """Images whose smallest successful eps lies in [low, high]."""

    low: float
    high: float
    share: Share


@dataclass(frozen=True)
class Distribution:
    """The smallest eps that changed the prediction, over all images.

    Attributes:
        attack: The attack, on the model without a defense.
        bars: Images by that eps.
        never: Images that no tried eps fooled.
        median: Half the images are fooled by this eps or less; None where fewer than half are fooled at all.
    """

    attack: Treatment
    bars: list[Bar]
    never: Share
    median: float | None

    @property
    def tallest(self) -> float:
        """The largest share, which sets the scale."""
        return max(bar.share.value for bar in self.bars)

    def to_json(self) -> dict[str, Any]:
        """The distribution as `report.json` holds it."""
        return {
            "attack": self.attack.name,
            "attack_settings": self.attack.settings,
            "median": self.median,
            "never": self.never.to_json(),
            "bars": [{"from": bar.low, "to": bar.high, **bar.share.to_json()} for bar in self.bars],
        }


def distributions(evaluations: Evaluations) -> list[Distribution]:
    """The distribution of each attack that looked for the smallest eps."""
    made = ((attack, evaluations.get(attack)) for attack in evaluations.attacks)
    found = [_distribution(attack, evaluation) for attack, evaluation in made if evaluation]
    return [each for each in found if each]


def _distribution(attack: Treatment, evaluation: Evaluation) -> Distribution | None:
    told = [row["minimal_eps"] for row in evaluation.predictions() if row.get("minimal_eps") is not None]
    counts = Counter(float(text) for text in told if text)
    never = Share.counted(len(told) - counts.total(), len(told))
    if never is None or not counts:
        return None
    sizes = _tried(evaluation, counts)
    at_once = -(-len(sizes) // BARS)
    groups = [sizes[start : start + at_once] for start in range(0, len(sizes), at_once)]
    shares = [Share.counted(sum(counts[eps] for eps in group), len(told)) for group in groups]
    bars = [Bar(group[0], group[-1], share) for group, share in zip(groups, shares, strict=True) if share]
    cumulated = zip(sizes, accumulate(counts[eps] for eps in sizes), strict=True)
    median = next((eps for eps, fooled in cumulated if 2 * fooled >= len(told)), None)
    return Distribution(attack, bars, never, median)


def _tried(evaluation: Evaluation, counts: Counter[float]) -> list[float]:
    """Every size that was tried, also those that fooled no further image."""
    stage = next(stage for stage in evaluation.stages if stage.kind == "attack")
    step, largest = stage.parameters.get("eps_step"), stage.parameters.get("eps")
    if not step or not largest or largest / step > MOST:
        return sorted(counts)
    tried = {number: number * step for number in range(1, int(largest / step + 1e-9) + 1)}
    # A size may have been rounded when it was written.
    by_number = {round(eps / step): eps for eps in counts}
    return sorted((tried | by_number).values())
