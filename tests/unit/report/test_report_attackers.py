"""The two attackers side by side, and images compared one by one."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from lab import FGM, JPEG, MEDIAN, Lab, Report, aware

from evasion.components.common.results.paired import Paired, unpacked

pytestmark = pytest.mark.usefixtures("mlflow_store")  # the report logs itself


@pytest.mark.parametrize(
    ("gained", "lost", "chance"),
    # Intervals of such shares of 1,000 images overlap: the test looks at the images that differ alone.
    [(39, 2, False), (9, 5, True), (0, 0, True), (2, 39, False)],
)
def test_a_small_gain_on_the_same_images_is_told_from_chance(gained: int, lost: int, chance: bool) -> None:
    before = np.array([1] * 460 + [0] * 540, dtype=np.int8)
    after = before.copy()
    after[:lost], after[999 - gained : 999] = 0, 1
    paired = Paired.between(before, after)
    assert (paired.gained, paired.lost, paired.may_be_chance) == (gained, lost, chance)


def test_two_attackers_stand_side_by_side_and_both_judge(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers())
    median = made.row("spatial_smoothing")
    assert list(median["attackers"]) == ["defense-aware", "oblivious"]
    assert median["attackers"]["oblivious"]["robust_accuracy"]["value"] == 0.625
    # Whoever withstands the defense-aware attacker here withstands the oblivious one as well.
    assert median["attackers"]["defense-aware"]["robust_accuracy"] == median["robust_accuracy"]
    assert median["robust_accuracy"]["value"] == 0.375
    assert median["robust_accuracy_change"] == {"value": pytest.approx(0.125), "may_be_chance": False}
    assert median["attack_success_rate"]["count"] == 242
    none = made.row("none")
    assert none["attackers"] == {}
    assert made.metrics["robust_accuracy_spatial_smoothing"] == 0.375
    assert made.metrics["robust_accuracy_spatial_smoothing_defense_aware"] == 0.375
    assert made.metrics["robust_accuracy_spatial_smoothing_oblivious"] == 0.625
    headline = made.json["headline"].replace("\N{NO-BREAK SPACE}", " ")
    assert headline.endswith(
        "Once the attacker knows the defense, spatial_smoothing gives back 12.5 points (17 % of what the attack took) "
        "but costs 13.0 points of clean accuracy; jpeg_compression shows no gain beyond chance."
    )
    assert "9/0009.png, spatial_smoothing window_size=3 (defense-aware)" in made.page


def test_a_weak_defense_aware_attack_does_not_flatter(lab: Lab, tmp_path: Path) -> None:
    weak = lab.evaluate("aware_median", aware(FGM, MEDIAN), MEDIAN, wrong=100, wrong_before=8)
    made = Report(tmp_path, [*lab.everything(), weak])
    row = made.row("spatial_smoothing")
    assert row["robust_accuracy"]["value"] == 0.625
    assert row["attackers"]["defense-aware"]["robust_accuracy"]["value"] == 0.75
    ((status, found),) = made.checks("defense-aware attack hurts no less")
    assert status == "warn"
    assert "75.0" in found
    assert made.checks("defense-aware attack") == [("warn", "not run: jpeg_compression")]


def test_images_that_an_attack_makes_right_are_no_fault_of_the_aware_one(lab: Lab, tmp_path: Path) -> None:
    """It moves them away from what the defended model takes them for, which was wrong."""
    evaluations = [
        lab.evaluate("clean", wrong=8),
        lab.evaluate("median", MEDIAN, wrong=60),
        lab.evaluate("adv", FGM, wrong=300),
        lab.evaluate("adv_median", FGM, MEDIAN, wrong=200),
        lab.evaluate("aware_median", aware(FGM, MEDIAN), MEDIAN, wrong=220, spared=60),
    ]
    made = Report(tmp_path, evaluations)
    ((status, found),) = made.checks("defense-aware attack hurts no less")
    assert status == "pass"
    attackers = made.row("spatial_smoothing")["attackers"]
    shares = [attackers[each]["robust_accuracy"]["value"] for each in ("defense-aware", "oblivious")]
    assert shares == [0.45, 0.5]
    assert re.findall(r"\d+\.\d", found) == [f"{100 * share:.1f}" for share in shares]


def test_without_a_defense_aware_attack_the_report_says_so(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.everything())
    assert made.checks("defense-aware attack") == [("warn", "not run: jpeg_compression, spatial_smoothing")]
    assert made.json["attacker"]["knowledge"] == ["oblivious"]
    assert "Once the attacker knows" not in made.page


def test_a_defense_that_harms_is_told(lab: Lab, tmp_path: Path) -> None:
    worse = lab.evaluate("aware", aware(FGM, JPEG), JPEG, wrong=340, wrong_before=8)
    clean = [lab.evaluate("clean", wrong=8), lab.evaluate("jpeg", JPEG, wrong=8)]
    made = Report(tmp_path, [*clean, lab.evaluate("adv", FGM, wrong=300), worse])
    assert made.json["headline"].endswith(
        "Once the attacker knows the defense, jpeg_compression takes 10.0 points more."
    )


def test_two_attackers_that_drew_seeds_of_their_own_are_one_attack(lab: Lab, tmp_path: Path) -> None:
    drawn = {**aware(FGM, JPEG), "seed": 77, "parameters": {**FGM["parameters"], "eot_samples": 8}}
    made = Report(tmp_path, [*lab.everything(), lab.evaluate("aware", drawn, JPEG, wrong=301, wrong_before=8)])
    assert len(made.table) == 3
    assert list(made.row("jpeg_compression")["attackers"]) == ["defense-aware", "oblivious"]
    assert {row["attack_settings"] for row in made.table} == {"eps=0.3 norm=inf"}


def test_an_attack_aimed_at_another_defense_is_another_attack(lab: Lab, tmp_path: Path) -> None:
    crossed = lab.evaluate("crossed", aware(FGM, JPEG), MEDIAN, wrong=200, wrong_before=8)
    made = Report(tmp_path, [*lab.everything(), crossed])
    row = made.row("spatial_smoothing", "fgm (aimed at jpeg_compression quality=75)")
    assert list(row["attackers"]) == ["oblivious"]


def test_outcomes_of_each_image_are_kept_and_pair_across_reports(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.everything())
    assert made.json["originals"]["images"] == 400
    lines = sorted(f"{label}/{number:04}.png\t{label}\n" for number, label in enumerate(lab.labels))
    assert made.json["originals"]["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    (attacked,) = [e for e in made.json["evaluations"] if e["title"] == "fgm eps=0.3 norm=inf"]
    right = unpacked(attacked["right"], 400)
    assert dict(zip(lines, right, strict=True)) == {
        f"{label}/{number:04}.png\t{label}\n": number >= 300 for number, label in enumerate(lab.labels)
    }
    with pytest.raises(ValueError, match="400"):
        unpacked(attacked["right"], 500)


def test_outcomes_of_augmented_data_are_not_kept(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("double", JPEG, doubled=True)])
    assert [evaluation["right"] is None for evaluation in made.json["evaluations"]] == [False, True]
