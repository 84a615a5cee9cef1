"""The arithmetic of the quota: pure, with the time passed in. ``docs/quota.md`` explains it."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Seconds for which a permit may be used after it was written; an older one is given back unused.
PERMIT_VALIDITY = 30.0


@dataclass(frozen=True)
class RateLimit:
    """So many requests in any period of time.

    :param requests: requests allowed in a period, at least 1.
    :param period: length of the period in seconds.
    """

    requests: int
    period: float

    def __post_init__(self) -> None:
        has_requests, has_period = self.requests >= 1, 0 < self.period < math.inf
        if not (has_requests and has_period):
            raise ValueError(f"not a rate limit: {self.requests} requests in {self.period} s")

    @property
    def hold(self) -> float:
        """Seconds for which a spent permit is held: the period, and a margin for clocks that do not quite agree.

        The margin is a second, and for periods of less than 100 seconds a hundredth of the period.
        """
        return self.period + min(1.0, self.period / 100)

    def free_times(self, spent: Iterable[float], now: float) -> list[float]:
        """Return when the next ``requests`` permits become free, sorted, none before ``now``.

        :param spent: the timestamps that the permits of the last period count from.
        :param now: the present timestamp, on the same clock, in seconds.
        """
        ends = sorted(end for timestamp in spent if (end := timestamp + self.hold) > now)
        free = max(0, self.requests - len(ends))
        excess = max(0, len(ends) - self.requests)
        return [now] * free + ends[excess:]

    def estimate_end(self, free_times: list[float], backlog: int) -> float:
        """Return when the last of ``backlog`` requests can be sent, if nobody else spends permits."""
        ahead = sorted(free_times)
        for _ in range(backlog - 1):
            heapq.heapreplace(ahead, ahead[0] + self.hold)
        return ahead[0]

    def next_wakeup(self, free_times: list[float], backlog: int, pace: float = 0.0) -> float:
        """Return when to come back for permits.

        That is later than the first permit becomes free where a tenth of a period more gives several; but not later
        than ``backlog`` needs, and no permit is waited for that becomes free by the time it is its turn.

        :param free_times: when the next permits become free.
        :param backlog: how many requests are to be sent.
        :param pace: seconds between two requests, as they can be sent one after the other.
        """
        latest = free_times[0] + self.period / 10
        useful = free_times[: max(1, min(backlog, self.requests))]
        return max(free_at - turn * pace for turn, free_at in enumerate(useful) if free_at <= latest)


@dataclass(frozen=True)
class Permit:
    """The right to send one request before a timestamp; later it must be given back. Its id is the ledger's entry."""

    id: str
    use_before: float


@dataclass(frozen=True)
class LedgerState:
    """What the ledger holds.

    :param spent: for each permit's id the timestamp it counts from (seconds since the epoch).
    :param blocked_until: timestamp before which nothing is sent because the API refused a request; 0 for none.
    :param refusals: refusals (429) since the last request that was let through.
    """

    spent: Mapping[str, float] = field(default_factory=dict)
    blocked_until: float = 0.0
    refusals: int = 0

    def with_spent(self, spent: Mapping[str, float]) -> LedgerState:
        """Return the state with these permits as well; where it has them already, with these timestamps."""
        return replace(self, spent={**self.spent, **spent})

    def without(self, unused: Iterable[Permit]) -> LedgerState:
        """Return the state without these permits."""
        ids = {permit.id for permit in unused}
        return replace(self, spent={permit: timestamp for permit, timestamp in self.spent.items() if permit not in ids})

    def at(self, now: float, *, limit: RateLimit, horizon: float) -> LedgerState:
        """Return the state as it stands at ``now``: without what is over.

        What lies further ahead than an honest writer can put it was written before the clock was set back;
        it is brought down, so that it is held for one period more at most.

        :param horizon: seconds ahead of ``now`` at which an honest entry can lie.
        """
        latest = now + horizon
        spent = {permit: min(timestamp, latest) for permit, timestamp in self.spent.items()}
        blocked_until = min(self.blocked_until, latest + limit.hold)
        return replace(self, spent=spent, blocked_until=blocked_until).without_past(now, limit)

    def without_past(self, now: float, limit: RateLimit) -> LedgerState:
        """Return the state without the permits that are free again at ``now``, and without a block that is over."""
        spent = {permit: timestamp for permit, timestamp in self.spent.items() if timestamp + limit.hold > now}
        is_blocked = self.blocked_until > now
        return replace(self, spent=spent, blocked_until=self.blocked_until if is_blocked else 0.0)

    def free_times(self, limit: RateLimit, now: float) -> list[float]:
        """Return when the next permits become free, sorted, none before the end of a block."""
        return [max(free_at, self.blocked_until) for free_at in limit.free_times(self.spent.values(), now)]

    def grant(self, limit: RateLimit, now: float, wanted: int) -> int:
        """Return how many of the ``wanted`` permits may be spent now."""
        free = sum(free_at <= now for free_at in self.free_times(limit, now))
        if self.refusals:  # one request goes ahead to see whether the API lets it through
            free = min(free, 1)
        return min(wanted, free)

    def refused(self, limit: RateLimit, now: float, retry_after: float | None) -> LedgerState:
        """Return the state with a block: as long as the API asks, else longer with every refusal, at most a period."""
        backoff = limit.period / limit.requests * 2 ** min(self.refusals, 30)
        wait = backoff if retry_after is None else retry_after
        if self.refusals:  # what the API asked for was not long enough before
            wait = max(wait, backoff)
        until = now + min(max(wait, limit.period / 3600), limit.hold)
        return replace(self, blocked_until=max(self.blocked_until, until), refusals=self.refusals + 1)

    def dump(self) -> str:
        """Return the state as JSON."""
        spent = {permit: round(timestamp, 3) for permit, timestamp in self.spent.items()}
        blocked_until = round(self.blocked_until, 3)
        return json.dumps({"version": 1, "spent": spent, "blocked_until": blocked_until, "refusals": self.refusals})

    @classmethod
    def load(cls, text: str) -> LedgerState:
        """Return the state of a text that :meth:`dump` wrote; raise a ValueError for any other."""
        try:
            state = cls._parse(json.loads(text))
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not all(map(math.isfinite, (*state.spent.values(), state.blocked_until))):
            raise ValueError("a timestamp is not finite")
        return state

    @classmethod
    def _parse(cls, data: Any) -> LedgerState:
        if data["version"] != 1:
            raise ValueError(f"version {data['version']!r} is not known")
        spent = {str(permit): float(timestamp) for permit, timestamp in data["spent"].items()}
        return cls(spent, float(data["blocked_until"]), int(data["refusals"]))


@dataclass
class Report:
    """What became of permits since the last report.

    A permit that is neither answered nor unused keeps its careful entry: its request may have reached the API.

    :param answered: for each permit whose response has arrived, the timestamp at which it did.
    :param unused: permits whose request was never sent.
    :param refusals: for each request refused with 429, the ``Retry-After`` in seconds, or None.
    """

    answered: dict[Permit, float] = field(default_factory=dict)
    unused: list[Permit] = field(default_factory=list)
    refusals: list[float | None] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.answered, self.unused, self.refusals))

    def add(self, permit: Permit, *, was_sent: bool, answered_at: float | None = None) -> None:
        """Add a permit, whether its request was sent, as far as anybody knows, and when the response arrived."""
        if not was_sent:
            self.unused.append(permit)
        elif answered_at is not None:
            self.answered[permit] = answered_at

    def add_refusal(self, retry_after: float | None) -> None:
        """Add that the API refused a request, and the seconds that it asks to wait, if it does."""
        self.refusals.append(retry_after)

    @property
    def answered_by_id(self) -> dict[str, float]:
        """The timestamps of the answered permits by the permits' ids."""
        return {permit.id: answered_at for permit, answered_at in self.answered.items()}

    @property
    def retry_after(self) -> float | None:
        """The longest wait that the API asks for, if it does."""
        return max((seconds for seconds in self.refusals if seconds is not None), default=None)


def settle(
    state: LedgerState,
    report: Report,
    wanted: int,
    *,
    limit: RateLimit,
    horizon: float,
    now: float,
    new_id: Callable[[], str],
) -> tuple[LedgerState, list[Permit]]:
    """Take a report into the state, and grant permits. This is all that a ledger decides, without any I/O.

    :param wanted: how many permits could be used right now.
    :param horizon: seconds after which the API has counted a request whose permit is granted now.
    :param now: the present timestamp in seconds since the epoch.
    :return: the new state, and the new permits, which it has already.
    """
    state = state.with_spent(report.answered_by_id).without(report.unused).without_past(now, limit)
    if report.refusals:  # requests that were under way together are refused together: that is one refusal
        state = state.refused(limit, now, report.retry_after)
    elif report.answered:
        state = replace(state, refusals=0)
    permits = [Permit(new_id(), now + PERMIT_VALIDITY) for _ in range(state.grant(limit, now, wanted))]
    return state.with_spent({permit.id: now + horizon for permit in permits}), permits
