"""From a permit to a sidecar: what becomes of one request, in whatever thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue

import pendulum

from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.archive.sidecar import Item, Sidecar, Status
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    AmplemarketError,
    ArchiveError,
    AuthenticationError,
    InvalidRecordingError,
    RateLimitExceededError,
    RecordingNotFoundError,
    RecordingTooLargeError,
)
from airflow_provider_amplemarket.quota.rate import Permit
from airflow_provider_amplemarket.run.breaker import Request
from airflow_provider_amplemarket.run.judge import Judge
from airflow_provider_amplemarket.run.work import Work

_STATUSES: dict[type[Exception], Status] = {
    RecordingNotFoundError: Status.NOT_FOUND,
    RecordingTooLargeError: Status.TOO_LARGE,
}


@dataclass(frozen=True)
class Outcome:
    """What became of one permit.

    :param item: the call, with what the archive has of it now; ``before``, with what it had.
    :param status: of the call; ``PENDING`` where nothing was learned of it.
    :param answered_at: when the response arrived; None where none did.
    :param sent: whether the request was sent at all.
    """

    permit: Permit
    item: Item
    status: Status
    answered_at: float | None = None
    sent: bool = True
    error: Exception | None = None
    before: Item | None = None


@dataclass(frozen=True)
class _Job:
    """A request that is sent, and the directory where its recording lies until it is published."""

    item: Item
    permit: Permit
    directory: Path
    request: Request
    requested_at: datetime

    @property
    def target(self) -> Path:
        """The file to download to."""
        return self.directory / f"{self.item.call_id}.part"


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Download recordings and take them into the archive, in any number of threads.

    :param clock: the time in seconds since the epoch, as the permits have it.
    :param downloads: lets so many download at once; others publish meanwhile.
    :param admitted: the calls that have a permit, in their order.
    """

    work: Work
    judge: Judge
    clock: Callable[[], float]
    downloads: threading.Semaphore
    admitted: SimpleQueue[tuple[Item, Permit]] = field(default_factory=SimpleQueue)

    def fetch_next(self, directory: Path) -> Outcome:
        """Spend the next permit: ask for the recording, and archive it or put on record why not.

        What goes wrong with the request is put on record before the next one is sent, lest an outage eat them.
        """
        with self.downloads:
            item, permit = self.admitted.get()  # only here, for a semaphore lets threads in as they come
            request = self.judge.admit(lambda: self._is_wanted(permit))
            if request is None:
                return Outcome(permit, item, Status.PENDING, sent=False)
            job = _Job(item, permit, directory, request, pendulum.now("UTC"))
            try:
                recording = self._download(job)
            except Exception as error:
                outcome = self._unserved(job, error)
                request.decided()
                return outcome
        try:
            return self._publish(job, recording)
        finally:
            job.target.unlink(missing_ok=True)
            request.decided()

    def _is_wanted(self, permit: Permit) -> bool:
        return not self.work.cancel.is_set() and self.clock() <= permit.use_before

    def _download(self, job: _Job) -> Recording:
        recording = self.work.hook.download_recording(
            job.item.call_id,
            job.target,
            cancelled=self.work.cancel.is_set,
            on_response=lambda: self.judge.answered(job.request),
        )
        self.judge.answered(job.request)
        return recording

    def _unserved(self, job: _Job, error: Exception) -> Outcome:
        if self.work.cancel.is_set():
            self.judge.stop()
        else:
            self.judge.unserved(job.request, error)
        if isinstance(error, RateLimitExceededError | AuthenticationError):
            return Outcome(job.permit, job.item, Status.PENDING, self.clock(), error=error)
        # Where no response came, the API may still count the request: the permit keeps its careful entry.
        return self._fail(job, error, self.clock() if _is_response(error) else None)

    def _publish(self, job: _Job, recording: Recording) -> Outcome:
        """Take a recording into the archive."""
        answered_at = recording.answered_at.timestamp()
        try:
            if job.item.entry.is_stored:
                job = self._overwriting(job)
            item = self._store(job, recording)
        except Exception as error:
            if not self.work.cancel.is_set():
                self.judge.unarchived(job.request, error)
            return self._fail(job, error, answered_at)
        self.judge.archived(job.request)
        return Outcome(job.permit, item, Status.STORED, answered_at)

    def _fail(self, job: _Job, error: Exception, answered_at: float | None) -> Outcome:
        """Put a failure on record; where the archive is what fails, stop the run instead."""
        untold = Outcome(job.permit, job.item, Status.PENDING, answered_at)
        if self.work.cancel.is_set():
            return untold
        status = _STATUSES.get(type(error), Status.FAILED)
        try:
            sidecar = self._record_failure(job, status, error)
        except Exception as fault:
            if not self._is_writable():  # also when the task was told to stop
                self.judge.stop(fault)
                return replace(untold, error=fault)
            # It is only this sidecar that cannot be written. Nobody would know why there is no recording: a failure.
            self.judge.unarchived(job.request, fault)
            error = ArchiveError(f"{error}; and this could not be put on record: {fault}")
            sidecar = self._failed(job, Status.FAILED, error)
        item = job.item.with_sidecar(sidecar)
        return replace(untold, item=item, status=item.last.status or status, error=error, before=job.item)

    def _record_failure(self, job: _Job, status: Status, error: Exception) -> Sidecar:
        sidecar = self._failed(job, status, error)
        is_of_the_api = isinstance(error, AmplemarketAPIError | InvalidRecordingError)
        if not is_of_the_api:
            self.work.go_on()
            self.work.archive.check_writable()
        self._write(job, sidecar)
        return sidecar

    def _failed(self, job: _Job, status: Status, error: Exception) -> Sidecar:
        return self.work.recorder.failed(job.item, status, error, permit=job.permit.id, requested_at=job.requested_at)

    def _is_writable(self) -> bool:
        try:
            self.work.go_on()
            self.work.archive.check_writable()
        except AmplemarketError:
            return False
        return True

    def _overwriting(self, job: _Job) -> _Job:
        """Let the old sidecar not vouch for the new audio, whatever fails before the new sidecar is there."""
        sidecar = self.work.recorder.overwriting(job.item)
        self._write(job, sidecar)
        return replace(job, item=job.item.with_sidecar(sidecar))

    def _store(self, job: _Job, recording: Recording) -> Item:
        self.work.go_on()
        self.work.archive.publish(job.target, job.item.entry.place.audio, recording.content_type)
        sidecar = self.work.recorder.stored(job.item, recording, permit=job.permit.id)
        self._write(job, sidecar)
        return job.item.with_sidecar(sidecar, size=recording.size)

    def _write(self, job: _Job, sidecar: Sidecar) -> None:
        self.work.go_on()
        self.work.archive.write_sidecar(job.item.entry.place, sidecar, job.directory)


def _is_response(error: Exception) -> bool:
    """Return whether the API has responded, so that the time of its counting is known."""
    is_of_the_api = isinstance(error, AmplemarketAPIError | InvalidRecordingError)
    return is_of_the_api and not isinstance(error, AmplemarketConnectionError)
