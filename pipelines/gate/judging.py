"""Judges a report by thresholds: finds the numbers that each applies to, and takes the worst verdict."""

from __future__ import annotations

from collections.abc import Iterator

from evasion.components.common.results.report import Report
from evasion.pipelines.gate.lines import judge_along, lines
from evasion.pipelines.gate.measures import Measure, lacking, matching, measures
from evasion.pipelines.gate.threshold import Threshold
from evasion.pipelines.gate.verdict import Judgement, Verdict, judge


def judge_thresholds(report: Report, thresholds: list[Threshold]) -> Iterator[Verdict]:
    """Judge a report by each threshold; the worst of all measures that it applies to counts."""
    all_measures = measures(report)
    for threshold in thresholds:
        lacks = _lacks(threshold, all_measures)
        judged = [judge(threshold, measure) for measure in matching(all_measures, threshold)] or [
            judge_along(threshold, points) or lacks for points in lines(all_measures, threshold)
        ]
        yield max(judged, key=lambda verdict: _badness(threshold, verdict), default=lacks)


def _lacks(threshold: Threshold, all_measures: list[Measure]) -> Verdict:
    advice = "Evaluate it, or ask for what there is."
    finding = lacking(all_measures, threshold)
    return Verdict("threshold", threshold.text, Judgement.UNKNOWN, finding, advice, line=threshold.line)


def _badness(threshold: Threshold, verdict: Verdict) -> tuple[int, float]:
    """Worst first: by outcome, then by the end of the interval that speaks against the threshold."""
    against = -verdict.numbers.get("low", 0.0) if threshold.at_least else verdict.numbers.get("high", 1.0)
    return list(Judgement).index(verdict.judgement), against
