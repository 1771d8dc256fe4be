"""Judges a report by thresholds, a baseline and its own checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evasion.components.common.files import sha256_of
from evasion.components.common.results import report as reports
from evasion.components.common.results.report import Report
from evasion.pipelines.gate.baseline import BASELINE, compare_with_baseline
from evasion.pipelines.gate.judging import judge_thresholds
from evasion.pipelines.gate.settings import Settings
from evasion.pipelines.gate.verdict import Judgement, Verdict, judge_checks

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Gate:
    """What was judged, and the result.

    Attributes:
        path: The report's path.
        settings: What it was judged by.
        report: The report, or None where it cannot be read.
        verdicts: One for each threshold, row of the baseline and failed check.
    """

    path: Path
    settings: Settings
    report: Report | None
    verdicts: list[Verdict]

    @property
    def judgement(self) -> Judgement:
        """The worst of all."""
        return Judgement.worst(verdict.judgement for verdict in self.verdicts)

    @property
    def headline(self) -> str:
        """How many verdicts there are of each kind."""
        counts = {kind: sum(verdict.judgement is kind for verdict in self.verdicts) for kind in Judgement}
        parts = (f"{count} {kind.value}" for kind, count in reversed(counts.items()) if count)
        return f"{self.judgement.value}: {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """The gate as its JSON file holds it."""
        report = self.report
        return {
            "schema_version": SCHEMA_VERSION,
            "outcome": self.judgement.value,
            "exit_code": self.judgement.exit_code,
            "report": {
                "path": str(self.path),
                "sha256": sha256_of(self.path) if report else None,
                "headline": report.headline if report else None,
                "model": report.model.sha256 if report else None,
                "originals": asdict(report.originals) if report else None,
            },
            "baseline": str(self.settings.baseline) if self.settings.baseline else None,
            "allowed_drop": self.settings.allowed_drop,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }


def gate(path: Path, settings: Settings) -> Gate:
    """Judge a report by the settings. A report that cannot be read gives the verdict "cannot tell", not an error."""
    try:
        report = reports.read(path)
        return Gate(path, settings, report, list(_verdicts(report, settings)))
    except (ValueError, OSError) as error:
        advice = "Give the report.json of a run of this version."
        return Gate(path, settings, None, [Verdict("report", "report", Judgement.UNKNOWN, str(error), advice)])


def _verdicts(report: Report, settings: Settings) -> Iterator[Verdict]:
    yield from judge_thresholds(report, settings.thresholds)
    if settings.baseline:
        try:
            baseline = reports.read(settings.baseline)
        except (ValueError, OSError) as error:
            yield Verdict(
                BASELINE,
                BASELINE,
                Judgement.UNKNOWN,
                str(error),
                "Give the report.json of an earlier run of this version.",
            )
        else:
            yield from compare_with_baseline(report, baseline, settings.allowed_drop)
            yield from judge_checks(baseline, settings.accept_checks, BASELINE)
    yield from judge_checks(report, settings.accept_checks)
