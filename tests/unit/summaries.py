"""Small reports, in the form of `report.json`."""

import json
from collections.abc import Iterator

from evasion.components.common.results import json_file
from evasion.components.common.results.check import Check
from evasion.components.common.results.evaluation import AttackChecks, DatasetRecord, ModelRecord
from evasion.components.common.results.report import EvaluationRecord, Originals, Report, TitledDataset, cells
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Row
from evasion.components.common.results.treatments import NONE

CLEAN = Row(NONE, NONE, Share.counted(90, 100))
PASSED = Check("same model and data", "1 evaluation", "pass", "by sha256")
MODEL = ModelRecord(
    architecture="le_net", class_names=("0", "1"), weights="trained", sha256="m" * 64, input_shape=(28, 28, 1)
)
DATASET = DatasetRecord(
    name="load_dataset",
    class_names=("0", "1"),
    counts=(50, 50),
    image_shape=(28, 28, 1),
    split="testing",
    prefix="",
    provenance=(),
    sha256="d" * 64,
)


def summary(headline: str, table: tuple[Row, ...] = (CLEAN,), checks: tuple[Check, ...] = (PASSED,)) -> dict:
    """The content of `report.json` with these rows and checks."""
    evaluations = list(_evaluations(table))
    report = Report(
        schema_version=4,
        headline=headline,
        attacker=None,
        clean_accuracy_floor=0.5,
        metrics={f"checks_{status}ed": sum(check.status == status for check in checks) for status in ("fail", "warn")},
        table=list(table),
        curve=None,
        minimal=[],
        pictures=[],
        checks=list(checks),
        model=MODEL,
        originals=Originals(100, "d" * 64),
        datasets=[TitledDataset(each.title, DATASET) for each in evaluations],
        evaluations=evaluations,
    )
    return json.loads(json_file.to_text(report))


def _evaluations(table: tuple[Row, ...]) -> Iterator[EvaluationRecord]:
    """Yield those that the rows rest on, which tell nothing of each image."""
    for attack, defense, attacker in dict.fromkeys(cell for row in table for cell in cells(row)):
        yield EvaluationRecord(
            title=f"{attack} {defense} {attacker}",
            attack=attack,
            defense=defense,
            attacker=attacker,
            dataset_sha256=DATASET.sha256,
            model_sha256=MODEL.sha256,
            right=None,
            seed=0,
            batch_size=32,
            versions={},
            metrics={"images": 100},
            distances={},
            confusion=[],
            checks=AttackChecks(),
        )
