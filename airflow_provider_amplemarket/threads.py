"""Threads that can be left behind: the interpreter waits for those of ``concurrent.futures``, even if they hang."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two looks at whether to go on waiting.
_SLICE = 0.25


class Workers:
    """Run jobs in threads, in the order in which they come.

    :param count: how many threads.
    :param name: what they are called.
    """

    def __init__(self, count: int, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Let the next free thread call a function, unless the future is cancelled before."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def end(self, deadline: float) -> bool:
        """Let the threads end after the jobs that they have.

        :param deadline: time of :func:`time.monotonic` at which no thread is waited for any longer.
        :return: whether all have ended.
        """
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def each(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, timeout: float, check: Callable[[], None]
) -> list[R]:
    """Return a function's results for all items, in their order; several run at once.

    Where the waiting ends early, by whatever exception, nothing new is begun and what is under way is abandoned.

    :param threads: how many at once.
    :param timeout: seconds that may pass without any result.
    :param check: is called several times a second, and ends the waiting by raising.
    :raises TimeoutError: when no result has come for so long.
    """
    work = deque(enumerate(items))
    results: list[Any] = [None] * len(work)
    under_way: dict[Future[R], int] = {}
    finished: SimpleQueue[Future[R]] = SimpleQueue()
    workers = Workers(min(threads, len(work)), "amplemarket-background")
    try:
        while work or under_way:
            while work and len(under_way) < 2 * threads:  # as many are done as wait for a thread
                number, item = work.popleft()
                future = workers.submit(function, item)
                under_way[future] = number
                future.add_done_callback(finished.put)
            future = _next(finished, timeout, check)
            results[under_way.pop(future)] = future.result()
    finally:
        for future in under_way:
            future.cancel()
        workers.end(time.monotonic())
    return results


def _next(finished: SimpleQueue[Future[R]], timeout: float, check: Callable[[], None]) -> Future[R]:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        check()
        with suppress(Empty):
            return finished.get(timeout=min(left, _SLICE))
    raise TimeoutError(f"no result within {timeout:.0f} s")
