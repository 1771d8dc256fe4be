"""Draw one report from the evaluations of a model: a page for people and a file for machines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from evasion.components.common import validate
from evasion.components.common.data.provenance import AWARE, OBLIVIOUS

if TYPE_CHECKING:
    from evasion.components.common.results.collection import Evaluations
    from evasion.components.common.results.report import AttackerNote

LABELS = "It aimed away from the model's own predictions, not from the true labels, so no label leaked into the images."
ATTACKERS = {
    AWARE: (
        "The defense-aware attacker knew the model and the defense: it took its gradient through both, that of the "
        "identity where the defense has none (BPDA), the mean over several draws where it draws at random (EOT). An "
        "image is robust if it withstands every attacker."
    ),
    OBLIVIOUS: (
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
        `_<defense>`, of all attacks and attackers together; the last two with a defense also with `_defense_aware` and
        `_oblivious`, and with several attacks with `_against_<attack>`; checks_failed and checks_warned.

    Raises:
        ValueError: If there is no evaluation, one is damaged, or models or original images are mixed.
    """
    check(clean_accuracy_floor=clean_accuracy_floor)

    from evasion.components.common import tracking
    from evasion.components.common.files import sha256_of
    from evasion.components.common.results.evaluation import listed

    with tracking.stage("report", {"clean_accuracy_floor": clean_accuracy_floor}) as run:
        evaluations = listed([evaluation] if evaluation else evaluation_shards)
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
    evaluation_directories: list[list[Path]],
    curve_directories: list[Path],
    html: Path,
    summary: Path,
    clean_accuracy_floor: float,
) -> dict[str, float]:
    """Read, count once, draw: return the main numbers, flat."""
    from evasion.components.common.files import replacing
    from evasion.components.common.results import json_file, minimal, table
    from evasion.components.common.results.collection import collect
    from evasion.components.common.results.curve import Curve, read_curve
    from evasion.components.common.results.report import Originals, Report, TitledDataset, records
    from evasion.components.report import gallery, page
    from evasion.components.report.checks.all import all_checks
    from evasion.components.report.headline import headline

    evaluations = collect(evaluation_directories)
    curve = read_curve(curve_directories, evaluations) if curve_directories else None
    rows = table.rows(evaluations)
    distributions = minimal.distributions(evaluations)
    checks = all_checks(evaluations, curve, clean_accuracy_floor)

    metrics = {name: value for name, value in table.flat(rows).items() if math.isfinite(value)}
    metrics["checks_failed"] = float(sum(check.status == "fail" for check in checks))
    metrics["checks_warned"] = float(sum(check.status == "warn" for check in checks))
    sentences = headline(rows, evaluations.first.model.title)
    galleries = gallery.galleries(evaluations)
    attacker = _attacker(evaluations) if evaluations.attacks else None
    report = Report(
        headline=" ".join(sentences).strip(),
        attacker=attacker,
        clean_accuracy_floor=clean_accuracy_floor,
        metrics=metrics,
        table=rows,
        curve=Curve(**{name: getattr(curve, name) for name in Curve.__dataclass_fields__}) if curve else None,
        minimal=distributions,
        pictures=[each.record for each in galleries],
        checks=checks,
        model=evaluations.first.model,
        originals=Originals(len(evaluations.per_image), evaluations.per_image.sha256),
        datasets=[TitledDataset(title, evaluation.dataset) for title, evaluation in evaluations.titles()],
        evaluations=records(evaluations),
        schema_version=4,
    )
    text = page.render(evaluations, rows, checks, sentences, attacker, curve, distributions, galleries)
    # Both are made before either appears, so that a failure leaves no half report.
    with replacing(html) as page_file, replacing(summary) as summary_file:
        page_file.write_text(text, encoding="utf-8")
        summary_file.write_text(json_file.to_text(report), encoding="utf-8")
    return metrics


def _attacker(evaluations: Evaluations) -> AttackerNote:
    from evasion.components.common.results.report import AttackerNote

    knowledge = evaluations.knowledge
    notes = [ATTACKERS[each] for each in knowledge]
    attacks = [entry for evaluation in evaluations for entry in evaluation.attacks]
    efforts = dict.fromkeys(f"{entry.stage}: {entry.effort}." for entry in attacks if entry.effort)
    options = " ".join(dict.fromkeys(entry.stronger for entry in attacks if entry.stronger))
    advice = f"The full attack may leave less: a number to publish needs {options}." if options else ""
    note = " ".join([*notes, LABELS])
    return AttackerNote(knowledge, "predicted by the model", note, effort=" ".join(efforts), advice=advice)
