"""Look at something again and again while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Watch:
    """Look at something again and again, in a thread of its own, for as long as the ``with`` block lasts.

    :param look: returns what is seen.
    :param pause: seconds between two looks.
    """

    def __init__(self, look: Callable[[], Any], pause: float = 0.2) -> None:
        self.seen: list[Any] = []
        self._look = look
        self._pause = pause
        self._over = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._problem is not None and problem is None:
            raise self._problem

    def _run(self) -> None:
        try:
            while not self._over.wait(self._pause):
                self.seen.append(self._look())
        except Exception as problem:
            self._problem = problem
