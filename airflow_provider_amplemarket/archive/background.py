"""Calls that nobody has to wait for to their end: they run on threads that do not keep the process alive."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two looks at whether to go on waiting.
_SLICE = 0.25


def each(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, patience: float, check: Callable[[], None]
) -> list[R]:
    """
    Return what a function makes of each item, several at once.

    Where the waiting ends early, by whatever exception, nothing new is begun and what is under way is abandoned.
    That is why these are no threads of ``concurrent.futures``, for each of which the interpreter waits at its exit.

    :param threads: how many at once.
    :param patience: seconds that may pass without any result.
    :param check: is called several times a second, and ends the waiting by raising.
    :raises TimeoutError: when the patience is over.
    """
    work = deque(enumerate(items))
    results: dict[int, R] = {}
    count = len(work)
    answers: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def work_off() -> None:
        while True:
            try:
                number, item = work.popleft()
            except IndexError:
                return
            try:
                answers.put((number, function(item), None))
            except BaseException as error:
                answers.put((number, None, error))

    try:
        for number in range(min(threads, count)):
            threading.Thread(target=work_off, name=f"amplemarket-background-{number}", daemon=True).start()
        while len(results) < count:
            number, result, error = _next(answers, patience, check)
            if error is not None:
                raise error
            results[number] = result
    finally:
        work.clear()
    return [results[number] for number in range(count)]


def _next(
    answers: SimpleQueue[tuple[int, Any, BaseException | None]], patience: float, check: Callable[[], None]
) -> tuple[int, Any, BaseException | None]:
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        check()
        with suppress(Empty):
            return answers.get(timeout=min(left, _SLICE))
    raise TimeoutError(f"no answer within {patience:.0f} s")
