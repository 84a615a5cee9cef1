"""What the sidecars of one attempt say, whatever becomes of its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.archive.sidecar import Attempt, Item, Sidecar, Status

#: By how much workers' clocks may differ for the requests in sidecars to count.
MOST_SKEW = timedelta(minutes=1)

FAILURES = (Status.FAILED, Status.GIVEN_UP)


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Make the sidecars of one attempt.

    :param conn_id: the connection whose quota the requests count against, for as long as ``hold``.
    :param is_full: whether sidecars keep the call as the API gave it.
    """

    attempt: Attempt
    conn_id: str
    is_full: bool
    hold: timedelta

    def stored(self, item: Item, recording: Recording, *, permit: str) -> Sidecar:
        """Return the sidecar of a recording that is archived."""
        return replace(
            self._of(item, Status.STORED),
            key=item.entry.place.audio,
            size=recording.size,
            sha256=recording.sha256,
            content_type=recording.content_type,
            is_mpeg=recording.is_mpeg,
            permit=permit,
            requested_at=recording.requested_at,
            answered_at=recording.answered_at,
        )

    def adopted(self, item: Item, *, size: int, sha256: str) -> Sidecar:
        """Return the sidecar of a recording that was found in the archive without one."""
        stored = self._of(item, Status.STORED)
        return replace(stored, key=item.entry.place.audio, size=size, sha256=sha256, adopted=True)

    def unwritable(self, item: Item, error: Exception) -> Sidecar:
        """Return what the sidecar of a recording that was found would say, could it be written."""
        return replace(self._of(item, Status.FAILED), error=f"its sidecar cannot be written: {error}")

    def overwriting(self, item: Item) -> Sidecar:
        """Return a sidecar that no longer vouches for the audio that it is about."""
        return replace(item.sidecar, status=Status.OVERWRITING)

    def failed(self, item: Item, status: Status, error: Exception, *, permit: str, requested_at: datetime) -> Sidecar:
        """Return a sidecar that says why there is no recording; beside an archived one, within its sidecar.

        The error's ``content_length``, if it has one, is kept for who finds audio there later.
        """
        last = item.last
        is_failure = status in FAILURES
        earlier_requests = last.requests_of(*(FAILURES if is_failure else (status,)))
        failed = replace(
            self._of(item, status),
            first_failed_in=first_failed_in(item, self.attempt) if is_failure else None,
            audio_size=item.entry.size,
            content_length=getattr(error, "content_length", None) or last.content_length,
            error=str(error),
            permit=permit,
            requested_at=requested_at,
            answered_at=pendulum.now("UTC"),
            first_requested_at=last.first_requested_at or requested_at,
            requests=earlier_requests + 1,
        )
        is_beside_audio = item.entry.is_stored or item.sidecar.status == Status.OVERWRITING
        return replace(item.sidecar, overwrite=failed) if is_beside_audio else failed

    def given_up(self, item: Item) -> Sidecar:
        """Return the sidecar of a call that has failed just now, and is given up."""
        given_up = replace(item.last, status=Status.GIVEN_UP)
        is_beside_audio = item.sidecar.overwrite is not None
        return replace(item.sidecar, overwrite=given_up) if is_beside_audio else given_up

    def _of(self, item: Item, status: Status) -> Sidecar:
        return Sidecar(
            call_id=item.call_id,
            status=status,
            start_date=item.start,
            earlier_permits=self._earlier_permits(item),
            archived_at=pendulum.now("UTC"),
            amplemarket_conn_id=self.conn_id,
            call=dict(item.call) if self.is_full else None,
            **asdict(self.attempt),
        )

    def _earlier_permits(self, item: Item) -> Mapping[str, datetime] | None:
        """Return the permits of earlier requests for the same call that still count."""
        now = pendulum.now("UTC")
        earlier = {
            permit: answered_at
            for permit, answered_at in item.last.known_requests(self.conn_id)
            if permit is not None and now - self.hold < answered_at <= now + MOST_SKEW
        }
        return earlier or None


def first_failed_in(item: Item, attempt: Attempt) -> Mapping[str, Any]:
    """Return the run in which a call that has failed just now began to fail."""
    last = item.last
    if last.status not in FAILURES:
        return attempt.run
    return last.first_failed_in or last.run  # older sidecars name only the run that wrote them
