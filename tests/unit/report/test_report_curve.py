"""The security curve and the smallest eps in a report."""

import re
from pathlib import Path
from typing import Any

import pytest
from lab import FGM, FGM_SMALL, LOAD, SINGLE_STEP, Lab, Report
from reporting import Page

from evasion.components.common.results.shares import interval

pytestmark = pytest.mark.usefixtures("mlflow_store")  # the report logs itself


def test_curve_is_drawn_and_held_in_the_summary(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve())
    Page(made.page)
    curve = made.json["curve"]
    assert (curve["attack"], curve["eps"], curve["chance"], curve["floor"]) == ("fgm", 0.3, 0.1, pytest.approx(1 / 255))
    low, high = interval(100, 400)
    accuracy = {"value": 0.25, "low": low, "high": high, "n": 400, "count": 100}
    assert curve["series"][0]["points"][3] == {"eps": 0.3, "accuracy": accuracy, "correct": 100}
    assert curve["controls"]["pgd"]["accuracy"]["value"] == 0.125
    assert made.page.count("<polygon") == 9


def test_the_page_says_which_attacks_the_curve_is_of_and_where_the_table_counts(lab: Lab, tmp_path: Path) -> None:
    """At one eps curve and table are of other attacks: both are drawn, and the table counts."""
    evaluations = [*lab.two_attackers(), lab.evaluate("pgd", {**FGM, "stage": "other"}, wrong=380, wrong_before=8)]
    made = Report(tmp_path, evaluations, curve=lab.curve())
    assert "Bold: the worst case of fgm and pgd (10 steps), over the attackers." in made.page
    assert "Rings: the table at eps 0.3, the worst case of fgm and other; there the table counts." in made.page
    rings = re.findall(r'<circle class="ring" cx="([\d.]+)" cy="([\d.]+)"', made.page)
    (mark,) = re.findall(r'class="mark" d="M([\d.]+),', made.page)
    # 20 of 400 without a defense; with one, `other` was not evaluated: what fgm leaves.
    assert rings == [(mark, str(round(376 - 350 * 20 / 400, 1))), (mark, str(round(376 - 350 * 150 / 400, 1)))]
    assert made.page.count("in the table") == 2


def test_a_table_of_another_size_has_no_place_in_the_curve(lab: Lab, tmp_path: Path) -> None:
    evaluations = [lab.evaluate("clean", wrong=8), lab.evaluate("adv", FGM_SMALL, wrong=300, wrong_before=8)]
    made = Report(tmp_path, evaluations, curve=lab.curve())
    assert "Rings:" not in made.page
    assert 'class="ring"' not in made.page


def test_a_table_of_single_steps_does_not_count_more_than_the_curve(lab: Lab, tmp_path: Path) -> None:
    evaluations = [lab.evaluate("clean", wrong=8), lab.evaluate("adv", SINGLE_STEP, wrong=300, wrong_before=8)]
    made = Report(tmp_path, evaluations, curve=lab.curve())
    assert "Rings: the table at eps 0.3, under fgm, a single step." in made.page
    assert "counts" not in made.page.split("Rings:")[1].split("</p>")[0]


def test_controls_count_robust_images(lab: Lab, tmp_path: Path) -> None:
    """Of 120 images that are right under the attack, 100 are right without it."""
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve(controls={"saved": {"correct": 120, "robust": 100}}))
    saved = made.json["curve"]["controls"]["saved"]
    assert (saved["accuracy"]["count"], saved["correct"]) == (100, 120)
    row = made.page.split("as saved in 8 bits</th>")[1].split("</tr>")[0]
    assert "<td>25.0\N{NO-BREAK SPACE}%" in row
    assert "30.0" not in row


def test_every_share_of_the_page_is_in_the_summary(lab: Lab, tmp_path: Path) -> None:
    attack = {**FGM, "parameters": {**FGM["parameters"], "eps_step": 0.1, "minimal": True}}
    smallest = ["0.1"] * 111 + ["0.2"] * 189 + [""] * 100
    evaluations = [*lab.two_attackers(), lab.evaluate("minimal", attack, wrong=300, wrong_before=8, minimal=smallest)]
    made = Report(tmp_path, evaluations, curve=lab.curve())
    known: set[str] = set()

    def collect(found: Any) -> None:
        if isinstance(found, float):
            known.add(f"{100 * abs(found):.1f}")
        elif isinstance(found, str):
            known.update(re.findall(r"\d+\.\d", found))
        for each in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
            collect(each)

    collect(made.json)
    shown = set(re.findall(r"(\d+\.\d)(?=\N{NO-BREAK SPACE}%|–| points)", made.page.split("</style>")[1]))
    assert len(shown) > 60
    assert shown <= known


def test_what_the_worst_case_of_a_defense_is_made_of_is_hidden_at_first(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve())
    legend = re.findall(r'<input type="checkbox"[^>]*?( checked)?>.*?<label.*?<span>(.*?)</span>', made.page, re.S)
    assert [(name, bool(checked)) for checked, name in legend] == [
        ("no defense: worst case of fgm and pgd", True),
        ("spatial_smoothing window_size=3: worst case of fgm and pgd", True),
        ("no defense: fgm (single step)", True),
        ("no defense: pgd", False),
        ("no defense: uniform noise (control)", True),
        ("spatial_smoothing window_size=3: fgm (single step), oblivious", False),
        ("spatial_smoothing window_size=3: fgm (single step), defense-aware", False),
        ("spatial_smoothing window_size=3: pgd, oblivious", False),
        ("spatial_smoothing window_size=3: pgd, defense-aware", False),
    ]


def test_the_controls_of_defended_models_stand_beside_the_others(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve())
    table = made.page.partition("Controls at eps 0.3</h3>")[2].partition("</table>")[0]
    rows = [re.findall(r"(\d+\.\d|–)(?=\N{NO-BREAK SPACE}% <|</td>)", row) for row in table.split("<tr>")[2:]]
    assert rows == [
        ["98.0", "85.0"],  # clean
        ["25.0", "–"],  # as computed
        ["25.0", "37.5"],
        ["97.8", "84.5"],  # noise
        ["12.5", "25.0"],  # PGD
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"architecture": "le_net", "sha256": "n" * 64}}, r"evaluations' model. Received: .*n{64}"),
        ({"dataset": {"sha256": "e" * 64}}, r"evaluations' original dataset. Received: .*e{64}"),
        ({"schema_version": 1}, r"schema_version 2\. Received: 1"),
        ({"curves": [{"perturbation": "fgm"}]}, "lacks curves.0.knowledge"),
        ({"images": 10}, "392 of 10 images cannot be right"),
    ],
)
def test_a_curve_of_something_else_is_refused(lab: Lab, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Report(tmp_path, lab.everything(), curve=lab.curve(**change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "expected", "change"),
    [
        ("accuracy falls as eps grows", "fail", {"right": (392, 390, 100, 250, 30)}),
        ("accuracy falls as eps grows", "fail", {"right": (392, 392, 391, 390, 390)}),
        ("accuracy falls as eps grows", "pass", {"right": (392, 390, 100, 20, 80)}),  # from under chance
        ("accuracy falls as eps grows", "pass", {"right": (392, 390, 100, 20, 40)}),  # under chance
        ("at or under chance at eps = 1", "fail", {"right": (392, 390, 250, 250, 240)}),
        ("at or under chance at eps = 1", "warn", {"right": (392, 390, 350, 300, 100)}),
        ("noise hurts less than the attack", "warn", {"wrong": {"noise": 300}}),
        ("noise hurts less than the attack", "fail", {"wrong": {"noise": 320}}),
        ("PGD hurts no less", "pass", {"wrong": {"pgd": 299}}),
        ("PGD hurts no less", "fail", {"wrong": {"pgd": 250}}),
        ("PGD reaches 0 without a bound", "pass", {"unbounded": 2}),
        ("PGD reaches 0 without a bound", "warn", {"unbounded": 16}),
        ("PGD reaches 0 without a bound", "fail", {"unbounded": 40}),
        ("loss is smooth around the image", "pass", {}),
        ("loss is smooth around the image", "warn", {"smoothness": 0.5}),
        ("loss is smooth around the image", "fail", {"smoothness": 0.2}),
        ("saved images as computed", "warn", {"wrong": {"computed": 310}}),
        ("saved images as computed", "fail", {"wrong": {"computed": 350}}),
        ("attack repeated", "warn", {"wrong": {"saved": 301}}),
        ("attack repeated", "fail", {"wrong": {"saved": 310}}),
    ],
)
def test_checks_of_a_curve(lab: Lab, tmp_path: Path, name: str, expected: str, change: dict[str, Any]) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve(**change))
    assert made.checks(name)[0][0] == expected


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("noise hurts less than the attack", {"wrong": {"noise_spatial_smoothing": 270}}),
        ("PGD hurts no less", {"wrong": {"pgd_spatial_smoothing": 200}}),
    ],
)
def test_controls_are_checked_with_each_defense(lab: Lab, tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve(**change))
    found = {check["subject"]: check["status"] for check in made.json["checks"] if check["name"] == name}
    assert found == {
        "fgm norm=inf eps=0.3": "pass",
        "fgm norm=inf eps=0.3, aware of spatial_smoothing window_size=3": "fail",
    }


def test_without_the_size_1_nothing_is_without_a_bound(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve(norm="2"))
    assert made.checks("PGD reaches 0 without a bound") == []


def test_a_curve_that_ends_before_the_size_1_says_what_it_leaves_open(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve(largest=0.5))
    assert made.checks("PGD reaches 0 without a bound") == [("warn", "not checked: the largest eps is 0.5")] * 2


@pytest.mark.parametrize(
    ("checks", "unbounded", "expected"),
    [
        ({"zero_gradient_images": 400}, 400, "pass"),  # what has no gradient, another check fails
        ({"zero_gradient_images": 400, "saturated_gradient_images": 400}, 400, "fail"),  # PGD keeps a gradient there
    ],
)
def test_one_cause_is_one_failure(
    lab: Lab, tmp_path: Path, checks: dict[str, int], unbounded: int, expected: str
) -> None:
    evaluations = [lab.evaluate("clean", wrong=8), lab.evaluate("adv", FGM, wrong=8, checks=checks)]
    curve = lab.curve(right=(392,) * 5, unbounded=unbounded - 8, wrong={"saved": 8, "computed": 8, "noise": 9})
    made = Report(tmp_path, evaluations, curve=curve)
    assert made.checks("accuracy falls as eps grows")[0][0] == "pass"
    assert made.checks("at or under chance at eps = 1")[0][0] == "pass"
    assert made.checks("noise hurts less than the attack")[0][0] == "pass"
    subject = "norm=inf, no defense: pgd"
    found = [each for each in made.json["checks"] if each["subject"] == subject]
    assert [each["status"] for each in found] == [expected]
    assert made.metrics["checks_failed"] >= 1


def test_a_curve_of_another_seed_says_nothing_of_repetition(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve(seed=5))
    assert made.checks("attack repeated") == []


def test_smallest_eps_of_each_image(lab: Lab, tmp_path: Path) -> None:
    attack = {**FGM, "parameters": {"eps": 0.3, "eps_step": 0.1, "minimal": True, "norm": "inf"}}
    smallest = ["0.1"] * 100 + ["0.2"] * 200 + [""] * 100
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", attack, wrong=300, minimal=smallest)])
    (found,) = made.json["minimal"]
    assert (found["median"], found["never"]["value"]) == (0.2, 0.25)
    assert [(bar["low"], bar["high"], bar["share"]["count"]) for bar in found["bars"]] == [
        (0.1, 0.1, 100),
        (0.2, 0.2, 200),
        (pytest.approx(0.3), pytest.approx(0.3), 0),
    ]
    assert "Half of the images are changed by eps 0.2 or less." in made.page


def test_most_images_withstand_every_tried_eps(lab: Lab, tmp_path: Path) -> None:
    attack = {**FGM, "parameters": {"eps": 0.3, "eps_step": 0.005, "minimal": True, "norm": "inf"}}
    smallest = [f"{0.005 * (1 + place % 60):.3f}" if place < 180 else "" for place in range(400)]
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", attack, wrong=180, minimal=smallest)])
    (found,) = made.json["minimal"]
    assert (found["median"], found["never"]["value"]) == (None, 0.55)
    assert len(found["bars"]) == 20  # 60 sizes, three to a bar
    assert (found["bars"][0]["low"], found["bars"][0]["high"]) == (0.005, 0.015)
    assert sum(bar["share"]["count"] for bar in found["bars"]) == 180


def test_vanished_gradients_of_logits_are_not_blamed_on_the_softmax_nor_on_rounding(lab: Lab, tmp_path: Path) -> None:
    flat = lab.evaluate("adv", FGM, checks={"zero_gradient_images": 400}, distance=0.0)
    made = Report(tmp_path, [lab.evaluate("clean"), flat])
    advice = {check["name"]: check["advice"] for check in made.json["checks"]}
    assert "take the loss from the logits" not in advice["gradients not zero"]
    assert "needs no gradient" in advice["gradients not zero"]
    assert "larger eps" not in advice["attack survives 8 bits"]


def test_unreadable_images_are_a_check(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Report(tmp_path / "1", [lab.evaluate("clean")]).checks("every image read") == []
    monkeypatch.setitem(LOAD, "skipped", {"3/broken.png": "cut off"})
    made = Report(tmp_path / "2", [lab.evaluate("again")])
    assert made.checks("every image read") == [("warn", "1 image was left out as unreadable")]


def test_precision_says_how_many_images_it_takes(lab: Lab, tmp_path: Path) -> None:
    ((_, found),) = Report(tmp_path, [lab.evaluate("clean")]).checks("enough images")
    assert "±5 points take 385 images, ±2 2,401, ±1 9,604" in found
