"""Thread pools that return results in order and bound the work ahead of the consumer."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], iterable: Iterable[Item], *, threads: int, ahead: int, chunk: int = 1
) -> Generator[Result, None, None]:
    """Apply a function to items, as `map` does, in threads and a bounded number of items ahead of the consumer.

    Nothing starts before the first result is requested. An exception of `function`, or of the iterable, is raised
    in place of that item's result, after the results before it. Closing or dropping the iterator cancels the calls
    that have not started and waits for those that have.

    Args:
        function: Called once for every item, in any thread; several calls run at once.
        iterable: The items, read in the consumer's thread, up to `ahead` items in advance.
        threads: Number of threads, at least 1.
        ahead: The largest number of items taken from the iterable whose results have not been returned, at least 1.
            It bounds the memory. Choose at least `threads` chunks, or some threads have nothing to do.
        chunk: Items that a thread takes at once, at least 1 and at most `ahead`. Each chunk costs about
            50 microseconds of overhead: choose more than 1 for calls that are as short.

    Returns:
        The results, in the order of the items.

    Raises:
        ValueError: If `threads`, `ahead` or `chunk` is less than 1.
    """
    for name, value in (("threads", threads), ("ahead", ahead), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
    return _ordered_map(function, iterable, threads, max(1, ahead // chunk), chunk)


class Shared:
    """An amount of something, such as memory, that threads take parts of and give back.

    Args:
        total: The amount. A thread that needs more than this waits until it is alone.
    """

    def __init__(self, total: int) -> None:
        self._total, self._taken = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Take a part for a block, and wait before it until so much is free."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + amount <= self._total)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()


def prefetched(iterable: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield the items of `iterable`, reading the next one in a thread while the consumer works on this one.

    Nothing starts before the first item is requested. Closing the iterator waits for the item that is being read.
    """
    items, end = iter(iterable), object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def _ordered_map(
    function: Callable[[Item], Result], iterable: Iterable[Item], threads: int, chunks: int, chunk: int
) -> Generator[Result, None, None]:
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_Results[Result]]] = deque()
        try:
            for future in _submit(pool, function, iterable, chunk):
                pending.append(future)
                if len(pending) == chunks:
                    yield from _results(pending.popleft())
            while pending:
                yield from _results(pending.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_Results = tuple[list[Result], Exception | None]  # results of a chunk up to the item that failed, and its error


def _submit(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], iterable: Iterable[Item], chunk: int
) -> Iterator[Future[_Results[Result]]]:
    def compute(part: Sequence[Item], failure: Exception | None) -> _Results[Result]:
        results: list[Result] = []
        try:
            results.extend(function(item) for item in part)
        except Exception as error:
            return results, error
        return results, failure

    items, failure = iter(iterable), None
    while failure is None:
        part: list[Item] = []
        try:
            part.extend(islice(items, chunk))
        except Exception as error:  # raised after the results that are still being computed
            failure = error
        if not part and failure is None:
            return
        yield pool.submit(compute, part, failure)


def _results(future: Future[_Results[Result]]) -> Iterator[Result]:
    results, failure = future.result()
    yield from results
    if failure is not None:
        raise failure
