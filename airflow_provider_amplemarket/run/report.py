"""What a run reports: progress in the log, its summary, and the rows that it hands over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive.sidecar import Item, Status
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import RateLimitExceededError
from airflow_provider_amplemarket.run.fetch import Outcome
from airflow_provider_amplemarket.run.plan import Plan

log = logging.getLogger(__name__)

#: Where more recordings than this are wanted, the log has the progress after so many instead of every single one.
MANY = 10
#: So many failures are listed one by one.
_MOST = 20


class Progress:
    """Log what becomes of the recordings."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        #: How many recordings are wanted.
        self.wanted = 0
        #: How many were archived.
        self.archived = 0

    def log(self, outcome: Outcome, plan: Plan) -> None:
        """Log what became of a permit."""
        if outcome.status == Status.STORED:
            self._log_recording(outcome, plan)
        elif outcome.status != Status.PENDING:
            log.warning("Call %s is %s: %s", outcome.item.call_id, outcome.status, outcome.error)
        if isinstance(outcome.error, RateLimitExceededError):
            log.warning(
                "%s. Does somebody else use the API key, or is the connection's recording_limit too high? "
                "Waiting before the next request.",
                outcome.error,
            )

    def _log_recording(self, outcome: Outcome, plan: Plan) -> None:
        entry = outcome.item.entry
        are_many = self.wanted > MANY
        level = logging.DEBUG if are_many else logging.INFO
        log.log(level, "Archived %s (%d bytes)", self._archive.uri(entry.place.audio), entry.size)
        self.archived += 1
        if are_many and self.archived % MANY == 0:
            log.info("%s", plan.progress())
        if not outcome.item.sidecar.is_mpeg:
            log.warning(
                "The recording of call %s does not begin like MPEG audio; it is as served", outcome.item.call_id
            )


class Summary:
    """The figures of a try, pushed to XCom as ``summary``; over a deferral they are all that it remembers.

    :param ti: the task instance.
    :param earlier: the summary of the same try before it waited; empty if it has not.
    """

    def __init__(self, ti: Any, earlier: Mapping[str, Any]) -> None:
        self._ti = ti
        self._permits_spent = int(earlier.get("permits_spent", 0))
        #: When the try began, in ISO 8601.
        self.started_at: str = earlier.get("started_at") or pendulum.instance(ti.start_date).isoformat()
        #: What was pushed last.
        self.figures: Mapping[str, Any] = earlier

    @property
    def is_new(self) -> bool:
        """Whether the try has pushed none yet."""
        return not self.figures

    def push(self, plan: Plan, *, requests: int = 0, waiting: Mapping[str, Any] | None = None) -> None:
        """Push the figures of a plan, with how many requests were sent since the last time."""
        self._permits_spent += requests
        window = plan.window and [plan.window.start.isoformat(), plan.window.end.isoformat()]
        self.figures = {
            "started_at": self.started_at,
            **plan.counts(),
            "left": plan.left,
            "window": window,
            "bytes": sum(item.entry.size or 0 for item in plan.items_with(Status.STORED)),
            "permits_spent": self._permits_spent,
            **(waiting or {}),
        }
        self._ti.xcom_push(key="summary", value=self.figures)


def rows(plan: Plan, archive: Archive) -> list[dict[str, Any]]:
    """Return a row for every archived recording, oldest call first."""
    items = plan.items_with(Status.STORED, Status.ALREADY_STORED)
    return [_row(item, plan.statuses[item.call_id], archive) for item in items]


def _row(item: Item, status: Status, archive: Archive) -> dict[str, Any]:
    return {
        "call_id": item.call_id,
        "uri": archive.uri(item.entry.place.audio),
        "status": status.value,
        "size": item.entry.size,
        "sha256": item.sidecar.sha256,
        "start_date": item.start.isoformat() if item.start else None,
    }


def list_failures(failures: Mapping[str, str]) -> str:
    """Return the first failures with their reasons, and how many more there are."""
    lines = [f"{call_id} ({reason})" for call_id, reason in list(failures.items())[:_MOST]]
    if len(failures) > _MOST:
        lines.append(f"and {len(failures) - _MOST} more")
    return "; ".join(lines)
