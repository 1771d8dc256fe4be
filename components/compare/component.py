"""The step `compare`."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from evasion.components.step import step


@step
def compare(
    html: Output[HTML],
    summary: Output[Artifact],
    metrics: Output[Metrics],
    report_1: Input[Artifact] = None,
    report_2: Input[Artifact] = None,
    report_3: Input[Artifact] = None,
    report_4: Input[Artifact] = None,
    report_5: Input[Artifact] = None,
    report_6: Input[Artifact] = None,
    report_7: Input[Artifact] = None,
    report_8: Input[Artifact] = None,
    names: str = "",
) -> None:
    """Draw the reports of several models, evaluated on the same original images, as one page and one JSON file.

    Args:
        html: The comparison, one file that needs no network.
        summary: The same numbers as JSON.
        metrics: The main numbers of each model.
        report_1: A `summary` of `report`, or nothing.
        report_2: A `summary` of `report`, or nothing.
        report_3: A `summary` of `report`, or nothing.
        report_4: A `summary` of `report`, or nothing.
        report_5: A `summary` of `report`, or nothing.
        report_6: A `summary` of `report`, or nothing.
        report_7: A `summary` of `report`, or nothing.
        report_8: A `summary` of `report`, or nothing.
        names: What to call the models, in the order of the reports, with commas between; blank for their own names.
    """
    from pathlib import Path

    from evasion.components.compare import task

    given = [report_1, report_2, report_3, report_4, report_5, report_6, report_7, report_8]
    metrics.metadata.update(
        task.compare(
            reports=[Path(report.path) for report in given if report],
            html=Path(html.path),
            summary=Path(summary.path),
            names=names,
        )
    )
