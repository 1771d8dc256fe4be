"""Thresholds: their form, intervals, and the numbers that they apply to."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gating import ATTACK
from scipy.stats import binomtest

from evasion.components.common.results.curve import Point
from evasion.components.common.results.paired import Difference
from evasion.components.common.results.report import Report as ReportFile
from evasion.components.common.results.shares import Share
from evasion.components.common.results.treatments import NONE, Treatment, TreatmentStep
from evasion.pipelines.gate import measures, verdict
from evasion.pipelines.gate.selector import selects
from evasion.pipelines.gate.threshold import parse
from evasion.pipelines.gate.verdict import Judgement


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("robust_accuracy >= 0.30 at eps 0.03", {"limit": 0.3, "eps": 0.03}),
        ("robust_accuracy>=30%", {"limit": 0.3}),
        ("  robust_accuracy  >  30 %  at  eps  8/255 ", {"comparator": ">", "limit": 0.3, "eps": 8 / 255}),
        ("clean_accuracy_drop <= 0.02 for jpeg_compression", {"limit": 0.02, "defense": "jpeg_compression"}),
        ("clean_accuracy_drop < -.5", {"limit": -0.5, "comparator": "<"}),
        ("attack_success_rate <= 6e-1 with pgd norm=2", {"limit": 0.6, "attack": "pgd norm=2"}),
        (
            "gain >= 5 % by oblivious with fgm for jpeg_compression quality=75 at eps .3",
            {"attacker": "oblivious", "attack": "fgm", "defense": "jpeg_compression quality=75", "eps": 0.3},
        ),
        ("robust_accuracy >= 0 for none", {"limit": 0, "defense": "none"}),
    ],
)
def test_what_a_threshold_says(text: str, found: dict[str, Any]) -> None:
    read = parse(text)
    assert {name: getattr(read, name) for name in found} == found
    assert parse(read.text) == read


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "Received: ''"),
        ("robust_accuracy", "Received: 'robust_accuracy'"),
        ("robust_accuracy = 0.3", "Received: 'robust_accuracy = 0.3'"),
        (0.3, "Received: 0.3"),
        ("accuracy >= 0.3", "METRIC must be one of clean_accuracy, .*, not accuracy"),
        ("robust_accuracy <= 0.3", "robust_accuracy takes >= or >, not <="),
        ("attack_success_rate >= 0.3", "attack_success_rate takes <= or <, not >="),
        ("robust_accuracy >= 30", r"must be in \[0, 1\]; write 30 % or 0.30"),
        ("robust_accuracy >= -0.1", r"must be in \[0, 1\]"),
        ("gain >= 2", r"gain must be in \[-1, 1\]"),
        ("gain > 1e999999999", r"gain must be in \[-1, 1\]"),
        ("gain > 1e-999999999 at eps 1/0", "NUMBER must be .* not 1/0"),
        ("robust_accuracy >= nan", "NUMBER must be like 0.3, 30 % or 8/255, not nan"),
        ("robust_accuracy >= 1/0", "NUMBER must be .* not 1/0"),
        ("robust_accuracy >= 1_0", "NUMBER must be .* not 1_0"),
        ("robust_accuracy >= ", "NUMBER must be .* not nothing"),
        ("robust_accuracy >= at eps 0.3", "NUMBER must be .* not at eps 0.3"),
        ("robust_accuracy >= 0.3 eps 0.03", "NUMBER must be .* not 0.3 eps 0.03"),
        ("robust_accuracy >= 0.3 at eps", "'at eps' needs something after it"),
        ("robust_accuracy >= 0.3 at eps -1", "eps must be at least 0"),
        ("robust_accuracy >= 0.3 at eps 1 at eps 2", "may stand once"),
        ("robust_accuracy >= 0.3 for x by nobody", "ATTACKER must be one of defense-aware, oblivious, not nobody"),
        ("robust_accuracy >= 0.3 by oblivious", "say 'for DEFENSE' as well"),
        ("clean_accuracy >= 0.9 at eps 0.1", "of images without attack, so 'at eps' has no meaning"),
        ("clean_accuracy_drop <= 0.9 with fgm", "of images without attack, so 'with' has no meaning"),
    ],
)
def test_a_threshold_that_is_none_says_why(text: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)a threshold must be METRIC COMPARATOR NUMBER .*{wrong}"):
        parse(text)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17: 2635-2650, method 10: right both times, after, before, never.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((0, 30, 0, 0), 0.8395, 1.0),
        # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33: 2850-2875, airway hyper-responsiveness.
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_the_paired_interval_is_the_published_one(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    found = Difference.counted(*counts)
    digits = 3 if low == -0.507 else 4
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)
    both, gained, lost, neither = counts
    assert found.value == pytest.approx((gained - lost) / sum(counts))
    mirrored = Difference.counted(both, lost, gained, neither)
    assert (mirrored.low, mirrored.high) == pytest.approx((found.reversed.low, found.reversed.high))


def test_the_paired_interval_covers_what_it_says() -> None:
    """Of 2,000 models that really lose 2 points it holds those about 95 times in 100, above and below."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(400, (0.90, 0.02, 0.04, 0.04), size=2000)
    found = [Difference.counted(*map(int, counts)) for counts in drawn]
    missed = [sum(each.high < -0.02 for each in found), sum(each.low > -0.02 for each in found)]
    assert 0.93 <= 1 - sum(missed) / 2000 <= 0.975
    assert max(missed) / 2000 < 0.04


def test_outcomes_are_counted_in_pairs() -> None:
    before, after = np.array([1, 1, 1, 0, 0, -1], np.int8), np.array([1, 0, 0, 1, 0, 1], np.int8)
    assert Difference.between(before, after) == Difference.counted(1, 1, 2, 1)
    assert Difference.counted(0, 0, 0, 0) == Difference(0, -1, 1, 0)


@pytest.mark.parametrize(
    ("text", "subject", "count", "n"),
    [
        ("clean_accuracy >= 0.5", "no attack", 392, 400),
        ("clean_accuracy >= 0.5 for spatial_smoothing", "no attack + spatial_smoothing window_size=3", 340, 400),
        ("robust_accuracy >= 0.1", ATTACK, 100, 400),
        ("attack_success_rate <= 0.9", ATTACK, 292, 392),
        # Both attackers together.
        (
            "robust_accuracy >= 0.1 for jpeg_compression",
            f"{ATTACK} + jpeg_compression quality=75 (defense-aware and oblivious)",
            99,
            400,
        ),
        ("robust_accuracy >= 0.1 for spatial_smoothing window_size=3 by oblivious", "(oblivious)", 250, 400),
        # Of the curve.
        ("robust_accuracy >= 0.5 at eps 0.1", "worst case norm=inf eps=0.1", 250, 400),
        ("robust_accuracy >= 0.5 at eps 1/255", "worst case norm=inf eps=0.003922", 390, 400),
        (
            "robust_accuracy >= 0.5 at eps 0.1 for spatial_smoothing",
            "worst case norm=inf eps=0.1 + spatial_smoothing window_size=3",
            290,
            400,
        ),
        # Of both: the table, whose images were saved.
        ("robust_accuracy >= 0.1 at eps 0.3 with fgm norm=inf", ATTACK, 100, 400),
    ],
)
def test_a_threshold_finds_its_number(usual: ReportFile, text: str, subject: str, count: int, n: int) -> None:
    (found,) = verdict.judge_thresholds(usual, [parse(text)])
    interval = binomtest(count, n).proportion_ci(method="wilson")
    assert found.judgement is Judgement.PASS
    assert found.subject.endswith(subject)
    assert [found.numbers[name] for name in ("value", "low", "high", "n")] == pytest.approx(
        [count / n, interval.low, interval.high, n]
    )


def test_without_an_attack_named_the_worst_case_of_the_curve_is_judged(usual: ReportFile) -> None:
    fewer = [
        replace(line, points=[Point(point.eps, Share.counted(40, 400), 40) for point in line.points])
        if line.worst_case and not line.defense
        else line
        for line in usual.curve.series
    ]
    changed = replace(usual, curve=replace(usual.curve, series=fewer))
    (named,) = verdict.judge_thresholds(changed, [parse("robust_accuracy >= 0.5 at eps 0.1 with fgm")])
    (any_attack,) = verdict.judge_thresholds(changed, [parse("robust_accuracy >= 0.5 at eps 0.1")])
    assert (named.judgement, named.subject) == (Judgement.PASS, "fgm norm=inf eps=0.1")
    assert (any_attack.judgement, any_attack.subject) == (Judgement.FAIL, "worst case norm=inf eps=0.1")


def test_the_table_stands_before_the_curve(usual: ReportFile) -> None:
    nothing = Point(0.3, Share.counted(0, 400), correct=0)
    series = [
        replace(line, points=[nothing if point.eps == 0.3 else point for point in line.points])
        for line in usual.curve.series
    ]
    changed = replace(usual, curve=replace(usual.curve, series=series))
    (found,) = verdict.judge_thresholds(changed, [parse("robust_accuracy >= 0.2 at eps 0.3")])
    assert (found.judgement, found.subject) == (Judgement.PASS, ATTACK)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        # 8 of the 60 that smoothing gets wrong were wrong before.
        ("clean_accuracy_drop <= 0.5", (340, 52, 0, 8)),
        ("clean_accuracy_drop <= 0.5 for jpeg_compression", (391, 1, 0, 8)),
        ("gain >= -0.5", (99, 0, 1, 300)),
        ("gain >= -0.5 for spatial_smoothing", (100, 50, 0, 250)),
        ("gain >= -0.5 for spatial_smoothing by oblivious", (100, 150, 0, 150)),
    ],
)
def test_differences_are_paired(usual: ReportFile, text: str, counts: tuple[int, int, int, int]) -> None:
    (found,) = verdict.judge_thresholds(usual, [parse(text)])
    expected = Difference.counted(*counts)
    assert [found.numbers[name] for name in ("value", "low", "high")] == pytest.approx(
        [expected.value, expected.low, expected.high]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("robust_accuracy >= 0.1 for jpeg", "no robust_accuracy for jpeg; it has none, jpeg_compression quality=75"),
        ("robust_accuracy >= 0.1 for jpeg_compression quality=50", "for jpeg_compression quality=50; it has none"),
        ("robust_accuracy >= 0.1 with square", f"no robust_accuracy with square; it has {ATTACK}"),
        # Noise is the curve's control, not an attack.
        ("robust_accuracy >= 0.1 at eps 0.1 with noise", "no robust_accuracy with noise"),
        ("attack_success_rate <= 1 at eps 0.1", "no such attack_success_rate at eps 0.1; it has 0.3"),
        ("robust_accuracy >= 0.1 at eps 3", "at eps 3; it has 0, 0.003922, 0.1, 0.3, 1"),
    ],
)
def test_what_the_report_lacks_cannot_be_told(usual: ReportFile, text: str, said: str) -> None:
    (found,) = verdict.judge_thresholds(usual, [parse(text)])
    assert found.judgement is Judgement.UNKNOWN
    assert said in found.finding


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        # The curve has 62.5 % at 0.1 and 25 % at 0.3.
        ("robust_accuracy >= 0.15 at eps 0.2", "pass", "at the next larger eps"),
        ("robust_accuracy >= 0.75 at eps 0.2", "fail", "at the next smaller eps"),
        ("robust_accuracy >= 0.5 at eps 0.2", "cannot tell", "met at eps 0.1, missed at 0.3, and not measured between"),
        ("robust_accuracy >= 0.25 at eps 0.2", "cannot tell", "met at eps 0.1, open at 0.3"),
    ],
)
def test_between_two_eps_the_ones_around_it_tell(usual: ReportFile, text: str, expected: str, said: str) -> None:
    (found,) = verdict.judge_thresholds(usual, [parse(text)])
    assert found.judgement.value == expected
    assert said in found.finding


STEP = TreatmentStep("fgm", {"norm": "inf"})


FGM_OF_THE_CURVE = Treatment(STEP.name, STEP.text, (STEP,))


def test_where_accuracy_rises_with_eps_nothing_is_told_between(usual: ReportFile) -> None:
    """The last step of the curve goes up in no report that is trusted, but may within a warning."""
    measure = measures.Measure(
        "robust_accuracy", 0.1, 0.08, 0.12, 400, (FGM_OF_THE_CURVE,), 0.3, drawn=True, together=True
    )
    larger = replace(measure, value=0.3, low=0.28, high=0.32, eps=1.0)
    threshold = parse("robust_accuracy >= 0.2 at eps 0.5")
    (pair,) = measures.around([measure, larger], threshold)
    found = verdict._between(threshold, *pair)
    assert found.judgement is Judgement.UNKNOWN
    assert found.finding == "missed at eps 0.3, met at 1, and not measured between"


JPEG_STEP, MEDIAN_STEP = (
    TreatmentStep("jpeg_compression", {"quality": 75}),
    TreatmentStep("spatial_smoothing", {"window_size": 3}),
)


JPEG_ALONE = Treatment("jpeg_compression (run 2)", "quality=75", (JPEG_STEP,))


STACK = Treatment("jpeg_compression + spatial_smoothing", "quality=75, window_size=3", (JPEG_STEP, MEDIAN_STEP))


SMALL_FGM = Treatment("fgm", "eps=8/255", (TreatmentStep("fgm", {"eps": 8 / 255, "universal": True}),))


@pytest.mark.parametrize(
    ("selector", "treatment", "selected"),
    [
        ("jpeg_compression", JPEG_ALONE, True),
        ("jpeg_compression quality=75", JPEG_ALONE, True),
        ("jpeg_compression quality=75.0", JPEG_ALONE, True),
        ("jpeg_compression quality=7", JPEG_ALONE, False),
        ("jpeg_compression window_size=3", JPEG_ALONE, False),
        ("jpeg", JPEG_ALONE, False),
        # A stack is not what one of its defenses is.
        ("jpeg_compression", STACK, False),
        ("spatial_smoothing", STACK, False),
        ("jpeg_compression + spatial_smoothing", STACK, True),
        ("jpeg_compression quality=75 + spatial_smoothing window_size=3", STACK, True),
        ("jpeg_compression + spatial_smoothing window_size=5", STACK, False),
        ("spatial_smoothing + jpeg_compression", STACK, False),
        ("fgm eps=8/255", SMALL_FGM, True),
        ("fgm eps=0.031372549 universal", SMALL_FGM, True),
        ("fgm eps=0.03", SMALL_FGM, False),
        ("fgm eps=1e999999999", SMALL_FGM, False),
        # The label that the gate prints means itself.
        ("jpeg_compression (run 2) quality=75", JPEG_ALONE, True),
        ("jpeg_compression + spatial_smoothing quality=75, window_size=3", STACK, True),
        ("none", NONE, True),
        ("none", JPEG_ALONE, False),
        ("jpeg_compression", NONE, False),
    ],
)
def test_a_selector_means_the_whole_treatment(selector: str, treatment: Treatment, selected: bool) -> None:
    assert selects(selector, treatment) is selected
