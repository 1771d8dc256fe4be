"""Distances between an image and what was made of it, and their summaries over a dataset."""

import math
from array import array
from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from evasion.components.common.data.pixels import Pixels

DISTANCES = ("l_1_norm", "l_2_norm", "l_infinity_norm", "cosine_similarity", "wasserstein_distance")


def between(before: Pixels, after: Pixels) -> dict[str, float]:
    """Return how far two 8-bit images are from each other, on the scale of pixels in [0, 1].

    Args:
        before: uint8, any shape.
        after: uint8, the same shape.

    Returns:
        The l_1, l_2 and l_infinity norms of the difference; the cosine similarity of the two (1 where both are
        black, 0 where one is); and the Wasserstein distance between their distributions of pixel values.
    """
    one, two = before.ravel(), after.ravel()
    # Sums of integers, which floats hold exactly.
    squares = cv2.norm(one, cv2.NORM_L2SQR), cv2.norm(two, cv2.NORM_L2SQR)
    difference = cv2.norm(one, two, cv2.NORM_L2SQR)
    product = (sum(squares) - difference) / 2  # of the two images, by the cosine rule
    cosine = product / math.sqrt(squares[0] * squares[1]) if all(squares) else float(squares[0] == squares[1])
    # Of two histograms over the same levels it is the area between their cumulated shares.
    levels = np.bincount(two, minlength=256) - np.bincount(one, minlength=256)
    return {
        "l_1_norm": cv2.norm(one, two, cv2.NORM_L1) / 255,
        "l_2_norm": math.sqrt(difference) / 255,
        "l_infinity_norm": cv2.norm(one, two, cv2.NORM_INF) / 255,
        "cosine_similarity": min(cosine, 1.0),
        "wasserstein_distance": float(np.abs(np.cumsum(levels)).sum()) / (255 * before.size),
    }


class Summary:
    """Collects the distances of each image, 8 bytes each, and describes them."""

    def __init__(self) -> None:
        self._values = {name: array("d") for name in DISTANCES}

    def add(self, row: Mapping[str, float | str]) -> None:
        """Take the distances among the columns of one image."""
        for name in DISTANCES:
            self._values[name].append(float(row[name]))

    def describe(self) -> dict[str, dict[str, float]]:
        """Return mean, median, stdev (of the population), iqr, min and max of each distance."""
        return {name: _describe(np.frombuffer(values)) for name, values in self._values.items() if len(values)}


def _describe(values: npt.NDArray[np.float64]) -> dict[str, float]:
    quarter, median, three_quarters = np.percentile(values, (25, 50, 75))
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "stdev": float(values.std()),
        "iqr": float(three_quarters - quarter),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def flat(described: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return nested summaries under names such as `l_2_norm_mean`, as MLflow and Kubeflow take them."""
    return {f"{name}_{what}": value for name, parts in described.items() for what, value in parts.items()}
