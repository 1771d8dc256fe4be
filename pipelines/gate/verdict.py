"""Verdicts on a report: pass, fail, or cannot tell, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from evasion.components.common.drawing.words import percent, points
from evasion.components.common.results.report import Report
from evasion.components.common.results.shares import NORMAL
from evasion.pipelines.gate.measures import Doubt, Measure, doubt_of
from evasion.pipelines.gate.threshold import DIFFERENCES, Threshold

ADVICE = {
    Doubt.ONLY_OBLIVIOUS: "Run the defense-aware attacker too, or say 'by oblivious' if that one is meant.",
    Doubt.NOT_APPLIED: "Evaluate it with apply_predict on testing data.",
    Doubt.APART: "Evaluate each image once, or name one attack and one attacker.",
    Doubt.CURVE_ALONE: "Evaluate at eps {eps}, or name an attack of the curve, such as 'with pgd', if it is meant.",
    Doubt.SINGLE_STEP: "Run auto_attack or pgd too, or name the attack, such as 'with fgm', if that one is meant.",
}


class Judgement(Enum):
    """The result of judging something, from best to worst: a failure outweighs a doubt."""

    PASS = "pass"  # noqa: S105 - no password
    UNKNOWN = "cannot tell"
    FAIL = "fail"

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return {Judgement.PASS: 0, Judgement.FAIL: 1, Judgement.UNKNOWN: 2}[self]

    @classmethod
    def worst(cls, judgements: Iterable[Judgement]) -> Judgement:
        """Return the one that decides; "cannot tell" if there is none."""
        return max(judgements, key=list(cls).index, default=cls.UNKNOWN)


@dataclass(frozen=True)
class Verdict:
    """One thing that was judged.

    Attributes:
        kind: threshold, baseline, check or report.
        name: What was judged.
        judgement: The result.
        finding: What the result rests on.
        advice: What to do, or blank.
        subject: What it was measured under, or blank.
        numbers: What it was judged by.
        line: Its line in the file that it comes from.
    """

    kind: str
    name: str
    judgement: Judgement
    finding: str
    advice: str = ""
    subject: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    line: int | None = None

    @property
    def text(self) -> str:
        """The finding and the advice in one text."""
        where = f"{self.subject}: " if self.subject else ""
        return f"{where}{self.finding}.{f' {self.advice}' if self.advice else ''}"

    def to_json(self) -> dict[str, Any]:
        """The verdict as the gate's JSON holds it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "outcome": self.judgement.value,
            "subject": self.subject,
            "finding": self.finding,
            "advice": self.advice,
            "numbers": self.numbers or None,
        }


def judge(threshold: Threshold, measure: Measure) -> Verdict:
    """Judge one number by a threshold: the end of its interval that speaks against it must meet it."""
    against, for_it = (measure.low, measure.high) if threshold.at_least else (measure.high, measure.low)
    finding, advice = f"{_shown(measure)} of {measure.n:,} images", ""
    doubt = doubt_of(measure, threshold)
    if threshold.holds(against) and doubt:
        judgement, finding = Judgement.UNKNOWN, f"{finding} would do, but {doubt.value}"
        advice = _advice(doubt, threshold)
    elif threshold.holds(against):
        judgement = Judgement.PASS
    elif threshold.holds(for_it):
        value = "meets" if threshold.holds(measure.value) else "misses"
        judgement, finding = Judgement.UNKNOWN, f"{finding}: the value {value} it, the interval leaves it open"
        advice = _needed(threshold, measure)
        if doubt:
            finding, advice = f"{finding}, and {doubt.value}", _advice(doubt, threshold)
    else:
        judgement = Judgement.FAIL
    numbers = measure.to_json() | {"comparator": threshold.comparator, "limit": threshold.limit}
    return Verdict("threshold", threshold.text, judgement, finding, advice, measure.subject, numbers, threshold.line)


def _advice(doubt: Doubt, threshold: Threshold) -> str:
    return ADVICE[doubt].format(eps=f"{threshold.eps or 0:.4g}")


def judge_checks(report: Report, accepted: Iterable[str], whose: str = "report") -> Iterator[Verdict]:
    """Doubt a report whose own checks failed, unless they are accepted by name."""
    accepted = set(accepted)
    for check in report.failed:
        judgement = Judgement.PASS if check.name in accepted else Judgement.UNKNOWN
        finding = f"the {whose}'s check failed: {check.finding.rstrip('.')}"
        if judgement is Judgement.PASS:
            finding += "; accepted"
        yield Verdict("check", check.name, judgement, finding, check.advice, check.subject)
    if not report.failed:
        warned = sum(check.status == "warn" for check in report.checks)
        finding = f"none of {len(report.checks)} failed, {warned} warned"
        yield Verdict("check", f"checks of the {whose}", Judgement.PASS, finding)


def _shown(measure: Measure) -> str:
    """A number with its interval as people read it."""
    if measure.metric in DIFFERENCES:
        return f"{points(measure.value)} points [{points(measure.low)}, {points(measure.high)}]"
    return f"{percent(measure.value)} [{100 * measure.low:.1f}, {100 * measure.high:.1f}]"


def _needed(threshold: Threshold, measure: Measure) -> str:
    """Say how many images would tell, where a Wilson interval of the same share can be solved for them."""
    distance = abs(measure.value - threshold.limit)
    if threshold.metric in DIFFERENCES or not distance:
        return "Evaluate more images."
    images = math.ceil(NORMAL**2 * threshold.limit * (1 - threshold.limit) / distance**2) + 1
    return f"Evaluate more images: about {images:,} would tell, if the share stays."
