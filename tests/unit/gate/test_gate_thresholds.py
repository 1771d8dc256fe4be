"""Thresholds: their form, intervals, and the numbers that they apply to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gating import ATTACK, judged, outcome
from scipy.stats import binomtest

from evasion.components.common.results.curve import Point
from evasion.components.common.results.paired import Difference
from evasion.components.common.results.report import Report as ReportFile
from evasion.components.common.results.shares import Share
from evasion.components.common.results.treatments import NONE, Treatment, TreatmentStep
from evasion.pipelines.gate.judging import judge_thresholds
from evasion.pipelines.gate.lines import judge_along, lines
from evasion.pipelines.gate.measures import Doubt, Measure
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
        # Of the curve, by the very attack.
        ("robust_accuracy >= 0.5 at eps 0.1 with fgm", "fgm norm=inf eps=0.1", 250, 400),
        ("robust_accuracy >= 0.5 at eps 0.1 with pgd", "pgd norm=inf eps=0.1", 250, 400),
        # Without an attack.
        ("robust_accuracy >= 0.5 at eps 0", "worst case of fgm and pgd norm=inf eps=0", 392, 400),
        # Of both: the table, whose images were saved.
        ("robust_accuracy >= 0.1 at eps 0.3 with fgm norm=inf", ATTACK, 100, 400),
    ],
)
def test_a_threshold_finds_its_number(usual: ReportFile, text: str, subject: str, count: int, n: int) -> None:
    (found,) = judge_thresholds(usual, [parse(text)])
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
    (named,) = judge_thresholds(changed, [parse("robust_accuracy >= 0.5 at eps 0.1 with fgm")])
    (any_attack,) = judge_thresholds(changed, [parse("robust_accuracy >= 0.5 at eps 0.1")])
    assert (named.judgement, named.subject) == (Judgement.PASS, "fgm norm=inf eps=0.1")
    assert (any_attack.judgement, any_attack.subject) == (Judgement.FAIL, "worst case of fgm and pgd norm=inf eps=0.1")


def test_the_table_stands_before_the_curve(usual: ReportFile) -> None:
    nothing = Point(0.3, Share.counted(0, 400), correct=0)
    series = [
        replace(line, points=[nothing if point.eps == 0.3 else point for point in line.points])
        for line in usual.curve.series
    ]
    changed = replace(usual, curve=replace(usual.curve, series=series))
    for eps in (0.3, 0.2):
        (found,) = judge_thresholds(changed, [parse(f"robust_accuracy >= 0.2 at eps {eps}")])
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
    (found,) = judge_thresholds(usual, [parse(text)])
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
        ("robust_accuracy >= 0 at eps 3", "at eps 3; it has 0, 0.003922, 0.1, 0.3, 1"),
    ],
)
def test_what_the_report_lacks_cannot_be_told(usual: ReportFile, text: str, said: str) -> None:
    (found,) = judge_thresholds(usual, [parse(text)])
    assert found.judgement is Judgement.UNKNOWN
    assert said in found.finding


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        # The curve has 62.5 % at 0.1 and 25 % at 0.3, and the evaluation attacked with no more.
        ("robust_accuracy >= 0.15 at eps 0.2", "pass", "at a larger eps, 25.0"),
        ("robust_accuracy >= 0.75 at eps 0.2", "fail", "at a smaller eps, 62.5"),
        ("robust_accuracy >= 0.5 at eps 0.2", "cannot tell", "met at eps 0.1, missed at 0.3, and not measured between"),
        ("robust_accuracy >= 0.25 at eps 0.2", "cannot tell", "met at eps 0.1, open at 0.3"),
        # Nothing is measured above 1, but less is enough.
        ("robust_accuracy >= 0.1 at eps 3", "fail", "at a smaller eps, 0.0"),
    ],
)
def test_between_two_eps_the_ones_around_it_tell(reports: dict[str, Path], text: str, expected: str, said: str) -> None:
    found = judged(reports["single_step"], text)[0]
    assert found.judgement.value == expected
    assert said in found.finding.replace("\N{NO-BREAK SPACE}", " ")
    assert (found.advice == "Add 0.2 to eps_values.") is ("not measured" in said or "open" in said)


@pytest.mark.parametrize(
    ("text", "subject", "count"),
    [
        ("robust_accuracy >= 0.5 at eps 0.1", "worst case of fgm and pgd norm=inf eps=0.1", 250),
        ("robust_accuracy >= 0.5 at eps 1/255", "worst case of fgm and pgd norm=inf eps=0.003922", 390),
        (
            "robust_accuracy >= 0.5 at eps 0.1 for spatial_smoothing",
            "worst case of fgm and pgd norm=inf eps=0.1 + spatial_smoothing window_size=3",
            290,
        ),
    ],
)
def test_a_curve_with_all_attacks_of_the_evaluation_tells(
    reports: dict[str, Path], text: str, subject: str, count: int
) -> None:
    found = judged(reports["single_step"], text)[0]
    assert (found.judgement, found.subject) == (Judgement.PASS, subject)
    assert found.numbers["value"] == pytest.approx(count / 400)


@pytest.mark.parametrize(
    ("name", "text", "expected", "said"),
    [
        # The curve leaves 62.5 % at 0.1 and 25 % at 0.3; PGD of the evaluation 5 % at 0.3.
        ("strong", "robust_accuracy >= 0.5 at eps 0.1", "cannot tell", "the table has stronger attacks"),
        (
            "strong",
            "robust_accuracy >= 0.6 at eps 0.1",
            "cannot tell",
            "it open, and the security curve alone attacked",
        ),
        ("strong", "robust_accuracy >= 0.7 at eps 0.1", "fail", "62.5"),
        ("strong", "robust_accuracy >= 0.2 at eps 0.25", "cannot tell", "in doubt at eps 0.1, missed at 0.3"),
        ("strong", "robust_accuracy >= 0.01 at eps 0.25", "pass", "at a larger eps, 5.0"),
        ("strong", "robust_accuracy >= 0.5 at eps 0.05", "cannot tell", "at the next larger eps, 62.5"),
        ("strong", "robust_accuracy >= 0.01 at eps 0.1", "pass", "at a larger eps, 5.0"),
        # The evaluation leaves 25 % at 8/255.
        ("small", "robust_accuracy >= 0.5 at eps 0.05", "fail", "at a smaller eps, 25.0"),
        ("small", "robust_accuracy >= 0.5 at eps 0.1", "fail", "at a smaller eps, 25.0"),
        ("small", "robust_accuracy >= 0.2 at eps 0.03", "pass", "at a larger eps, 25.0"),
        ("small", "robust_accuracy >= 0.2 at eps 0.05", "cannot tell", "at the next larger eps, 62.5"),
    ],
)
def test_what_a_weaker_curve_leaves_is_at_most_what_is_left(
    reports: dict[str, Path], name: str, text: str, expected: str, said: str
) -> None:
    found = judged(reports[name], text)[0]
    assert found.judgement.value == expected
    assert said in found.finding.replace("\N{NO-BREAK SPACE}", " ")
    asked = parse(text).eps
    assert found.advice.startswith(f"Evaluate at eps {asked}") is (expected == "cannot tell")


@pytest.mark.parametrize("attack", ["fgm", "pgd"])
def test_an_attack_of_the_curve_that_is_named_is_meant(reports: dict[str, Path], attack: str) -> None:
    for eps in (0.05, 0.1):
        assert outcome(reports["strong"], f"robust_accuracy >= 0.5 at eps {eps} with {attack}") == "pass"


FGM_STEP = TreatmentStep("fgm", {"norm": "inf"})


def drawn(eps: float, low: float, **changed: Any) -> Measure:
    """A point of a curve of FGM."""
    attack = Treatment(FGM_STEP.name, FGM_STEP.text, (FGM_STEP,))
    usual = {"attacks": (attack,), "eps": eps, "drawn": True, "together": True}
    return Measure("robust_accuracy", low + 0.02, low, low + 0.04, 400, **usual | changed)


def evaluated(eps: float, low: float, norm: str, **changed: Any) -> Measure:
    """A measure of a table of PGD."""
    step = TreatmentStep("pgd", {"eps": eps, "norm": norm})
    return drawn(eps, low, attacks=(Treatment(step.name, step.text, (step,)),), drawn=False, **changed)


def test_where_accuracy_rises_with_eps_nothing_is_told_between() -> None:
    """The last step of the curve goes up in no report that is trusted, but may within a warning."""
    threshold = parse("robust_accuracy >= 0.2 at eps 0.5")
    (points,) = lines([drawn(0.3, 0.08), drawn(1.0, 0.28)], threshold)
    found = judge_along(threshold, points)
    assert found is not None
    assert found.judgement is Judgement.UNKNOWN
    assert found.finding == "missed at eps 0.3, met at 1, and not measured between"


def test_another_norm_tells_nothing_of_a_curve() -> None:
    measured = [drawn(0.1, 0.6), drawn(1.0, 0.0), evaluated(0.5, 0.5, "2"), evaluated(0.4, 0.5, "inf")]
    curve, other = lines(measured, parse("robust_accuracy >= 0.2 at eps 0.3"))
    assert [(each.eps, each.norm) for each in curve] == [(0.1, "inf"), (0.4, "inf"), (1.0, "inf")]
    assert [(each.eps, each.norm) for each in other] == [(0.5, "2")]


@pytest.mark.parametrize(("doubts", "met"), [(frozenset(), True), (frozenset({Doubt.SINGLE_STEP}), False)])
def test_a_larger_single_step_alone_does_not_tell_of_a_smaller_one(doubts: frozenset[Doubt], met: bool) -> None:
    threshold = parse("robust_accuracy >= 0.2 at eps 0.3 with pgd")
    (points,) = lines([evaluated(0.5, 0.5, "inf", doubts=doubts)], threshold)
    found = judge_along(threshold, points)
    assert (found is not None and found.judgement is Judgement.PASS) is met


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
