"""Draw one report from the evaluations of a model: a page for people and a file for machines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from evasion.components.common import checks

SCHEMA_VERSION = 1
ATTACKER = {
    "knowledge": "oblivious",
    "labels": "predicted by the model",
    "note": (
        "The attack knew the model but not the defenses, so robust accuracy with a defense is an upper bound: an "
        "attacker who adapts to the defense will do better (Athalye et al. 2018, Carlini et al. 2019). It aimed away "
        "from the model's own predictions, not from the true labels, so no label leaked into the images."
    ),
}


def check(*, clean_accuracy_floor: float, **_: object) -> None:
    """Refuse parameters that cannot work, before anything starts.

    Raises:
        ValueError: If `clean_accuracy_floor` is not in [0, 1].
    """
    checks.in_range("clean_accuracy_floor", clean_accuracy_floor, 0, 1)


def report(*, evaluations: list[Path], html: Path, summary: Path, clean_accuracy_floor: float) -> dict[str, float]:
    """Compare evaluations of one model on one dataset: clean, attacked and defended.

    Args:
        evaluations: Directories that `infer` wrote, in any order; any of them may be missing, but not all.
        html: Where to write the page, self-contained.
        summary: Where to write the same numbers as JSON.
        clean_accuracy_floor: Clean accuracy in [0, 1] below which the report says not to trust the rest.

    Returns:
        Flat finite metrics: clean_accuracy, robust_accuracy and attack_success_rate, each also with
        `_<defense>`, of the worst attack; with several attacks the last two also with `_against_<attack>`;
        checks_failed and checks_warned.

    Raises:
        ValueError: If there is no evaluation, one is damaged, or models or original images are mixed.
    """
    check(clean_accuracy_floor=clean_accuracy_floor)

    from evasion.components.common import tracking

    with tracking.stage("report", {"clean_accuracy_floor": clean_accuracy_floor}) as run:
        metrics = _write(evaluations, html, summary, clean_accuracy_floor)
        # The pipeline's own run holds the report as well: it speaks of the whole.
        for holder in (run, tracking.parent_stage()):
            if holder:
                holder.log_metrics(metrics)
                holder.log_file(html, "report/report.html")
                holder.log_file(summary, "report/report.json")
    return metrics


def _write(evaluations: list[Path], html: Path, summary: Path, clean_accuracy_floor: float) -> dict[str, float]:
    from evasion.components.common.files import replacing
    from evasion.components.report import page, table
    from evasion.components.report.evaluations import collect
    from evasion.components.report.findings import findings

    together = collect(evaluations)
    rows = table.rows(together)
    made = findings(together, clean_accuracy_floor)
    headline = table.headline(rows, together.first.model["architecture"])
    metrics = {name: value for name, value in table.flat(rows).items() if math.isfinite(value)}
    metrics["checks_failed"] = float(sum(finding.status == "fail" for finding in made))
    metrics["checks_warned"] = float(sum(finding.status == "warn" for finding in made))
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "headline": " ".join(headline).strip(),
        "attacker": ATTACKER if together.attacks else None,
        "clean_accuracy_floor": clean_accuracy_floor,
        "metrics": metrics,
        "table": [row.to_json() for row in rows],
        "checks": [finding.to_json() for finding in made],
        "models": [together.first.model],
        "datasets": [{"title": title, **evaluation.dataset} for title, evaluation in together.titles()],
        "evaluations": [
            {
                "title": title,
                "dataset_sha256": evaluation.dataset["sha256"],
                "model_sha256": evaluation.model["sha256"],
                "seed": evaluation.seed,
                "batch_size": evaluation.batch_size,
                "versions": evaluation.versions,
                "metrics": evaluation.metrics,
                "distances": evaluation.distances,
                "checks": evaluation.checks,
            }
            for title, evaluation in together.titles()
        ],
    }
    text = page.render(together, rows, made, headline)
    # Both are made before either appears, so that a failure leaves no half report.
    with replacing(html) as page_file, replacing(summary) as summary_file:
        page_file.write_text(text, encoding="utf-8")
        summary_file.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return metrics
