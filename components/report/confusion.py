"""Confusion matrices before and after an attack, of as many classes as a person can read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from evasion.components.common.results.evaluation import Evaluation

READABLE = 20
"""More classes than this are not shown: the most confused ones are."""
OTHERS = -1


@dataclass(frozen=True)
class Cell:
    """How many images of a true class were taken for a predicted class."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Matrix:
    """One confusion matrix; each row is a true class, each column a predicted one."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell], int]]


def comparable_matrices(titled: list[tuple[str, Evaluation]]) -> tuple[list[Matrix], int]:
    """Make comparable matrices: the same classes in each.

    Args:
        titled: Evaluations of one model with their titles; the last one decides which classes matter.

    Returns:
        A matrix for each evaluation, and of how many classes these were chosen (0 if none was left out).
    """
    occurring = sorted({index for _, e in titled for true, predicted, _ in e.confusion for index in (true, predicted)})
    chosen = occurring if len(occurring) <= READABLE else _most_confused(titled[-1][1])
    left_out = len(occurring) > READABLE
    matrices = [_matrix(title, evaluation, chosen, left_out) for title, evaluation in titled]
    return matrices, len(occurring) if left_out else 0


def _most_confused(evaluation: Evaluation) -> list[int]:
    errors: Counter[int] = Counter()
    for true, predicted, count in evaluation.confusion:
        if true != predicted:
            errors[true] += count
            errors[predicted] += count
    if not errors:
        errors.update({true: count for true, _, count in evaluation.confusion})
    # Ties by index, so that the same numbers always make the same page.
    return sorted(sorted(errors, key=lambda index: (-errors[index], index))[:READABLE])


def _matrix(title: str, evaluation: Evaluation, chosen: list[int], left_out: bool) -> Matrix:
    places = set(chosen)
    counts: Counter[tuple[int, int]] = Counter()
    for true, predicted, count in evaluation.confusion:
        counts[true, predicted if predicted in places else OTHERS] += count
    columns = [*chosen, OTHERS] if left_out else chosen
    rows = []
    for true in chosen:
        total = sum(counts[true, predicted] for predicted in columns)
        cells = [
            Cell(counts[true, predicted], counts[true, predicted] / total if total else 0.0, true == predicted)
            for predicted in columns
        ]
        rows.append((_name(evaluation, true), cells, total))
    return Matrix(title, [_name(evaluation, index) for index in columns], rows)


def _name(evaluation: Evaluation, index: int) -> str:
    names = evaluation.model.class_names
    if index == OTHERS:
        return "other"
    return str(names[index]) if index < len(names) else str(index)
