"""The HTML page: everything the template shows, gathered and rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from evasion.components.common.data.provenance import AWARE, OBLIVIOUS
from evasion.components.common.drawing.html import environment
from evasion.components.common.drawing.plot import Line, Plot, plot
from evasion.components.common.results.check import Check
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.curve import (
    CLEAN,
    COMPUTED,
    NOISE,
    PGD,
    SAVED,
    Control,
    Curve,
    Series,
    of_defense,
)
from evasion.components.common.results.minimal import Distribution
from evasion.components.common.results.report import AttackerNote
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Row, accuracy, best, of_size, undefended
from evasion.components.common.results.treatments import NONE, ProvenanceEntry, Treatment
from evasion.components.report import confusion, gallery

DISTANCES = {
    "l_1_norm": "L1 norm",
    "l_2_norm": "L2 norm",
    "l_infinity_norm": "L∞ norm",
    "cosine_similarity": "cosine similarity",
    "wasserstein_distance": "Wasserstein distance",
}
CONTROLS = {
    CLEAN: "no attack",
    COMPUTED: "ATTACK, as computed",
    SAVED: "ATTACK, as saved in 8 bits",
    NOISE: "uniform noise of the same size",
    PGD: "PGD",
}
STATISTICS = ("mean", "median", "stdev", "iqr", "min", "max")


def render(
    evaluations: Evaluations,
    rows: list[Row],
    checks: list[Check],
    headline: tuple[str, str],
    attacker: AttackerNote | None,
    curve: Curve | None,
    smallest: list[Distribution],
    pictures: list[gallery.Gallery],
) -> str:
    """Return the page; it needs no network and no script.

    Args:
        evaluations: What was measured.
        rows: The table.
        checks: The checks that were made.
        headline: The sentence about the attack and the one about the defenses.
        attacker: What the attackers knew and did; None without an attack.
        curve: The security curve, if there is one.
        smallest: How small an attack each image withstands, where that was looked for.
        pictures: The galleries.
    """
    worst = undefended(rows)
    rings = of_size(rows, curve.norm, curve.eps) if curve else {}
    return (
        environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            headline=headline,
            attacker=attacker,
            model=evaluations.first.model,
            dataset=evaluations.first.dataset,
            root_sha256=evaluations.first.root_sha256,
            attacks=evaluations.attacks,
            knowledge=evaluations.knowledge,
            two=AWARE in evaluations.knowledge,
            draws=_draws(evaluations),
            blocks=_blocks(rows),
            worst=worst,
            best=best(rows, worst.attack) if worst else None,
            clean=accuracy(evaluations.clean),
            curve=curve,
            plot=_plot(curve, rings) if curve and curve.series else None,
            plot_hint=_hint(curve, rows[0] if rings else None) if curve else "",
            controls=_controls(curve) if curve else [],
            defended=[defense for defense in curve.defenses if defense] if curve else [],
            smallest=smallest,
            checks=checks,
            failed=[check for check in checks if check.status == "fail"],
            counts={status: sum(check.status == status for check in checks) for status in ("fail", "warn", "pass")},
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


def _blocks(rows: list[Row]) -> list[tuple[Treatment, list[Row]]]:
    """Return the rows of each attack; without one, all rows."""
    attacks = dict.fromkeys(row.attack for row in rows)
    return [(attack, [row for row in rows if row.attack == attack]) for attack in attacks]


def _plot(curve: Curve, rings: Mapping[str | None, Share]) -> Plot:
    """The curve as a plot: a color a defense; the worst case of each is shown, thin lines show what it is made of.

    A ring shows what the table's attacks leave at the size of both, by the label of the defense. At first FGM on the
    model alone and noise are shown beside the worst cases. Noise before a defense is in the summary only.
    """
    defenses = list(dict.fromkeys(series.defense.label for series in curve.series if series.defense))

    def color(series: Series) -> int:
        return defenses.index(series.defense.label) + 1 if series.defense else 0

    def line(series: Series) -> Line:
        points = [(point.eps, point.accuracy) for point in series.points]
        return Line(
            curve.name_of(series),
            points,
            None if series.control else color(series),
            dashed=series.knowledge == OBLIVIOUS,
            shown=series.worst_case or (series.defense is None and series.perturbation != PGD),
            thin=not (series.worst_case or series.control),
            ring=rings.get(series.defense.label if series.defense else None) if series.worst_case else None,
        )

    drawn = [series for series in curve.series if not (series.control and series.defense)]
    ordered = sorted(drawn, key=lambda series: (not series.worst_case, color(series)))
    return plot("curve", [line(each) for each in ordered], chance=curve.chance, floor=curve.floor, mark=curve.eps)


def _hint(curve: Curve, judged: Row | None) -> str:
    """Say what the lines show, and what the rings do, which are of the attacks of a row of the table."""
    hint = (
        f"Bold: the {curve.worst_case}, over the attackers. Thin: the attacks it is made of, dashed where the attacker "
        "does not know the defense."
    )
    if judged is None:
        return hint
    attack = f"the {judged.attack.name}" if judged.attack.is_worst_case else f"under {judged.attack.name}"
    counts = ", a single step" if judged.single_step else "; there the table counts"
    return f"{hint} Rings: the table at eps {curve.eps:.4g}, {attack}{counts}."


def _controls(curve: Curve) -> list[tuple[str, str, list[Control | None]]]:
    """Return each control: in words, its settings, and what it leaves of the model alone and with each defense."""
    return [
        (
            text.replace("ATTACK", curve.attack),
            " ".join(f"{key}={value:.4g}" for key, value in curve.controls[name].settings.items()),
            [curve.controls.get(of_defense(name, each.name if each else None)) for each in curve.defenses],
        )
        for name, text in CONTROLS.items()
        if name in curve.controls
    ]


def _draws(evaluations: Evaluations) -> int | None:
    """How many draws the defense-aware attacks took the mean over, if they say."""
    draws = {entry.parameters.get("eot_samples") for e in evaluations for entry in e.attacks if entry.defense}
    return draws.pop() if len(draws) == 1 else None


def _confusions(evaluations: Evaluations) -> list[tuple[list[confusion.Matrix], int]]:
    """Before and after, once for each attack."""
    before = [("before the attack", evaluations.clean)] if evaluations.clean else []
    blocks = []
    for attack in evaluations.attacks:
        after = evaluations.get(attack)
        if after:
            blocks.append(confusion.comparable_matrices([*before, (f"after {attack.label}", after)]))
    if not blocks and evaluations.clean:
        blocks.append(confusion.comparable_matrices([("clean", evaluations.clean)]))
    return blocks


def _stages(evaluations: Evaluations) -> list[tuple[ProvenanceEntry, str]]:
    """Return every stage that made one of the datasets, once, with all its parameters as text."""
    stages: dict[str, tuple[ProvenanceEntry, str]] = {}
    for _, evaluation in evaluations.titles():
        for entry in evaluation.dataset.provenance:
            words = [
                f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                for name, value in entry.parameters.items()
            ]
            aim = entry.defense.label if entry.defense else ""
            key = json.dumps([entry.identity, entry.seed, entry.parent_sha256, aim])
            stages[key] = (entry, "\n".join(words))
    return list(stages.values())


def _versions(evaluations: Evaluations) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each package with its versions; where they differ, with the stages that used each."""
    users: dict[str, dict[str, set[str]]] = {}
    for evaluation in evaluations:
        used = [(entry.stage, entry.versions) for entry in evaluation.dataset.provenance]
        for stage, versions in [*used, ("infer", evaluation.versions)]:
            for package, version in versions.items():
                users.setdefault(package, {}).setdefault(version, set()).add(stage)
    return [
        (package, [(version, ", ".join(sorted(by)) if len(users[package]) > 1 else "") for version, by in stages])
        for package, stages in ((package, sorted(users[package].items())) for package in sorted(users))
    ]
