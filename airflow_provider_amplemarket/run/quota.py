"""A run and the quota: opening the ledger, waiting for permits, and the clocks that all of it depends on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive.sidecar import Item
from airflow_provider_amplemarket.exceptions import ArchiveIncompleteError, LedgerBusyError
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.rate import RateLimit
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.recorder import MOST_SKEW
from airflow_provider_amplemarket.run.report import list_failures
from airflow_provider_amplemarket.run.work import Work

log = logging.getLogger(__name__)

#: Seconds by which this machine's clock may differ from the API's before that is worth a warning.
CLOCK_TOLERANCE = 1.0
#: How much of the pace of the last burst is relied on: where the next one is faster, the permits should be there.
RELIED_ON = 0.9


def limit_of(hook: AmplemarketHook) -> RateLimit:
    """Return the limit of requests that the connection sets."""
    return RateLimit(hook.settings.limit, hook.settings.period)


def open_ledger(plan: Plan, work: Work, *, patience: float) -> Ledger:
    """Open the ledger, with the requests of the last period that the plan's sidecars know.

    :param patience: seconds for which others that have the ledger are waited for.
    """
    conn_id, limit = work.hook.amplemarket_conn_id, limit_of(work.hook)
    by_permit, anonymous = known_requests(plan.items.values(), conn_id, hold=limit.hold)
    return Ledger(
        conn_id=conn_id,
        limit=limit,
        response_timeout=work.hook.settings.deadline,
        known_requests=by_permit,
        anonymous_requests=anonymous,
        patience=patience,
        cancelled=work.cancel.is_set,
    )


def known_requests(items: Iterable[Item], conn_id: str, *, hold: float) -> tuple[dict[str, float], list[float]]:
    """Return the timestamps of the last requests that sidecars know: those with a permit by its id, and the others.

    :param conn_id: only requests of this connection.
    :param hold: seconds for which a request counts.
    """
    now = time.time()
    # Where a response lies further ahead, a clock was wrong, and nobody knows by how much.
    since, until = now - hold, now + MOST_SKEW.total_seconds()
    by_permit: dict[str, float] = {}
    anonymous: list[float] = []
    for item in items:
        for permit, answered_at in item.sidecar.known_requests(conn_id):
            timestamp = answered_at.timestamp()
            if not since < timestamp <= until:
                continue
            if permit is None:
                anonymous.append(timestamp)
            else:
                by_permit[permit] = timestamp
    return by_permit, anonymous


def warn_of_skew(skew: float) -> None:
    """Warn of a clock that is this many seconds ahead of the API's; below 0, behind."""
    if abs(skew) <= CLOCK_TOLERANCE:
        return
    is_ahead = skew > 0
    if is_ahead:
        effect = "it takes permits that much too early, so that the API may refuse requests (429)"
    else:
        effect = "it waits that much too long, and workers with a right clock take its permits too early"
    log.warning(
        "The clock of this machine is %.0f s %s the API's, and the quota is kept by the workers' clocks: %s. "
        "Set it by NTP.",
        abs(skew),
        "ahead of" if is_ahead else "behind",
        effect,
    )


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A wait. All times are timestamps: seconds since the epoch.

    :param scarce: what will be free again, and ``reason`` why it is not.
    :param earliest: when there can be permits again.
    :param until: when it is worth to come back.
    :param end: when all may be done; None where nobody knows.
    """

    scarce: str
    reason: str
    earliest: float
    until: float
    end: float | None = None

    @classmethod
    def of_quota(cls, plan: Plan, ledger: Ledger, pace: float) -> Pause:
        """Wait for the quota.

        :param pace: seconds from one request to the next, in the last burst.
        """
        limit, free_times = ledger.limit, ledger.free_times()
        return cls(
            scarce="quota",
            reason=f"The quota of {limit.requests} in {limit.period:g} s is used up",
            earliest=free_times[0],
            until=limit.next_wakeup(free_times, plan.left, RELIED_ON * pace),
            end=limit.estimate_end(free_times, plan.left),
        )

    @classmethod
    def of_ledger(cls, busy: LedgerBusyError) -> Pause:
        """Wait for other tasks that have the ledger."""
        until = max(busy.until, time.time() + 1.0)  # never a loop without a rest
        return cls(scarce="ledger", reason=str(busy).rstrip("."), earliest=until, until=until)

    def within(self, max_wait: timedelta | None, started_at: str, plan: Plan) -> float:
        """Return when to come back.

        :param max_wait: how long after ``started_at`` a try may still wait; None for as long as it takes.
        :raises ArchiveIncompleteError: when there can be no permit by then.
        """
        if max_wait is None:
            return self.until
        deadline = datetime.fromisoformat(started_at).timestamp() + max_wait.total_seconds()
        if self.earliest > deadline:
            reasons = {item.call_id: "no permit" for item in plan.pending} | plan.failures()
            raise ArchiveIncompleteError(
                f"{self.reason} for longer than max_wait={max_wait} allows; {len(reasons)} recordings "
                f"are left for a retry or the next run: {list_failures(reasons)}"
            )
        return min(self.until, deadline)

    def summary(self, until: float) -> dict[str, Any]:
        """Return the wait as the run's summary has it."""
        waiting = {"waiting_until": _iso(until), "waiting_for": self.reason}
        return waiting if self.end is None else {**waiting, "estimated_end": _iso(self.end)}

    def text(self, plan: Plan, until: float, *, is_deferred: bool) -> str:
        """Return the wait as the log has it."""
        where = "waiting in the triggerer" if is_deferred else "sleeping in the worker"
        end = "" if self.end is None else f", done at about {_time(self.end)}"
        progress = f"{plan.progress()}, {self.scarce} free again at {_time(until)}"
        return f"{progress}. {self.reason}: {where} until then{end}"


def _time(timestamp: float) -> str:
    """Return a time for the log, with its date unless that is today."""
    when, today = pendulum.from_timestamp(round(timestamp)), pendulum.now("UTC").date()
    return when.format("HH:mm:ss [UTC]" if when.date() == today else "YYYY-MM-DD HH:mm:ss [UTC]")


def _iso(timestamp: float) -> str:
    return pendulum.from_timestamp(round(timestamp)).isoformat()
