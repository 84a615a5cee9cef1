"""Stop asking when request after request fails: after exactly so many, however many threads ask."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping

#: Seconds after which one that waits for its turn looks again whether it still wants it.
_LOOK = 0.25


class CircuitBreaker:
    """
    Let only so many requests be unanswered at once that no more than a limit of them can fail in a row.

    With a limit of ten, ten requests may be unanswered; once one has failed, nine; and when ten have failed, with
    no good answer between them, the circuit is open and nothing is sent any more. A request counts as unanswered
    until its answer has begun, so any number of bodies may stream at once.

    :param limits: for each kind of failure, how many of it in a row open the circuit.
    :param trusting: kinds whose limit leaves the requests alone while the last good answer was followed by no failure
        of that kind. It is exact before the first good answer; after one, requests under way may go beyond it.
    """

    def __init__(self, limits: Mapping[str, int], *, trusting: Collection[str] = ()) -> None:
        self._limits = dict(limits)
        self._trusting = frozenset(trusting)
        self._changed = threading.Condition()
        self._unanswered = 0
        self._in_a_row: Counter[str] = Counter()
        self._has_served = False
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether nothing may be sent any more."""
        return self._is_open

    def enter(self, is_wanted: Callable[[], bool]) -> Request | None:
        """
        Wait until one more request may be sent.

        :param is_wanted: asked again and again while waiting; whether the request is still to be sent.
        :return: the request, which counts until its answer is reported; None when it must not be sent.
        """
        with self._changed:
            while not self._is_open and is_wanted():
                if self._has_room():
                    self._unanswered += 1
                    return Request(self)
                self._changed.wait(_LOOK)
            return None

    def count(self, failure: str) -> bool:
        """Count a failure; tell whether the circuit is open now because of such failures."""
        with self._changed:
            self._in_a_row[failure] += 1
            is_too_many = self._in_a_row[failure] >= self._limits[failure]
            self._is_open = self._is_open or is_too_many
            self._changed.notify_all()
            return is_too_many

    def clear(self, *failures: str) -> None:
        """Begin counting anew: no failure of these kinds is the last one's neighbour any more."""
        with self._changed:
            for failure in failures:
                del self._in_a_row[failure]
            self._changed.notify_all()

    def open(self) -> None:
        """Let nothing be sent any more."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Tell whether even if all that is unanswered fails, and this one too, no limit is exceeded."""
        return all(
            self._unanswered + self._in_a_row[kind] < limit
            for kind, limit in self._limits.items()
            if not (kind in self._trusting and self._has_served and not self._in_a_row[kind])
        )


class Request:
    """
    One request, as a :class:`CircuitBreaker` counts it; each request is answered once, further reports change nothing.

    :param breaker: what counts it.
    """

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._is_answered = False

    def served(self, *clears: str) -> None:
        """Its answer has begun as a good one; that ends a row of the given kinds of failures."""
        with self._breaker._changed:
            self._breaker._has_served = True
            self.answered(*clears)

    def answered(self, *clears: str) -> None:
        """It was answered, or will not be; that ends a row of the given kinds of failures."""
        with self._breaker._changed:
            if not self._is_answered:
                self._is_answered = True
                self._breaker._unanswered -= 1
                self._breaker.clear(*clears)

    def failed(self, failure: str, *clears: str) -> bool:
        """It failed; tell whether the circuit is open now because of such failures."""
        with self._breaker._changed:
            # Counted before its place is free, lest another request takes it.
            is_open = self._breaker.count(failure)
            self.answered(*clears)
            return is_open
