"""Reports held to thresholds and to a baseline."""

import base64
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from junitparser import Error, Failure, JUnitXml
from lab import FGM, JPEG, MEDIAN, Lab, Report
from markdown_it import MarkdownIt
from scipy.stats import binomtest

from evasion.components.common.results.curve import Point
from evasion.components.common.results.paired import Difference, unpacked
from evasion.components.common.results.report import Report as ReportFile
from evasion.components.common.results.report import read
from evasion.components.common.results.shares import Share
from evasion.components.common.results.treatments import NONE, Treatment, TreatmentStep
from evasion.pipelines.cli import main
from evasion.pipelines.gate import measures, outputs, verdict
from evasion.pipelines.gate.gate import gate
from evasion.pipelines.gate.selector import selects
from evasion.pipelines.gate.settings import settings
from evasion.pipelines.gate.threshold import Threshold, parse
from evasion.pipelines.gate.verdict import Judgement, judge

SCHEMA = json.loads(Path(__file__).with_name("data").joinpath("sarif-schema-2.1.0.json").read_text())
ATTACK = "fgm eps=0.3 norm=inf"


def make(root: Path, name: str) -> Path:
    """Report a model; what is wrong with it is in its name."""
    lab = Lab(root / name, images=20 if name == "few" else 400)
    curve = None
    match name:
        case "few":
            made = [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=12)]
        case "oblivious":
            made = [
                *lab.everything(),
                lab.evaluate("def_noise", {**JPEG, "stage": "none_done", "applied": False}, wrong=8),
            ]
        case "worse":
            made = [
                lab.evaluate("clean", wrong=10),
                lab.evaluate("adv", FGM, wrong=320, wrong_before=10),
                lab.evaluate("def_median", MEDIAN, wrong=50),
            ]
        case "untrained":
            made = [lab.evaluate("clean", wrong=100), lab.evaluate("adv", FGM, wrong=300, wrong_before=100)]
        case _:
            made, curve = lab.two_attackers(), lab.curve()
    Report(root / name, made, curve=curve)
    return root / name / "out" / "report.json"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> dict[str, Path]:
    """Real reports, made once; tests that change one copy it."""
    root = tmp_path_factory.mktemp("reports")
    shutil.copyfile(empty_mlflow, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("EVASION_ARTIFACT_ROOT", str(root / "artifacts"))
        return {name: make(root, name) for name in ("usual", "worse", "few", "oblivious", "untrained")}


@pytest.fixture(scope="module")
def usual(reports: dict[str, Path]) -> ReportFile:
    return read(reports["usual"])


def evasion(*args: object) -> Any:
    return CliRunner().invoke(main.main, ["gate", *map(str, args)], prog_name="evasion")


def judged(report: Path, *thresholds: str, **asked: Any) -> list[verdict.Verdict]:
    usual = {"config": None, "baseline": None, "allowed_drop": None, "accept_checks": ()}
    return gate(report, settings(thresholds, **usual | asked)).verdicts


def outcome(report: Path, threshold: str) -> str:
    return judged(report, threshold)[0].judgement.value


# Thresholds.


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
        ("robust_accuracy >= 30", r"lies in \[0, 1\]; write 30 % or 0.30"),
        ("robust_accuracy >= -0.1", r"lies in \[0, 1\]"),
        ("gain >= 2", r"gain lies in \[-1, 1\]"),
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


# Intervals.


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


# What a report says.


@pytest.mark.parametrize(
    ("text", "subject", "count", "n"),
    [
        ("clean_accuracy >= 0.5", "no attack", 392, 400),
        ("clean_accuracy >= 0.5 for spatial_smoothing", "no attack + spatial_smoothing window_size=3", 340, 400),
        ("robust_accuracy >= 0.1", ATTACK, 100, 400),
        ("attack_success_rate <= 0.9", ATTACK, 292, 392),
        # The attacker that leaves less.
        (
            "robust_accuracy >= 0.1 for jpeg_compression",
            f"{ATTACK} + jpeg_compression quality=75 (defense-aware)",
            99,
            400,
        ),
        ("robust_accuracy >= 0.1 for spatial_smoothing window_size=3 by oblivious", "(oblivious)", 250, 400),
        # Of the curve.
        ("robust_accuracy >= 0.5 at eps 0.1", "fgm norm=inf eps=0.1", 250, 400),
        ("robust_accuracy >= 0.5 at eps 1/255", "fgm norm=inf eps=0.003922", 390, 400),
        ("robust_accuracy >= 0.5 at eps 0.1 for spatial_smoothing", "(defense-aware)", 290, 400),
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


def test_the_table_stands_before_the_curve(usual: ReportFile) -> None:
    nothing = Point(0.3, Share.counted(0, 400))
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
        ("robust_accuracy >= 0.1 with pgd", f"no robust_accuracy with pgd; it has {ATTACK}"),
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


@pytest.mark.parametrize(("text", "outcome"), [("at eps 0.1", "cannot tell"), ("at eps 0.1 with fgm", "pass")])
def test_an_attack_that_was_not_measured_at_this_eps_is_not_forgotten(
    usual: ReportFile, text: str, outcome: str
) -> None:
    """The curve is FGM's: of PGD, which the table has at its own eps, it says nothing."""
    attack = usual.table[0].attack
    (step,) = attack.steps
    pgd = replace(attack, name="pgd", steps=(replace(step, name="pgd"),), key="pgd")
    both = replace(usual, table=[*usual.table, replace(usual.table[0], attack=pgd)])
    (found,) = verdict.judge_thresholds(both, [parse(f"robust_accuracy >= 0.5 {text}")])
    assert found.judgement.value == outcome
    assert ("but pgd was not measured at this eps" in found.finding) == (outcome == "cannot tell")


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
    measure = measures.Measure("robust_accuracy", 0.1, 0.08, 0.12, 400, FGM_OF_THE_CURVE, 0.3, drawn=True)
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
        ("none", NONE, True),
        ("none", JPEG_ALONE, False),
        ("jpeg_compression", NONE, False),
    ],
)
def test_a_selector_means_the_whole_treatment(selector: str, treatment: Treatment, selected: bool) -> None:
    assert selects(selector, treatment) is selected


# Judgements.


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0.20, "pass"), (0.211, "cannot tell"), (0.25, "cannot tell"), (0.29, "cannot tell"), (0.30, "fail")],
)
def test_both_ends_of_the_interval_decide(reports: dict[str, Path], limit: float, expected: str) -> None:
    # 100 of 400: 25 % [21.0, 29.5].
    interval = binomtest(100, 400).proportion_ci(method="wilson")
    assert (expected == "pass") == (interval.low >= limit)
    assert (expected == "fail") == (interval.high < limit)
    assert outcome(reports["usual"], f"robust_accuracy >= {limit}") == expected


def test_a_small_sample_cannot_pass_by_luck(reports: dict[str, Path]) -> None:
    # 8 of 20 images are 40 %, but 19 % would make that too.
    found = judged(reports["few"], "robust_accuracy >= 0.3")[0]
    assert found.judgement is Judgement.UNKNOWN
    assert found.finding.replace("\N{NO-BREAK SPACE}", " ") == (
        "40.0 % [21.9, 61.3] of 20 images: the value meets it, the interval leaves it open"
    )
    assert found.advice == "Evaluate more images: about 82 would tell, if the share stays."
    assert binomtest(round(0.4 * 85), 85).proportion_ci(method="wilson").low >= 0.3
    assert binomtest(round(0.4 * 75), 75).proportion_ci(method="wilson").low < 0.3
    assert outcome(reports["few"], "clean_accuracy > 0.99") == "cannot tell"


@pytest.mark.parametrize(
    ("comparator", "ends"),
    [
        (">=", {0.1: "pass", 0.2: "pass", 0.3: "cannot tell", 0.4: "cannot tell", 0.5: "fail"}),
        (">", {0.1: "pass", 0.2: "cannot tell", 0.3: "cannot tell", 0.4: "fail"}),
        ("<=", {0.1: "fail", 0.2: "cannot tell", 0.3: "cannot tell", 0.4: "pass", 0.5: "pass"}),
        ("<", {0.2: "fail", 0.3: "cannot tell", 0.4: "cannot tell", 0.5: "pass"}),
    ],
)
def test_a_limit_at_an_end_counts_as_the_comparator_says(comparator: str, ends: dict[float, str]) -> None:
    measure = measures.Measure("robust_accuracy", 0.3, 0.2, 0.4, 100)
    threshold = [Threshold("t", "robust_accuracy", comparator, limit) for limit in ends]
    assert {each.limit: judge(each, measure).judgement.value for each in threshold} == ends


def test_an_oblivious_attacker_alone_proves_nothing_good(reports: dict[str, Path]) -> None:
    smoothing = "robust_accuracy >= {} for spatial_smoothing"
    # 250 of 400 are right.
    found = judged(reports["oblivious"], smoothing.format(0.5))[0]
    assert found.judgement is Judgement.UNKNOWN
    assert "only an attacker who does not know the defense" in found.finding
    assert outcome(reports["oblivious"], smoothing.format(0.7)) == "fail"
    assert outcome(reports["oblivious"], smoothing.format(0.5) + " by oblivious") == "pass"
    assert outcome(reports["oblivious"], "clean_accuracy >= 0.8 for spatial_smoothing") == "pass"


def test_a_defense_that_was_not_applied_proves_nothing_good(reports: dict[str, Path]) -> None:
    found = judged(reports["oblivious"], "clean_accuracy_drop <= 0.02 for none_done")[0]
    assert found.judgement is Judgement.UNKNOWN
    assert "not applied" in found.finding
    # Unless it is named, it does not count.
    assert "none_done" not in judged(reports["oblivious"], "clean_accuracy_drop <= 0.5")[0].subject


def test_the_worst_outcome_decides() -> None:
    assert Judgement.worst([Judgement.PASS, Judgement.UNKNOWN]) is Judgement.UNKNOWN
    assert Judgement.worst([Judgement.FAIL, Judgement.UNKNOWN, Judgement.PASS]) is Judgement.FAIL
    assert Judgement.worst([]) is Judgement.UNKNOWN


def test_a_failed_check_leaves_it_open(reports: dict[str, Path]) -> None:
    threshold, check = "robust_accuracy >= 0.1", "clean accuracy above the floor"
    (held, found) = judged(reports["untrained"], threshold)
    assert (held.judgement, found.judgement) == (Judgement.PASS, Judgement.UNKNOWN)
    assert (found.kind, found.name) == ("check", check)
    accepted = judged(reports["untrained"], threshold, accept_checks=(check,))[1]
    assert accepted.judgement is Judgement.PASS
    assert accepted.finding.endswith("accepted")


# Baseline.


def test_a_drop_beyond_noise_fails(reports: dict[str, Path]) -> None:
    rows = {each.name: each for each in judged(reports["worse"], baseline=reports["usual"])}
    clean, attacked = rows["clean images"], rows[ATTACK]
    smoothed = rows["clean images + spatial_smoothing window_size=3"]
    # 2 more wrong images are noise; 20 more are not; smoothing gets 10 more right.
    assert clean.judgement is Judgement.PASS
    assert clean.finding.startswith("no more than noise: ")
    assert clean.numbers["p"] == pytest.approx(binomtest(0, 2).pvalue)
    assert attacked.judgement is Judgement.FAIL
    assert attacked.finding.startswith("a drop beyond noise: ")
    assert (attacked.numbers["only_before_right"], attacked.numbers["only_after_right"]) == (20, 0)
    # Of three tests this has the smallest p.
    assert attacked.numbers["p_adjusted"] == pytest.approx(3 * binomtest(0, 20).pvalue)
    assert (attacked.numbers["before"], attacked.numbers["after"]) == pytest.approx((0.25, 0.2))
    assert smoothed.judgement is Judgement.PASS
    assert smoothed.finding.startswith("a rise beyond noise: ")
    # What the baseline has and the report lacks, nobody can judge.
    assert rows[f"{ATTACK} + jpeg_compression quality=75 (defense-aware)"].judgement is Judgement.UNKNOWN


def test_many_rows_are_adjusted_for(reports: dict[str, Path], tmp_path: Path) -> None:
    """Six images lost are p = 0.031 alone, and noise among eight rows."""
    changed = json.loads(reports["usual"].read_text())
    (found,) = [each for each in changed["evaluations"] if each["title"] == "clean"]
    right = unpacked(found["right"], 400)
    right[np.flatnonzero(right)[:6]] = 0
    found["right"] = base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()
    found["metrics"]["correct"] = int(right.sum())
    path = tmp_path / "report.json"
    path.write_text(json.dumps(changed))
    row = {each.name: each for each in judged(path, baseline=reports["usual"])}["clean images"]
    assert row.numbers["p"] == pytest.approx(0.03125)
    assert row.numbers["p_adjusted"] == pytest.approx(0.25)
    assert row.judgement is Judgement.PASS


@pytest.mark.parametrize(("allowed", "expected"), [(0.05, "fail"), (0.07, "fail"), (0.08, "pass")])
def test_a_drop_may_be_allowed_where_it_is_surely_no_larger(
    reports: dict[str, Path], allowed: float, expected: str
) -> None:
    # 20 of 400 lost: 5 points [2.8, 7.3].
    rows = {e.name: e for e in judged(reports["worse"], baseline=reports["usual"], allowed_drop=allowed)}
    assert rows[ATTACK].judgement.value == expected


def test_a_baseline_of_other_images_tells_nothing(reports: dict[str, Path]) -> None:
    found = judged(reports["usual"], baseline=reports["few"])[0]
    assert (found.kind, found.judgement) == ("baseline", Judgement.UNKNOWN)
    assert "20 other images than the report's 400" in found.finding


def test_a_baseline_that_cannot_be_trusted_leaves_it_open(reports: dict[str, Path]) -> None:
    found = [each for each in judged(reports["usual"], baseline=reports["untrained"]) if each.kind == "check"]
    assert [each.judgement for each in found] == [Judgement.UNKNOWN, Judgement.PASS]
    assert found[0].finding.startswith("the baseline's check failed: ")


# Settings.

CONFIG = """\
# What a change must keep: not robust_accuracy >= 0.2 alone.
thresholds = [
    "robust_accuracy >= 0.2",
    'clean_accuracy >= 0.9',
    "clean_accuracy >= 0.99",
]
allowed_drop = 0.01
accept_checks = ["enough images"]
baseline = "old/report.json"
"""


def test_options_add_to_the_file(tmp_path: Path) -> None:
    config = tmp_path / "gate.toml"
    config.write_text(CONFIG)
    found = settings(["gain > 0"], config, None, 0.02, ["another"])
    assert [(each.text, each.line) for each in found.thresholds] == [
        ("robust_accuracy >= 0.2", 3),
        ("clean_accuracy >= 0.9", 4),
        ("clean_accuracy >= 0.99", 5),
        ("gain > 0", None),
    ]
    assert found.baseline == tmp_path / "old" / "report.json"
    assert (found.allowed_drop, found.accept_checks) == (0.02, ("enough images", "another"))
    assert settings([], config, tmp_path / "new.json", None, []).baseline == tmp_path / "new.json"
    assert settings([], config, None, None, []).allowed_drop == 0.01


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thresholds = [", "gate.toml is not valid TOML: "),
        ("threshold = []", "may have thresholds, baseline, allowed_drop, accept_checks. Received: threshold"),
        ("thresholds = 'x'", "thresholds in .* must be a list of texts. Received: 'x'"),
        ("thresholds = [1]", "must be a list of texts"),
        ("thresholds = ['x']", "a threshold must be METRIC"),
        ("allowed_drop = true", "must be a share such as 0.01. Received: True"),
        ("baseline = 'x'\nallowed_drop = 2", r"allowed_drop must be in \[0, 1\]. Received: allowed_drop=2"),
        ("", "needs a threshold or a baseline. Received: neither"),
    ],
)
def test_a_file_that_breaks_a_rule_says_which(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "gate.toml"
    config.write_text(text)
    with pytest.raises(ValueError, match=said):
        settings([], config, None, None, [])


# What it writes.


def written(folder: Path) -> dict[str, Path]:
    return {name: folder / f"gate.{name}" for name in outputs.FORMATS}


@pytest.fixture(scope="module")
def failed(reports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All files of a gate with passes, failures and doubts."""
    folder = tmp_path_factory.mktemp("failed")
    (folder / "gate.toml").write_text(CONFIG.replace("old/report.json", str(reports["usual"])))
    paths = written(folder)
    options = [each for name, path in paths.items() for each in (f"--{name}", path)]
    result = evasion(reports["worse"], "--config", folder / "gate.toml", "--threshold", "gain > 0", *options)
    assert result.exit_code == 1, result.output
    return paths | {"output": folder}


def test_json_holds_everything(failed: dict[str, Path], reports: dict[str, Path]) -> None:
    made = json.loads(failed["json"].read_text())
    assert (made["schema_version"], made["outcome"], made["exit_code"]) == (1, "fail", 1)
    assert made["report"]["path"] == str(reports["worse"])
    assert {each["outcome"] for each in made["verdicts"]} == {"pass", "fail", "cannot tell"}
    numbers = made["verdicts"][0]["numbers"]
    assert (numbers["metric"], numbers["comparator"], numbers["limit"], numbers["n"]) == (
        "robust_accuracy",
        ">=",
        0.2,
        400,
    )


def test_junit_is_read_by_what_reads_junit(failed: dict[str, Path]) -> None:
    made = json.loads(failed["json"].read_text())["verdicts"]
    (suite,) = JUnitXml.fromfile(str(failed["junit"]))
    kinds = {"fail": Failure, "cannot tell": Error}
    assert [(case.name, [type(each) for each in case.result]) for case in suite] == [
        (each["name"], [kinds[each["outcome"]]] if each["outcome"] in kinds else []) for each in made
    ]
    counted = [sum(each["outcome"] == name for each in made) for name in ("fail", "cannot tell")]
    assert [suite.tests, suite.failures, suite.errors] == [len(made), *counted]
    assert suite.name == "evasion gate"


def test_sarif_is_valid_and_points_at_the_rule(failed: dict[str, Path]) -> None:
    made = json.loads(failed["sarif"].read_text())
    jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(made)
    (run,) = made["runs"]
    verdicts = [each for each in json.loads(failed["json"].read_text())["verdicts"] if each["outcome"] != "pass"]
    assert [each["level"] for each in run["results"]] == [
        {"fail": "error", "cannot tell": "warning"}[each["outcome"]] for each in verdicts
    ]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[each["ruleIndex"]]["id"] for each in run["results"]] == [each["kind"] for each in verdicts]
    places = [each["locations"][0]["physicalLocation"] for each in run["results"]]
    assert places[0]["region"]["startLine"] == 3
    assert places[0]["artifactLocation"]["uri"] == (failed["output"] / "gate.toml").as_uri()
    fingerprints = [each["partialFingerprints"]["verdict/v1"] for each in run["results"]]
    assert len(set(fingerprints)) == len(fingerprints)


def test_sarif_names_files_as_the_code_host_does(
    reports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "gate.toml").write_text('thresholds = ["robust_accuracy >= 0.9"]')
    monkeypatch.chdir(tmp_path)
    assert evasion(reports["few"], "--config", "ci/gate.toml", "--sarif", "gate.sarif").exit_code == 1
    (result,) = json.loads(Path("gate.sarif").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "ci/gate.toml"


def test_markdown_shows_a_table_for_each_kind(failed: dict[str, Path]) -> None:
    text = failed["markdown"].read_text()
    assert text.startswith("## Robustness gate: fail: ")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert sum(token.type == "table_open" for token in tokens) == 3
    rows = sum(token.type == "tr_open" for token in tokens) - 3
    assert rows == len(json.loads(failed["json"].read_text())["verdicts"])
    assert text.index("**fail**") < text.index("| pass |")


def test_names_stay_text(reports: dict[str, Path], tmp_path: Path) -> None:
    nasty = "<b>|`x`\n[y](javascript:z) @all \x01 &"
    changed = json.loads(reports["few"].read_text())
    changed["headline"] = nasty
    changed["checks"] += [{"name": nasty, "subject": nasty, "status": "fail", "finding": nasty, "advice": nasty}]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(changed))
    paths = written(tmp_path / "out")
    options = [each for name, file in paths.items() for each in (f"--{name}", file)]
    result = evasion(path, "--threshold", "robust_accuracy >= 0", *options)
    assert result.exit_code == 2, result.output
    text = paths["markdown"].read_text()
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert "<b>" not in shown
    assert "<a " not in shown
    assert "<code>" not in shown
    assert "@" not in text
    assert shown.count("<tr>") == 2 + len(json.loads(paths["json"].read_text())["verdicts"])
    assert ElementTree.parse(paths["junit"]).getroot().tag == "testsuites"
    jsonschema.Draft4Validator(SCHEMA).validate(json.loads(paths["sarif"].read_text()))


# The command.


@pytest.mark.parametrize(
    ("threshold", "code"),
    [("robust_accuracy >= 0.2", 0), ("robust_accuracy >= 0.3", 1), ("robust_accuracy >= 0.25", 2)],
)
def test_the_exit_code_tells_the_outcome(reports: dict[str, Path], threshold: str, code: int) -> None:
    # A folder of a run stands for the report in it.
    result = evasion(reports["usual"].parent, "--threshold", threshold)
    assert result.exit_code == code, result.output
    assert result.stdout.splitlines()[-1].startswith(("pass: ", "fail: ", "cannot tell: ")[code])
    assert "25.0" in result.stdout


def damaged(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "there is no report at"),
        (lambda path: path.write_text("{"), "is not valid JSON"),
        (lambda path: path.write_text("[]"), "is not as report writes it"),
        (lambda path: path.write_bytes(b"\xff"), "is not valid JSON"),
        (lambda path: damaged(path, schema_version=1), "must be of schema_version 3"),
        (lambda path: damaged(path, evaluations=[]), "holds no gain"),
        (lambda path: damaged(path, table=[{}]), "lacks table.0.attack"),
        (lambda path: path.write_text(path.read_text().replace('"count": 100\n', '"count": 101\n')), "is not a share"),
        (
            lambda path: path.write_text(path.read_text().replace('"correct": 392,', '"correct": 393,')),
            "do not count 393",
        ),
    ],
)
def test_a_damaged_report_is_a_verdict_and_every_file_is_written(
    reports: dict[str, Path], tmp_path: Path, damage: Any, said: str
) -> None:
    path, paths = tmp_path / "report.json", written(tmp_path / "out")
    shutil.copyfile(reports["usual"], path)
    damage(path)
    options = [each for name, file in paths.items() for each in (f"--{name}", file)]
    result = evasion(path, "--threshold", "gain >= -0.5", *options)
    assert result.exit_code == 2, result.output
    (found, *_) = json.loads(paths["json"].read_text())["verdicts"]
    assert found["outcome"] == "cannot tell"
    assert said in found["finding"]
    assert all(file.stat().st_size for file in paths.values())


def test_a_damaged_baseline_is_a_verdict(reports: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("{}")
    found = judged(reports["usual"], "robust_accuracy >= 0.2", baseline=path)
    assert [(each.kind, each.judgement.value) for each in found] == [
        ("threshold", "pass"),
        ("baseline", "cannot tell"),
        ("check", "pass"),
    ]
    assert str(path) in found[1].finding


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "gate needs a threshold or a baseline"),
        (("--threshold", "robust"), "a threshold must be METRIC"),
        (("--config", "nowhere.toml"), "there is no file nowhere.toml"),
        (("--threshold", "gain > 0", "--allowed-drop", "2"), "allowed_drop must be in [0, 1]"),
        (("--threshold", "gain > 0", "--json", "a", "--junit", "a"), "--junit must be a file of its own. Received: a"),
    ],
)
def test_the_command_refuses_bad_input(
    reports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = evasion(reports["usual"], *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_the_report_is_never_written_over(reports: dict[str, Path]) -> None:
    before = reports["usual"].read_bytes()
    result = evasion(reports["usual"], "--threshold", "gain > 0", "--json", reports["usual"])
    assert result.exit_code == 2
    assert "must be a file of its own" in result.stderr
    assert reports["usual"].read_bytes() == before


def test_where_one_file_cannot_be_written_none_is(reports: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = evasion(
        reports["usual"],
        "--threshold",
        "robust_accuracy > 0",
        "--json",
        tmp_path / "j",
        "--sarif",
        tmp_path / "file" / "s",
    )
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_example_of_the_documentation_is_valid() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "gate.md").read_text(encoding="utf-8")
    (block,) = [part.split("```")[0] for part in text.split("```toml\n")[1:]]
    found = tomllib.loads(block)
    assert found["thresholds"]
    assert all(parse(each) for each in found["thresholds"])
