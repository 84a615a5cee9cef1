"""Spend permits: recordings from the API into the archive, several at once, each asked for once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive import Archive, Entry
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    AmplemarketError,
    ArchiveError,
    AuthenticationError,
    InvalidRecordingError,
    LedgerError,
    RateLimitExceededError,
    RecordingNotFoundError,
    RecordingTooLargeError,
)
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook, Recording
from airflow_provider_amplemarket.plan import FAILED, MISSING, NOT_FOUND, STORED, TOO_LARGE, Attempt, Item, Plan
from airflow_provider_amplemarket.quota import Ledger, Permit

log = logging.getLogger(__name__)

#: So many requests in a row that the API does not serve, for its own reasons, and the rest is left for a retry:
#: an outage should not eat the quota.
OUTAGE = 10

_STATUSES: dict[type[Exception], str] = {RecordingNotFoundError: NOT_FOUND, RecordingTooLargeError: TOO_LARGE}


@dataclass(frozen=True)
class _Outcome:
    """
    What became of one permit.

    :param item: the call, with what the archive has of it now.
    :param status: its status; ``missing`` where nothing was learned of it.
    :param answered_at: when the answer arrived; None where none did.
    :param sent: whether the request was sent at all.
    :param error: what went wrong, if anything did.
    """

    item: Item
    status: str
    answered_at: float | None = None
    sent: bool = True
    error: Exception | None = None


@dataclass
class Downloads:
    """
    Ask for recordings as long as the quota gives permits.

    The ledger is used by the calling thread alone; the threads here use neither it nor anything of Airflow.

    :param hook: asks the API.
    :param archive: takes the recordings.
    :param ledger: gives the permits.
    :param attempt: who asks, for the sidecars.
    :param concurrency: downloads at once.
    :param is_full: whether sidecars keep the call as the API gave it.
    :param cancel: ends the downloads under way when it is set.
    :param requests: how many requests were sent.
    """

    hook: AmplemarketHook
    archive: Archive
    ledger: Ledger
    attempt: Attempt
    concurrency: int
    is_full: bool
    cancel: threading.Event
    requests: int = 0
    _answers: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _fatal: Exception | None = None
    _outage: int = 0
    _outage_since: float = 0.0

    @property
    def pace(self) -> float:
        """Seconds from one answer to the next, on the average; 0 where there were less than two."""
        count = len(self._answers)
        return (max(self._answers) - min(self._answers)) / (count - 1) if count > 1 else 0.0

    def run(self, plan: Plan) -> None:
        """
        Archive what is missing, oldest first, and note in the plan what became of it.

        What is still missing afterwards had no permit.

        :raises AuthenticationError: when the API key is refused.
        :raises ArchiveError: when the archive does not take what was downloaded.
        :raises LedgerError: when the ledger cannot be trusted.
        :raises AmplemarketError: when request after request fails.
        """
        # What has failed before comes last: it must not keep the others waiting for ever.
        queue = deque(sorted(plan.having(MISSING), key=lambda item: (item.last_record or {}).get("status") == FAILED))
        with (
            self.archive.staging() as directory,
            ThreadPoolExecutor(self.concurrency) as publishers,
            ThreadPoolExecutor(self.concurrency) as downloaders,
        ):
            try:
                self._run(plan, queue, directory, downloaders, publishers)
            except BaseException:
                self.cancel.set()
                raise

    def adopt(self, plan: Plan) -> None:
        """
        Commit recordings whose audio lies in the archive without its sidecar: their writer died in between.

        Audio is published whole or not at all, so this saves the permit of asking for it again; what is not seen to be
        whole, by its frames and by the length on record, is asked for again all the same.
        """
        found = [item for item in plan.having(MISSING) if item.entry.is_uncommitted]
        if not found or not self.archive.publishes_whole:
            return
        with self.archive.staging() as directory:
            for item in found:
                place, digest = item.entry.place, self.archive.digest(item.entry.place.audio)
                expected = (item.entry.record or {}).get("content_length")
                if not digest.is_whole or expected not in (None, digest.size):
                    log.warning(
                        "Found %s without its sidecar; it is not adopted: its %d bytes are not known to be whole%s",
                        self.archive.uri(place.audio),
                        digest.size,
                        f", as {expected} were promised" if expected is not None else "",
                    )
                    continue
                record = self._record(
                    item, STORED, key=place.audio, size=digest.size, sha256=digest.sha256, adopted=True
                )
                self.archive.write_record(place, record, directory)
                plan.set(Item(item.call, Entry(place, digest.size, record)), STORED)
                log.info("Found %s without its sidecar; written now", self.archive.uri(place.audio))

    def _run(
        self,
        plan: Plan,
        queue: deque[Item],
        directory: Path,
        downloaders: ThreadPoolExecutor,
        publishers: ThreadPoolExecutor,
    ) -> None:
        running: dict[Future[Any], Permit] = {}
        outcomes: list[tuple[Permit, _Outcome]] = []
        while True:
            # As many as are downloaded wait with their permits, or are published, so that no download waits for the
            # ledger; an exchange, which is several round trips, brings permits for half as many at a time. Once
            # something has stopped the run, what is under way ends first and is reported together.
            room = 0 if self._stop.is_set() or self._fatal else min(len(queue), 2 * self.concurrency - len(running))
            is_due = room >= min(len(queue), (self.concurrency + 1) // 2)
            if (room and is_due) or (outcomes and not running and not isinstance(self._fatal, LedgerError)):
                try:
                    permits = self._exchange(room, outcomes)
                except LedgerError as error:  # what has its permit is paid for and needs no ledger
                    self._fatal = self._fatal or error
                    permits = []
                outcomes.clear()
                for permit in permits:
                    future = downloaders.submit(self._fetch, queue.popleft(), permit, directory, publishers)
                    running[future] = permit
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                permit, outcome = running.pop(future), future.result()
                if isinstance(outcome, Future):  # it is downloaded; now it is being published
                    running[outcome] = permit
                    continue
                outcomes.append((permit, outcome))
                self._note(plan, outcome)
                if not outcome.sent:
                    queue.appendleft(outcome.item)
            if self.cancel.is_set():
                self._end(AmplemarketError("The task was told to stop"))
        if self._fatal is not None:
            raise self._fatal

    def _exchange(self, wanted: int, outcomes: list[tuple[Permit, _Outcome]]) -> list[Permit]:
        return self.ledger.exchange(
            wanted,
            answered={permit: out.answered_at for permit, out in outcomes if out.answered_at is not None},
            unused=[permit for permit, out in outcomes if not out.sent],
            refusals=[out.error.retry_after for _, out in outcomes if isinstance(out.error, RateLimitExceededError)],
        )

    def _note(self, plan: Plan, outcome: _Outcome) -> None:
        """Take an outcome into the plan; stop the run where going on would waste permits."""
        item, error = outcome.item, outcome.error
        self.requests += outcome.sent
        if outcome.answered_at is not None:
            self._answers.append(outcome.answered_at)
        plan.set(item, outcome.status)
        if outcome.status == STORED:
            log.info("Archived %s (%d bytes)", self.archive.uri(item.entry.place.audio), item.entry.size)
            if not (item.entry.record or {}).get("is_mpeg"):
                log.warning("The recording of call %s does not begin like MPEG audio; it is as served", item.call_id)
        elif outcome.status != MISSING:
            log.warning("Call %s is %s: %s", item.call_id, outcome.status, error)
        if isinstance(error, RateLimitExceededError):
            log.warning(
                "%s. Does somebody else use the API key, or is the connection's recording_limit too high? "
                "Waiting before the next request.",
                error,
            )
            self._stop.set()
        elif error is not None and outcome.status == MISSING:
            self._end(error)
        if outcome.sent and _is_outage(error):
            self._outage_since = self._outage_since if self._outage else self.ledger.clock()
            self._outage += 1
        elif outcome.sent and (outcome.answered_at or 0.0) > self._outage_since:  # not one that is published late
            self._outage = 0
        if self._outage >= OUTAGE:
            self._end(AmplemarketError(f"{OUTAGE} requests in a row failed, the last one with: {error}"))

    def _end(self, error: Exception) -> None:
        self._stop.set()
        if self._fatal is None:
            self._fatal = error

    def _fetch(
        self, item: Item, permit: Permit, directory: Path, publishers: ThreadPoolExecutor
    ) -> _Outcome | Future[_Outcome]:
        """Use one permit, and leave it to another thread to publish, so that this one can use the next."""
        target = directory / f"{item.call_id}.part"
        result = self._download(item, permit, target, directory)
        if isinstance(result, _Outcome):
            return result
        return publishers.submit(self._publish, item, result, target, directory)

    def _download(self, item: Item, permit: Permit, target: Path, directory: Path) -> Recording | _Outcome:
        """Send the request; what goes wrong is put on record before the next one is sent, lest an outage eat them."""
        clock = self.ledger.clock
        if self._stop.is_set() or self.cancel.is_set() or clock() > permit.use_before:
            return _Outcome(item, MISSING, sent=False)
        requested_at = pendulum.now("UTC")
        try:
            return self.hook.download_recording(item.call_id, target, cancelled=self.cancel.is_set)
        except (RateLimitExceededError, AuthenticationError) as error:
            # Here, not in _note: another request would be sent before the outcome is noted.
            self._stop.set()
            return _Outcome(item, MISSING, clock(), error=error)
        except (AmplemarketAPIError, InvalidRecordingError) as error:
            # Where no answer came, the API may still count the request: the permit keeps its careful entry.
            answered_at = None if isinstance(error, AmplemarketConnectionError) else clock()
            return self._fail(item, error, requested_at, answered_at, directory)
        except Exception as error:
            return self._fail(item, error, requested_at, None, directory)

    def _publish(self, item: Item, recording: Recording, target: Path, directory: Path) -> _Outcome:
        """Take a recording into the archive, while other threads download."""
        answered_at = recording.answered_at.timestamp()
        try:
            entry = self._store(item, recording, target, directory)
        except Exception as error:
            return self._fail(item, error, recording.requested_at, answered_at, directory)
        finally:
            target.unlink(missing_ok=True)
        return _Outcome(Item(item.call, entry), STORED, answered_at)

    def _fail(
        self, item: Item, error: Exception, requested_at: datetime, answered_at: float | None, directory: Path
    ) -> _Outcome:
        """Put a failure on record; where the archive is what fails, stop the run instead."""
        if self.cancel.is_set():
            return _Outcome(item, MISSING, answered_at)
        status = _STATUSES.get(type(error), FAILED)
        record = self._failure_record(item, status, error, requested_at)
        try:
            if not isinstance(error, AmplemarketAPIError | InvalidRecordingError):
                self.archive.check_writable()
            self.archive.write_record(item.entry.place, record, directory)
        except Exception as fault:
            try:
                self.archive.check_writable()
            except ArchiveError:
                self._stop.set()
                return _Outcome(item, MISSING, answered_at, error=fault)
        entry = Entry(item.entry.place, item.entry.size, record)
        return _Outcome(Item(item.call, entry), status, answered_at, error=error)

    def _store(self, item: Item, recording: Recording, target: Path, directory: Path) -> Entry:
        place = item.entry.place
        if item.entry.is_stored:
            # Until the new sidecar is there, the old one must not vouch for the new audio.
            self.archive.write_record(place, {**(item.entry.record or {}), "status": "overwriting"}, directory)
        self.archive.publish(target, place.audio, recording.content_type)
        record = self._record(
            item,
            STORED,
            key=place.audio,
            size=recording.size,
            sha256=recording.sha256,
            content_type=recording.content_type,
            is_mpeg=recording.is_mpeg,
            requested_at=recording.requested_at,
            answered_at=recording.answered_at,
        )
        self.archive.write_record(place, record, directory)
        return Entry(place, recording.size, record)

    def _failure_record(self, item: Item, status: str, error: Exception, requested_at: datetime) -> dict[str, Any]:
        entry = item.entry
        old = entry.record or {}
        record = self._record(
            item,
            status,
            error=str(error),
            requested_at=requested_at,
            answered_at=pendulum.now("UTC"),
            first_requested_at=old.get("first_requested_at") or requested_at,
            **({"audio_size": entry.size} if entry.size is not None else {}),
        )
        if not entry.is_stored:
            return record
        record.pop("call", None)
        return {**old, "overwrite": record}

    def _record(self, item: Item, status: str, **fields: Any) -> dict[str, Any]:
        """Make what the sidecar says; moments in ISO 8601."""
        record = {
            "version": 1,
            "call_id": item.call_id,
            "status": status,
            "start_date": item.start,
            **fields,
            "archived_at": pendulum.now("UTC"),
            "amplemarket_conn_id": self.hook.amplemarket_conn_id,
            **asdict(self.attempt),
        }
        texts = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in record.items()}
        return {**texts, "call": dict(item.call)} if self.is_full else texts


def _is_outage(error: Exception | None) -> bool:
    """Tell whether the API or this machine, not the recording, may be what is wrong."""
    if isinstance(error, AmplemarketAPIError):
        return isinstance(error, AmplemarketConnectionError) or (error.status or 0) >= 500
    return isinstance(error, ArchiveError | OSError)
