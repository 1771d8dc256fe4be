"""Distances between an image and its parent, and their summaries over a dataset."""

import math
from array import array
from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from evasion.components.common.data.pixels import Pixels

DISTANCES = ("l_1_norm", "l_2_norm", "l_infinity_norm", "cosine_similarity", "wasserstein_distance")

OF_ATTACK = "attack_"
"""Prefix of the columns that keep an attack's distances where a later stage measures its own."""


def between(before: Pixels, after: Pixels) -> dict[str, float]:
    """Return the distances between two 8-bit images, on the scale of pixels in [0, 1].

    Args:
        before: uint8, any shape.
        after: uint8, the same shape.

    Returns:
        The l_1, l_2 and l_infinity norms of the difference; the cosine similarity of the two images (1 if both are
        black, 0 if one is); and the Wasserstein distance between their distributions of pixel values.
    """
    a, b = before.ravel(), after.ravel()
    # Sums of integers, which floats represent exactly.
    squares = cv2.norm(a, cv2.NORM_L2SQR), cv2.norm(b, cv2.NORM_L2SQR)
    difference = cv2.norm(a, b, cv2.NORM_L2SQR)
    product = (sum(squares) - difference) / 2  # of the two images, by the cosine rule
    cosine = product / math.sqrt(squares[0] * squares[1]) if all(squares) else float(squares[0] == squares[1])
    # The Wasserstein distance of two histograms over the same levels is the area between their cumulative shares.
    levels = np.bincount(b, minlength=256) - np.bincount(a, minlength=256)
    return {
        "l_1_norm": cv2.norm(a, b, cv2.NORM_L1) / 255,
        "l_2_norm": math.sqrt(difference) / 255,
        "l_infinity_norm": cv2.norm(a, b, cv2.NORM_INF) / 255,
        "cosine_similarity": min(cosine, 1.0),
        "wasserstein_distance": float(np.abs(np.cumsum(levels)).sum()) / (255 * before.size),
    }


class Summary:
    """Collects the distances of all images, 8 bytes per value, and summarizes them."""

    def __init__(self) -> None:
        self._values = {name: array("d") for name in DISTANCES}

    def add(self, row: Mapping[str, float | str], prefix: str = "") -> None:
        """Add the distances in the row of one image, in columns whose names begin with `prefix`."""
        for name in DISTANCES:
            self._values[name].append(float(row[prefix + name]))

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
    """Return nested summaries flat, with names such as `l_2_norm_mean`, as MLflow and Kubeflow need them."""
    return {f"{name}_{statistic}": value for name, parts in described.items() for statistic, value in parts.items()}
