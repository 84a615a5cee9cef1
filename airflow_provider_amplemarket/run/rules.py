"""What is to be done about a call: it follows from the archive, the parameters and who asks, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from airflow_provider_amplemarket.archive.sidecar import Attempt, Item, Sidecar, Status
from airflow_provider_amplemarket.run.recorder import first_failed_in

#: How long a call without recording is left alone after the first response; twice as long after each further one.
NOT_FOUND_PAUSE = timedelta(hours=1)
_MOST_DOUBLINGS = 16

#: What stays as it is for the run that it became so in.
_ENDS = frozenset({Status.NOT_FOUND, Status.TOO_LARGE, Status.GIVEN_UP, Status.FAILED})


def attempt_of(context: Mapping[str, Any]) -> Attempt:
    """Return who asks, from the task's context."""
    ti = context["ti"]
    return Attempt(
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        run_id=ti.run_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        max_tries=ti.max_tries,
        try_number=ti.try_number,
    )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Decide about calls. A resume, a retry, a cleared task and a backfill come to the same decisions.

    :param overwrite: ask for what is archived, too, once for each run.
    :param not_found_for: how long after its start a call without recording is asked for again.
    :param give_up_after: how long after its first request a call that fails is given up.
    :param insists: ask once more for what was given up, and at once for what was not there.
    """

    attempt: Attempt
    overwrite: bool
    not_found_for: timedelta
    give_up_after: timedelta
    insists: bool

    def status_of(self, item: Item, now: datetime) -> Status:
        """Return what is with a wanted call."""
        if item.sidecar.status == Status.DELETED:
            return Status.DELETED
        last = item.last if self.overwrite else item.sidecar
        # A retry asks again for what has failed.
        is_this_try = last.status == Status.FAILED
        if last.was_written_by(self.attempt, this_try=is_this_try):
            return self._of_this_run(item, last)
        return Status.PENDING if self.overwrite else self._of_earlier_runs(item, now)

    def gives_up(self, item: Item, now: datetime) -> bool:
        """Return whether a call that has failed just now, as it was before, has done so for long enough.

        That takes two runs, however long the first one was: what failed in one may have been the day's trouble.
        """
        last = item.last
        if last.status == Status.GIVEN_UP:
            return True
        if last.status != Status.FAILED or last.first_requested_at is None:
            return False
        is_another_run = first_failed_in(item, self.attempt) != self.attempt.run
        return is_another_run and now - last.first_requested_at >= self.give_up_after

    def is_too_old(self, start: datetime | None, now: datetime) -> bool:
        """Return whether a call that cannot even be asked for is as old as those that are given up."""
        return start is None or now - start >= self.give_up_after

    def _of_this_run(self, item: Item, last: Sidecar) -> Status:
        if last.status in _ENDS:
            return last.status
        return Status.STORED if item.entry.is_stored else Status.PENDING

    def _of_earlier_runs(self, item: Item, now: datetime) -> Status:
        if item.entry.is_stored:
            return Status.ALREADY_STORED
        if item.entry.is_orphaned or self._is_due(item, now):
            return Status.PENDING
        return item.sidecar.status or Status.PENDING

    def _is_due(self, item: Item, now: datetime) -> bool:
        """Return whether a call that has a sidecar and no recording is to be asked for again."""
        status = item.sidecar.status
        if status == Status.GIVEN_UP:
            return self.insists
        if status == Status.NOT_FOUND:
            return self._is_due_again(item, now)
        return status != Status.TOO_LARGE

    def _is_due_again(self, item: Item, now: datetime) -> bool:
        asked = item.sidecar.answered_at
        if asked is None:
            return True
        is_rested = now - asked >= _pause_after(item.last.requests_of(Status.NOT_FOUND))
        since = item.start or item.sidecar.first_requested_at
        if since is None:
            return self.insists or is_rested
        # Only a response from after that time is final: an earlier one may be from before the audio was there.
        is_final = asked - since > self.not_found_for
        is_last_time = now - since > self.not_found_for
        return not is_final and (self.insists or is_last_time or is_rested)


def _pause_after(requests: int) -> timedelta:
    """Return how long a call is left alone after so many requests in a row that found no recording."""
    return NOT_FOUND_PAUSE * int(2 ** min(requests - 1, _MOST_DOUBLINGS))
