"""JSON of others: what a large file may cost, and how its lists are written."""

import json
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from evasion.components.common import strict_json
from evasion.components.common.models.artifact import Card
from evasion.components.common.results import json_file
from evasion.components.common.results.json_file import strict
from evasion.components.common.results.report import Report

MANY = 10_000


@strict
@dataclass
class Matrix:
    rows: list[tuple[int, int, int]]
    names: dict[str, int]
    note: str


def errors(kind, **changed):
    with pytest.raises(ValidationError) as refused:
        strict_json.parse(kind, json.dumps(changed))
    return [error["loc"][0] for error in refused.value.errors()]


def test_a_list_of_wrong_elements_is_one_error():
    # Each error takes 2 KB: a report of 16 MiB took 45 s and 17 GB until it was refused.
    matrix = {"rows": [], "names": {}, "note": ""}

    assert errors(Matrix, **matrix | {"rows": [0] * MANY}) == ["rows"]
    assert errors(Matrix, **matrix | {"rows": [[""] * MANY]}) == ["rows"]
    assert errors(Matrix, **matrix | {"names": {str(number): "" for number in range(MANY)}}) == ["names"]


@pytest.mark.parametrize("field", ["table", "checks", "evaluations", "datasets", "pictures", "metrics"])
def test_no_field_of_a_report_collects_errors(field):
    wrong = dict.fromkeys(map(str, range(MANY)), "") if field == "metrics" else [0] * MANY

    assert errors(Report, **{field: wrong}).count(field) == 1


def test_a_card_does_not_collect_errors():
    assert errors(Card, class_names=[0] * MANY).count("class_names") == 1


def test_a_file_is_read_up_to_its_limit(tmp_path, monkeypatch):
    path = tmp_path / "matrix.json"
    path.write_text(json_file.to_text(Matrix([(1, 2, 3)], {}, "")))
    size = path.stat().st_size

    monkeypatch.setattr(json_file, "MAX_BYTES", size)
    assert json_file.read(path, Matrix, "infer").rows == [(1, 2, 3)]

    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=r"matrix.json must have at most 0 MiB. Received: more"):
        json_file.read(path, Matrix, "infer")


def test_numbers_of_a_list_share_a_line():
    note = "[ 1 ] and [\n 1,\n 2\n]"
    text = json_file.to_text(Matrix([(1, 2, 3), (40, 5, 6)], {"a": 1}, note))

    assert [line.strip() for line in text.splitlines()][1:5] == ['"rows": [', "[1,2,3],", "[40,5,6]", "],"]
    assert strict_json.parse(Matrix, text) == Matrix([(1, 2, 3), (40, 5, 6)], {"a": 1}, note)
