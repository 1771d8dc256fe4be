"""The HTML page: everything the template shows, gathered and rendered."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from evasion.components.common.drawing.plot import Line, Plot, plot
from evasion.components.common.results import table
from evasion.components.common.results.curve import Curve, Series
from evasion.components.common.results.evaluations import AWARE, NONE, OBLIVIOUS, Evaluations, Stage
from evasion.components.common.results.minimal import Distribution
from evasion.components.common.results.outcomes import probability
from evasion.components.report import confusion, gallery
from evasion.components.report.checks.check import Finding

DISTANCES = {
    "l_1_norm": "L1 norm",
    "l_2_norm": "L2 norm",
    "l_infinity_norm": "L∞ norm",
    "cosine_similarity": "cosine similarity",
    "wasserstein_distance": "Wasserstein distance",
}
CONTROLS = {
    "computed": "ATTACK, as computed",
    "saved": "ATTACK, as saved in 8 bits",
    "noise": "uniform noise of the same size",
    "pgd": "a few steps of PGD",
}
STATISTICS = ("mean", "median", "stdev", "iqr", "min", "max")


def environment(*folders: Path) -> Environment:
    """Return what renders the templates of these folders and of this one.

    Class names and settings come from data that others made: every text is escaped.
    """
    made = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        breakable=_breakable,
        interval=_interval,
        number=_number,
        percent=table.percent,
        points=table.points,
        probability=probability,
    )
    return made


def render(
    evaluations: Evaluations,
    rows: list[table.Row],
    findings: list[Finding],
    headline: tuple[str, str],
    curve: Curve | None,
    smallest: list[Distribution],
    pictures: list[gallery.Gallery],
) -> str:
    """Return the page; it needs no network and no script.

    Args:
        evaluations: What was measured.
        rows: The table.
        findings: The checks that were made.
        headline: The sentence about the attack and the one about the defenses.
        curve: The security curve, if there is one.
        smallest: How small an attack each image withstands, where that was looked for.
        pictures: The galleries.
    """
    worst = table.strongest(rows)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            headline=headline,
            model=evaluations.first.model,
            dataset=evaluations.first.dataset,
            root_sha256=evaluations.first.root_sha256,
            attacks=evaluations.attacks,
            knowledge=evaluations.knowledge,
            two=AWARE in evaluations.knowledge,
            draws=_draws(evaluations),
            blocks=[
                (attack, [row for row in rows if row.attack == attack]) for attack in evaluations.attacks or [NONE]
            ],
            worst=worst,
            best=table.best(rows, worst.attack) if worst else None,
            clean=table.accuracy(evaluations.clean),
            curve=curve,
            plot=_plot(curve) if curve else None,
            two_curves=curve is not None and any(series.knowledge == AWARE for series in curve.series),
            control_names=CONTROLS,
            smallest=smallest,
            findings=findings,
            failed=[finding for finding in findings if finding.status == "fail"],
            counts={status: sum(f.status == status for f in findings) for status in ("fail", "warn", "pass")},
            galleries=pictures,
            at_once=gallery.AT_ONCE,
            confusions=_confusions(evaluations),
            distances=[
                (title, evaluation.distances) for title, evaluation in evaluations.titles() if evaluation.distances
            ],
            distance_names=DISTANCES,
            statistics=STATISTICS,
            lineage=evaluations.titles(),
            stages=_stages(evaluations),
            versions=_versions(evaluations),
            untreated=NONE,
        )
    )


def _plot(curve: Curve) -> Plot:
    """The curve as a plot: a color a defense, the oblivious attacker dashed and hidden where there is the other."""
    defenses = list(dict.fromkeys(series.defense.label for series in curve.series if series.defense))
    aware = {series.defense.label for series in curve.series if series.defense and series.knowledge == AWARE}

    def line(series: Series) -> Line:
        label = series.defense.label if series.defense else ""
        color = None if series.control else defenses.index(label) + 1 if label else 0
        known = series.knowledge == OBLIVIOUS and label in aware
        return Line(series.name, series.points, color, dashed=series.knowledge == OBLIVIOUS, shown=not known)

    def order(series: Series) -> tuple[int, bool]:
        return (defenses.index(series.defense.label) if series.defense else -1, series.knowledge == OBLIVIOUS)

    lines = [line(series) for series in sorted(curve.series, key=order)]
    return plot("curve", lines, chance=curve.chance, floor=curve.floor, mark=curve.eps)


def _draws(evaluations: Evaluations) -> int | None:
    """How many draws the defense-aware attacks took the mean over, if they say."""
    told = {stage.parameters.get("eot_samples") for e in evaluations for stage in e.stages if stage.aim}
    return told.pop() if len(told) == 1 else None


def _breakable(text: str) -> Markup:
    """Let a long name break after an underscore, where a narrow column needs it."""
    return Markup("_<wbr>").join(escape(part) for part in text.split("_"))


def _interval(share: table.Share) -> str:
    """The interval in percent: 31.4–37.3 %."""
    return f"{share.low * 100:.1f}–{share.high * 100:.1f}\N{NO-BREAK SPACE}%"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _confusions(evaluations: Evaluations) -> list[tuple[list[confusion.Matrix], int]]:
    """Before and after, once for each attack."""
    before = [("before the attack", evaluations.clean)] if evaluations.clean else []
    found = []
    for attack in evaluations.attacks:
        after = evaluations.get(attack)
        if after:
            found.append(confusion.matrices([*before, (f"after {attack.label}", after)]))
    if not found and evaluations.clean:
        found.append(confusion.matrices([("clean", evaluations.clean)]))
    return found


def _stages(evaluations: Evaluations) -> list[tuple[Stage, str]]:
    """Every stage that made one of the datasets, once, with all its parameters as text."""
    found: dict[str, tuple[Stage, str]] = {}
    for _, evaluation in evaluations.titles():
        for stage in evaluation.stages:
            words = [
                f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                for name, value in stage.parameters.items()
            ]
            aim = stage.aim.label if stage.aim else ""
            key = json.dumps([stage.identity, stage.seed, stage.parent_sha256, aim])
            found[key] = (stage, "\n".join(words))
    return list(found.values())


def _versions(evaluations: Evaluations) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each package with its versions; where they differ, with the stages that used each."""
    users: dict[str, dict[str, set[str]]] = {}
    for evaluation in evaluations:
        used = [(stage.name, stage.versions) for stage in evaluation.stages] + [("infer", evaluation.versions)]
        for stage, versions in used:
            for package, version in versions.items():
                users.setdefault(package, {}).setdefault(version, set()).add(stage)
    return [
        (package, [(version, ", ".join(sorted(by)) if len(found) > 1 else "") for version, by in sorted(found.items())])
        for package, found in sorted(users.items())
    ]
