"""The arithmetic of the quota: pure, with the time passed in."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class RateLimit:
    """
    So many requests in any period of time.

    :param requests: requests allowed in a period, at least 1.
    :param period: length of the period in seconds.
    """

    requests: int
    period: float

    def __post_init__(self) -> None:
        if self.requests < 1 or not 0 < self.period < math.inf:
            raise ValueError(f"not a rate limit: {self.requests} requests in {self.period} s")

    @property
    def hold(self) -> float:
        """
        Seconds that a spent permit is held: the period, and a margin for clocks that do not quite agree.

        The margin is a second, and for periods of less than 100 seconds a hundredth of the period: a worker's clock
        that is further ahead of the others' costs requests over the limit.
        """
        return self.period + min(1.0, self.period / 100)

    def moments(self, spent: Iterable[float], now: float) -> list[float]:
        """
        List the moments, none before ``now``, at which the next ``requests`` permits become free.

        :param spent: the moments that the permits of the last period count from.
        :param now: the present moment, on the same clock, in seconds.
        """
        ends = sorted(moment + self.hold for moment in spent if moment + self.hold > now)
        free = self.requests - len(ends)
        return [now] * free + ends if free > 0 else ends[-free:]

    def finish(self, moments: list[float], backlog: int) -> float:
        """Estimate when the last of ``backlog`` requests can be sent, if nobody else spends permits."""
        ahead = sorted(moments)
        for _ in range(backlog - 1):
            heapq.heapreplace(ahead, ahead[0] + self.hold)
        return ahead[0]

    def wake(self, moments: list[float], backlog: int, pace: float = 0.0) -> float:
        """
        Choose when to come back for permits.

        Not for the first one when a tenth of a period more gives several; not later than ``backlog`` needs; and
        not for those that become free by the time it is their turn.

        :param moments: when the next permits become free.
        :param backlog: how many requests are to be sent.
        :param pace: seconds between two requests, as they can be sent one after the other.
        """
        last = moments[0] + self.period / 10
        useful = moments[: max(1, min(backlog, self.requests))]
        return max(moment - turn * pace for turn, moment in enumerate(useful) if moment <= last)


@dataclass(frozen=True)
class LedgerState:
    """
    What the ledger says.

    :param spent: for each permit's id the moment it counts from (seconds since the epoch).
    :param blocked_until: moment before which nothing is sent because the API refused a request; 0 for none.
    :param refusals: refusals (429) since the last request that was let through.
    """

    spent: Mapping[str, float] = field(default_factory=dict)
    blocked_until: float = 0.0
    refusals: int = 0

    def at(self, now: float, *, limit: RateLimit, horizon: float) -> LedgerState:
        """
        Answer the state as it stands at ``now``: without what is over.

        What lies further ahead than an honest writer can put it was written before the clock was set back;
        it is brought down, so that it is held for one period more at most.

        :param horizon: seconds ahead of ``now`` at which an honest entry can lie.
        """
        spent = {
            permit: min(moment, now + horizon) for permit, moment in self.spent.items() if moment + limit.hold > now
        }
        blocked = min(self.blocked_until, now + horizon + limit.hold) if self.blocked_until > now else 0.0
        return LedgerState(spent, blocked, self.refusals)

    def moments(self, limit: RateLimit, now: float) -> list[float]:
        """List when the next permits become free, none before the end of a block."""
        return [max(moment, self.blocked_until) for moment in limit.moments(self.spent.values(), now)]

    def grant(self, limit: RateLimit, now: float, wanted: int) -> int:
        """Answer how many of the ``wanted`` permits may be spent now."""
        free = sum(moment <= now for moment in self.moments(limit, now))
        # After a refusal one request goes ahead to see whether the API lets it through.
        return min(wanted, free, 1) if self.refusals else min(wanted, free)

    def refused(self, limit: RateLimit, now: float, retry_after: float | None) -> LedgerState:
        """Block further requests: as long as the API asks, else longer with every refusal, at most a period."""
        backoff = limit.period / limit.requests * 2 ** min(self.refusals, 30)
        if retry_after is None:
            retry_after = backoff
        elif self.refusals:  # it was not long enough before
            retry_after = max(retry_after, backoff)
        until = now + min(max(retry_after, limit.period / 3600), limit.hold)
        return replace(self, blocked_until=max(self.blocked_until, until), refusals=self.refusals + 1)

    def dump(self) -> str:
        """Write the state as JSON."""
        return json.dumps(
            {
                "version": 1,
                "spent": {permit: round(moment, 3) for permit, moment in self.spent.items()},
                "blocked_until": round(self.blocked_until, 3),
                "refusals": self.refusals,
            }
        )

    @classmethod
    def load(cls, text: str) -> LedgerState:
        """
        Read the state from JSON.

        :raises ValueError: when the text is not what :meth:`dump` writes.
        """
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise ValueError(f"version {data['version']!r} is not known")
            state = cls(
                {str(permit): float(moment) for permit, moment in data["spent"].items()},
                float(data["blocked_until"]),
                int(data["refusals"]),
            )
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not all(math.isfinite(moment) for moment in (*state.spent.values(), state.blocked_until)):
            raise ValueError("a moment is not finite")
        return state
