"""How small an attack each image withstands, where the attack looked for it (`minimal`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.json_file import strict
from evasion.components.common.results.shares import Share
from evasion.components.common.results.treatments import Treatment

BARS = 25
"""More tried sizes than this are drawn several to a bar."""
MOST = 100_000
"""More sizes than this are not listed one by one."""


@strict
@dataclass(frozen=True)
class Bar:
    """Images whose smallest successful eps lies in [low, high]."""

    low: float
    high: float
    share: Share


@strict
@dataclass(frozen=True, eq=False)
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


def distributions(evaluations: Evaluations) -> list[Distribution]:
    """Return the distribution of each attack that looked for the smallest eps."""
    undefended = ((attack, evaluations.get(attack)) for attack in evaluations.attacks)
    each = [_distribution(attack, evaluation) for attack, evaluation in undefended if evaluation]
    return [distribution for distribution in each if distribution]


def _distribution(attack: Treatment, evaluation: Evaluation) -> Distribution | None:
    texts = [row["minimal_eps"] for row in evaluation.predictions() if row.get("minimal_eps") is not None]
    counts = Counter(float(text) for text in texts if text)
    never = Share.counted(len(texts) - counts.total(), len(texts))
    if never is None or not counts:
        return None
    sizes = _tried(evaluation, counts)
    at_once = -(-len(sizes) // BARS)
    groups = [sizes[start : start + at_once] for start in range(0, len(sizes), at_once)]
    shares = [Share.counted(sum(counts[eps] for eps in group), len(texts)) for group in groups]
    bars = [Bar(group[0], group[-1], share) for group, share in zip(groups, shares, strict=True) if share]
    cumulated = zip(sizes, accumulate(counts[eps] for eps in sizes), strict=True)
    median = next((eps for eps, fooled in cumulated if 2 * fooled >= len(texts)), None)
    return Distribution(attack, bars, never, median)


def _tried(evaluation: Evaluation, counts: Counter[float]) -> list[float]:
    """Return every size that was tried, also those that fooled no further image."""
    parameters = evaluation.attacks[0].parameters
    step, largest = parameters.get("eps_step"), parameters.get("eps")
    if not step or not largest or largest / step > MOST:
        return sorted(counts)
    tried = {number: number * step for number in range(1, int(largest / step + 1e-9) + 1)}
    # A size may have been rounded when it was written.
    by_number = {round(eps / step): eps for eps in counts}
    return sorted((tried | by_number).values())
