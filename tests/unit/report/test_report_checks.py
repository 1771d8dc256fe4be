"""The checks of a report."""

from pathlib import Path
from typing import Any

import pytest
from lab import AUTO_ATTACK, FGM, JPEG, NOISE, Lab, Report, aware

pytestmark = pytest.mark.usefixtures("mlflow_store")  # the report logs itself


@pytest.mark.parametrize(
    ("name", "expected", "change"),
    [
        ("gradients not zero", "warn", {"checks": {"zero_gradient_images": 4}}),
        ("gradients not zero", "fail", {"checks": {"zero_gradient_images": 100}}),
        ("gradients not zero", "warn", {"checks": {"zero_gradient_images": None}}),
        ("gradient from logits", "fail", {"checks": {"gradient_from_logits": False}}),
        ("gradient from logits", "warn", {"checks": {"gradient_from_logits": None}}),
        ("attack survives 8 bits", "fail", {"parameters": {"eps": 0.0039, "norm": "inf"}, "distance": 0.0}),
        ("attack survives 8 bits", "pass", {"parameters": {"eps": 0.00392, "norm": "inf"}, "distance": 1 / 255}),
        ("attack survives 8 bits", "fail", {"parameters": {"eps": 0.1, "norm": "inf"}, "distance": 0.2}),
        ("attack survives 8 bits", "fail", {"parameters": {"eps": 0.1, "norm": "inf"}, "distance": 0.10001}),
        ("attack survives 8 bits", "pass", {"parameters": {"eps": 0.1, "norm": "inf"}, "distance": 0.1}),
        ("attack survives 8 bits", "fail", {"parameters": {"eps": 0.4, "norm": "2"}, "distance": 0.401}),
        ("attack survives 8 bits", "fail", {"parameters": {"eps": 0.1, "norm": "2"}, "distance": 0.0}),
        ("attack survives 8 bits", "warn", {"parameters": {"eps": 0.1, "norm": "2"}, "distance": 0.001}),
        ("attack survives 8 bits", "pass", {"parameters": {"eps": 5.0, "norm": "2"}, "distance": 0.5}),
        ("attack aimed at this model", "warn", {"model_sha256": "x" * 64}),
    ],
)
def test_checks_of_an_attack(lab: Lab, tmp_path: Path, name: str, expected: str, change: dict[str, Any]) -> None:
    stage = {**FGM, **{key: change[key] for key in ("parameters", "model_sha256") if key in change}}
    keywords = {key: change[key] for key in ("checks", "distance") if key in change}
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", stage, wrong=300, **keywords)])
    assert [status for status, _ in made.checks(name)] == [expected]
    assert (made.metrics["checks_failed"], made.metrics["checks_warned"]) == (expected == "fail", expected == "warn")
    assert ("Do not trust" in made.page) == (expected == "fail")


@pytest.mark.parametrize(("floor", "expected"), [(0.9, "pass"), (0.97, "warn"), (0.99, "fail")])
def test_clean_accuracy_floor(lab: Lab, tmp_path: Path, floor: float, expected: str) -> None:
    made = Report(tmp_path, [lab.evaluate("clean", wrong=8)], floor)
    assert [status for status, _ in made.checks("clean accuracy above the floor")] == [expected]
    assert made.json["clean_accuracy_floor"] == floor


@pytest.mark.parametrize(("images", "expected"), [(400, "pass"), (100, "warn"), (10, "fail")])
def test_too_few_images(tmp_path: Path, images: int, expected: str) -> None:
    lab = Lab(tmp_path, images=images)
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=images // 2)])
    assert [status for status, _ in made.checks("enough images")] == [expected]


@pytest.mark.parametrize(
    ("saturated", "logits", "expected"),
    [(0, True, "pass"), (50, True, "pass"), (50, False, "warn"), (50, None, "warn")],
)
def test_saturated_softmax(lab: Lab, tmp_path: Path, saturated: int, logits: bool | None, expected: str) -> None:
    clean = lab.evaluate("clean", checks={"saturated_images": saturated})
    attacked = lab.evaluate("adv", FGM, wrong=300, checks={"gradient_from_logits": logits})
    made = Report(tmp_path, [clean, attacked])
    assert [status for status, _ in made.checks("softmax not saturated")] == [expected]


def test_defense_that_was_not_applied(lab: Lab, tmp_path: Path) -> None:
    evaluations = [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=300), lab.evaluate("noise", NOISE)]
    made = Report(tmp_path, [*evaluations, lab.evaluate("adv_noise", FGM, NOISE, wrong=300)])
    assert made.checks("defense applied") == [("warn", "apply_predict is false: the images are unchanged")]
    assert made.row("gaussian_augmentation")["applied"] is False
    assert made.row("gaussian_augmentation")["settings"] == "sigma=0.1"
    assert "No defense was evaluated" in made.json["headline"]
    assert "not applied" in made.page


def test_defense_without_effect_and_half_evaluated(lab: Lab, tmp_path: Path) -> None:
    evaluations = [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=300)]
    made = Report(tmp_path, [*evaluations, lab.evaluate("jpeg", JPEG, distance=0.0)])
    assert made.checks("defense applied") == [("warn", "it changed no image")]
    assert made.checks("gain of the defense") == [("warn", "not evaluated under fgm eps=0.3 norm=inf")]


def test_augmented_data_is_told_apart(lab: Lab, tmp_path: Path) -> None:
    noise = {**NOISE, "applied": True, "parameters": {"sigma": 0.1, "ratio": 1.0, "perform_data_augmentation": True}}
    evaluations = [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=300, shift=5)]
    made = Report(tmp_path, [*evaluations, lab.evaluate("d", FGM, noise, wrong=100, doubled=True, shift=9)])
    assert made.checks("the same images in every row") == [("warn", "800 images, but 400 originals")]
    assert "_1.png" not in made.page  # an added image has no original to stand beside


@pytest.mark.parametrize(
    ("name", "expected", "checks"),
    [
        ("best iterate kept", "pass", {"fooled_earlier_images": 20}),
        ("best iterate kept", "warn", {"fooled_earlier_images": 21}),
        ("loss converged", "pass", {"standing_images": 100, "rising_images": 50}),
        ("loss converged", "pass", {"standing_images": 8, "rising_images": 8}),
        ("loss converged", "warn", {"standing_images": 100, "rising_images": 51}),
        ("cross-entropy not saturated", "pass", {"saturated_gradient_images": 0}),
        ("cross-entropy not saturated", "warn", {"saturated_gradient_images": 20, "zero_gradient_images": 20}),
        ("cross-entropy not saturated", "fail", {"saturated_gradient_images": 21, "zero_gradient_images": 21}),
        ("gradients not masked", "pass", {"black_box_only_images": 4}),
        ("gradients not masked", "warn", {"black_box_only_images": 5}),
        ("gradients not masked", "fail", {"black_box_only_images": 21}),
    ],
)
def test_indicators(lab: Lab, tmp_path: Path, name: str, expected: str, checks: dict[str, int]) -> None:
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=300, checks=checks)])
    assert [status for status, _ in made.checks(name)] == [expected]
    assert (made.metrics["checks_failed"], made.metrics["checks_warned"]) == (expected == "fail", expected == "warn")
    advice = [check["advice"] for check in made.json["checks"] if check["name"] == name]
    assert [bool(text) for text in advice] == [expected != "pass"]


@pytest.mark.parametrize(
    ("draws", "unconfirmed", "expected"), [(1, 0, "warn"), (4, 0, "pass"), (8, 50, "pass"), (8, 51, "warn")]
)
def test_draws_of_a_random_defense(lab: Lab, tmp_path: Path, draws: int, unconfirmed: int, expected: str) -> None:
    noise = {**NOISE, "applied": True}
    knowing = {**aware(FGM, noise), "draws": draws}
    checks = {"standing_images": 200, "claimed_images": 200, "unconfirmed_images": unconfirmed}
    evaluations = [
        lab.evaluate("clean"),
        lab.evaluate("adv", FGM, wrong=300),
        lab.evaluate("noisy", noise, wrong=3),
        lab.evaluate("adv_noisy", FGM, noise, wrong=300),
        lab.evaluate("aware_noisy", knowing, noise, wrong=300, checks=checks),
    ]
    made = Report(tmp_path, evaluations)
    assert [status for status, _ in made.checks("enough draws of a random defense")] == [expected]
    assert (made.metrics["checks_failed"], made.metrics["checks_warned"]) == (0, expected == "warn")


def test_the_distance_saved_is_that_of_the_attacks_norm(lab: Lab, tmp_path: Path) -> None:
    stage = {**FGM, "parameters": {"eps": 0.5, "norm": "2"}}
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", stage, wrong=300, distance=0.4)])
    ((_, text),) = made.checks("attack survives 8 bits")
    assert text.endswith("largest distance saved in norm 2: 0.4 of eps=0.5")


SATURATED = {"saturated_gradient_images": 200, "zero_gradient_images": 200}
NO_RATIO = {**AUTO_ATTACK, "parameters": {**AUTO_ATTACK["parameters"], "members": "apgd-ce,square"}}
SMALLER = {**AUTO_ATTACK, "parameters": {**AUTO_ATTACK["parameters"], "eps": 0.1}}


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [
        ([FGM], ["fail"]),
        ([NO_RATIO], ["fail"]),
        ([AUTO_ATTACK], ["pass"]),
        ([{**AUTO_ATTACK, "gradient_from_logits": False}], ["fail"]),
        ([{**AUTO_ATTACK, "model_sha256": "x" * 64}], ["fail"]),
        ([FGM, AUTO_ATTACK], ["pass", "warn"]),
        ([FGM, NO_RATIO], ["fail", "fail"]),
        ([FGM, SMALLER], ["fail", "pass"]),
    ],
)
def test_a_loss_that_keeps_its_gradient_carries_the_worst_case(
    lab: Lab, tmp_path: Path, attacks: list[dict[str, Any]], expected: list[str]
) -> None:
    attacked = [lab.evaluate(f"adv{n}", each, wrong=300, checks=SATURATED) for n, each in enumerate(attacks)]
    made = Report(tmp_path, [lab.evaluate("clean"), *attacked])
    assert sorted(status for status, _ in made.checks("cross-entropy not saturated")) == expected


def test_an_attack_carries_only_the_rows_that_it_has(lab: Lab, tmp_path: Path) -> None:
    attacked = [lab.evaluate(each["stage"], each, wrong=300, checks=SATURATED) for each in (FGM, AUTO_ATTACK)]
    behind = lab.evaluate("jpeg_adv", aware(FGM, JPEG), JPEG, wrong=300, checks=SATURATED)
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("jpeg", JPEG), *attacked, behind])
    assert sorted(status for status, _ in made.checks("cross-entropy not saturated")) == ["fail", "pass"]


def test_in_norm_1_the_advice_on_saturation_can_be_followed(lab: Lab, tmp_path: Path) -> None:
    stage = {**FGM, "parameters": {"eps": 20.0, "norm": "1"}}
    checks = {**SATURATED, "black_box_only_images": None}
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", stage, wrong=300, checks=checks)])
    advice = {check["name"]: check["advice"] for check in made.json["checks"]}
    assert "auto_attack" not in advice["cross-entropy not saturated"]
    assert "norm inf or 2" in advice["gradients not masked"]


@pytest.mark.parametrize("known", [True, False])
def test_where_no_attack_does_without_gradients_the_report_says_so(lab: Lab, tmp_path: Path, known: bool) -> None:
    checks = {"black_box_only_images": 0 if known else None}
    plain = lab.evaluate("adv", FGM, wrong=300, checks={"black_box_only_images": None})
    made = Report(tmp_path, [lab.evaluate("clean"), plain, lab.evaluate("auto", AUTO_ATTACK, wrong=300, checks=checks)])
    assert [status for status, _ in made.checks("gradients not masked")] == ["pass" if known else "warn"]
    assert made.metrics["checks_failed"] == 0


def test_missing_gradients_are_one_failure(lab: Lab, tmp_path: Path) -> None:
    checks = {"zero_gradient_images": 400, "black_box_only_images": 300}
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", AUTO_ATTACK, wrong=300, checks=checks)])
    ((status, text),) = made.checks("gradients not masked")
    assert (status, made.metrics["checks_failed"]) == ("pass", 1)
    assert "gradients not zero" in text


@pytest.mark.parametrize(("saved", "expected"), [(0.3, "pass"), (0.31, "fail")])
def test_the_distances_of_every_attacker_are_checked(lab: Lab, tmp_path: Path, saved: float, expected: str) -> None:
    evaluations = [
        lab.evaluate("clean"),
        lab.evaluate("jpeg", JPEG),
        lab.evaluate("adv", FGM, wrong=300, distance=0.25),
        lab.evaluate("adv_jpeg", FGM, JPEG, wrong=300, distance=0.7, attack_distance=0.25),
        lab.evaluate("aware_jpeg", aware(FGM, JPEG), JPEG, wrong=300, distance=0.7, attack_distance=saved),
    ]
    made = Report(tmp_path, evaluations)
    ((status, text),) = made.checks("attack survives 8 bits")
    assert status == expected
    assert text.endswith(f"largest distance saved in norm inf: {saved} of eps=0.3")
    (subject,) = [check["subject"] for check in made.json["checks"] if check["name"] == "attack survives 8 bits"]
    assert subject.endswith("(defense-aware)") == (expected == "fail")
