"""A report beside an earlier one of the same images: is a drop more than noise?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evasion.components.common.data.provenance import KNOWLEDGE
from evasion.components.common.drawing.words import percent, points, probability
from evasion.components.common.results.paired import SIGNIFICANCE, Correctness, Difference, Paired, holm, under_each
from evasion.components.common.results.report import Cell, Report
from evasion.components.common.results.table import judged_together
from evasion.components.common.results.treatments import NONE
from evasion.pipelines.gate.verdict import Judgement, Verdict

BASELINE = "baseline"


@dataclass(frozen=True)
class _Compared:
    """What is compared: one attack by one attacker, or several that an image must withstand, or clean images.

    Attributes:
        name: What people know it by.
        cells: The evaluations that it rests on, all with the same defense.
    """

    name: str
    cells: tuple[Cell, ...]

    def outcomes(self, *reports: Report) -> list[Correctness]:
        """Return of each report which images count, in all of them by the same rule.

        An image must be right under every attack and, with the same defense, without one; where a report lacks the
        latter, it is asked of none.
        """
        without_attack = (None, self.cells[0][1], None)
        known = all(without_attack in report.correctness for report in reports)
        counted = (*self.cells, without_attack) if known else self.cells
        return [under_each(*(report.correctness[cell] for cell in counted)) for report in reports]


def compare_with_baseline(report: Report, baseline: Report, allowed_drop: float) -> Iterator[Verdict]:
    """Test each row of the baseline against the report's, image by image: which are right clean, which are robust.

    The worst cases, which an image withstands if it withstands every attack and attacker of the baseline, come first as
    in the table: a drop that is noise under each may be more under all of them.

    Args:
        report: The report.
        baseline: The earlier one.
        allowed_drop: A drop that is surely no larger passes, even if it is more than noise.
    """
    if report.originals.sha256 != baseline.originals.sha256:
        finding = (
            f"it is of {baseline.originals.images:,} other images than the report's {report.originals.images:,} "
            "(file names and labels)"
        )
        yield Verdict(BASELINE, BASELINE, Judgement.UNKNOWN, finding, "Evaluate both models on the same data.")
        return
    if not baseline.correctness:
        finding = "it does not say of each image whether it was right"
        yield Verdict(BASELINE, BASELINE, Judgement.UNKNOWN, finding, "Take another baseline.")
        return
    compared = [*_worst_cases(baseline), *(_Compared(_name(each.cell), (each.cell,)) for each in baseline.evaluations)]
    missing = {each.name: verdict for each in compared if (verdict := _missing(each, report, baseline))}
    common = [each for each in compared if each.name not in missing]
    outcomes = [each.outcomes(baseline, report) for each in common]
    paired = [Paired.between(before, after) for before, after in outcomes]
    adjusted = holm([pair.p for pair in paired])
    for each, (before, after), pair, p in zip(common, outcomes, paired, adjusted, strict=True):
        yield _verdict(each.name, pair, p, float((before == 1).mean()), Difference.between(before, after), allowed_drop)
    yield from missing.values()


def _worst_cases(baseline: Report) -> Iterator[_Compared]:
    """Yield the rows of all attacks and attackers together; what rests on one evaluation is compared as such."""
    for row in judged_together(baseline.table):
        defense = None if row.defense == NONE else row.defense.label
        cells = [each.cell for each in baseline.evaluations if each.attack and each.defense == defense]
        if len(cells) > 1:
            attackers = [name for name in KNOWLEDGE if any(attacker == name for _, _, attacker in cells)]
            yield _Compared(_name((row.attack.label, defense, " and ".join(attackers))), tuple(cells))


def _missing(compared: _Compared, report: Report, baseline: Report) -> Verdict | None:
    """Say why something cannot be compared; None where it can."""
    if not all(cell in baseline.correctness for cell in compared.cells):
        finding = "the baseline does not say of each image whether it was right"
        advice = "Take a baseline that has each image once."
    elif not {each.cell for each in report.evaluations}.issuperset(compared.cells):
        finding = "the baseline has it, the report does not"
        advice = "Evaluate the same attacks and defenses with the same settings, or renew the baseline."
    elif not all(cell in report.correctness for cell in compared.cells):
        finding = "the report does not say of each image whether it was right"
        advice = "Evaluate each image once."
    else:
        return None
    return Verdict(BASELINE, compared.name, Judgement.UNKNOWN, finding, advice)


def _verdict(name: str, pair: Paired, p: float, before: float, difference: Difference, allowed_drop: float) -> Verdict:
    judgement, drop = Judgement.PASS, difference.reversed
    change = (
        f"{percent(before)} → {percent(before + difference.value)}, {points(difference.value)} points "
        f"[{points(difference.low)}, {points(difference.high)}]"
    )
    if p >= SIGNIFICANCE:
        result = "no more than noise"
    elif difference.value > 0:
        result = "a rise beyond noise"
    elif drop.high <= allowed_drop:
        result = f"a drop beyond noise, surely within the {100 * allowed_drop:.3g} points allowed"
    else:
        judgement, result = Judgement.FAIL, "a drop beyond noise"
    numbers = {
        "before": before,
        "after": before + difference.value,
        "change": difference.value,
        "low": difference.low,
        "high": difference.high,
        "n": difference.n,
        "only_before_right": pair.lost,
        "only_after_right": pair.gained,
        "p": pair.p,
        "p_adjusted": p,
    }
    return Verdict(BASELINE, name, judgement, f"{result}: {change}, {probability(p)}", numbers=numbers)


def _name(cell: Cell) -> str:
    attack, defense, attacker = cell
    with_defense = f" + {defense}" if defense else ""
    return f"{attack or 'clean images'}{with_defense}{f' ({attacker})' if attacker else ''}"
