"""Judges an eps that the table of a report lacks, by the points around it: of the table and of the security curve."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evasion.pipelines.gate.measures import Doubt, Measure, doubt_of, is_meant, is_same_eps, label_of, take_together
from evasion.pipelines.gate.threshold import ROBUST_ACCURACY, Threshold
from evasion.pipelines.gate.verdict import Judgement, Verdict, judge


@dataclass(frozen=True)
class _Point:
    """A point of a line, and what it comes to by itself."""

    measure: Measure
    verdict: Verdict
    doubt: Doubt | None

    @property
    def eps(self) -> float:
        """Its place on the line."""
        return self.measure.eps or 0.0

    @property
    def tells(self) -> bool:
        """Whether it can be relied on: the better value of one in doubt proves nothing."""
        return self.doubt is None or self.verdict.judgement is Judgement.FAIL

    @property
    def word(self) -> str:
        """The verdict in a word."""
        unknown = "in doubt" if self.doubt else "open"
        return {Judgement.PASS: "met", Judgement.FAIL: "missed", Judgement.UNKNOWN: unknown}[self.verdict.judgement]

    def found(self, where: str) -> Verdict:
        """The verdict, with where it comes from."""
        return replace(self.verdict, finding=f"{where}, {self.verdict.finding}")


def lines(measured: list[Measure], threshold: Threshold) -> list[list[Measure]]:
    """Return the points that tell of an eps that the table lacks: of each line those of all eps, rising.

    They are of the security curve and of the table. Where both have an eps, the table counts, for it has the stronger
    attacks; unless it is in doubt.
    """
    if threshold.eps is None or threshold.metric != ROBUST_ACCURACY:
        return []
    meant = [each for each in measured if each.eps is not None and is_meant(each, replace(threshold, eps=each.eps))]
    of_table = [each for each in meant if not each.drawn]
    curves: dict[object, list[Measure]] = {}
    for each in meant:
        if each.drawn:
            curves.setdefault(each.line, []).append(each)
    uncharted = {
        (label_of(each.defense), each.norm): each
        for each in of_table
        if not any(_beside(each, points[0]) for points in curves.values())
    }
    firsts = [*((points[0], points) for points in curves.values()), *((each, []) for each in uncharted.values())]
    return [_line(points, [each for each in of_table if _beside(each, first)], threshold) for first, points in firsts]


def _beside(evaluated: Measure, point: Measure) -> bool:
    """Return whether a measure of the table tells of the line of a point: of the same defense, in the same norm."""
    return label_of(evaluated.defense) == label_of(point.defense) and (
        evaluated.norm == point.norm or None in (evaluated.norm, point.norm)
    )


def _line(points: list[Measure], of_table: list[Measure], threshold: Threshold) -> list[Measure]:
    """Return the points of the curve and of the table in the order of their eps."""
    evaluated = [
        replace(point, eps=eps)
        for eps in dict.fromkeys(each.eps for each in of_table)
        for point in take_together([each for each in of_table if is_same_eps(each.eps, eps)])
    ]
    certain = [each.eps for each in evaluated if not doubt_of(each, threshold)]
    kept = [each for each in points if not any(is_same_eps(each.eps, eps) for eps in certain)]
    return sorted([*kept, *evaluated], key=lambda each: each.eps or 0)


def judge_along(threshold: Threshold, points: list[Measure]) -> Verdict | None:
    """Judge by the points of one line: at the eps asked for, or around it; None where it does not reach so far.

    Accuracy falls as eps grows: what is missed at a smaller eps is missed, and what is met at a larger one is met. A
    point in doubt bounds accuracy from above: it can only tell that a threshold is missed.
    """
    asked = threshold.eps or 0.0
    judged = [_Point(point, judge(threshold, point), doubt_of(point, threshold)) for point in points]
    at = [point for point in judged if is_same_eps(point.eps, asked)]
    below = [point for point in judged if point.eps < asked and point not in at]
    above = [point for point in judged if point.eps > asked and point not in at]
    if at and at[0].tells:
        return at[0].verdict
    smaller = next((point for point in reversed(below) if point.tells), None)
    larger = next((point for point in above if point.tells), None)
    missed = smaller is not None and smaller.verdict.judgement is Judgement.FAIL
    met = larger is not None and larger.verdict.judgement is Judgement.PASS
    if larger and not below and Doubt.SINGLE_STEP in larger.measure.doubts:
        met = False  # a larger single step may do worse than a smaller one
    if smaller and missed and not met:
        return smaller.found("at a smaller eps")
    if larger and met and not missed:
        return larger.found("at a larger eps")
    if at:
        return at[0].verdict
    if not (missed and met):
        smaller, larger = next(reversed(below), None), next(iter(above), None)
    if larger and not larger.tells:
        return larger.found("at the next larger eps")
    return _apart(threshold, smaller, larger) if smaller and larger else None


def _apart(threshold: Threshold, smaller: _Point, larger: _Point) -> Verdict:
    """Say that the points around an eps do not agree, or are both open."""
    if smaller.verdict.judgement is larger.verdict.judgement:
        return larger.found("at the next larger eps")
    finding = f"{smaller.word} at eps {smaller.eps:.4g}, {larger.word} at {larger.eps:.4g}, and not measured between"
    asked = f"{threshold.eps:.4g}"
    # More points of a curve that the table outdoes tell no more.
    outdone = Doubt.CURVE_ALONE in smaller.measure.doubts | larger.measure.doubts
    advice = f"Evaluate at eps {asked}." if outdone else f"Add {asked} to eps_values."
    return replace(larger.verdict, judgement=Judgement.UNKNOWN, finding=finding, advice=advice)
