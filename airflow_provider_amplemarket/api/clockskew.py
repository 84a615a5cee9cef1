"""How far this machine's clock is from a server's, by the dates of the server's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import pendulum


class ClockSkew:
    """
    Bounds of this machine's clock minus the server's, closer with each answer.

    An answer was dated between its request and its arrival here, and its ``Date`` (RFC 9110, 6.6.1) leaves out the
    fraction of the second. An answer that contradicts those before it begins anew: one of the clocks was set.
    """

    def __init__(self) -> None:
        self._low, self._high = -math.inf, math.inf

    def note(self, headers: Mapping[str, str], sent: float, answered: float) -> None:
        """
        Learn from an answer.

        :param headers: its header; it is ignored without a ``Date`` that can be read, and with the ``Age`` of an
            answer that a cache kept.
        :param sent: when the request was sent, by this machine's clock.
        :param answered: when the answer's header had arrived.
        """
        if "Age" in headers:
            return
        try:
            date = pendulum.instance(parsedate_to_datetime(headers.get("Date", ""))).timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        low, high = sent - (date + 1), answered - date
        if max(self._low, low) <= min(self._high, high):
            low, high = max(self._low, low), min(self._high, high)
        self._low, self._high = low, high

    @property
    def seconds(self) -> float:
        """The seconds that this machine is ahead at least; below 0, behind; 0 where the clocks may agree."""
        return max(self._low, 0.0) + min(self._high, 0.0)
