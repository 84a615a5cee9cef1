"""Threads that do what they are given, in order, and that can be left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from airflow_provider_amplemarket.threads import Workers, each


def test_jobs_are_done_in_order_and_all_before_the_end() -> None:
    done: list[int] = []
    workers = Workers(1, "test")
    for number in range(100):
        workers.submit(partial(done.append, number))
    assert workers.end(time.monotonic() + 30)
    assert done == list(range(100))


def test_so_many_at_once() -> None:
    together = threading.Barrier(4, timeout=30)
    workers = Workers(4, "test")
    for _ in range(4):
        workers.submit(lambda: (together.wait(), None)[1])
    assert workers.end(time.monotonic() + 30)
    assert not together.broken


def test_what_hangs_is_waited_for_no_longer_than_allowed() -> None:
    over = threading.Event()
    workers = Workers(3, "test")
    for _ in range(3):
        workers.submit(lambda: (over.wait(60), None)[1])
    started = time.monotonic()
    assert not workers.end(started + 0.2)
    assert time.monotonic() - started < 10
    over.set()
    assert workers.end(time.monotonic() + 30)


def test_what_hangs_does_not_keep_the_interpreter() -> None:
    code = """
import time
from airflow_provider_amplemarket.threads import Workers
workers = Workers(2, "test")
workers.submit(lambda: time.sleep(600))
workers.end(time.monotonic())
print("left")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "left\n")


class Stop(Exception):
    """What a check raises."""


def never() -> None:
    """Check nothing."""


def hang(_: object) -> None:
    threading.Event().wait(60)


def stop_after(calls: int) -> Callable[[], None]:
    made: list[int] = []

    def check() -> None:
        made.append(1)
        if len(made) > calls:
            raise Stop

    return check


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def square(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    assert each(square, range(40), threads=threads, timeout=60, check=never) == [n * n for n in range(40)]


def test_nothing_needs_no_thread() -> None:
    before = threading.active_count()
    assert each(hang, [], threads=4, timeout=60, check=never) == []
    assert threading.active_count() == before


def test_no_more_run_at_once_than_may() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def work(_: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1

    each(work, range(30), threads=3, timeout=60, check=never)
    assert most == [3]


def test_an_error_is_raised_and_the_rest_is_left() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise ValueError("mine")
        hang(number)

    with pytest.raises(ValueError, match="mine"):
        each(work, range(10), threads=2, timeout=60, check=never)
    # The thread that failed may have taken one more before it was known.
    assert set(begun) <= {0, 1, 2}


def test_an_index_error_of_the_function_is_no_end_of_the_work() -> None:
    with pytest.raises(IndexError):
        each(lambda number: [][number], [3], threads=1, timeout=60, check=never)


def test_a_check_ends_the_waiting() -> None:
    begin = time.monotonic()
    with pytest.raises(Stop):
        each(hang, range(10), threads=2, timeout=60, check=stop_after(2))
    assert time.monotonic() - begin < 10


def test_the_timeout_begins_anew_with_each_result() -> None:
    each(lambda _: time.sleep(0.3), range(6), threads=1, timeout=1.5, check=never)
    with pytest.raises(TimeoutError, match="no result within 1 s"):
        each(hang, [None], threads=1, timeout=1, check=never)


def test_an_item_that_hangs_does_not_keep_the_process() -> None:
    script = """
import time
from airflow_provider_amplemarket.threads import each
try:
    each(lambda _: time.sleep(600), [None], threads=1, timeout=1, check=lambda: None)
except TimeoutError:
    print("over", flush=True)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).stdout == b"over\n"
