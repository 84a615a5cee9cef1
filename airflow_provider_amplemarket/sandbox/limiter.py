"""The limit of the recording endpoint: a sliding window, exact to the microsecond."""

from __future__ import annotations

import math
from collections import deque


class SlidingWindow:
    """Admit at most so many requests in any period. The caller passes the time, and locks.

    :param limit: How many requests.
    :param period: The length of the period, in seconds.
    :param count_refused: Whether a refused request takes a place in the window, too.
    """

    def __init__(self, limit: int, period: float, count_refused: bool = False) -> None:
        self.limit = limit
        self.period = period
        self.count_refused = count_refused
        self._times: deque[float] = deque()

    def admit(self, now: float) -> float | None:
        """Count a request.

        :param now: The time of the request, never less than that of the one before.
        :return: None if it is admitted, otherwise the seconds until one will be.
        """
        while self._times and self._times[0] <= now - self.period:
            self._times.popleft()
        admitted = len(self._times) < self.limit
        if admitted or self.count_refused:
            self._times.append(now)
        if admitted:
            return None
        if not self.limit:
            return self.period
        # A place is free when fewer than `limit` are left, which is when this one leaves the window.
        return self._times[-self.limit] + self.period - now


def retry_after(seconds: float) -> str:
    """Return the value of ``Retry-After`` for a wait: whole seconds, rounded up.

    :param seconds: The wait.
    """
    return str(math.ceil(seconds))


def most_in_any(times: list[float], period: float) -> int:
    """Return the greatest number of times that lie in one window, wherever the window begins.

    :param times: The times, in any order.
    :param period: The length of the window, whose end is not part of it.
    """
    ordered = sorted(times)
    most = first = 0
    for last, time in enumerate(ordered):
        while ordered[first] <= time - period:
            first += 1
        most = max(most, last - first + 1)
    return most
