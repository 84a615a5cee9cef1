"""Threads that take jobs off a queue, and that nobody has to wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """
    Run jobs in threads, in the order in which they come.

    The threads of ``concurrent.futures`` are joined when the interpreter ends, even if they hang; these are not.

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
        """Let the next free thread call a function; return its result to come."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def end(self, deadline: float) -> bool:
        """
        Let the threads end after the jobs that they have.

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
