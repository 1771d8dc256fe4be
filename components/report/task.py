"""Draw one report from the evaluations of a model: a page for people and a file for machines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from evasion.components.common import validate

SCHEMA_VERSION = 2
LABELS = "It aimed away from the model's own predictions, not from the true labels, so no label leaked into the images."
ATTACKERS = {
    "defense-aware": (
        "The defense-aware attacker knew the model and the defense: it took its gradient through both, that of the "
        "identity where the defense has none (BPDA), the mean over several draws where it draws at random (EOT). Rows "
        "are judged by the attacker that leaves less accuracy."
    ),
    "oblivious": (
        "The oblivious attacker knew the model but not the defenses, so robust accuracy with a defense is an upper "
        "bound under it: an attacker who adapts to the defense will do better (Athalye et al. 2018, Carlini et al. "
        "2019)."
    ),
}


def check(*, clean_accuracy_floor: float, **_: object) -> None:
    """Refuse parameters that cannot work, before anything starts.

    Raises:
        ValueError: If `clean_accuracy_floor` is not in [0, 1].
    """
    validate.in_range("clean_accuracy_floor", clean_accuracy_floor, 0, 1)


def report(
    *,
    evaluation: Path | None,
    evaluation_shards: list[Path],
    curve: Path | None,
    curve_shards: list[Path],
    html: Path,
    summary: Path,
    clean_accuracy_floor: float,
) -> dict[str, float]:
    """Compare evaluations of one model on one dataset: clean, attacked and defended.

    Args:
        evaluation: The directory that `infer` wrote, with an evaluation of each dataset, in any order; any may be
            missing, but not all.
        evaluation_shards: In its place those of all shards, in any order.
        curve: The directory that `security_curve` wrote of the same model and original images; or None.
        curve_shards: In its place those of all shards, in any order.
        html: Where to write the page, self-contained.
        summary: Where to write the same numbers as JSON.
        clean_accuracy_floor: Clean accuracy in [0, 1] below which the report says not to trust the rest.

    Returns:
        Flat finite metrics: clean_accuracy, robust_accuracy and attack_success_rate, each also with
        `_<defense>`, of the worst attack and attacker; the last two with a defense also with `_defense_aware` and
        `_oblivious`, and with several attacks with `_against_<attack>`; checks_failed and checks_warned.

    Raises:
        ValueError: If there is no evaluation, one is damaged, or models or original images are mixed.
    """
    check(clean_accuracy_floor=clean_accuracy_floor)

    from evasion.components.common import tracking
    from evasion.components.common.files import sha256_of
    from evasion.components.common.results.evaluations import contained

    with tracking.stage("report", {"clean_accuracy_floor": clean_accuracy_floor}) as run:
        evaluations = contained([evaluation] if evaluation else evaluation_shards)
        curves = [curve] if curve else curve_shards
        metrics = _write(evaluations, curves, html, summary, clean_accuracy_floor)
        # The pipeline's own run holds the report as well: it speaks of the whole.
        for holder in (run, run.whole):
            if holder:
                holder.log_metrics(metrics)
                holder.log_file(html, "report/report.html")
                holder.log_file(summary, "report/report.json")
        whole = run.whole or run
        whole.tag({"report_sha256": sha256_of(summary)})
        whole.links_report("report/report.json")
    return metrics


def _write(
    evaluations: list[list[Path]], curve: list[Path], html: Path, summary: Path, clean_accuracy_floor: float
) -> dict[str, float]:
    from evasion.components.common.files import replacing
    from evasion.components.common.results import minimal, table
    from evasion.components.common.results.curve import Curve
    from evasion.components.common.results.evaluations import NONE, collect
    from evasion.components.report import gallery, page
    from evasion.components.report.checks.evaluation import findings
    from evasion.components.report.headline import headline

    together = collect(evaluations)
    drawn = Curve.read(curve, together) if curve else None
    rows = table.rows(together)
    made = findings(together, drawn, clean_accuracy_floor)
    said = headline(rows, together.first.model["architecture"])
    smallest = minimal.distributions(together)
    pictures = gallery.galleries(together)
    metrics = {name: value for name, value in table.flat(rows).items() if math.isfinite(value)}
    metrics["checks_failed"] = float(sum(finding.status == "fail" for finding in made))
    metrics["checks_warned"] = float(sum(finding.status == "warn" for finding in made))
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "headline": " ".join(said).strip(),
        "attacker": _attacker(together.knowledge) if together.attacks else None,
        "clean_accuracy_floor": clean_accuracy_floor,
        "metrics": metrics,
        "table": [row.to_json() for row in rows],
        "curve": drawn.to_json() if drawn else None,
        "minimal": [each.to_json() for each in smallest],
        "pictures": [each.to_json() for each in pictures],
        "checks": [finding.to_json() for finding in made],
        "models": [together.first.model],
        # Of each evaluation `right` holds a bit an image, the first one highest, packed into bytes, as base64: 1 where
        # the model was right, images sorted by original path. Equal hashes (of `path<tab>label<newline>` in that
        # order) mean equal images and order, so that evaluations pair across reports.
        "originals": {"images": len(together.outcomes), "sha256": together.outcomes.sha256},
        "datasets": [{"title": title, **evaluation.dataset} for title, evaluation in together.titles()],
        "evaluations": [
            {
                "title": title,
                "attack": attack.label if attack != NONE else None,
                "defense": defense.label if defense != NONE else None,
                "attacker": evaluation.knowledge,
                "dataset_sha256": evaluation.dataset["sha256"],
                "model_sha256": evaluation.model["sha256"],
                "seed": evaluation.seed,
                "batch_size": evaluation.batch_size,
                "versions": evaluation.versions,
                "metrics": evaluation.metrics,
                "distances": evaluation.distances,
                "confusion": evaluation.confusion,
                "checks": evaluation.checks,
                "right": together.outcomes.packed(evaluation),
            }
            for title, attack, defense, evaluation in together.placed()
        ],
    }
    text = page.render(together, rows, made, said, drawn, smallest, pictures)
    # Both are made before either appears, so that a failure leaves no half report.
    with replacing(html) as page_file, replacing(summary) as summary_file:
        page_file.write_text(text, encoding="utf-8")
        summary_file.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return metrics


def _attacker(knowledge: list[str]) -> dict[str, Any]:
    notes = [ATTACKERS[each] for each in knowledge]
    return {"knowledge": knowledge, "labels": "predicted by the model", "note": " ".join([*notes, LABELS])}
