"""Reports the progress of a long stage in lines, since pods have logs instead of terminals."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
INTERVAL = 0.5  # seconds between two lines


class Meter:
    """Counts items and prints lines, which `evasion run` shows as a progress bar.

    Args:
        total: Number of items.
        unit: Their name, in the plural.
    """

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done, self._last = total, unit, 0, time.monotonic()

    def advance(self) -> None:
        """Count an item. Print at most twice a second, and when all items are done."""
        self._done += 1
        now = time.monotonic()
        if now - self._last >= INTERVAL or self._done == self._total:
            print(f"progress: {self._done}/{self._total} {self._unit}", file=sys.stderr, flush=True)
            self._last = now


def track(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """Yield `items` and report how many have been processed."""
    meter = Meter(total, unit)
    for item in items:
        yield item
        meter.advance()
