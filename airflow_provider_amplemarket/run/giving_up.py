"""Giving up calls that fail again and again, so that none keeps a DAG red for ever."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pendulum

from airflow_provider_amplemarket.archive.sidecar import Item, Status
from airflow_provider_amplemarket.exceptions import ArchiveError
from airflow_provider_amplemarket.run.fetch import Outcome
from airflow_provider_amplemarket.run.judge import Judge
from airflow_provider_amplemarket.run.recorder import FAILURES
from airflow_provider_amplemarket.run.work import Work

log = logging.getLogger(__name__)

#: So many calls that fail alone are given up in time, though nothing was archived beside them: of more, it may be the
#: API that fails.
FEW = 3


@dataclass(frozen=True)
class _Failure:
    before: Item
    item: Item
    #: Whether it was the store that did not take the recording.
    is_of_store: bool


@dataclass
class Failures:
    """The calls that failed in a run; in the end, those that have failed for long enough are given up."""

    work: Work
    _failures: list[_Failure] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Remember what became of a permit, if it failed."""
        if outcome.status == Status.FAILED and outcome.before is not None:
            is_of_store = isinstance(outcome.error, ArchiveError | OSError)
            self._failures.append(_Failure(outcome.before, outcome.item, is_of_store))

    def give_up(self, judge: Judge, archived: int, directory: Path) -> list[tuple[Item, Status]]:
        """Give up those that have failed for long enough, unless it may be the API, the key or the store that fails.

        :param archived: how many recordings the run has archived.
        :return: those given up, with their status.
        """
        now = pendulum.now("UTC")
        is_few = judge.fatal is None and len(self._failures) <= FEW
        are_others_archived = archived > 0 and not judge.is_outage
        is_alone = is_few or are_others_archived
        given_up = []
        for failure in self._failures:
            if failure.is_of_store and not archived:  # only a store that takes others refuses this one for good
                continue
            was_given_up = failure.before.last.status == Status.GIVEN_UP
            if (is_alone or was_given_up) and self.work.rules.gives_up(failure.before, now):
                given_up += self._give_up(failure.item, directory, now)
        return given_up

    def _give_up(self, item: Item, directory: Path, now: datetime) -> list[tuple[Item, Status]]:
        sidecar = self.work.recorder.given_up(item)
        try:
            self.work.archive.write_sidecar(item.entry.place, sidecar, directory)
        except ArchiveError as error:
            log.warning("Call %s is not given up, as that could not be put on record: %s", item.call_id, error)
            return []
        first = item.last.first_requested_at or now
        log.warning(
            "Call %s is given up after %d requests in %s, the last one with: %s. Nobody asks for it again, "
            "unless the task is cleared, or call_ids names it.",
            item.call_id,
            item.last.requests_of(*FAILURES),
            timedelta(seconds=int((now - first).total_seconds())),
            item.last.error,
        )
        return [(item.with_sidecar(sidecar), Status.GIVEN_UP)]
