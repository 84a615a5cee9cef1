"""What the sidecars say: one JSON object for what became of one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.quota.rate import Permit
from airflow_provider_amplemarket.run.plan import (
    FAILED,
    GIVEN_UP,
    STORED,
    Attempt,
    Item,
    first_failed_in,
    moment_of,
)

OVERWRITING = "overwriting"
#: By how much workers' clocks may differ for what sidecars tell of requests to count.
MOST_SKEW = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Records:
    """
    Make the texts of the sidecars; moments in ISO 8601.

    :param attempt: who asks.
    :param conn_id: the connection whose quota the requests count against.
    :param is_full: whether sidecars keep the call as the API gave it.
    :param hold: how long a request counts against the quota.
    """

    attempt: Attempt
    conn_id: str
    is_full: bool
    hold: timedelta

    def stored(self, item: Item, recording: Recording, permit: Permit) -> dict[str, Any]:
        """Say that a recording is archived."""
        return self._record(
            item,
            STORED,
            key=item.entry.place.audio,
            size=recording.size,
            sha256=recording.sha256,
            content_type=recording.content_type,
            is_mpeg=recording.is_mpeg,
            **self._permits(item, permit),
            requested_at=recording.requested_at,
            answered_at=recording.answered_at,
        )

    def adopted(self, item: Item, size: int, sha256: str) -> dict[str, Any]:
        """Say that a recording was found in the archive without its sidecar."""
        key, earlier = item.entry.place.audio, self._earlier_permits(item)
        return self._record(item, STORED, key=key, size=size, sha256=sha256, adopted=True, **earlier)

    def overwriting(self, item: Item) -> dict[str, Any]:
        """Say that what is known of an archived recording no longer vouches for its audio."""
        return {**(item.entry.record or {}), "status": OVERWRITING}

    def failed(
        self,
        item: Item,
        status: str,
        error: Exception,
        *,
        permit: Permit,
        requested_at: datetime,
    ) -> dict[str, Any]:
        """
        Say why there is no recording; beside an archived one, within its sidecar.

        :param status: what the failure means.
        """
        now = pendulum.now("UTC")
        last = item.last_record or {}
        fields: dict[str, Any] = {}
        if status == FAILED:
            fields["first_failed_in"] = first_failed_in(item, self.attempt)
        if item.entry.size is not None:
            fields["audio_size"] = item.entry.size
        promised = getattr(error, "content_length", None) or last.get("content_length")
        if promised is not None:  # what lies there one day without its sidecar is held against it
            fields["content_length"] = promised
        same = (FAILED, GIVEN_UP) if status in (FAILED, GIVEN_UP) else (status,)
        record = self._record(
            item,
            status,
            error=str(error),
            **self._permits(item, permit),
            requested_at=requested_at,
            answered_at=now,
            first_requested_at=moment_of(last.get("first_requested_at")) or requested_at,
            requests=item.requests(*same) + 1,
            **fields,
        )
        is_overwriting = (item.entry.record or {}).get("status") == OVERWRITING
        if not (item.entry.is_stored or is_overwriting):
            return record
        record.pop("call", None)
        return {**(item.entry.record or {}), "overwrite": record}

    def given_up(self, item: Item) -> dict[str, Any]:
        """Say that a call that has failed just now is given up."""
        record = dict(item.entry.record or {})
        if item.last_record is not item.entry.record:
            return {**record, "overwrite": {**(item.last_record or {}), "status": GIVEN_UP}}
        return {**record, "status": GIVEN_UP}

    def _permits(self, item: Item, permit: Permit) -> dict[str, Any]:
        return {"permit": permit.id, **self._earlier_permits(item)}

    def _earlier_permits(self, item: Item) -> dict[str, Any]:
        """Name the permits of earlier requests for the same call that still count."""
        last, now = item.last_record or {}, pendulum.now("UTC")
        since, until = now - self.hold, now + MOST_SKEW
        spent = requests_of(last, self.conn_id)
        earlier = {permit: moment.isoformat() for permit, moment in spent if permit and since < moment <= until}
        return {"earlier_permits": earlier} if earlier else {}

    def _record(self, item: Item, status: str, **fields: Any) -> dict[str, Any]:
        record = {
            "version": 1,
            "call_id": item.call_id,
            "status": status,
            "start_date": item.start,
            **fields,
            "archived_at": pendulum.now("UTC"),
            "amplemarket_conn_id": self.conn_id,
            **asdict(self.attempt),
        }
        texts = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in record.items()}
        return {**texts, "call": dict(item.call)} if self.is_full else texts


def known_requests(
    items: Iterable[Item], conn_id: str, *, since: float, until: float
) -> tuple[dict[str, float], list[float]]:
    """
    Return the timestamps of the requests that sidecars tell of: those with a permit by its id, and the others.

    :param conn_id: only requests of this connection.
    :param since: only requests answered after this timestamp (seconds since the epoch).
    :param until: and not after this one: a clock was wrong then, and nobody knows by how much.
    """
    by_permit: dict[str, float] = {}
    others: list[float] = []
    for item in items:
        for permit, moment in requests_of(item.entry.record or {}, conn_id):
            if not since < moment.timestamp() <= until:
                continue
            if permit is None:
                others.append(moment.timestamp())
            else:
                by_permit[permit] = moment.timestamp()
    return by_permit, others


def requests_of(record: Mapping[str, Any], conn_id: str) -> Iterator[tuple[str | None, datetime]]:
    """
    Yield the requests that a sidecar tells of: the permit, None in older sidecars, and when the answer came.

    :param conn_id: only requests of this connection.
    """
    earlier, permit, overwrite = (record.get(name) for name in ("earlier_permits", "permit", "overwrite"))
    if record.get("amplemarket_conn_id") == conn_id:
        texts = [*earlier.items()] if isinstance(earlier, Mapping) else []
        for name, text in [*texts, (permit if isinstance(permit, str) else None, record.get("answered_at"))]:
            if (moment := moment_of(text)) is not None:
                yield name, moment
    if isinstance(overwrite, Mapping):
        yield from requests_of(overwrite, conn_id)
