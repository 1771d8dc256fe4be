"""The report, from evaluation directories with real pictures in them."""

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import FGM, FGM_SMALL, JPEG, LOAD, MEDIAN, NOISE, Lab, Report, aware
from PIL import Image

from evasion.components.common.results.evaluation import listed
from evasion.components.common.results.paired import Paired, unpacked
from evasion.components.common.results.shards import read_evaluation
from evasion.components.common.results.shares import interval

pytestmark = pytest.mark.usefixtures("mlflow_store")  # the report logs itself


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_table_holds_counts_intervals_and_changes(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.everything())

    assert [row["defense"] for row in made.table] == ["none", "jpeg_compression", "spatial_smoothing"]
    assert {row["attack_settings"] for row in made.table} == {"eps=0.3 norm=inf"}
    none = made.row("none")
    low, high = interval(392, 400)
    assert none["clean_accuracy"] == {"value": 0.98, "low": low, "high": high, "n": 400, "count": 392}
    assert none["robust_accuracy"]["value"] == 0.25
    assert none["attack_success_rate"] == pytest.approx(
        {"value": 292 / 392, "n": 392, "count": 292, **dict(zip(("low", "high"), interval(292, 392), strict=True))}
    )
    assert none["robust_accuracy_change"] is None
    jpeg, median = made.row("jpeg_compression"), made.row("spatial_smoothing")
    assert jpeg["settings"] == "quality=75"
    assert jpeg["robust_accuracy_change"] == {"value": pytest.approx(0.01), "may_be_chance": True}
    assert median["robust_accuracy_change"] == {"value": pytest.approx(0.375), "may_be_chance": False}
    assert median["clean_accuracy_change"] == {"value": pytest.approx(-0.13), "may_be_chance": False}


def test_headline_answers_the_question(lab: Lab, tmp_path: Path) -> None:
    headline = Report(tmp_path, lab.everything()).json["headline"].replace("\N{NO-BREAK SPACE}", " ")
    assert headline == (
        "fgm eps=0.3 norm=inf takes the accuracy of le_net from 98.0 % to 25.0 %. "
        "spatial_smoothing gives back 37.5 points (51 % of what the attack took) "
        "but costs 13.0 points of clean accuracy; jpeg_compression shows no gain beyond chance."
    )


def test_metrics_are_flat_and_finite(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.everything())
    assert made.metrics == made.json["metrics"]
    assert all(type(value) is float and np.isfinite(value) for value in made.metrics.values())
    assert made.metrics["clean_accuracy"] == 0.98
    assert made.metrics["robust_accuracy"] == 0.25
    assert made.metrics["robust_accuracy_spatial_smoothing"] == 0.625
    assert made.metrics["clean_accuracy_jpeg_compression"] == pytest.approx(391 / 400)
    assert made.metrics["attack_success_rate"] == pytest.approx(292 / 392)
    assert made.metrics["checks_failed"] == 0


def test_everything_passes_where_nothing_is_wrong(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve())
    assert [check for check in made.json["checks"] if check["status"] != "pass"] == []
    assert "Do not trust" not in made.page
    assert made.json["schema_version"] == 3
    assert made.json["attacker"]["knowledge"] == ["defense-aware", "oblivious"]
    assert "upper bound" in made.page
    assert "predicts, not from the true label" in made.page


class Page(html.parser.HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.tables = 0
        self.header_cells = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert not [name for name in found if name.startswith("on")]
        self.tables += tag == "table"
        if tag == "th":
            assert found.get("scope") in ("row", "col", "rowgroup", "colgroup")
        if tag == "img":
            self.images.append(found)
        self.links += [str(found[name]) for name in ("src", "href") if name in found]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_no_network(lab: Lab, tmp_path: Path) -> None:
    page = Page(Report(tmp_path, lab.everything()).page)
    assert page.open == []
    assert page.tables >= 6
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert all(image["alt"] for image in page.images)


def test_pictures_are_those_that_were_evaluated(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.everything())
    images = {str(image["alt"]): image for image in Page(made.page).images}

    def pixels(alt: str) -> np.ndarray:
        found = next(image for text, image in images.items() if text.startswith(alt))
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(str(found["src"]).split(",")[1]))))

    np.testing.assert_array_equal(pixels("9/0009.png, clean"), lab.pixels[9])
    np.testing.assert_array_equal(pixels("9/0009.png, attacked"), lab.pixels[9] + 20)
    np.testing.assert_array_equal(pixels("9/0009.png, spatial_smoothing window_size=3"), lab.pixels[9] + 10)
    # Every pixel rose by 20: magnified as far as 8 bits allow around gray.
    np.testing.assert_array_equal(pixels("9/0009.png, difference"), 128 + 20 * 6)
    assert "magnified 6 times" in made.page
    assert "9/0009.png, clean: taken for 9, right" in images
    assert "9/0009.png, attacked: taken for 0, wrong" in images
    assert {image["class"] for image in images.values()} == {"pixelated"}


def test_flipped_images_come_first(lab: Lab, tmp_path: Path) -> None:
    made = Report(
        tmp_path, [lab.evaluate("clean", wrong=2), lab.evaluate("adv", FGM, wrong=5, shift=1, wrong_before=2)]
    )
    order = list(dict.fromkeys(re.findall(r'<span class="path">./(\d{4})', made.page)))
    assert sorted(order[:3]) == ["0002", "0003", "0004"]
    assert len(order) == 24
    assert made.page.count("flipped by the attack") == 3
    assert made.page.count("wrong already before") == 2


def test_pictures_of_large_images_stay_within_a_budget(tmp_path: Path) -> None:
    lab = Lab(tmp_path, images=24, side=700)
    lab.pixels = np.random.default_rng(0).integers(0, 255, lab.pixels.shape, dtype=np.uint8)
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=20, shift=1)])
    assert "of 24 saved images" in made.page
    assert len(made.page) < 12_000_000
    assert 'class="pixelated"' not in made.page


@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_a_damaged_picture_is_left_out(lab: Lab, tmp_path: Path, damage: str) -> None:
    evaluations = lab.everything()
    path = evaluations[1] / "images" / "3" / "adv_0003.png"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60] if damage == "cut" else b"<svg onload=alert(1)>")
    page = Page(Report(tmp_path, evaluations).page)
    shown = [str(image["alt"]) for image in page.images if str(image["alt"]).startswith("3/0003.png")]
    assert [alt.split(", ")[1].split(":")[0] for alt in shown] == [
        "clean",
        "jpeg_compression quality=75",
        "spatial_smoothing window_size=3",
    ]


def test_only_clean(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("clean", wrong=8)])
    assert "says nothing about robustness" in made.json["headline"]
    (row,) = made.table
    assert (row["attack"], row["defense"], row["robust_accuracy"]) == ("none", "none", None)
    assert made.metrics == {"clean_accuracy": 0.98, "checks_failed": 0, "checks_warned": 0}
    assert made.json["attacker"] is None
    assert "oblivious" not in made.page


def test_only_clean_with_a_defense(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("clean", wrong=8), lab.evaluate("jpeg", JPEG, wrong=80)])
    assert [row["defense"] for row in made.table] == ["none", "jpeg_compression"]
    assert "No attack was evaluated" in made.json["headline"]


def test_only_attacked(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("adv", FGM, wrong=300, wrong_before=8)])
    assert made.row("none")["clean_accuracy"] is None
    assert made.row("none")["attack_success_rate"]["count"] == 292
    assert "right on 25.0" in made.json["headline"]
    assert made.checks("clean accuracy above the floor") == [("warn", "the original images were not evaluated")]


def test_only_defended_attacked(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("adv", FGM, JPEG, wrong=300)])
    assert "the attack without a defense was not evaluated" in made.json["headline"]
    assert made.checks("attack without a defense") == [("warn", "it was not evaluated")]
    assert made.row("jpeg_compression")["robust_accuracy"]["value"] == 0.25


def test_success_rate_is_counted_from_predictions_where_infer_did_not(lab: Lab, tmp_path: Path) -> None:
    told = {**FGM, "model_sha256": "o" * 64}
    made = Report(
        tmp_path,
        [
            lab.evaluate("clean", wrong=8),
            lab.evaluate("adv", told, wrong=300, rate=False),
            lab.evaluate("def_adv", told, JPEG, wrong=100, rate=False),
        ],
    )
    assert made.row("none")["attack_success_rate"]["count"] == 292
    assert made.row("none")["attack_success_rate"]["n"] == 392
    assert made.row("jpeg_compression")["attack_success_rate"]["count"] == 92
    assert made.checks("attack aimed at this model")[0][0] == "warn"


def test_several_attacks_have_rows_of_their_own(lab: Lab, tmp_path: Path) -> None:
    made = Report(
        tmp_path,
        [
            lab.evaluate("clean", wrong=8),
            lab.evaluate("weak", FGM_SMALL, wrong=40, shift=3, wrong_before=8),
            lab.evaluate("strong", FGM, wrong=300, shift=20, wrong_before=8),
            lab.evaluate("jpeg", JPEG, wrong=8),
            lab.evaluate("weak_jpeg", FGM_SMALL, JPEG, wrong=10, wrong_before=8),
            lab.evaluate("strong_jpeg", FGM, JPEG, wrong=200, wrong_before=8),
        ],
    )
    assert [(row["attack_settings"], row["defense"]) for row in made.table] == [
        ("eps=8/255 norm=inf", "none"),
        ("eps=8/255 norm=inf", "jpeg_compression"),
        ("eps=0.3 norm=inf", "none"),
        ("eps=0.3 norm=inf", "jpeg_compression"),
    ]
    assert made.json["headline"].startswith("fgm eps=0.3")
    assert made.metrics["robust_accuracy"] == 0.25
    assert made.metrics["robust_accuracy_against_fgm_eps_8_255_norm_inf"] == 0.9
    assert made.metrics["robust_accuracy_jpeg_compression"] == 0.5
    assert made.metrics["attack_success_rate"] == pytest.approx(292 / 392)


def test_an_attack_and_a_defense_never_seen_before(lab: Lab, tmp_path: Path) -> None:
    attack = {
        "stage": "patch",
        "kind": "attack",
        "seed": 3,
        "prefix": "adv_",
        "parameters": {"scale": 0.5, "universal": True},
    }
    defense = {
        "stage": "feature_squeezing",
        "kind": "defense",
        "seed": None,
        "prefix": "def_",
        "parameters": {"bits": 4},
    }
    made = Report(tmp_path, [lab.evaluate("a", attack, wrong=300), lab.evaluate("b", attack, defense, wrong=10)])
    row = made.row("feature_squeezing", "patch")
    assert (row["settings"], row["attack_settings"]) == ("bits=4", "scale=0.5 universal")
    assert row["robust_accuracy_change"]["may_be_chance"] is False


def test_stacked_defenses_and_a_defense_before_the_attack(lab: Lab, tmp_path: Path) -> None:
    made = Report(
        tmp_path,
        [
            lab.evaluate("a", FGM, wrong=300),
            lab.evaluate("b", FGM, JPEG, MEDIAN),
            lab.evaluate("c", JPEG, FGM, wrong=9),
        ],
    )
    assert [row["defense"] for row in made.table] == [
        "none",
        "jpeg_compression + spatial_smoothing",
        "jpeg_compression (before the attack)",
    ]
    assert made.table[1]["settings"] == "quality=75, window_size=3"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    lab = Lab(tmp_path, classes=("cat", evil.replace("/", "")))
    lab.classes = ("cat", "<img src=x onerror=alert(1)>\"'&")
    lab.model["class_names"] = list(lab.classes)
    lab.model["architecture"] = "</title><script>alert(1)</script>"
    stage = {**FGM, "stage": "<b>fgm</b>", "parameters": {"x": "</style><script>", "eps": 0.3}}
    curve = lab.curve(attack="<script>curve</script>", norm="<img src=x>")
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", stage, wrong=300, shift=9)], curve=curve)
    Page(made.page)  # refuses scripts and handlers
    assert "<script" not in made.page
    assert "<img src=x" not in made.page
    assert "&lt;img src=x onerror=alert(1)&gt;" in made.page
    assert made.table[0]["attack"] == "<b>fgm</b>"


def test_a_thousand_classes_show_only_the_most_confused(tmp_path: Path) -> None:
    lab = Lab(tmp_path, images=2000, classes=tuple(f"class number {i}" for i in range(1000)))
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=40)])
    assert "Only the 20 most confused of 1000 classes" in made.page
    columns = re.search(r'<table class="confusion long">.*?</thead>', made.page, re.S)
    assert columns
    assert columns[0].count('scope="col"') == 1 + 20 + 1 + 1
    assert "class number 999" not in made.page.split('id="confusion"')[1].split('id="distances"')[0]
    assert len(made.page) < 500_000


def test_few_occurring_classes_of_many_are_all_shown(tmp_path: Path) -> None:
    lab = Lab(tmp_path, classes=tuple(map(str, range(1000))))
    lab.labels = [i % 10 for i in range(400)]
    assert "most confused" not in Report(tmp_path, [lab.evaluate("clean")]).page


def test_colour_pictures(lab: Lab, tmp_path: Path) -> None:
    lab.pixels = np.random.default_rng(1).integers(90, 160, (24, 16, 16, 3), dtype=np.uint8)
    made = Report(tmp_path, [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=300, shift=8)])
    assert "magnified 15 times" in made.page


@pytest.mark.parametrize(
    ("name", "expected", "change"),
    [
        ("gradients not zero", "warn", {"checks": {"zero_gradient_images": 4}}),
        ("gradients not zero", "fail", {"checks": {"zero_gradient_images": 100}}),
        ("gradients not zero", "warn", {"checks": {"zero_gradient_images": None}}),
        ("gradient from logits", "fail", {"checks": {"gradient_from_logits": False}}),
        ("gradient from logits", "warn", {"checks": {"gradient_from_logits": None}}),
        ("attack survives 8 bits", "fail", {"parameters": {"eps": 0.0019, "norm": "inf"}, "distance": 0.0}),
        ("attack survives 8 bits", "pass", {"parameters": {"eps": 0.002, "norm": "inf"}, "distance": 1 / 255}),
        ("attack survives 8 bits", "fail", {"parameters": {"eps": 0.1, "norm": "inf"}, "distance": 0.2}),
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


def test_another_model_is_an_error_that_names_both(lab: Lab, tmp_path: Path) -> None:
    clean = lab.evaluate("clean")
    lab.model = {**lab.model, "sha256": "n" * 64}
    with pytest.raises(ValueError, match=f"one model. Received: clean: le_net {'m' * 64}; fgm .*: le_net {'n' * 64}"):
        Report(tmp_path, [clean, lab.evaluate("adv", FGM)])


def test_other_original_images_are_an_error_that_names_both(lab: Lab, tmp_path: Path) -> None:
    clean = lab.evaluate("clean")
    lab.data = "e" * 64
    with pytest.raises(ValueError, match=f"one original dataset. Received: clean: {'d' * 64}; .*: {'e' * 64}"):
        Report(tmp_path, [clean, lab.evaluate("adv", FGM)])
    assert not (tmp_path / "out").exists()


def test_the_same_evaluation_twice_is_shown_once(lab: Lab, tmp_path: Path) -> None:
    evaluations = lab.everything()
    again = shutil.copytree(evaluations[1], lab.root / "again")
    made = Report(tmp_path, [*evaluations, again])
    assert len(made.table) == 3
    assert made.checks("each evaluation once") == [("warn", "given more than once; shown once")]


def test_two_runs_with_the_same_settings_are_both_shown(lab: Lab, tmp_path: Path) -> None:
    evaluations = [lab.evaluate("a", FGM, wrong=300), lab.evaluate("b", FGM, JPEG, wrong=200)]
    made = Report(tmp_path, [*evaluations, lab.evaluate("c", FGM, {**JPEG, "seed": 9}, wrong=100)])
    assert [row["defense"] for row in made.table] == ["none", "jpeg_compression", "jpeg_compression (run 2)"]
    assert made.metrics["robust_accuracy_jpeg_compression_run_2"] == 0.75


def test_attacks_that_differ_in_seed_alone_show_it(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("a", FGM, wrong=300), lab.evaluate("b", {**FGM, "seed": 7}, wrong=200)])
    assert {row["attack_settings"] for row in made.table} == {
        "eps=0.3 norm=inf seed=1",
        "eps=0.3 norm=inf seed=7",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not an evaluation: it has no evaluations.json"),
        ("[", "not valid JSON"),
        ('{"a": 1}', "must list names of folders"),
        ('["../elsewhere"]', "must list names of folders"),
        ('[".."]', "must list names of folders"),
    ],
)
def test_a_folder_that_infer_did_not_write_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "evaluations.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        listed([tmp_path])


def test_shards_of_one_name_are_one_evaluation(tmp_path: Path) -> None:
    for shard, names in (("1", ["fgm", "load_dataset"]), ("2", ["load_dataset", "fgm"])):
        (tmp_path / shard).mkdir()
        (tmp_path / shard / "evaluations.json").write_text(json.dumps(names))
    first, second = tmp_path / "1", tmp_path / "2"
    assert listed([first, second]) == [
        [first / "fgm", second / "fgm"],
        [first / "load_dataset", second / "load_dataset"],
    ]


def test_no_evaluation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least one evaluation\. Received: none"):
        Report(tmp_path, [])


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_floor_must_be_a_share(lab: Lab, tmp_path: Path, floor: float) -> None:
    with pytest.raises(ValueError, match=r"clean_accuracy_floor must be in \[0, 1\]. Received: "):
        Report(tmp_path, [lab.evaluate("clean")], floor)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "evaluation.json").unlink(), "has no evaluation.json"),
        (lambda folder: (folder / "predictions.csv").unlink(), "has no predictions.csv"),
        (lambda folder: (folder / "evaluation.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "evaluation.json").write_text("{}"), "lacks dataset"),
        (lambda folder: (folder / "evaluation.json").write_text("[]"), "not as infer writes it"),
    ],
)
def test_a_damaged_evaluation_is_named(lab: Lab, tmp_path: Path, damage: Any, message: str) -> None:
    folder = lab.evaluate("clean")
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        Report(tmp_path, [folder])
    assert str(folder) in str(raised.value)


def test_same_input_same_report(lab: Lab, tmp_path: Path) -> None:
    evaluations = lab.everything()
    one, two = Report(tmp_path / "1", evaluations), Report(tmp_path / "2", evaluations)
    assert one.page == two.page
    assert one.json == two.json


def test_a_failed_report_leaves_the_old_one(lab: Lab, tmp_path: Path) -> None:
    evaluations = lab.everything()
    before = Report(tmp_path, evaluations).page
    (evaluations[0] / "predictions.csv").write_text("path\n3/x.png\n")
    with pytest.raises(ValueError, match=r"predictions.csv lacks"):
        Report(tmp_path, evaluations)
    assert (tmp_path / "out" / "report.html").read_text().replace("<wbr>", "") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("prefix", "path", "original"),
    [
        ("", "3/0001.png", "3/0001.png"),
        ("", "3/adv_0001.png", "3/adv_0001.png"),
        ("adv_", "3/adv_0001.png", "3/0001.png"),
        ("def_adv_", "3/def_adv_0001.png", "3/0001.png"),
        ("def_adv_", "3/def_adv_0001_1.png", "3/0001_1.png"),
        ("adv_", "adv_cat/adv_0001.png", "adv_cat/0001.png"),
        ("def_adv_", "3/def_0001.png", "3/def_0001.png"),
        ("def_", "3/def_def_0001.png", "3/def_0001.png"),
    ],
)
def test_original_of_an_image(lab: Lab, prefix: str, path: str, original: str) -> None:
    evaluation = read_evaluation([lab.evaluate("clean")])
    evaluation = replace(evaluation, dataset=replace(evaluation.dataset, prefix=prefix))
    assert evaluation.original(path) == original


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


def test_two_attackers_stand_side_by_side_and_the_worse_one_judges(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers())
    median = made.row("spatial_smoothing")
    assert list(median["attackers"]) == ["defense-aware", "oblivious"]
    assert median["attackers"]["oblivious"]["robust_accuracy"]["value"] == 0.625
    assert median["attackers"]["defense-aware"]["robust_accuracy"] == median["robust_accuracy"]
    assert (median["attacker"], median["robust_accuracy"]["value"]) == ("defense-aware", 0.375)
    assert median["robust_accuracy_change"] == {"value": pytest.approx(0.125), "may_be_chance": False}
    assert median["attack_success_rate"]["count"] == 242
    none = made.row("none")
    assert (none["attacker"], none["attackers"]) == (None, {})
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
    assert (row["attacker"], row["robust_accuracy"]["value"]) == ("oblivious", 0.625)
    ((status, found),) = made.checks("defense-aware attack hurts no less")
    assert status == "warn"
    assert "75.0" in found
    assert made.checks("defense-aware attack") == [("warn", "not run: jpeg_compression")]


def test_without_a_defense_aware_attack_the_report_says_so(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.everything())
    assert made.checks("defense-aware attack") == [("warn", "not run: jpeg_compression, spatial_smoothing")]
    assert made.json["attacker"]["knowledge"] == ["oblivious"]
    assert "Once the attacker knows" not in made.page


def test_a_defense_that_harms_is_told(lab: Lab, tmp_path: Path) -> None:
    worse = lab.evaluate("aware", aware(FGM, JPEG), JPEG, wrong=340, wrong_before=8)
    made = Report(tmp_path, [lab.evaluate("clean", wrong=8), lab.evaluate("adv", FGM, wrong=300), worse])
    assert made.json["headline"].endswith(
        "Once the attacker knows the defense, jpeg_compression takes 10.0 points more."
    )


def test_two_attackers_that_drew_seeds_of_their_own_are_one_attack(lab: Lab, tmp_path: Path) -> None:
    drawn = {**aware(FGM, JPEG), "seed": 77, "parameters": {**FGM["parameters"], "eot_samples": 8}}
    made = Report(tmp_path, [*lab.everything(), lab.evaluate("aware", drawn, JPEG, wrong=301, wrong_before=8)])
    assert len(made.table) == 3
    assert made.row("jpeg_compression")["attacker"] == "defense-aware"
    assert {row["attack_settings"] for row in made.table} == {"eps=0.3 norm=inf"}


def test_an_attack_aimed_at_another_defense_is_another_attack(lab: Lab, tmp_path: Path) -> None:
    crossed = lab.evaluate("crossed", aware(FGM, JPEG), MEDIAN, wrong=200, wrong_before=8)
    made = Report(tmp_path, [*lab.everything(), crossed])
    row = made.row("spatial_smoothing", "fgm (aimed at jpeg_compression quality=75)")
    assert row["attacker"] == "oblivious"


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


def test_curve_is_drawn_and_held_in_the_summary(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve())
    Page(made.page)
    curve = made.json["curve"]
    assert (curve["attack"], curve["eps"], curve["chance"], curve["floor"]) == ("fgm", 0.3, 0.1, pytest.approx(1 / 510))
    low, high = interval(100, 400)
    accuracy = {"value": 0.25, "low": low, "high": high, "n": 400, "count": 100}
    assert curve["series"][0]["points"][3] == {"eps": 0.3, "accuracy": accuracy}
    assert curve["controls"]["pgd"]["accuracy"]["value"] == 0.125
    assert made.page.count("<polygon") == 4


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


def test_the_oblivious_curve_is_hidden_at_first(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve())
    legend = re.findall(r'<input type="checkbox"[^>]*?( checked)?>.*?<label.*?<span>(.*?)</span>', made.page, re.S)
    assert [(name, bool(checked)) for checked, name in legend] == [
        ("no defense", True),
        ("uniform noise (control)", True),
        ("spatial_smoothing window_size=3 (defense-aware)", True),
        ("spatial_smoothing window_size=3 (oblivious)", False),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"architecture": "le_net", "sha256": "n" * 64}}, r"evaluations' model. Received: .*n{64}"),
        ({"dataset": {"sha256": "e" * 64}}, r"evaluations' original dataset. Received: .*e{64}"),
        ({"schema_version": 2}, r"schema_version 1\. Received: 2"),
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
        ("accuracy falls as eps grows", "warn", {"right": (392, 390, 100, 20, 80)}),  # from under chance
        ("accuracy falls as eps grows", "pass", {"right": (392, 390, 100, 20, 40)}),  # under chance
        ("at or under chance at eps = 1", "fail", {"right": (392, 390, 250, 250, 240)}),
        ("at or under chance at eps = 1", "warn", {"right": (392, 390, 350, 300, 100)}),
        ("noise hurts less than the attack", "warn", {"wrong": {"noise": 300}}),
        ("noise hurts less than the attack", "fail", {"wrong": {"noise": 320}}),
        ("PGD hurts no less", "pass", {"wrong": {"pgd": 299}}),
        ("PGD hurts no less", "fail", {"wrong": {"pgd": 250}}),
        ("saved images as computed", "warn", {"wrong": {"computed": 310}}),
        ("saved images as computed", "fail", {"wrong": {"computed": 350}}),
        ("attack repeated", "warn", {"wrong": {"saved": 301}}),
        ("attack repeated", "fail", {"wrong": {"saved": 310}}),
    ],
)
def test_checks_of_a_curve(lab: Lab, tmp_path: Path, name: str, expected: str, change: dict[str, Any]) -> None:
    made = Report(tmp_path, lab.two_attackers(), curve=lab.curve(**change))
    assert made.checks(name)[0][0] == expected


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
