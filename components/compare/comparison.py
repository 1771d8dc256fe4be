"""Models side by side: one table, one plot, and paired tests on the same images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from evasion.components.common.drawing.html import environment
from evasion.components.common.drawing.plot import Line, Plot, plot
from evasion.components.common.drawing.words import listed, percent
from evasion.components.common.files import replacing
from evasion.components.common.results.curve import Curve
from evasion.components.common.results.paired import SIGNIFICANCE, Correctness, Paired, holm
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Row, of_size
from evasion.components.common.results.treatments import WORST_CASE, Treatment
from evasion.components.compare.models import Model, read_models

SCHEMA_VERSION = 2
CLEAN = "clean images"


@dataclass(frozen=True)
class Entry:
    """One model under one attack, or under none."""

    model: Model
    undefended: Row | None
    best: Row | None

    def to_json(self) -> dict[str, Any]:
        """The entry as `compare.json` holds it."""
        best = self.best
        return {
            "model": self.model.name,
            "clean_accuracy": _json(self.model.report.clean),
            "robust_accuracy": _json(self.undefended.robust_accuracy if self.undefended else None),
            "attack_success_rate": _json(self.undefended.attack_success_rate if self.undefended else None),
            "best_defense": {
                "defense": best.defense.label,
                "attackers": list(best.attackers),
                "clean_accuracy": _json(best.clean_accuracy),
                "robust_accuracy": _json(best.robust_accuracy),
            }
            if best
            else None,
        }


@dataclass(frozen=True)
class Pair:
    """Two models on the same images, without a defense.

    Attributes:
        images: Clean or attacked, and how.
        one: A model.
        other: Another one.
        paired: `lost` counts images that only `one` got right, `gained` those that only `other` did.
        p: McNemar's, adjusted for the number of pairs (Holm).
    """

    images: str
    one: str
    other: str
    paired: Paired
    p: float

    @property
    def may_be_chance(self) -> bool:
        """Whether chance explains the difference."""
        return self.p >= SIGNIFICANCE

    @property
    def better(self) -> str | None:
        """The model that is right more often, by more than chance."""
        if self.may_be_chance:
            return None
        return self.other if self.paired.gained > self.paired.lost else self.one

    def to_json(self) -> dict[str, Any]:
        """The pair as `compare.json` holds it."""
        return {
            "images": self.images,
            "one": self.one,
            "other": self.other,
            "only_one_right": self.paired.lost,
            "only_other_right": self.paired.gained,
            "p": self.paired.p,
            "p_adjusted": self.p,
            "may_be_chance": self.may_be_chance,
        }


@dataclass(frozen=True)
class Comparison:
    """All that is drawn."""

    models: list[Model]
    blocks: list[tuple[str, list[Entry]]]
    pairs: list[Pair]
    plots: list[tuple[str, Plot]]
    notes: list[str]

    @property
    def headline(self) -> tuple[str, str]:
        """Which model withstands most, and whether its lead is more than chance."""
        common = [
            (attack, shares)
            for attack, entries in self.blocks
            if len(shares := [(e.model.name, share) for e in entries if (share := _robust(e))]) == len(self.models)
        ]
        if not common:
            clean = [(model.name, model.report.clean) for model in self.models if model.report.clean]
            ranking = (
                _ranked("Without attack", "is right", clean) if len(clean) > 1 else "The models have nothing in common."
            )
            return ranking, "No attack was run on all of them."
        attack, shares = min(common, key=lambda each: sum(share.value for _, share in each[1]))
        rows = (entry.undefended for _, entries in self.blocks for entry in entries if entry.undefended)
        single_step = any(row.single_step for row in rows if row.attack.label == attack)
        the = "the " if attack.startswith(WORST_CASE) else ""
        first = _ranked(f"Under {the}{attack}{', a single step' if single_step else ''}", "stays right", shares)
        ordered = sorted(shares, key=lambda each: -each[1].value)
        leading, second = ordered[0][0], ordered[1][0]
        pair = next((p for p in self.pairs if p.images == attack and {p.one, p.other} == {leading, second}), None)
        if pair is None:
            return first, ""
        chance = "may be chance" if pair.may_be_chance else "is more than chance explains"
        return first, f"The lead of {leading} over {second} {chance} (McNemar's test on the same images)."

    def to_json(self) -> dict[str, Any]:
        """The comparison as `compare.json` holds it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "headline": " ".join(self.headline).strip(),
            "originals": asdict(self.models[0].report.originals),
            "models": [
                {
                    "name": model.name,
                    "architecture": model.report.model.architecture,
                    "sha256": model.report.model.sha256,
                    "weights": model.report.model.weights,
                    "registered": model.report.model.name or None,
                    "version": model.report.model.version or None,
                    "checks_failed": _failed(model),
                    "report": model.report.headline,
                }
                for model in self.models
            ],
            "attacks": [
                {"attack": attack or None, "models": [entry.to_json() for entry in entries]}
                for attack, entries in self.blocks
            ],
            "pairs": [pair.to_json() for pair in self.pairs],
            "curves": [
                {
                    "title": title,
                    "chance": drawn.chance[1],
                    "lines": [
                        {
                            "name": each.line.name,
                            "points": [{"eps": eps, **asdict(share)} for eps, share in each.line.points],
                        }
                        for each in drawn.lines
                    ],
                }
                for title, drawn in self.plots
            ],
            "notes": self.notes,
            "metrics": self.metrics,
        }

    @property
    def metrics(self) -> dict[str, float]:
        """The main numbers, flat."""
        metrics: dict[str, float] = {}
        for model in self.models:
            name = re.sub(r"[^A-Za-z0-9.-]+", "_", model.name).strip("_")
            if model.report.clean:
                metrics[f"clean_accuracy_{name}"] = model.report.clean.value
            # The first attack of a report is all of them together.
            for attack in model.attack_labels[:1]:
                worst, best = model.report.undefended(attack), model.report.best(attack)
                if worst:
                    metrics[f"robust_accuracy_{name}"] = _value(worst.robust_accuracy)
                if best:
                    metrics[f"robust_accuracy_{name}_defended"] = _value(best.robust_accuracy)
        return metrics


def write(reports: list[Path], names: list[str], html: Path, summary: Path) -> Comparison:
    """Compare reports, and write the page and the JSON file.

    Args:
        reports: The report.json of each model.
        names: What to call them, in this order, or nothing.
        html: Where the page goes.
        summary: Where the JSON goes.

    Raises:
        ValueError: If a report cannot be read, or they do not compare.
    """
    comparison = compare(read_models(reports, names))
    content = json.dumps(comparison.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    text = (
        environment(Path(__file__).parent)
        .get_template("compare.html.j2")
        .render(
            comparison=comparison,
            headline=comparison.headline,
            failed={model.name: _failed(model) for model in comparison.models},
        )
    )
    with replacing(html) as page_file, replacing(summary) as summary_file:
        page_file.write_text(text, encoding="utf-8")
        summary_file.write_text(content, encoding="utf-8")
    return comparison


def compare(models: list[Model]) -> Comparison:
    """Put models side by side: attacks with other settings are other attacks."""
    differing = _differing(models)
    attacks = list(
        dict.fromkeys(attack for model in models for attack in model.attack_labels if attack not in differing)
    )
    blocks = [
        (attack, [Entry(model, model.report.undefended(attack), model.report.best(attack)) for model in models])
        for attack in attacks or [""]
    ]
    return Comparison(
        models, blocks, list(_pairs(models, attacks)), list(_plots(models)), list(_notes(models, attacks, differing))
    )


def _differing(models: list[Model]) -> list[str]:
    """Return the labels that stand for other attacks together in another report."""
    members: dict[str, set[tuple[str, ...]]] = {}
    for model in models:
        for attack in model.report.attacks:
            if attack.is_worst_case:
                members.setdefault(attack.label, set()).add(tuple(step.label for step in attack.steps))
    return [label for label, sets in members.items() if len(sets) > 1]


def _pairs(models: list[Model], attacks: list[str]) -> Iterator[Pair]:
    """McNemar's test of each pair on clean images and under each attack; one family of tests each."""
    for attack in (None, *attacks):
        correct = [
            (model.name, correctness) for model in models if (correctness := _outcomes(model, attack)) is not None
        ]
        pairs = [(one, other, Paired.between(a, b)) for (one, a), (other, b) in combinations(correct, 2)]
        adjusted = holm([paired.p for _, _, paired in pairs])
        for (one, other, paired), p in zip(pairs, adjusted, strict=True):
            yield Pair(attack or CLEAN, one, other, paired, p)


def _outcomes(model: Model, attack: str | None) -> Correctness | None:
    """Return which images are robust under an attack, or right without one."""
    return model.report.robust(attack) if attack else model.report.correctness.get((None, None, None))


def _plots(models: list[Model]) -> Iterator[tuple[str, Plot]]:
    """Yield one plot for the security curves of the same attacks and norm."""
    drawn = [(place, model, model.report.curve) for place, model in enumerate(models) if model.report.curve]
    for title in dict.fromkeys(_title(curve) for _, _, curve in drawn):
        alike = [each for each in drawn if _title(each[2]) == title]
        lines = [line for place, model, curve in alike for line in _lines(place, model, curve)]
        marks = {curve.eps for _, _, curve in alike}
        yield (
            title,
            plot(
                re.sub(r"\W+", "-", title.replace("norm=", "")),
                lines,
                chance=max(curve.chance for _, _, curve in alike),
                floor=alike[0][2].floor,
                mark=marks.pop() if len(marks) == 1 else None,
            ),
        )


def _title(curve: Curve) -> str:
    """Return what the lines of a plot are: the worst case of which attacks, in which norm."""
    return f"{curve.worst_case} norm={curve.norm}"


def _lines(place: int, model: Model, curve: Curve) -> Iterator[Line]:
    """Yield the worst case of the model without a defense, and with the one that helps most in the table.

    A ring shows what the table says at its size.
    """
    rings = of_size(model.report.table, curve.norm, curve.eps)
    attacks = [attack for attack in model.report.attacks[:1] if _is_of_norm(attack, curve.norm)]
    best = next((row for attack in attacks if (row := model.report.best(attack.label))), None)
    for series in curve.series:
        points = [(point.eps, point.accuracy) for point in series.points]
        if series is curve.undefended:
            yield Line(model.name, points, place, ring=rings.get(None))
        elif best and series.worst_case and series.defense and series.defense.label == best.defense.label:
            ring = rings.get(best.defense.label)
            yield Line(f"{model.name} + {best.defense.label}", points, place, dashed=True, ring=ring)


def _is_of_norm(attack: Treatment, norm: str) -> bool:
    """Return whether all steps of an attack are of this norm."""
    return all(step.settings.get("norm") == norm for step in attack.steps)


def _notes(models: list[Model], attacks: list[str], differing: list[str]) -> Iterator[str]:
    """What the reader must know before comparing."""
    for label in differing:
        yield f"{label}: not compared, for the reports' attacks differ in further settings."
    for attack in attacks:
        if attack.startswith(WORST_CASE):
            continue
        if missing := [model.name for model in models if attack not in model.attack_labels]:
            yield f"{listed(missing)}: not attacked with {attack}."
    sizes = {model.name: model.report.model.input_shape for model in models}
    if len(set(sizes.values())) > 1:
        each = listed([f"{name} {'×'.join(map(str, shape))}" for name, shape in sizes.items()])
        yield (
            f"The models see the same images in other sizes ({each}): their pixels differ, and an eps in norm 1 or 2 "
            "is another size of attack for each."
        )
    weaker: dict[str, list[str]] = {}
    for model in models:
        if model.report.attacker and model.report.attacker.advice:
            weaker.setdefault(f"{model.report.attacker.effort} {model.report.attacker.advice}", []).append(model.name)
    for text, names in weaker.items():
        yield text if len(names) == len(models) else f"{listed(names)}: {text}"
    if without := [model.name for model in models if model.report.curve is None]:
        yield f"{listed(without)}: the report holds no security curve."
    for model in models:
        if failed := _failed(model):
            yield f"{model.name}: do not trust its numbers yet, for checks failed: {', '.join(failed)}."


def _failed(model: Model) -> list[str]:
    return [check.name for check in model.report.failed]


def _ranked(under: str, verb: str, shares: list[tuple[str, Share]]) -> str:
    ordered = sorted(shares, key=lambda each: -each[1].value)
    rest = listed([f"{name} on {percent(share.value)}" for name, share in ordered[1:]])
    return f"{under}, {ordered[0][0]} {verb} on {percent(ordered[0][1].value)} of the images, {rest}."


def _robust(entry: Entry) -> Share | None:
    return entry.undefended.robust_accuracy if entry.undefended else None


def _value(share: Share | None) -> float:
    return share.value if share else 1.0


def _json(share: Share | None) -> dict[str, float] | None:
    return asdict(share) if share else None
