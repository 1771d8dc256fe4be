"""A report held to what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evasion.components.common.files import sha256_of
from evasion.components.common.results.report import Model, load
from evasion.pipelines.gate.baseline import BASELINE, of_baseline
from evasion.pipelines.gate.settings import Settings
from evasion.pipelines.gate.verdict import Outcome, Verdict, of_checks, of_thresholds

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Gate:
    """What was judged, and how it came out.

    Attributes:
        report: The report's path.
        settings: What it was held to.
        model: What it says, or None where it cannot be read.
        verdicts: One for each threshold, row of the baseline and failed check.
    """

    report: Path
    settings: Settings
    model: Model | None
    verdicts: list[Verdict]

    @property
    def outcome(self) -> Outcome:
        """The worst of all."""
        return Outcome.worst(verdict.outcome for verdict in self.verdicts)

    @property
    def headline(self) -> str:
        """How many of what came out how."""
        counts = {outcome: sum(verdict.outcome is outcome for verdict in self.verdicts) for outcome in Outcome}
        parts = (f"{count} {outcome.value}" for outcome, count in reversed(counts.items()) if count)
        return f"{self.outcome.value}: {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """The gate as its JSON file holds it."""
        model = self.model
        return {
            "schema_version": SCHEMA_VERSION,
            "outcome": self.outcome.value,
            "exit_code": self.outcome.exit_code,
            "report": {
                "path": str(self.report),
                "sha256": sha256_of(self.report) if model else None,
                "headline": model.report["headline"] if model else None,
                "model": model.card["sha256"] if model else None,
                "originals": model.report["originals"] if model else None,
            },
            "baseline": str(self.settings.baseline) if self.settings.baseline else None,
            "allowed_drop": self.settings.allowed_drop,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }


def gate(report: Path, settings: Settings) -> Gate:
    """Hold a report to the settings. What cannot be read is a verdict, not an error: nobody can tell then."""
    try:
        model = Model("report", report, load(report))
        return Gate(report, settings, model, list(_verdicts(model, settings)))
    except (ValueError, OSError) as error:
        advice = "Give the report.json of a run of this version."
        return Gate(report, settings, None, [Verdict("report", "report", Outcome.UNKNOWN, str(error), advice)])


def _verdicts(model: Model, settings: Settings) -> Iterator[Verdict]:
    yield from of_thresholds(model, settings.thresholds)
    if settings.baseline:
        try:
            baseline = Model(BASELINE, settings.baseline, load(settings.baseline))
        except (ValueError, OSError) as error:
            yield Verdict(BASELINE, BASELINE, Outcome.UNKNOWN, str(error), "Give the report.json of an earlier run.")
        else:
            yield from of_baseline(model, baseline, settings.allowed_drop)
            yield from of_checks(baseline, settings.accept_checks, BASELINE)
    yield from of_checks(model, settings.accept_checks)
