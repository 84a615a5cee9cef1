"""Work that nobody has to wait for to its end: it runs on threads that do not keep the process alive."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: The number of an item, what the function returned, and what it raised.
_Outcome: TypeAlias = tuple[int, Any, BaseException | None]

#: Seconds between two looks at whether to go on waiting.
_SLICE = 0.25


def each(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, timeout: float, check: Callable[[], None]
) -> list[R]:
    """
    Return a function's results for all items, in their order; several run at once.

    Where the waiting ends early, by whatever exception, nothing new is begun and what is under way is abandoned.
    That is why these are no threads of ``concurrent.futures``, for each of which the interpreter waits at its exit.

    :param threads: how many at once.
    :param timeout: seconds that may pass without any result.
    :param check: is called several times a second, and ends the waiting by raising.
    :raises TimeoutError: when no result has come for so long.
    """
    work = deque(enumerate(items))
    results: dict[int, R] = {}
    count = len(work)
    finished: SimpleQueue[_Outcome] = SimpleQueue()

    try:
        for number in range(min(threads, count)):
            name = f"amplemarket-background-{number}"
            threading.Thread(target=_work_off, args=(function, work, finished), name=name, daemon=True).start()
        while len(results) < count:
            number, result, error = _next(finished, timeout, check)
            if error is not None:
                raise error
            results[number] = result
    finally:
        work.clear()
    return [results[number] for number in range(count)]


def _work_off(function: Callable[[T], R], work: deque[tuple[int, T]], finished: SimpleQueue[_Outcome]) -> None:
    while True:
        try:
            number, item = work.popleft()
        except IndexError:
            return
        try:
            finished.put((number, function(item), None))
        except BaseException as error:
            finished.put((number, None, error))


def _next(finished: SimpleQueue[_Outcome], timeout: float, check: Callable[[], None]) -> _Outcome:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        check()
        with suppress(Empty):
            return finished.get(timeout=min(left, _SLICE))
    raise TimeoutError(f"no result within {timeout:.0f} s")
