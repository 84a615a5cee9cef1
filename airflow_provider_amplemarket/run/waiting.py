"""How long a run waits for permits, and what it says of that."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.exceptions import ArchiveIncompleteError, LedgerBusyError
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.report import list_failures


@dataclass(frozen=True, kw_only=True)
class Pause:
    """
    A wait. All times are timestamps: seconds since the epoch.

    :param scarce: what will be free again.
    :param reason: why there are no permits.
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
        """
        Wait for the quota.

        :param pace: seconds from one request to the next, as they can be sent.
        """
        limit, free_times = ledger.limit, ledger.free_times()
        return cls(
            scarce="quota",
            reason=f"The quota of {limit.requests} in {limit.period:g} s is used up",
            earliest=free_times[0],
            until=limit.next_wakeup(free_times, plan.left, pace),
            end=limit.estimate_end(free_times, plan.left),
        )

    @classmethod
    def of_ledger(cls, busy: LedgerBusyError) -> Pause:
        """Wait for other tasks that have the ledger."""
        until = max(busy.until, time.time() + 1.0)  # never a loop without a rest
        return cls(scarce="ledger", reason=str(busy).rstrip("."), earliest=until, until=until)

    def within(self, max_wait: timedelta | None, started_at: str, plan: Plan) -> float:
        """
        Return when to come back.

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

    def summary(self, plan: Plan, until: float) -> dict[str, Any]:
        """Return what the run's summary says of the wait."""
        waiting = {"left": plan.left, "waiting_until": _iso(until), "waiting_for": self.reason}
        return waiting if self.end is None else {**waiting, "estimated_end": _iso(self.end)}

    def text(self, plan: Plan, until: float, *, is_deferred: bool) -> str:
        """Return what the log says of the wait."""
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
