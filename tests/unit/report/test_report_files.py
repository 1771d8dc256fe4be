"""Which evaluations belong together, and files that are damaged."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab import FGM, JPEG, Lab, Report

from evasion.components.common.results.evaluation import listed
from evasion.components.common.results.shards import read_evaluation

pytestmark = pytest.mark.usefixtures("mlflow_store")  # the report logs itself


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
    other = {**JPEG, "seed": 9}
    clean = [lab.evaluate("clean"), lab.evaluate("jpeg", JPEG), lab.evaluate("other_jpeg", other)]
    attacked = [lab.evaluate("a", FGM, wrong=300), lab.evaluate("b", FGM, JPEG, wrong=200)]
    made = Report(tmp_path, [*clean, *attacked, lab.evaluate("c", FGM, other, wrong=100)])
    assert [row["defense"] for row in made.table] == ["none", "jpeg_compression", "jpeg_compression (run 2)"]
    assert made.metrics["robust_accuracy_jpeg_compression_run_2"] == 0.75


def test_attacks_that_differ_in_seed_alone_show_it(lab: Lab, tmp_path: Path) -> None:
    made = Report(tmp_path, [lab.evaluate("a", FGM, wrong=300), lab.evaluate("b", {**FGM, "seed": 7}, wrong=200)])
    assert [f"{row['attack']} {row['attack_settings']}" for row in made.table] == [
        "worst case of 2 attacks eps=0.3 norm=inf",
        "fgm eps=0.3 norm=inf seed=1",
        "fgm eps=0.3 norm=inf seed=7",
    ]


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
        (lambda folder: (folder / "evaluation.json").write_text("{}"), "lacks seed"),
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
    ("change", "message"),
    [
        ({"metrics": {"images": 400}}, "evaluation.json is not as infer writes it: metrics lacks correct, accuracy"),
        ({"metrics": {"images": 4, "correct": 5, "accuracy": 1.0}}, "5 of 4 images cannot be right"),
        ({"seed": "one"}, "evaluation.json is not as infer writes it: seed: Input should be a number"),
        ({"seed": [1, None]}, None),
        ({"schema_version": 7}, "must be of schema_version 1. Received: 7. Run the pipeline again with this version."),
        ({"model": None}, "evaluation.json is not as infer writes it: model: Input should be an object"),
    ],
)
def test_what_is_wrong_with_an_evaluation_is_named(
    lab: Lab, tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    folder = lab.evaluate("clean")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if message is None:
        Report(tmp_path, [folder])
        return
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        Report(tmp_path, [folder])
    assert "\n" not in str(raised.value)
