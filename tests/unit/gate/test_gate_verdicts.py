"""Verdicts: both ends of an interval, doubts, and the baseline."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from gating import ATTACK, judged, outcome, reordered
from scipy.stats import binomtest

from evasion.components.common.results.paired import unpacked
from evasion.pipelines.gate import measures
from evasion.pipelines.gate.threshold import Threshold
from evasion.pipelines.gate.verdict import Judgement, judge


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
    """Six images lost are p = 0.031 alone, and noise among ten rows: eight evaluations and two worst cases."""
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
    assert row.numbers["p_adjusted"] == pytest.approx(0.3125)
    assert row.judgement is Judgement.PASS


@pytest.mark.parametrize(
    ("name", "cell", "worst", "shares"),
    [
        # With JPEG 104 images are right under one attacker and 99 under the other: 99 under both, then none.
        (
            "usual",
            (ATTACK, "jpeg_compression quality=75", "oblivious"),
            f"{ATTACK} + jpeg_compression quality=75 (defense-aware and oblivious)",
            (99 / 400, 0),
        ),
        ("attacks", ("pgd eps=0.3 norm=inf", None, None), "worst case of fgm and pgd eps=0.3 norm=inf", (0.25, 0)),
    ],
)
def test_a_drop_that_is_noise_under_each_attacker_fails_under_all_of_them(
    reports: dict[str, Path],
    tmp_path: Path,
    name: str,
    cell: tuple[str | None, ...],
    worst: str,
    shares: tuple[float, float],
) -> None:
    changed = reordered(reports[name], tmp_path, *cell)
    found = [each for each in judged(changed, baseline=reports[name]) if each.kind == "baseline"]
    # The first row, as in the table.
    assert [each.name for each in found if each.judgement is Judgement.FAIL] == [worst] == [found[0].name]
    assert (found[0].numbers["before"], found[0].numbers["after"]) == pytest.approx(shares)
    assert found[0].finding.startswith("a drop beyond noise: ")


def test_one_attacker_more_is_no_drop(reports: dict[str, Path]) -> None:
    """The worst case is that of the baseline's attackers, however many the report has."""
    rows = {each.name: each for each in judged(reports["usual"], baseline=reports["oblivious"])}
    median = rows[f"{ATTACK} + spatial_smoothing window_size=3 (oblivious)"]
    assert (median.judgement, median.numbers["change"]) == (Judgement.PASS, 0)
    assert not [name for name in rows if "and oblivious" in name]


def test_both_reports_are_counted_by_one_rule(reports: dict[str, Path], tmp_path: Path) -> None:
    """The baseline knows which images are right with the defense and no attack, the report does not."""
    defense, attacker = "spatial_smoothing window_size=3", "(oblivious)"
    baseline = reordered(reports["usual"], tmp_path, None, defense, None)
    rows = {each.name: each for each in judged(reports["no_clean_median"], baseline=baseline)}
    row = rows[f"{ATTACK} + {defense} {attacker}"]
    assert (row.numbers["before"], row.numbers["after"]) == pytest.approx((250 / 400, 250 / 400))
    assert rows[f"clean images + {defense}"].judgement is Judgement.UNKNOWN


@pytest.mark.parametrize("damaged", ["baseline", "report"])
def test_a_row_whose_images_are_not_known_is_not_passed_over(
    reports: dict[str, Path], tmp_path: Path, damaged: str
) -> None:
    content = json.loads(reports["usual"].read_text())
    name = f"{ATTACK} + jpeg_compression quality=75 (defense-aware)"
    cell = (ATTACK, "jpeg_compression quality=75", "defense-aware")
    (found,) = [each for each in content["evaluations"] if (each["attack"], each["defense"], each["attacker"]) == cell]
    found["right"] = None
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    baseline, report = (path if damaged == each else reports["usual"] for each in ("baseline", "report"))
    rows = {each.name: each for each in judged(report, baseline=baseline)}
    for unknown in (name, name.replace("(defense-aware)", "(defense-aware and oblivious)")):
        assert rows[unknown].judgement is Judgement.UNKNOWN
        assert rows[unknown].finding == f"the {damaged} does not say of each image whether it was right"


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


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        # 104 images are right under one attacker, 99 under the other: of those under both it is known only how many at
        # most.
        ("robust_accuracy >= 0.15 for jpeg_compression", "cannot tell"),
        ("robust_accuracy >= 0.4 for jpeg_compression", "fail"),
        ("robust_accuracy >= 0.15 for jpeg_compression by oblivious", "pass"),
        ("gain >= -0.5 for jpeg_compression", "cannot tell"),
        ("gain >= -0.5 for jpeg_compression by oblivious", "pass"),
    ],
)
def test_the_smallest_share_is_not_taken_for_the_worst_case(
    reports: dict[str, Path], tmp_path: Path, threshold: str, expected: str
) -> None:
    content = json.loads(reports["usual"].read_text())
    cell = (ATTACK, "jpeg_compression quality=75", "defense-aware")
    (found,) = [each for each in content["evaluations"] if (each["attack"], each["defense"], each["attacker"]) == cell]
    found["right"] = None
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    verdict = judged(path, threshold)[0]
    assert verdict.judgement.value == expected
    assert ("is not known" in verdict.finding) is (expected == "cannot tell")
