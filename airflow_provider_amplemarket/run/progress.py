"""What the log tells of a run's recordings."""

from __future__ import annotations

import logging

from airflow_provider_amplemarket.archive.sidecar import Status
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import RateLimitExceededError
from airflow_provider_amplemarket.run.fetch import Outcome
from airflow_provider_amplemarket.run.plan import Plan

log = logging.getLogger(__name__)

#: Where more recordings than this are wanted, the log tells the progress after so many instead of every single one.
MANY = 10


class Progress:
    """
    Tell of outcomes.

    :param archive: where the recordings lie.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        #: How many recordings are wanted.
        self.wanted = 0
        #: How many were archived.
        self.archived = 0

    def tell(self, outcome: Outcome, plan: Plan) -> None:
        """Log what became of a permit."""
        if outcome.status == Status.STORED:
            self._tell_of_recording(outcome, plan)
        elif outcome.status != Status.PENDING:
            log.warning("Call %s is %s: %s", outcome.item.call_id, outcome.status, outcome.error)
        if isinstance(outcome.error, RateLimitExceededError):
            log.warning(
                "%s. Does somebody else use the API key, or is the connection's recording_limit too high? "
                "Waiting before the next request.",
                outcome.error,
            )

    def _tell_of_recording(self, outcome: Outcome, plan: Plan) -> None:
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
