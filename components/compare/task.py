"""Compare models by their reports: a page for people and a file for machines."""

from __future__ import annotations

from pathlib import Path

from evasion.components.common.validate import ParameterError


def check(*, names: str, **_: object) -> None:
    """Refuse parameters that cannot work, before anything starts.

    Raises:
        ValueError: If `names` has a blank between its commas.
    """
    if names.strip() and not all(split(names)):
        raise ParameterError(
            f"names must be names with commas between, none of them blank. Received: names={names!r}", "names"
        )


def split(names: str) -> list[str]:
    """Return the names between the commas; none of a blank text."""
    return [name.strip() for name in names.split(",")] if names.strip() else []


def compare(*, reports: list[Path], html: Path, summary: Path, names: str) -> dict[str, float]:
    """Compare models on the same original images.

    Args:
        reports: The `report.json` of each model.
        html: Where to write the page, self-contained.
        summary: Where to write the same numbers as JSON.
        names: What to call the models, with commas between, or blank.

    Returns:
        Flat finite metrics: clean_accuracy_<model> and robust_accuracy_<model>, under all attacks of its report,
        without a defense; robust_accuracy_<model>_defended with the best defense, where one helps.

    Raises:
        ValueError: If there are fewer than two reports, one is damaged, or they are of different original images.
    """
    check(names=names)

    from evasion.components.common import tracking
    from evasion.components.common.files import sha256_of
    from evasion.components.compare import comparison

    with tracking.stage("compare", {"names": names}) as run:
        metrics = comparison.write(reports, split(names), html, summary).metrics
        run.tag({"parent_report": ",".join(map(sha256_of, reports))})
        for holder in (run, run.whole):
            if holder:
                holder.log_metrics(metrics)
                holder.log_file(html, "compare/compare.html")
                holder.log_file(summary, "compare/compare.json")
    return metrics
