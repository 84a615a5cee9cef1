"""What a run has to do: for each wanted call, what the archive says of it and whether to ask for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive import Entry
from airflow_provider_amplemarket.calls import Call, start_of
from airflow_provider_amplemarket.window import Window

#: The recording is to be asked for.
MISSING = "missing"
#: This run archived it; or an earlier one did.
STORED, ALREADY_STORED = "stored", "already_stored"
#: There is none: not (yet), or never through the API.
NOT_FOUND, TOO_LARGE = "not_found", "too_large"
#: This attempt asked for it and did not get it whole.
FAILED = "failed"
#: Somebody removed it for good by writing this status into its sidecar.
DELETED = "deleted"
#: Not wanted: the API does not serve it, or the DAG does not select it.
EXTERNAL, NOT_SELECTED = "external", "not_selected"

STATUSES = (STORED, ALREADY_STORED, NOT_FOUND, TOO_LARGE, EXTERNAL, NOT_SELECTED, DELETED, FAILED)


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
    def last_record(self) -> Mapping[str, Any] | None:
        """What the last request came to: the sidecar, or what stands in it of an attempt to overwrite."""
        record = self.entry.record
        attempt = (record or {}).get("overwrite")
        return attempt if isinstance(attempt, Mapping) else record

    @property
    def order(self) -> tuple[bool, str, str]:
        """Oldest first, because old calls drop out of the API's list first; undated ones last."""
        return self.start is None, self.start.isoformat() if self.start else "", self.call_id


def decide(item: Item, attempt: Attempt, *, overwrite: bool, not_found_for: timedelta) -> str:
    """
    Say what is with a wanted call: one of this module's constants.

    Only the archive is asked, so a resume, a retry, a cleared task and a backfill come to the same answer.

    :param item: the call and its entry.
    :param attempt: who asks.
    :param overwrite: ask for what is archived, too, once for each run.
    :param not_found_for: how long after its start a call without recording is asked for again.
    """
    record = item.entry.record
    if record is None:
        return MISSING
    status = record.get("status")
    if status == DELETED:
        return DELETED
    last = item.last_record if overwrite else record
    if last is not None and attempt.made(last, this_try=last.get("status") == FAILED):
        status = last.get("status")
        if status in (NOT_FOUND, TOO_LARGE, FAILED):
            return str(status)
        return STORED if item.entry.is_stored else MISSING
    if overwrite:
        return MISSING
    if item.entry.is_stored:
        return ALREADY_STORED
    if status == TOO_LARGE:
        return TOO_LARGE
    if status == NOT_FOUND:
        since = item.start or _moment(record.get("first_requested_at"))
        asked = _moment(record.get("answered_at"))
        # Only an answer from after that time is final: an earlier one may be from before the audio was there.
        if since is not None and asked is not None and asked - since > not_found_for:
            return NOT_FOUND
    return MISSING


@dataclass
class Plan:
    """
    What is with every call that a run looks at.

    :param window: the span that was listed; None where calls were named instead.
    :param items: the wanted calls by id.
    :param statuses: the status of each of them.
    :param others: how many calls are not wanted, by status.
    :param hopeless: what cannot even be asked for, with the reason.
    """

    window: Window | None = None
    items: dict[str, Item] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    hopeless: dict[str, str] = field(default_factory=dict)

    def set(self, item: Item, status: str) -> None:
        """Note what is with a wanted call."""
        self.items[item.call_id] = item
        self.statuses[item.call_id] = status

    def having(self, *statuses: str) -> list[Item]:
        """Answer the wanted calls of these statuses, oldest first."""
        chosen = [item for call_id, item in self.items.items() if self.statuses[call_id] in statuses]
        return sorted(chosen, key=lambda item: item.order)

    def failures(self) -> dict[str, str]:
        """Answer the calls that failed, with the reason."""
        reasons = {item.call_id: str((item.last_record or {}).get("error")) for item in self.having(FAILED)}
        return {**self.hopeless, **reasons}

    def counts(self) -> dict[str, int]:
        """Count the calls by status."""
        counts = Counter(self.statuses.values()) + self.others + Counter({FAILED: len(self.hopeless)})
        return {status: counts[status] for status in STATUSES}


def _moment(text: Any) -> pendulum.DateTime | None:
    return start_of({"start_date": text})
