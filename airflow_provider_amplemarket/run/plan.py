"""What a run has to do: for each wanted call, what the archive says of it and whether to ask for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive.store import Entry
from airflow_provider_amplemarket.calls import Call, parse_datetime, start_of
from airflow_provider_amplemarket.run.window import Window

#: The recording is to be asked for.
MISSING = "missing"
#: This run archived it; or an earlier one did.
STORED, ALREADY_STORED = "stored", "already_stored"
#: There is none: not (yet), or never through the API.
NOT_FOUND, TOO_LARGE = "not_found", "too_large"
#: This attempt asked for it and did not get it whole.
FAILED = "failed"
#: It has failed for so long that nobody asks for it any more, unless told to.
GIVEN_UP = "given_up"
#: Somebody removed it for good by writing this status into its sidecar.
DELETED = "deleted"
#: Not wanted: the API does not serve it, or the DAG does not select it.
EXTERNAL, NOT_SELECTED = "external", "not_selected"

STATUSES = (STORED, ALREADY_STORED, NOT_FOUND, TOO_LARGE, GIVEN_UP, EXTERNAL, NOT_SELECTED, DELETED, FAILED)

#: How long a call without recording is left alone after the first answer; twice as long after each further one.
NOT_FOUND_PAUSE = timedelta(hours=1)
_MOST_DOUBLINGS = 16

#: What has been asked for before is asked for after what has not; what has failed, last.
_TURN = {NOT_FOUND: 1, TOO_LARGE: 1, FAILED: 2, GIVEN_UP: 2}


@dataclass(frozen=True)
class Attempt:
    """
    Who asks: one try of one task in one run. It is written into the sidecars.

    :param max_tries: the number of the last try; clearing the task raises it, a retry does not.
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    max_tries: int
    try_number: int

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> Attempt:
        """Read it from the task's context."""
        ti = context["ti"]
        return cls(
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
            max_tries=ti.max_tries,
            try_number=ti.try_number,
        )

    @property
    def run(self) -> dict[str, Any]:
        """The run that it is part of, whatever the try; once the task is cleared, another one."""
        return {"dag_id": self.dag_id, "run_id": self.run_id, "max_tries": self.max_tries}

    def made(self, record: Mapping[str, Any], *, this_try: bool = False) -> bool:
        """Tell whether a sidecar was written by this task in this run: since it was last cleared, or in this try."""
        mine = asdict(self)
        if not this_try:
            del mine["try_number"]
        return all(record.get(name) == value for name, value in mine.items())


@dataclass(frozen=True)
class Item:
    """
    A wanted call and what the archive has of it.

    :param call: the call, as the API gave it; only its ``id`` where the API's list does not know it.
    :param entry: what lies in the archive.
    """

    call: Call
    entry: Entry

    @property
    def call_id(self) -> str:
        """The call's id."""
        return str(self.call["id"])

    @property
    def start(self) -> pendulum.DateTime | None:
        """When the call began, as far as the list or the sidecar knows."""
        return start_of(self.call) or start_of(self.entry.record or {})

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """What is known of requests, the last one at the end: the sidecar, and an attempt to overwrite in it."""
        record = self.entry.record or {}
        return [found for found in (self.entry.record, record.get("overwrite")) if isinstance(found, Mapping)]

    @property
    def last_record(self) -> Mapping[str, Any] | None:
        """What the last request came to."""
        return self.records[-1] if self.records else None

    @property
    def order(self) -> tuple[bool, str, str]:
        """Oldest first, because old calls drop out of the API's list first; undated ones last."""
        return self.start is None, self.start.isoformat() if self.start else "", self.call_id

    @property
    def turn(self) -> int:
        """Whether it is asked for early or late: what may fail again must not keep the others waiting for ever."""
        return _TURN.get(str((self.last_record or {}).get("status")), 0)

    @property
    def asked_at(self) -> float:
        """Seconds since the epoch at which it was last asked for; 0 where that is unknown."""
        asked = moment_of((self.last_record or {}).get("answered_at"))
        return asked.timestamp() if asked else 0.0

    def requests(self, *statuses: str) -> int:
        """Return how many requests in a row, the last ones, came to one of these statuses."""
        record = self.last_record or {}
        count = record.get("requests", 1)  # older sidecars do not say
        return (count if type(count) is int and count > 0 else 1) if record.get("status") in statuses else 0


def decide(
    item: Item,
    attempt: Attempt,
    *,
    overwrite: bool,
    not_found_for: timedelta,
    now: datetime,
    insists: bool = False,
) -> str:
    """
    Say what is with a wanted call: one of this module's constants.

    Only the archive is asked, so a resume, a retry, a cleared task and a backfill come to the same answer.

    :param item: the call and its entry.
    :param attempt: who asks.
    :param overwrite: ask for what is archived, too, once for each run.
    :param not_found_for: how long after its start a call without recording is asked for again.
    :param now: the present moment.
    :param insists: ask once more for what was given up, and at once for what was not there.
    """
    record = item.entry.record
    if record is None:
        return MISSING
    if record.get("status") == DELETED:
        return DELETED
    last = (item.last_record if overwrite else record) or record
    if attempt.made(last, this_try=last.get("status") == FAILED):
        if last.get("status") in (NOT_FOUND, TOO_LARGE, GIVEN_UP, FAILED):
            return str(last["status"])
        return STORED if item.entry.is_stored else MISSING
    if overwrite:
        return MISSING
    if item.entry.is_stored:
        return ALREADY_STORED
    if item.entry.is_uncommitted or _is_due(item, not_found_for, now, insists):
        return MISSING
    return str(record["status"])


def _is_due(item: Item, not_found_for: timedelta, now: datetime, insists: bool) -> bool:
    """Tell whether a call that has a sidecar and no recording is to be asked for again."""
    record = item.entry.record or {}
    status = record.get("status")
    if status == GIVEN_UP:
        return insists
    if status != NOT_FOUND:
        return status != TOO_LARGE
    since = item.start or moment_of(record.get("first_requested_at"))
    asked = moment_of(record.get("answered_at"))
    if asked is None:
        return True
    # Only an answer from after that time is final: an earlier one may be from before the audio was there.
    if since is not None and asked - since > not_found_for:
        return False
    is_last_time = since is not None and now - since > not_found_for
    return insists or is_last_time or now - asked >= _not_found_pause(item.requests(NOT_FOUND))


def _not_found_pause(requests: int) -> timedelta:
    """Return how long a call is left alone after so many requests in a row that found no recording."""
    return NOT_FOUND_PAUSE * int(2 ** min(requests - 1, _MOST_DOUBLINGS))


def gives_up(item: Item, attempt: Attempt, *, after: timedelta, now: datetime) -> bool:
    """
    Tell whether a call that has failed just now has done so for long enough.

    That takes two runs, however long the first one was: what failed in one may have been the day's trouble.

    :param item: the call, with what the archive had of it before.
    :param attempt: who asked.
    :param after: how long after the first request a failure is final.
    :param now: the present moment.
    """
    last = item.last_record or {}
    if last.get("status") == GIVEN_UP:
        return True
    since = moment_of(last.get("first_requested_at"))
    if last.get("status") != FAILED or since is None:
        return False
    return first_failed_in(item, attempt) != attempt.run and now - since >= after


def first_failed_in(item: Item, attempt: Attempt) -> Any:
    """Return the run in which a call that has failed just now began to fail."""
    last = item.last_record or {}
    if last.get("status") not in (FAILED, GIVEN_UP):
        return attempt.run
    # Older sidecars name only the run that wrote them.
    return last.get("first_failed_in") or {name: last.get(name) for name in attempt.run}


@dataclass
class Plan:
    """
    What is with every call that a run looks at.

    :param window: the span that was listed; None where calls were named instead.
    :param items: the wanted calls by id.
    :param statuses: the status of each of them.
    :param others: how many calls are not wanted, by status.
    :param hopeless: what cannot even be asked for, with the reason.
    :param made_at: moment (seconds since the epoch) from which on the archive was looked at.
    """

    window: Window | None = None
    items: dict[str, Item] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    hopeless: dict[str, str] = field(default_factory=dict)
    made_at: float = field(default_factory=time.time)

    def set(self, item: Item, status: str) -> None:
        """Note what is with a wanted call."""
        self.items[item.call_id] = item
        self.statuses[item.call_id] = status

    def having(self, *statuses: str) -> list[Item]:
        """Answer the wanted calls of these statuses, oldest first."""
        chosen = [item for call_id, item in self.items.items() if self.statuses[call_id] in statuses]
        return sorted(chosen, key=lambda item: item.order)

    def queue(self) -> list[Item]:
        """
        Return what is to be asked for: first what never was, last what has failed.

        Of those that were never asked for, the oldest comes first; of the others, the one that has waited longest, so
        that those at which a run stops do not keep it from the rest for ever.
        """
        return sorted(self.having(MISSING), key=lambda item: (item.turn, item.asked_at if item.turn else 0.0))

    def progress(self) -> str:
        """Say in a few words how far it is."""
        counts = Counter(self.statuses.values())
        archived, failed = counts[STORED] + counts[ALREADY_STORED], counts[FAILED]
        return f"{archived} of {len(self.statuses)} archived, {counts[MISSING]} left" + (
            f", {failed} failed" if failed else ""
        )

    def failures(self) -> dict[str, str]:
        """Answer the calls that failed, with the reason."""
        reasons = {item.call_id: str((item.last_record or {}).get("error")) for item in self.having(FAILED)}
        return {**self.hopeless, **reasons}

    def counts(self) -> dict[str, int]:
        """Count the calls by status."""
        counts = Counter(self.statuses.values()) + self.others + Counter({FAILED: len(self.hopeless)})
        return {status: counts[status] for status in STATUSES}


def moment_of(text: Any) -> pendulum.DateTime | None:
    """Read a moment of a sidecar; None where it is none."""
    return parse_datetime(text)
