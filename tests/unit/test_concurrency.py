import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from evasion.components.common.concurrency import ordered_map, prefetched


def test_results_come_in_order_although_later_items_are_faster():
    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number * number

    assert list(ordered_map(slow_first, range(20), threads=4, ahead=8)) == [n * n for n in range(20)]


def test_calls_run_at_the_same_time():
    together = threading.Barrier(3, timeout=10)
    assert len(list(ordered_map(lambda _: together.wait(), range(3), threads=3, ahead=3))) == 3


@pytest.mark.parametrize("ahead", [1, 3, 100])
@pytest.mark.parametrize("chunk", [1, 2])
def test_no_more_than_ahead_items_are_taken_before_their_results(ahead, chunk):
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(30):
            taken += 1
            yield number

    for received, number in enumerate(ordered_map(abs, items(), threads=2, ahead=ahead, chunk=chunk)):
        assert number == received
        assert taken - received <= max(ahead, chunk)


def test_an_exception_comes_at_its_items_place_and_stops_the_work():
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise KeyError("three")
        return number

    results = ordered_map(fail_at_three, range(1000), threads=2, ahead=4)
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(KeyError, match="three"):
        next(results)
    assert list(results) == []


def test_an_exception_of_the_iterable_waits_for_the_results_before_it():
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("listing broke")

    results = ordered_map(abs, items(), threads=2, ahead=10)
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="listing broke"):
        next(results)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_change_neither_results_nor_where_an_exception_comes(chunk):
    def half(item):
        if item == 5:
            raise KeyError(item)
        return item / 2

    results = []
    with pytest.raises(KeyError, match="5"):
        results.extend(ordered_map(half, range(9), threads=2, ahead=7, chunk=chunk))
    assert results == [0, 0.5, 1, 1.5, 2]

    def damaged():
        yield from range(4)
        raise OSError("cut short")

    results = []
    with pytest.raises(OSError, match="cut short"):
        results.extend(ordered_map(half, damaged(), threads=2, ahead=7, chunk=chunk))
    assert results == [0, 0.5, 1, 1.5]


def test_an_item_is_read_while_the_one_before_it_is_used():
    read, used = threading.Event(), threading.Event()

    def items():
        yield 1
        read.set()
        assert used.wait(10)
        yield 2

    results = prefetched(items())
    assert not read.is_set()
    assert next(results) == 1
    assert read.wait(10)
    used.set()
    assert list(results) == [2]


def test_prefetching_passes_an_exception_on_at_its_place():
    def items():
        yield 1
        raise OSError("cut short")

    results = []
    with pytest.raises(OSError, match="cut short"):
        results.extend(prefetched(items()))
    assert results == [1]


def test_closing_cancels_what_has_not_started_and_ends_the_threads():
    before = set(threading.enumerate())
    started = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.01)
        return number

    results = ordered_map(work, range(1000), threads=2, ahead=100)
    assert next(results) == 0
    results.close()
    assert len(started) < 100
    assert set(threading.enumerate()) == before


def test_nothing_starts_before_the_first_result_is_asked_for():
    started = []
    ordered_map(started.append, range(3), threads=1, ahead=1)
    assert started == []


def test_an_empty_iterable_gives_nothing():
    assert list(ordered_map(abs, [], threads=1, ahead=1)) == []


@pytest.mark.parametrize("name", ["threads", "ahead", "chunk"])
def test_less_than_one_is_refused_at_once(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1. Received: {name}=0"):
        ordered_map(abs, [], **{"threads": 1, "ahead": 1} | {name: 0})
