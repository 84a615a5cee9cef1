"""Threads that do what they are given, in order, and that nobody has to wait for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial

from airflow_provider_amplemarket.run.workers import Workers


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
from airflow_provider_amplemarket.run.workers import Workers
workers = Workers(2, "test")
workers.submit(lambda: time.sleep(600))
workers.end(time.monotonic())
print("left")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "left\n")
