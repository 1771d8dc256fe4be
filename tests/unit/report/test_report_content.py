"""The table, the headline and the page of a report."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from lab import FGM, FGM_SMALL, JPEG, MEDIAN, Lab, Report
from PIL import Image
from reporting import Page
from rich.console import Console

from evasion.components.common.results.report import read
from evasion.components.common.results.shares import interval
from evasion.pipelines.cli import tables

pytestmark = pytest.mark.usefixtures("mlflow_store")  # the report logs itself


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
        "fgm eps=0.3 norm=inf takes the accuracy of demo_le_net from 98.0 % to 25.0 %. "
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
    assert made.json["schema_version"] == 4
    assert made.json["attacker"]["knowledge"] == ["defense-aware", "oblivious"]
    assert "upper bound" in made.page
    assert "predicts, not from the true label" in made.page


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
    assert "which images are robust is not known" in made.json["headline"]
    assert made.row("none")["robust_accuracy"] is None
    assert made.row("none")["accuracy_under_attack"]["value"] == 0.25
    assert made.checks("clean accuracy above the floor") == [("warn", "the original images were not evaluated")]


def test_only_defended_attacked(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("jpeg", JPEG, wrong=9), lab.evaluate("adv", FGM, JPEG, wrong=300)])
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
        ("norm=inf", "none"),
        ("norm=inf", "jpeg_compression"),
        ("eps=8/255 norm=inf", "none"),
        ("eps=8/255 norm=inf", "jpeg_compression"),
        ("eps=0.3 norm=inf", "none"),
        ("eps=0.3 norm=inf", "jpeg_compression"),
    ]
    assert made.json["headline"].startswith("The worst case of 2 attacks norm=inf takes the accuracy")
    assert made.metrics["robust_accuracy"] == 0.25
    assert made.metrics["robust_accuracy_against_fgm_eps_8_255_norm_inf"] == 0.9
    assert made.metrics["robust_accuracy_jpeg_compression"] == 0.5
    assert made.metrics["attack_success_rate"] == pytest.approx(292 / 392)


@pytest.mark.parametrize("advice", ["", "--strong-budget standard"])
def test_a_reader_sees_how_much_the_attacks_did(lab: Lab, tmp_path: Path, advice: str) -> None:
    attack = {**FGM, "stage": "strong", "effort": "climb (20 steps)", "stronger": advice}
    evaluations = [lab.evaluate("clean", wrong=8), lab.evaluate("adv", FGM, wrong=300, wrong_before=8)]
    evaluations.append(lab.evaluate("strong", attack, wrong=390, wrong_before=8))
    made = Report(tmp_path, evaluations)
    attacker = made.json["attacker"]
    assert attacker["effort"] == "strong: climb (20 steps)."
    assert attacker["advice"] == (
        f"The full attack may leave less: a number to publish needs {advice}." if advice else ""
    )
    header = made.page.split("<header>")[1].split('<dl class="tiles">')[0]
    assert attacker["effort"] in header
    assert ("to publish" in header) == bool(advice)
    console = Console(width=200, file=io.StringIO())
    tables.show_report(console, read(tmp_path / "out" / "report.json"))
    assert f"{attacker['effort']} {advice and attacker['advice']}".strip() in console.file.getvalue()


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
    clean = [lab.evaluate("clean", wrong=8), lab.evaluate("squeezed", defense, wrong=8)]
    attacked = [lab.evaluate("a", attack, wrong=300), lab.evaluate("b", attack, defense, wrong=10)]
    made = Report(tmp_path, [*clean, *attacked])
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
