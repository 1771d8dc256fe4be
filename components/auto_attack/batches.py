"""Passes images through a target a batch at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Batches:
    """How many images pass at once.

    Attributes:
        size: The largest number.
        full: Whether every pass gets as many, filled up where there are fewer. Sums of floats are rounded in another
            order if a batch has another size; so the numbers of an image do not depend on which others still stand, but
            for the places at the end of a batch, which some CPUs' kernels treat apart.
    """

    size: int
    full: bool

    def apply(self, function: Callable[..., tuple[Any, ...]], *arrays: Any, padding: Any = None) -> tuple[Any, ...]:
        """Apply a function to arrays, a batch of rows at a time, and return its results for all rows.

        Args:
            function: Takes a batch of each array; returns arrays with as many rows.
            arrays: At least one row each.
            padding: What fills up the last batch; None for copies of its first row.
        """
        results = []
        for start in range(0, len(arrays[0]), self.size):
            parts = [array[start : start + self.size] for array in arrays]
            count = len(parts[0])
            if self.full and count < self.size:
                parts = [_filled(part, self.size, padding) for part in parts]
            results.append([result[:count] for result in function(*parts)])
        return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def _filled(part: Any, size: int, padding: Any) -> Any:
    rest = np.empty((size - len(part), *part.shape[1:]), part.dtype)
    rest[:] = part[0] if padding is None else padding
    return np.concatenate([part, rest])
