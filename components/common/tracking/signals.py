"""Signals that wait until a run in MLflow is opened or ended."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let a signal that ends a process wait until the end of this block, which must be short; a second one does not.

    Between the creation of a run and the moment at which its id is known, an interrupt would leave it open for ever.
    Only the main thread receives signals; in another one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before: dict[int, Any] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1 and callable(before[number]):
            before[number](number, frame)

    for held in HELD:
        handler = signal.getsignal(held)
        if handler is not None and handler is not signal.SIG_IGN:  # None: not installed from Python
            before[held] = handler
            signal.signal(held, hold)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
