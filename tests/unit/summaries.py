"""Small reports, in the form of `report.json`."""

import json

from evasion.components.common.results import json_file
from evasion.components.common.results.check import Check
from evasion.components.common.results.evaluation import ModelRecord
from evasion.components.common.results.report import Originals, Report
from evasion.components.common.results.table import Row


def summary(headline: str, table: tuple[Row, ...] = (), checks: tuple[Check, ...] = ()) -> dict:
    """The content of `report.json` with these rows and checks."""
    model = ModelRecord(
        architecture="le_net", class_names=("0", "1"), weights="trained", sha256="m" * 64, input_shape=(28, 28, 1)
    )
    report = Report(
        schema_version=4,
        headline=headline,
        attacker=None,
        clean_accuracy_floor=0.5,
        metrics={},
        table=list(table),
        curve=None,
        minimal=[],
        pictures=[],
        checks=list(checks),
        model=model,
        originals=Originals(100, "d" * 64),
        datasets=[],
        evaluations=[],
    )
    return json.loads(json_file.to_text(report))
