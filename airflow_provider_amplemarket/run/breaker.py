"""Stop asking when request after request fails: after exactly so many, however many threads ask."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping

#: Seconds after which one that waits for its turn looks again whether it still wants it.
_LOOK = 0.25


class CircuitBreaker:
    """Let only so many requests be undecided at once that no more than a limit of them can fail in a row.

    Failures are of several kinds, each decided at its own time: whether there is a response, and whether all ends
    well. With a limit of ten, ten requests may be undecided; once one has failed, nine; and when ten have failed, with
    no success between them, the circuit is open and nothing is sent any more.

    :param limits: for each kind of failure, how many of it in a row open the circuit.
    :param trusting: kinds whose limit leaves the requests alone while the last one was a success. It is exact before
        the first success; after one, requests under way may go beyond it.
    """

    def __init__(self, limits: Mapping[str, int], *, trusting: Collection[str] = ()) -> None:
        self._limits = dict(limits)
        self._trusting = frozenset(trusting)
        self._changed = threading.Condition()
        self._undecided: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        self._trusted: set[str] = set()
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether nothing may be sent any more."""
        return self._is_open

    def enter(self, is_wanted: Callable[[], bool]) -> Request | None:
        """Wait until one more request may be sent.

        :param is_wanted: asked again and again while waiting; whether the request is still to be sent.
        :return: the request, of which all is undecided; None when it must not be sent.
        """
        with self._changed:
            while not self._is_open and is_wanted():
                if self._has_room():
                    self._undecided.update(self._limits.keys())
                    return Request(self, self._limits.keys())
                self._changed.wait(_LOOK)
            return None

    def open(self) -> None:
        """Let nothing be sent any more."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Return whether even if all that is undecided fails, and this one too, no limit is exceeded."""
        return all(
            self._undecided[kind] + self._in_a_row[kind] < limit
            for kind, limit in self._limits.items()
            if kind not in self._trusted
        )

    def _count(self, kind: str) -> bool:
        self._in_a_row[kind] += 1
        self._trusted.discard(kind)
        is_too_many = self._in_a_row[kind] >= self._limits[kind]
        if is_too_many:
            self._is_open = True
        return is_too_many


class Request:
    """One request, as a :class:`CircuitBreaker` counts it: each kind of failure is decided once."""

    def __init__(self, breaker: CircuitBreaker, kinds: Collection[str]) -> None:
        self._breaker = breaker
        self._undecided = set(kinds)

    def succeeded(self, *kinds: str) -> None:
        """It is no failure of these kinds, but a success; that ends a row of them, and gives trust."""
        with self._breaker._changed:
            self._breaker._trusted |= self._breaker._trusting & self._undecided.intersection(kinds)
            self.cleared(*kinds)

    def cleared(self, *kinds: str) -> None:
        """It is no failure of these kinds; that ends a row of them."""
        with self._breaker._changed:
            for kind in self._undecided.intersection(kinds):
                del self._breaker._in_a_row[kind]
            self.decided(*kinds)

    def failed(self, kind: str) -> bool:
        """It is a failure of this kind; return whether the circuit is open now because of such failures."""
        with self._breaker._changed:
            is_open = kind in self._undecided and self._breaker._count(kind)
            self.decided(kind)
            return is_open

    def decided(self, *kinds: str) -> None:
        """Nothing more will be said of these kinds; without any, of all."""
        with self._breaker._changed:
            for kind in self._undecided.intersection(kinds or self._undecided):
                self._undecided.discard(kind)
                self._breaker._undecided[kind] -= 1
            self._breaker._changed.notify_all()
