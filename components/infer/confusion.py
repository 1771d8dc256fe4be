"""The confusion matrix that the dashboard shows."""

from collections.abc import Iterable

MOST_CLASSES = 30
"""More classes than this are not shown: those with the most errors are."""


def readable(
    confusion: Iterable[tuple[int, int, int]], class_names: tuple[str, ...], most: int = MOST_CLASSES
) -> tuple[list[str], list[list[int]]]:
    """Return the names of rows and columns, and the counts.

    Args:
        confusion: (true class, predicted class, number of images) of each pair that occurred.
        class_names: All of them.
        most: How many classes to show; of more, those with the most errors, and "other" for the rest.
    """
    confusion = list(confusion)
    errors = [0] * len(class_names)
    for true, predicted, count in confusion:
        if true != predicted:
            errors[true] += count
            errors[predicted] += count
    shown = sorted(sorted(range(len(class_names)), key=lambda index: -errors[index])[:most])
    places = {index: place for place, index in enumerate(shown)}
    categories = [class_names[index] for index in shown]
    if len(class_names) > most:
        categories.append("other")
    matrix = [[0] * len(categories) for _ in categories]
    for true, predicted, count in confusion:
        matrix[places.get(true, len(places))][places.get(predicted, len(places))] += count
    return categories, matrix
