"""How a report fares: pass, fail, or cannot tell, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from evasion.components.common.results.report import Model
from evasion.components.common.results.table import percent, points
from evasion.components.report.checks.evaluation import NORMAL
from evasion.pipelines.gate.measures import Doubt, Measure, around, lacking, matching, measures, unseen
from evasion.pipelines.gate.threshold import DIFFERENCES, Threshold

ADVICE = {
    Doubt.ONLY_OBLIVIOUS: "Run the defense-aware attacker too, or say 'by oblivious' if that one is meant.",
    Doubt.NOT_APPLIED: "Evaluate it with apply_predict on testing data.",
}


class Outcome(Enum):
    """How something came out, from best to worst: a failure outweighs a doubt."""

    PASS = "pass"  # noqa: S105 - no password
    UNKNOWN = "cannot tell"
    FAIL = "fail"

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNKNOWN: 2}[self]

    @classmethod
    def worst(cls, outcomes: Iterable[Outcome]) -> Outcome:
        """The one that decides; cannot tell where there is none."""
        return max(outcomes, key=list(cls).index, default=cls.UNKNOWN)


@dataclass(frozen=True)
class Verdict:
    """One thing that was judged.

    Attributes:
        kind: threshold, baseline, check or report.
        name: What was judged.
        outcome: How it came out.
        found: What was found.
        advice: What to do, or blank.
        subject: What it was measured under, or blank.
        numbers: What it was judged by.
        line: Where it stands in the file that it comes from.
    """

    kind: str
    name: str
    outcome: Outcome
    found: str
    advice: str = ""
    subject: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    line: int | None = None

    @property
    def told(self) -> str:
        """What was found and what to do, in one text."""
        where = f"{self.subject}: " if self.subject else ""
        return f"{where}{self.found}.{f' {self.advice}' if self.advice else ''}"

    def to_json(self) -> dict[str, Any]:
        """The verdict as the gate's JSON holds it."""
        told = {"kind": self.kind, "name": self.name, "outcome": self.outcome.value, "subject": self.subject}
        return told | {"found": self.found, "advice": self.advice, "numbers": self.numbers or None}


def of_thresholds(model: Model, thresholds: list[Threshold]) -> Iterator[Verdict]:
    """Hold a report to each threshold: the worst of all that it speaks of counts."""
    found = measures(model)
    for threshold in thresholds:
        judged = [judge(threshold, measure) for measure in matching(found, threshold)] or [
            _between(threshold, *pair) for pair in around(found, threshold)
        ]
        if judged:
            worst = max(judged, key=lambda verdict: _badness(threshold, verdict))
            if worst.outcome is Outcome.PASS and (others := ", ".join(unseen(found, threshold))):
                told = f"{worst.found} would do, but {others} was not measured at this eps"
                advice = (
                    f"Evaluate {others} there, or name the attack: `with {str(worst.numbers['attack']).split()[0]}`."
                )
                worst = replace(worst, outcome=Outcome.UNKNOWN, found=told, advice=advice)
            yield worst
        else:
            advice = "Evaluate it, or ask for what there is."
            told = lacking(found, threshold)
            yield Verdict("threshold", threshold.text, Outcome.UNKNOWN, told, advice, line=threshold.line)


def judge(threshold: Threshold, measure: Measure) -> Verdict:
    """Hold one number to a threshold: the end of its interval that speaks against it must meet it."""
    against, for_it = (measure.low, measure.high) if threshold.at_least else (measure.high, measure.low)
    told, advice = f"{_shown(measure)} of {measure.n:,} images", ""
    if (
        threshold.holds(against)
        and measure.doubt
        and not (measure.doubt is Doubt.ONLY_OBLIVIOUS and threshold.attacker)
    ):
        outcome, told = Outcome.UNKNOWN, f"{told} would do, but {measure.doubt.value}"
        advice = ADVICE[measure.doubt]
    elif threshold.holds(against):
        outcome = Outcome.PASS
    elif threshold.holds(for_it):
        value = "meets" if threshold.holds(measure.value) else "misses"
        outcome, told = Outcome.UNKNOWN, f"{told}: the value {value} it, the interval leaves it open"
        advice = _needed(threshold, measure)
    else:
        outcome = Outcome.FAIL
    numbers = measure.to_json() | {"comparator": threshold.comparator, "limit": threshold.limit}
    return Verdict("threshold", threshold.text, outcome, told, advice, measure.subject, numbers, threshold.line)


def _between(threshold: Threshold, smaller: Measure, larger: Measure) -> Verdict:
    """Judge by the sizes around the one asked for, if they agree.

    Then what is met at the larger one is met between, and what is missed at the smaller one is missed between: accuracy
    falls as eps grows.
    """
    below, above = judge(threshold, smaller), judge(threshold, larger)
    if below.outcome is Outcome.FAIL is above.outcome:
        return replace(below, found=f"{below.found}, at the next smaller eps")
    if below.outcome is above.outcome:
        return replace(above, found=f"{above.found}, at the next larger eps")
    words = {Outcome.PASS: "met", Outcome.FAIL: "missed", Outcome.UNKNOWN: "open"}
    told = f"{words[below.outcome]} at eps {smaller.eps:.4g}, {words[above.outcome]} at {larger.eps:.4g}"
    advice = f"Add {threshold.eps:.4g} to eps_values."
    return replace(above, outcome=Outcome.UNKNOWN, found=f"{told}, and not measured between", advice=advice)


def of_checks(model: Model, accepted: Iterable[str], whose: str = "report") -> Iterator[Verdict]:
    """Doubt a report whose own checks failed, unless they are accepted by name."""
    accepted = set(accepted)
    for check in model.failed:
        outcome = Outcome.PASS if check["name"] in accepted else Outcome.UNKNOWN
        found = f"the {whose}'s check failed: {check['found'].rstrip('.')}"
        if outcome is Outcome.PASS:
            found += "; accepted"
        yield Verdict("check", check["name"], outcome, found, check["advice"], check["subject"])
    if not model.failed:
        warned = sum(check["status"] == "warn" for check in model.report["checks"])
        found = f"none of {len(model.report['checks'])} failed, {warned} warned"
        yield Verdict("check", f"checks of the {whose}", Outcome.PASS, found)


def _shown(measure: Measure) -> str:
    """A number with its interval as people read it."""
    if measure.metric in DIFFERENCES:
        return f"{points(measure.value)} points [{points(measure.low)}, {points(measure.high)}]"
    return f"{percent(measure.value)} [{100 * measure.low:.1f}, {100 * measure.high:.1f}]"


def _badness(threshold: Threshold, verdict: Verdict) -> tuple[int, float]:
    """Worst first: by outcome, then by the end of the interval that speaks against the threshold."""
    against = -verdict.numbers["low"] if threshold.at_least else verdict.numbers["high"]
    return list(Outcome).index(verdict.outcome), against


def _needed(threshold: Threshold, measure: Measure) -> str:
    """Say how many images would tell, where a Wilson interval of the same share can be solved for them."""
    distance = abs(measure.value - threshold.limit)
    if threshold.metric in DIFFERENCES or not distance:
        return "Evaluate more images."
    images = math.ceil(NORMAL**2 * threshold.limit * (1 - threshold.limit) / distance**2) + 1
    return f"Evaluate more images: about {images:,} would tell, if the share stays."
