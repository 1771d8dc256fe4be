"""Progress of a long stage, a line at a time: pods have logs, not terminals."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
INTERVAL = 0.5  # seconds between two lines


class Meter:
    """Counts what is done and prints lines that `evasion run` turns into a progress bar.

    Args:
        total: How many there are to do.
        what: Their name, in the plural.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done, self._last = total, what, 0, time.monotonic()

    def advance(self) -> None:
        """Count one; print at most twice a second, and when all are done."""
        self._done += 1
        now = time.monotonic()
        if now - self._last >= INTERVAL or self._done == self._total:
            print(f"progress: {self._done}/{self._total} {self._what}", file=sys.stderr, flush=True)
            self._last = now


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield `items`, reporting how many have been taken."""
    meter = Meter(total, what)
    for item in items:
        yield item
        meter.advance()
