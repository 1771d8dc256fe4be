"""A thread pool whose results come in order and whose work ahead is bounded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], iterable: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Like `map`, computed in threads, a bounded number of items ahead of the consumer.

    Nothing starts before the first result is asked for. What `function` raises for an item, or the iterable
    itself in place of one, is raised where that item's result would have come, after the results before it.
    Closing the iterator, or dropping it, cancels what has not started and waits for what has.

    Args:
        function: Called once for every item, in any thread; several calls run at once.
        iterable: The items; read in the consumer's thread, as far ahead as `ahead` says.
        threads: Number of threads, at least 1.
        ahead: The most items taken from the iterable whose results have not been handed out, at least 1. It
            bounds the memory: choose at least `threads`, or some of them have nothing to do.

    Returns:
        The results, in the order of the items.

    Raises:
        ValueError: If `threads` or `ahead` is less than 1.
    """
    for name, value in (("threads", threads), ("ahead", ahead)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
    return _ordered_map(function, iterable, threads, ahead)


def _ordered_map(
    function: Callable[[Item], Result], iterable: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for future in _submit(pool, function, iterable):
                pending.append(future)
                if len(pending) == ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _submit(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], iterable: Iterable[Item]
) -> Iterator[Future[Result]]:
    try:
        for item in iterable:
            yield pool.submit(function, item)
    except Exception as error:
        # A failure of the iterable waits its turn behind the results that are still being computed.
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed
