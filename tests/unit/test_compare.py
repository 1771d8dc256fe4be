"""Models side by side, from reports of evaluation directories."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kfp import dsl
from lab import FGM, FGM_SMALL, MEDIAN, Lab, Report, aware
from scipy.stats import binomtest

from evasion.components.common.results.paired import holm
from evasion.components.compare import comparison, task
from evasion.components.compare.component import compare as compare_step
from evasion.pipelines.cli import main
from evasion.pipelines.local import runner

pytestmark = pytest.mark.usefixtures("mlflow_store")  # reports and comparisons log themselves


class Models:
    """Makes reports of models that differ in how many of the same images they get wrong."""

    def __init__(self, root: Path):
        self.root = root

    def report(
        self,
        name: str,
        clean: int = 8,
        attacked: int = 300,
        *,
        images: int = 400,
        attack: dict[str, Any] = FGM,
        smoothed: int | None = None,
        curve: bool = True,
    ) -> Path:
        """Report a model: the numbers are of wrong images."""
        lab = Lab(self.root / name, images=images)
        lab.model |= {"sha256": (name * 64)[:64], "name": name}
        made = [lab.evaluate("clean", wrong=clean), lab.evaluate("adv", attack, wrong=attacked, wrong_before=clean)]
        if smoothed is not None:
            known = aware(attack, MEDIAN)
            made.append(lab.evaluate("median", MEDIAN, wrong=clean))
            made.append(lab.evaluate("aware_median", known, MEDIAN, wrong=smoothed, wrong_before=clean))
        right = tuple(images - wrong for wrong in (clean, clean, 200, attacked, 370)) if images == 400 else ()
        drawn = lab.curve(right=right) if curve and right else None
        Report(self.root / name, made, curve=drawn)
        return self.root / name / "out" / "report.json"


class Comparison:
    """A comparison that was made, read back."""

    def __init__(self, folder: Path, reports: list[Path], names: str = ""):
        self.metrics = task.compare(
            reports=reports, html=folder / "c" / "compare.html", summary=folder / "c" / "compare.json", names=names
        )
        self.page = (folder / "c" / "compare.html").read_text().replace("<wbr>", "")
        self.json = json.loads((folder / "c" / "compare.json").read_text())

    def pair(self, images: str, one: str, other: str) -> dict[str, Any]:
        """The one test of this pair."""
        (found,) = [p for p in self.json["pairs"] if (p["images"], p["one"], p["other"]) == (images, one, other)]
        return found


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def evasion(*args: object) -> Any:
    return CliRunner().invoke(main.main, [str(arg) for arg in args], prog_name="evasion")


ATTACK = "fgm eps=0.3 norm=inf"


def test_models_stand_side_by_side(models: Models, tmp_path: Path) -> None:
    made = Comparison(tmp_path, [models.report("plain", smoothed=250), models.report("madry", 20, 60)])
    (block,) = made.json["attacks"]
    assert block["attack"] == ATTACK
    plain, madry = block["models"]
    assert (plain["model"], plain["clean_accuracy"]["value"], plain["robust_accuracy"]["value"]) == (
        "plain",
        0.98,
        0.25,
    )
    assert plain["best_defense"]["defense"] == "spatial_smoothing window_size=3"
    assert plain["best_defense"]["attackers"] == ["defense-aware"]
    assert plain["best_defense"]["robust_accuracy"]["value"] == 0.375
    assert (madry["robust_accuracy"]["value"], madry["best_defense"]) == (0.85, None)
    assert made.metrics == made.json["metrics"]
    assert made.metrics == {
        "clean_accuracy_plain": 0.98,
        "robust_accuracy_plain": 0.25,
        "robust_accuracy_plain_defended": 0.375,
        "clean_accuracy_madry": 0.95,
        "robust_accuracy_madry": 0.85,
    }
    assert made.json["headline"].replace("\N{NO-BREAK SPACE}", " ") == (
        f"Under {ATTACK}, madry stays right on 85.0 % of the images, plain on 25.0 %. "
        "The lead of madry over plain is more than chance explains (McNemar's test on the same images)."
    )


def test_pairs_are_tested_on_the_same_images(models: Models, tmp_path: Path) -> None:
    made = Comparison(tmp_path, [models.report("plain", 8, 300), models.report("same", 10, 300)])
    clean = made.pair("clean images", "plain", "same")
    assert (clean["only_one_right"], clean["only_other_right"]) == (2, 0)
    assert clean["p"] == pytest.approx(binomtest(0, 2).pvalue)
    assert clean["p_adjusted"] == clean["p"]  # one pair needs no adjustment
    assert clean["may_be_chance"]
    assert made.pair(ATTACK, "plain", "same")["p"] == 1
    assert made.json["headline"].endswith("may be chance (McNemar's test on the same images).")


def test_with_three_models_the_tests_of_all_pairs_are_adjusted(models: Models, tmp_path: Path) -> None:
    # 6 images apart is p = 0.031: a difference alone, none among three.
    made = Comparison(tmp_path, [models.report("a", 8), models.report("b", 14), models.report("c", 14)])
    pair = made.pair("clean images", "a", "b")
    assert pair["p"] == pytest.approx(0.03125)
    assert pair["p_adjusted"] == pytest.approx(0.09375)
    assert pair["may_be_chance"]


def test_holm() -> None:
    # Holm 1979; R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_curves_of_undefended_models_and_best_defenses(models: Models, tmp_path: Path) -> None:
    made = Comparison(tmp_path, [models.report("plain", smoothed=250), models.report("madry", 20, 60)])
    (curve,) = made.json["curves"]
    assert [line["name"] for line in curve["lines"]] == [
        "plain",
        "plain + spatial_smoothing window_size=3",
        "madry",
    ]
    assert [point["count"] for point in curve["lines"][0]["points"]] == [392, 392, 200, 100, 0]
    assert made.page.count("<polygon") == 3
    assert curve["title"] == "worst case of fgm and pgd (10 steps) norm=inf"
    assert "Lines: worst case of fgm and pgd (10 steps) norm=inf." in made.page
    assert made.page.count('class="ring"') == 3  # what the tables say at their eps


def test_a_report_without_a_curve_still_compares(models: Models, tmp_path: Path) -> None:
    made = Comparison(tmp_path, [models.report("plain", curve=False), models.report("madry", curve=False)])
    assert made.json["curves"] == []
    assert made.json["notes"] == ["plain and madry: the report holds no security curve."]


def test_other_settings_are_rows_of_their_own(models: Models, tmp_path: Path) -> None:
    made = Comparison(tmp_path, [models.report("plain"), models.report("weak", attack=FGM_SMALL)])
    assert [block["attack"] for block in made.json["attacks"]] == [ATTACK, "fgm eps=8/255 norm=inf"]
    assert made.json["attacks"][0]["models"][1]["robust_accuracy"] is None
    assert {pair["images"] for pair in made.json["pairs"]} == {"clean images"}
    assert made.json["notes"][0] == f"weak: not attacked with {ATTACK}."
    assert made.json["headline"].endswith("No attack was run on all of them.")


def test_a_budget_below_that_of_the_paper_is_told(models: Models, tmp_path: Path) -> None:
    weak = {**FGM, "effort": "climb (20 steps)", "stronger": "--fgm-budget standard"}
    text = "fgm: climb (20 steps). The full attack may leave less: a number to publish needs --fgm-budget standard."
    reports = [models.report("plain"), models.report("weak", attack=weak), models.report("weaker", attack=weak)]
    assert Comparison(tmp_path / "1", reports).json["notes"] == [f"weak and weaker: {text}"]
    assert Comparison(tmp_path / "2", reports[1:]).json["notes"] == [text]
    assert Comparison(tmp_path / "3", [reports[0], reports[0]]).json["notes"] == []


def test_failed_checks_of_a_report_are_told(models: Models, tmp_path: Path) -> None:
    made = Comparison(tmp_path, [models.report("plain"), models.report("poor", clean=200)])
    assert (
        "poor: do not trust its numbers yet, for checks failed: clean accuracy above the floor" in made.json["notes"][0]
    )


class Page(html.parser.HTMLParser):
    """Refuses scripts and anything from elsewhere."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img")
        assert not [name for name, _ in attrs if name.startswith("on")]
        assert all(str(value).startswith("#") for name, value in attrs if name in ("src", "href"))


def test_page_needs_no_network_and_names_stay_text(models: Models, tmp_path: Path) -> None:
    reports = [models.report("plain"), models.report("madry")]
    made = Comparison(tmp_path, reports, "<script>alert(1)</script>, second")
    Page().feed(made.page)
    assert "<script" not in made.page
    assert made.json["models"][0]["name"] == "<script>alert(1)</script>"


def test_every_share_of_the_page_is_in_the_summary(models: Models, tmp_path: Path) -> None:
    made = Comparison(tmp_path, [models.report("plain", smoothed=250), models.report("madry", 20, 60)])
    known: set[str] = set()

    def collect(found: Any) -> None:
        if isinstance(found, dict):
            known.update(f"{100 * found[key]:.1f}" for key in ("value", "low", "high", "chance") if key in found)
        for each in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
            collect(each)

    collect(made.json)
    body = made.page.split("</style>")[1].split('<section id="models"')[0]
    shown = set(re.findall(r"(\d+\.\d)(?=\N{NO-BREAK SPACE}%|–)", body))
    assert len(shown) > 20
    assert shown <= known


def test_models_that_share_a_name_are_told_apart(models: Models, tmp_path: Path) -> None:
    one = models.report("plain")
    changed = json.loads(one.read_text())
    changed["model"]["version"] = "2"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    made = Comparison(tmp_path, [one, other, one])
    assert [model["name"] for model in made.json["models"]] == ["plain 1 (1)", "plain 2", "plain 1 (2)"]


def change(path: Path, **changed: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "there is no report at"),
        (lambda path: path.write_text("{"), "is not valid JSON"),
        (lambda path: path.write_text("[]"), "is not as report writes it"),
        (lambda path: path.write_text("{}"), "lacks schema_version"),
        (lambda path: change(path, schema_version=1), "schema_version 4. Received: 1. Run the pipeline again"),
        (lambda path: change(path, table=[{}]), "lacks table.0.attack"),
        (lambda path: change(path, originals={"images": 9, "sha256": "x"}), "cannot be the outcomes of 9 images"),
    ],
)
def test_a_damaged_report_is_named(models: Models, tmp_path: Path, damage: Any, message: str) -> None:
    reports = [models.report("plain"), models.report("madry")]
    damage(reports[1])
    with pytest.raises(ValueError, match=message) as raised:
        Comparison(tmp_path, reports)
    assert str(reports[1]) in str(raised.value)
    assert not (tmp_path / "c").exists()


def test_other_images_are_refused(models: Models, tmp_path: Path) -> None:
    reports = [models.report("plain"), models.report("fewer", images=200, attacked=100)]
    with pytest.raises(ValueError, match=r"same original images .* plain: 400 images, .* fewer: 200 images"):
        Comparison(tmp_path, reports)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("one", "names must be as many as reports, 2. Received: one"),
        ("one, one", "names must differ. Received more than once: one"),
        ("one,", "none of them blank. Received: names='one,'"),
    ],
)
def test_names_must_fit(models: Models, tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison(tmp_path, [models.report("plain"), models.report("madry")], names)


def test_one_report_is_none_to_compare(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least two reports\. Received: 1"):
        Comparison(tmp_path, [models.report("plain")])


def test_the_command_takes_files_and_folders_of_runs(models: Models, tmp_path: Path) -> None:
    reports = [models.report("plain", smoothed=250), models.report("madry", 20, 60)]
    output = tmp_path / "compared"
    names = ("--name", "A", "--name", "B [x]")
    result = evasion("compare", reports[0], reports[1].parent, "--output", output, *names)
    assert result.exit_code == 0, result.output
    assert re.search(r"A +98\.0 \[\S+ \S+ +25\.0 \[\S+ \S+ +spatial_smoothing window_size=3: 37\.5", result.stdout)
    assert re.search(r"B \[x\] +95\.0 .* +85\.0 .* +none helps", result.stdout)
    assert re.search(r"fgm eps=0\.3 norm=inf: A / B \[x\]: B \[x\] is better, p < 0\.001", result.stdout)
    assert f"Comparison: {output}/compare.html" in result.stdout
    assert sorted(path.name for path in output.iterdir()) == ["compare.html", "compare.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing argument 'REPORT REPORT...'"),
        (("nowhere",), "at least two reports"),
        (("nowhere", "neither"), "there is no report at nowhere"),
    ],
)
def test_the_command_refuses_bad_input(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = evasion("compare", *arguments, "--output", tmp_path / "compared")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "compared").exists()


def test_a_comparison_without_tracking_is_the_same(models: Models, tmp_path: Path) -> None:
    reports = [models.report("plain"), models.report("madry")]
    tracked = Comparison(tmp_path, reports)
    comparison.write(reports, [], tmp_path / "compare.html", tmp_path / "compare.json")
    assert json.loads((tmp_path / "compare.json").read_text()) == tracked.json


@dsl.pipeline
def comparing(plain: str, madry: str):
    """Compare two reports."""
    reports = {
        f"report_{number}": dsl.importer(artifact_uri=uri, artifact_class=dsl.Artifact).output
        for number, uri in enumerate((plain, madry), 1)
    }
    compare_step(**reports, names="plain one, hardened")


@pytest.mark.slow
def test_the_step_compares_what_is_connected(models: Models, tmp_path: Path) -> None:
    reports = {name: str(models.report(name, attacked=attacked)) for name, attacked in (("plain", 300), ("madry", 60))}
    result = runner.run(comparing, reports, output=tmp_path / "runs", experiment="e")
    (found,) = [step for step in result.steps if step.step.function == "compare"]
    assert found.metrics["robust_accuracy_plain_one"] == 0.25
    assert found.metrics["robust_accuracy_hardened"] == 0.85
