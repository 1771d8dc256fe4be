"""Which images count as robust: right without an attack and under each attack and attacker, image by image."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lab import FGM, FGM_SMALL, JPEG, SINGLE_STEP, Lab, Report, aware

from evasion.components.common.results.paired import ABSENT, Correctness, under_each
from evasion.components.common.results.report import read

pytestmark = pytest.mark.usefixtures("mlflow_store")  # the report logs itself

PGD = {**FGM, "stage": "pgd"}


def outcomes(images: int) -> st.SearchStrategy[Correctness]:
    return arrays(np.int8, images, elements=st.integers(0, 1))


@st.composite
def clean_and_attacked(draw: st.DrawFn) -> tuple[Correctness, list[Correctness]]:
    images = draw(st.integers(1, 40))
    return draw(outcomes(images)), draw(st.lists(outcomes(images), min_size=1, max_size=5))


@given(clean_and_attacked())
def test_robust_accuracy_is_at_most_clean_accuracy_and_that_under_each_attack(
    drawn: tuple[Correctness, list[Correctness]],
) -> None:
    clean, attacked = drawn
    robust = under_each(clean, *attacked)
    assert robust.sum() <= clean.sum()
    for one in attacked:
        assert robust.sum() <= under_each(clean, one).sum() <= one.sum()
    expected = [all(outcome[image] == 1 for outcome in (clean, *attacked)) for image in range(len(clean))]
    np.testing.assert_array_equal(robust, expected)


@given(clean_and_attacked(), st.integers(0, 40))
def test_shards_change_nothing(drawn: tuple[Correctness, list[Correctness]], cut: int) -> None:
    clean, attacked = drawn
    parts = [under_each(clean[part], *(one[part] for one in attacked)) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(np.concatenate(parts), under_each(clean, *attacked))


def test_what_is_wrong_once_is_wrong_though_another_attack_did_not_meet_it() -> None:
    once, never = np.array([0, 1, ABSENT], np.int8), np.array([ABSENT, ABSENT, 1], np.int8)
    np.testing.assert_array_equal(under_each(once, never), [0, ABSENT, ABSENT])


def set_right(folder: Path, wrong: set[int]) -> Path:
    """Let an evaluation get exactly these images wrong."""
    path = folder / "predictions.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["correct"] = int(number not in wrong)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    content = json.loads((folder / "evaluation.json").read_text())
    content["metrics"] |= {"correct": len(rows) - len(wrong), "accuracy": 1 - len(wrong) / len(rows)}
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def test_an_image_that_the_attack_puts_right_is_not_robust(lab: Lab, tmp_path: Path) -> None:
    """The demo's arithmetic: 972 of 1,000 right clean, 343 under attack, 16 of them wrong before: 327 robust."""
    clean = set_right(lab.evaluate("clean"), set(range(28)))
    attacked = set_right(lab.evaluate("adv", FGM), set(range(16, 300)))
    row = Report(tmp_path, [clean, attacked]).row("none")
    assert row["accuracy_under_attack"]["count"] == 400 - 284
    assert row["robust_accuracy"]["count"] == 400 - 300
    # Of 372 that were right before, 272 are wrong now.
    assert (row["attack_success_rate"]["count"], row["attack_success_rate"]["n"]) == (272, 372)


def test_the_worst_case_is_counted_image_by_image(lab: Lab, tmp_path: Path) -> None:
    """Two attacks that each leave 300 of 400 images may leave 200 together."""
    made = [
        set_right(lab.evaluate("clean"), set()),
        set_right(lab.evaluate("jpeg", JPEG), {399}),
        set_right(lab.evaluate("one", FGM), set(range(100))),
        set_right(lab.evaluate("two", PGD), set(range(100, 200))),
        set_right(lab.evaluate("one_jpeg", FGM, JPEG), set(range(10))),
        set_right(lab.evaluate("two_jpeg", PGD, JPEG), set(range(10, 30))),
        set_right(lab.evaluate("one_aware", aware(FGM, JPEG), JPEG), set(range(20, 60))),
        set_right(lab.evaluate("two_aware", aware(PGD, JPEG), JPEG), set(range(60, 70))),
    ]
    report = Report(tmp_path, made)
    worst = "worst case of fgm and pgd"
    assert report.row("none", worst)["robust_accuracy"]["count"] == 200
    defended = report.row("jpeg_compression", worst)
    assert defended["robust_accuracy"]["count"] == 400 - 70 - 1
    assert defended["attackers"]["defense-aware"]["robust_accuracy"]["count"] == 400 - 50 - 1
    assert defended["attackers"]["oblivious"]["robust_accuracy"]["count"] == 400 - 30 - 1
    assert report.metrics["robust_accuracy"] == 0.5
    assert report.metrics["robust_accuracy_against_fgm"] == 0.75
    assert report.metrics["robust_accuracy_jpeg_compression"] == pytest.approx(329 / 400)
    assert "worst case of fgm and pgd" in report.json["headline"]


def test_bits_of_the_report_tell_the_same(lab: Lab, tmp_path: Path) -> None:
    Report(tmp_path, lab.two_attackers())
    report = read(tmp_path / "out" / "report.json")
    for row in report.table:
        defense = None if row.defense.name == "none" else row.defense.label
        robust = report.robust(row.attack.label, defense)
        assert robust is not None
        assert row.robust_accuracy
        assert robust.sum() == row.robust_accuracy.count


@pytest.mark.parametrize(("attack", "said"), [(SINGLE_STEP, True), (PGD, False)])
def test_what_rests_on_a_single_step_says_so(lab: Lab, tmp_path: Path, attack: dict, said: bool) -> None:
    made = Report(tmp_path, [lab.evaluate("clean", wrong=8), lab.evaluate("adv", attack, wrong=300, wrong_before=8)])
    assert ("a single step" in made.json["headline"]) == said
    assert ("single step" in made.page) == said
    assert made.json["table"][0]["single_step"] == said


def test_a_single_step_beside_an_attack_that_iterates_is_named(lab: Lab, tmp_path: Path) -> None:
    weak = {**FGM_SMALL, "iterates": False}
    evaluations = [lab.evaluate("clean"), lab.evaluate("weak", weak, wrong=40), lab.evaluate("pgd", PGD, wrong=300)]
    table = Report(tmp_path, evaluations).json["table"]
    assert [row["single_step"] for row in table] == [False, True, False]
