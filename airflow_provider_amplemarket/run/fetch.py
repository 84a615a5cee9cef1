"""From a permit to a sidecar: what becomes of one request, in whatever thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pendulum

from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.archive.store import Archive, Entry
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    AmplemarketError,
    ArchiveError,
    AuthenticationError,
    InvalidRecordingError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
)
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.quota.rate import Permit
from airflow_provider_amplemarket.run.breaker import CircuitBreaker, Request
from airflow_provider_amplemarket.run.plan import FAILED, MISSING, NOT_FOUND, STORED, TOO_LARGE, Item
from airflow_provider_amplemarket.run.records import Records

#: So many requests in a row that come to nothing, and the rest is left for a retry: an outage should not eat the quota.
#: That is exact where the API does not serve. Of recordings that do not come whole, or that the archive does not take,
#: those under way have been asked for, too, where one was archived before.
OUTAGE = 10
#: So many recordings in a row refused with 403, and it is the API key that is refused.
REFUSED = 3

#: Kinds of failures: the API does not serve, the key is refused, and nothing comes of the request for whatever reason.
_API, _KEY, _NOTHING = "API", "key", "nothing"
_LIMITS = {_API: OUTAGE, _KEY: REFUSED, _NOTHING: OUTAGE}

_STATUSES: dict[type[Exception], str] = {RecordingNotFoundError: NOT_FOUND, RecordingTooLargeError: TOO_LARGE}


@dataclass(frozen=True)
class Job:
    """
    A permit and what it is spent on.

    :param directory: where the recording lies until it is published.
    """

    item: Item
    permit: Permit
    directory: Path

    @property
    def target(self) -> Path:
        """The file to download to."""
        return self.directory / f"{self.item.call_id}.part"


@dataclass(frozen=True)
class Sent:
    """
    A job whose request is sent.

    :param request: the request, as it is counted.
    :param requested_at: when it was sent.
    """

    job: Job
    request: Request
    requested_at: datetime


@dataclass(frozen=True)
class Outcome:
    """
    What became of one permit.

    :param permit: the permit.
    :param item: the call, with what the archive has of it now.
    :param status: its status; ``missing`` where nothing was learned of it.
    :param answered_at: when the answer arrived; None where none did.
    :param sent: whether the request was sent at all.
    :param error: what went wrong, if anything did.
    :param before: the call, with what the archive had of it before.
    """

    permit: Permit
    item: Item
    status: str
    answered_at: float | None = None
    sent: bool = True
    error: Exception | None = None
    before: Item | None = None


class Fetcher:
    """
    Download recordings and take them into the archive, in any number of threads; decide when that is pointless.

    :param hook: asks the API.
    :param archive: takes the recordings.
    :param records: makes the sidecars.
    :param clock: the time in seconds since the epoch, as the permits have it.
    :param cancel: once it is set, nothing is sent and nothing is written any more.
    """

    def __init__(
        self,
        *,
        hook: AmplemarketHook,
        archive: Archive,
        records: Records,
        clock: Callable[[], float],
        cancel: threading.Event,
    ) -> None:
        self._hook = hook
        self._archive = archive
        self._records = records
        self._clock = clock
        self._cancel = cancel
        # Where one recording is refused, the others under way may be, too; where none was served yet, it is exact.
        self._breaker = CircuitBreaker(_LIMITS, trusting=[_KEY, _NOTHING])
        #: What makes going on pointless, if anything does.
        self.fatal: Exception | None = None
        #: Whether that may be the fault of the API or of the store, and not that of the recordings.
        self.is_outage = False

    @property
    def is_stopped(self) -> bool:
        """Whether no request is sent any more."""
        return self._breaker.is_open

    def stop(self, error: Exception | None = None, *, is_outage: bool = True) -> None:
        """
        Send nothing any more; what is under way goes on.

        :param error: why; the first one given is the reason.
        :param is_outage: whether that may be the fault of the API or of the store, and not that of the recordings.
        """
        if self.fatal is None and error is not None:
            self.fatal = error
            self.is_outage = is_outage
        self._breaker.open()

    def download(self, job: Job) -> tuple[Sent, Recording] | Outcome:
        """Send the request; what goes wrong is put on record before the next one is sent, lest an outage eat them."""

        def is_wanted() -> bool:
            return not self._cancel.is_set() and self._clock() <= job.permit.use_before

        request = self._breaker.enter(is_wanted)
        if request is None:
            return Outcome(job.permit, job.item, MISSING, sent=False)
        sent = Sent(job, request, pendulum.now("UTC"))
        try:
            recording = self._hook.download_recording(
                job.item.call_id,
                job.target,
                cancelled=self._cancel.is_set,
                answered=lambda: request.succeeded(_API, _KEY),
            )
        except Exception as error:
            try:
                return self._unserved(sent, error)
            finally:
                request.decided()
        request.succeeded(_API, _KEY)
        return sent, recording

    def _unserved(self, sent: Sent, error: Exception) -> Outcome:
        self._judge(sent.request, error)
        if isinstance(error, RateLimitExceededError | AuthenticationError):
            return Outcome(sent.job.permit, sent.job.item, MISSING, self._clock(), error=error)
        # Where no answer came, the API may still count the request: the permit keeps its careful entry.
        is_answer = isinstance(error, AmplemarketAPIError | InvalidRecordingError)
        is_answer = is_answer and not isinstance(error, AmplemarketConnectionError)
        return self._fail(sent, error, self._clock() if is_answer else None)

    def publish(self, sent: Sent, recording: Recording) -> Outcome:
        """Take a recording into the archive."""
        job = sent.job
        answered_at = recording.answered_at.timestamp()
        try:
            if job.item.entry.is_stored:
                job = self._overwriting(job)
            entry = self._store(job, recording)
            sent.request.succeeded(_NOTHING)
        except Exception as error:
            if not self._cancel.is_set():
                self._count(sent.request, _NOTHING, error)
            return self._fail(replace(sent, job=job), error, answered_at)
        finally:
            job.target.unlink(missing_ok=True)
            sent.request.decided()
        return Outcome(job.permit, Item(job.item.call, entry), STORED, answered_at)

    def _judge(self, request: Request, error: Exception) -> None:
        """Count a request that failed, and decide whether to go on; before another one takes its place."""
        if self._cancel.is_set():
            self.stop()
        elif isinstance(error, AuthenticationError):
            self.stop(error, is_outage=False)
        elif isinstance(error, RateLimitExceededError):
            self.stop()
        elif type(error) in _STATUSES:  # the API has no such recording to give, and says so
            request.cleared(_NOTHING)
        else:
            self._count_failure(request, error)
        if not _is_outage(error):
            request.cleared(_API)

    def _count_failure(self, request: Request, error: Exception) -> None:
        if isinstance(error, RecordingForbiddenError):
            self._count(request, _KEY, error)
        elif _is_outage(error):
            self._count(request, _API, error)
        self._count(request, _NOTHING, error)

    def _count(self, request: Request, kind: str, error: Exception) -> None:
        if not request.failed(kind):
            return
        if kind == _KEY:
            refused = AuthenticationError(
                f"{REFUSED} requests for recordings in a row were refused, the last one with: {error}; "
                f"check the API key in the password of connection {self._hook.amplemarket_conn_id!r}",
                status=getattr(error, "status", None),
            )
            self.stop(refused, is_outage=False)
        else:
            in_a_row = AmplemarketError(f"{OUTAGE} requests in a row failed, the last one with: {error}")
            self.stop(in_a_row, is_outage=_is_outage(error) or isinstance(error, ArchiveError | OSError))

    def _fail(self, sent: Sent, error: Exception, answered_at: float | None) -> Outcome:
        """Put a failure on record; where the archive is what fails, stop the run instead."""
        job = sent.job
        if self._cancel.is_set():
            return Outcome(job.permit, job.item, MISSING, answered_at)

        def made(status: str, reason: Exception) -> Mapping[str, Any]:
            return self._records.failed(job.item, status, reason, permit=job.permit, requested_at=sent.requested_at)

        status = _STATUSES.get(type(error), FAILED)
        record = made(status, error)
        try:
            if not isinstance(error, AmplemarketAPIError | InvalidRecordingError):
                self._check_writable()
            self._write_record(job, record)
        except Exception as fault:
            try:
                self._check_writable()
            except AmplemarketError:  # also when the task was told to stop
                self.stop(fault)
                return Outcome(job.permit, job.item, MISSING, answered_at, error=fault)
            # It is only this sidecar that cannot be written. Nobody would know why there is no recording: a failure.
            self._count(sent.request, _NOTHING, fault)
            error = ArchiveError(f"{error}; and this could not be put on record: {fault}")
            record = made(FAILED, error)
        item = Item(job.item.call, Entry(job.item.entry.place, job.item.entry.size, record))
        status = str((item.last_record or {})["status"])
        return Outcome(job.permit, item, status, answered_at, error=error, before=job.item)

    def _overwriting(self, job: Job) -> Job:
        """Let the old sidecar not vouch for the new audio, whatever fails before the new sidecar is there."""
        entry = job.item.entry
        record = self._records.overwriting(job.item)
        self._write_record(job, record)
        return replace(job, item=Item(job.item.call, replace(entry, record=record)))

    def _store(self, job: Job, recording: Recording) -> Entry:
        place = job.item.entry.place
        self._go_on()
        self._archive.publish(job.target, place.audio, recording.content_type)
        record = self._records.stored(job.item, recording, job.permit)
        self._write_record(job, record)
        return Entry(place, recording.size, record)

    def _write_record(self, job: Job, record: Mapping[str, Any]) -> None:
        self._go_on()
        self._archive.write_record(job.item.entry.place, record, job.directory)

    def _check_writable(self) -> None:
        self._go_on()
        self._archive.check_writable()

    def _go_on(self) -> None:
        """Write nothing for a task that was told to stop."""
        if self._cancel.is_set():
            raise AmplemarketError("The task was told to stop")


def _is_outage(error: Exception) -> bool:
    """Tell whether the API, not the recording, may be what is wrong."""
    if not isinstance(error, AmplemarketAPIError):
        return False
    return isinstance(error, AmplemarketConnectionError) or (error.status or 0) >= 500
