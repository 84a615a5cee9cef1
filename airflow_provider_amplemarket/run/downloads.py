"""Spend permits: recordings from the API into the archive, several at once, each asked for once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from queue import Empty, SimpleQueue

import pendulum

from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.archive.digest import Digest
from airflow_provider_amplemarket.archive.store import Archive, Entry
from airflow_provider_amplemarket.exceptions import (
    AmplemarketError,
    ArchiveError,
    LedgerBusyError,
    LedgerError,
    RateLimitExceededError,
)
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.rate import Permit, Report
from airflow_provider_amplemarket.run.fetch import Fetcher, Job, Outcome, Sent
from airflow_provider_amplemarket.run.plan import (
    FAILED,
    GIVEN_UP,
    MISSING,
    STORED,
    Attempt,
    Item,
    Plan,
    gives_up,
    moment_of,
)
from airflow_provider_amplemarket.run.records import Records
from airflow_provider_amplemarket.run.workers import Workers

log = logging.getLogger(__name__)

#: So many calls that fail alone are given up in time, though nothing was archived beside them: of more, it may be the
#: API that fails.
FEW = 3
#: Seconds after which the archive is looked at again before a request is sent: another task may have been there.
FRESH_FOR = 30.0
#: So many calls are then looked up together.
LOOK_AHEAD = 50
#: Where more recordings than this are wanted, the log tells the progress after so many instead of every single one.
MANY = 10
#: Seconds that threads are waited for which do not end when they are told to.
PATIENCE = 3.0

#: Seconds after which the calling thread looks whether the task was told to stop.
_LOOK = 0.25


@dataclass
class Downloads:
    """
    Ask for recordings as long as the quota gives permits.

    The ledger is used by the calling thread alone; the threads here use neither it nor anything of Airflow.

    :param hook: asks the API.
    :param archive: takes the recordings.
    :param ledger: gives the permits.
    :param attempt: who asks, for the sidecars.
    :param decide: says what is with a call, should the archive have changed since the plan was made.
    :param concurrency: downloads at once.
    :param is_full: whether sidecars keep the call as the API gave it.
    :param give_up_after: how long after its first request a call that fails is given up.
    :param cancel: ends the downloads under way when it is set.
    :param requests: how many requests were sent.
    """

    hook: AmplemarketHook
    archive: Archive
    ledger: Ledger
    attempt: Attempt
    decide: Callable[[Item], str]
    concurrency: int
    is_full: bool
    give_up_after: timedelta
    cancel: threading.Event
    requests: int = 0
    _are_many: bool = False
    _is_ledger_busy: bool = False
    _archived: int = 0
    _failed: list[tuple[Item, Item]] = field(default_factory=list)
    _untaken: list[tuple[Item, Item]] = field(default_factory=list)
    _answers: list[float] = field(default_factory=list)
    _looked_at: dict[str, float] = field(default_factory=dict)

    @property
    def pace(self) -> float:
        """Seconds from one answer to the next, on the average; 0 where there were less than two."""
        count = len(self._answers)
        return (max(self._answers) - min(self._answers)) / (count - 1) if count > 1 else 0.0

    def run(self, plan: Plan) -> None:
        """
        Archive what is missing, and note in the plan what became of it.

        What is still missing afterwards had no permit. A task that is told to stop leaves within seconds, and
        leaves behind what hangs: that writes nothing any more.

        :raises AuthenticationError: when the API key is refused.
        :raises ArchiveError: when the archive does not take what was downloaded.
        :raises LedgerError: when the ledger cannot be trusted.
        :raises AmplemarketError: when request after request fails, or the task was told to stop.
        """
        queue = deque(plan.queue())
        if not queue:
            return
        self._are_many = len(queue) > MANY
        with self.archive.staging() as directory:
            crew = _Crew(self._fetcher, min(self.concurrency, len(queue)), directory)
            try:
                self._spend(plan, queue, crew)
            except BaseException:  # a time-out, for example
                self._abandon(plan, crew)
                raise
            finally:
                crew.end()
            self._give_up(plan, directory)
        if self._fetcher.fatal is not None:
            raise self._fetcher.fatal

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
                if self.cancel.is_set():
                    raise AmplemarketError("The task was told to stop")
                if digest := self._vouched_for(item):
                    self._adopt(plan, item, digest, directory)

    def _vouched_for(self, item: Item) -> Digest | None:
        """Return what lies in the archive; None where nothing shows that it is whole."""
        try:
            digest = self.archive.digest(item.entry.place.audio)
        except ArchiveError as error:
            if self.cancel.is_set():
                raise
            log.warning("Found audio without its sidecar; it is not adopted: %s", error)
            return None
        expected = (item.entry.record or {}).get("content_length")
        if digest.is_whole and expected in (None, digest.size):
            return digest
        log.warning(
            "Found %s without its sidecar; it is not adopted: its %d bytes are not known to be whole%s",
            self.archive.uri(item.entry.place.audio),
            digest.size,
            f", as {expected} were promised" if expected is not None else "",
        )
        return None

    def _adopt(self, plan: Plan, item: Item, digest: Digest, directory: Path) -> None:
        place = item.entry.place
        record = self._records.adopted(item, digest.size, digest.sha256)
        try:
            self.archive.write_record(place, record, directory)
        except ArchiveError as error:
            self.archive.check_writable()  # where nothing can be written, the run ends
            record = {**record, "status": FAILED, "error": f"its sidecar cannot be written: {error}"}
            plan.set(Item(item.call, Entry(place, digest.size, record)), FAILED)
            return
        plan.set(Item(item.call, Entry(place, digest.size, record)), STORED)
        log.info("Found %s without its sidecar; written now", self.archive.uri(place.audio))

    def _give_up(self, plan: Plan, directory: Path) -> None:
        """Give calls up that have failed for long enough, unless it may be the API, the key or the store that fails."""
        now = pendulum.now("UTC")
        is_few = self._fetcher.fatal is None and len(self._failed) + len(self._untaken) <= FEW
        is_theirs = is_few or (self._archived > 0 and not self._fetcher.is_outage)
        # A store that takes others refuses these for good.
        for before, item in [*self._failed, *(self._untaken if self._archived else ())]:
            was_given_up = (before.last_record or {}).get("status") == GIVEN_UP
            if (is_theirs or was_given_up) and gives_up(before, self.attempt, after=self.give_up_after, now=now):
                record = self._records.given_up(item)
                try:
                    self.archive.write_record(item.entry.place, record, directory)
                except ArchiveError as error:
                    log.warning("Call %s is not given up, as that could not be put on record: %s", item.call_id, error)
                    continue
                plan.set(Item(item.call, Entry(item.entry.place, item.entry.size, record)), GIVEN_UP)
                log.warning(
                    "Call %s is given up after %d requests in %s, the last one with: %s. Nobody asks for it again, "
                    "unless the task is cleared, or call_ids names it.",
                    item.call_id,
                    item.requests(FAILED),
                    _since_first(item),
                    (item.last_record or {}).get("error"),
                )

    @cached_property
    def _records(self) -> Records:
        return Records(
            attempt=self.attempt,
            conn_id=self.hook.amplemarket_conn_id,
            is_full=self.is_full,
            hold=timedelta(seconds=self.ledger.limit.hold),
        )

    @cached_property
    def _fetcher(self) -> Fetcher:
        return Fetcher(
            hook=self.hook, archive=self.archive, records=self._records, clock=self.ledger.clock, cancel=self.cancel
        )

    def _spend(self, plan: Plan, queue: deque[Item], crew: _Crew) -> None:
        report = Report()
        while not self.cancel.is_set():
            # As many as are downloaded wait with their permits, or are published, so that no download waits for the
            # ledger; an exchange, which is several round trips, brings permits for half as many at a time. Once
            # something has stopped the run, what is under way ends first and is reported together.
            is_waiting = self._fetcher.is_stopped or (self._is_ledger_busy and crew.busy)
            room = 0 if is_waiting else min(len(queue), 2 * self.concurrency - crew.busy)
            is_due = room >= min(len(queue), (self.concurrency + 1) // 2)
            if (room and is_due) or (report and not crew.busy):
                report = self._trade(plan, queue, crew, room, report)
            if not crew.busy and not report:
                return
            for outcome in self._collect(crew):
                self._note(plan, outcome)
                _add(report, outcome)
                if not outcome.sent:
                    queue.appendleft(outcome.item)
        for outcome in self._abandon(plan, crew):
            _add(report, outcome)
        if report and self.ledger.is_quick:
            with suppress(LedgerBusyError):
                self._exchange(0, report)

    def _trade(self, plan: Plan, queue: deque[Item], crew: _Crew, wanted: int, report: Report) -> Report:
        """Report to the ledger, and spend the permits that it gives; return what is to be reported next."""
        next_report = Report()
        try:
            permits = deque(self._exchange(wanted, report))
        except LedgerBusyError as error:
            if not crew.busy:
                self._fetcher.stop(error)
                return next_report
            self._is_ledger_busy = True  # what has its permit is paid for; then this is reported, and more asked for
            return report
        self._is_ledger_busy = False
        try:
            for item in self._next(plan, queue, len(permits)):
                crew.take(item, permits.popleft())
        except ArchiveError as error:
            self._fetcher.stop(error)
        next_report.unused.extend(permits)
        return next_report

    def _exchange(self, wanted: int, report: Report) -> list[Permit]:
        if isinstance(self._fetcher.fatal, LedgerError):
            return []
        try:
            return self.ledger.report_and_acquire(report, wanted)
        except LedgerBusyError:
            raise
        except LedgerError as error:
            self._fetcher.stop(error)
            return []

    def _next(self, plan: Plan, queue: deque[Item], count: int) -> list[Item]:
        """Take calls off the queue; where the plan was made a while ago, those that are still to be asked for."""
        now = self.ledger.clock()
        chosen: list[Item] = []
        while queue and len(chosen) < count:
            if now - self._looked_at.get(queue[0].call_id, plan.made_at) > FRESH_FOR:
                self._look_again(plan, queue, now)
            else:
                chosen.append(queue.popleft())
        return chosen

    def _look_again(self, plan: Plan, queue: deque[Item], now: float) -> None:
        """See what other tasks have done meanwhile: one listing of each folder for the next calls together."""
        items = [queue.popleft() for _ in range(min(LOOK_AHEAD, len(queue)))]
        entries = self.archive.entries(item.entry.place for item in items)
        for item in reversed(items):
            item = Item(item.call, entries[item.entry.place.audio])
            status = self.decide(item)
            plan.set(item, status)
            self._looked_at[item.call_id] = now
            if status == MISSING:
                queue.appendleft(item)

    def _collect(self, crew: _Crew) -> list[Outcome]:
        """Wait until something has become of a permit, or the task is told to stop."""
        found: list[Outcome | BaseException] = []
        while crew.busy and not found and not self.cancel.is_set():
            found = crew.outcomes(timeout=_LOOK)
        for outcome in found:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in found if isinstance(outcome, Outcome)]

    def _abandon(self, plan: Plan, crew: _Crew) -> list[Outcome]:
        """End what lets itself be ended, and leave behind what hangs; return what became of the rest."""
        self.cancel.set()
        self._fetcher.stop(AmplemarketError("The task was told to stop"))
        if crew.busy:
            self.hook.abort()
            self.archive.abort()
        crew.end()
        outcomes = [outcome for outcome in crew.outcomes() if isinstance(outcome, Outcome)]
        for outcome in outcomes:
            self._note(plan, outcome)
        self.requests += crew.forget()  # sent, as far as anybody knows
        return outcomes

    def _note(self, plan: Plan, outcome: Outcome) -> None:
        """Take an outcome into the plan, and tell of it."""
        item, error = outcome.item, outcome.error
        self.requests += outcome.sent
        if outcome.answered_at is not None:
            self._answers.append(outcome.answered_at)
        plan.set(item, outcome.status)
        if outcome.status == STORED:
            self._tell(plan, item)
            if not (item.entry.record or {}).get("is_mpeg"):
                log.warning("The recording of call %s does not begin like MPEG audio; it is as served", item.call_id)
        elif outcome.status != MISSING:
            log.warning("Call %s is %s: %s", item.call_id, outcome.status, error)
        if outcome.status == FAILED and outcome.before:
            failed = self._untaken if isinstance(error, ArchiveError | OSError) else self._failed
            failed.append((outcome.before, item))
        if isinstance(error, RateLimitExceededError):
            log.warning(
                "%s. Does somebody else use the API key, or is the connection's recording_limit too high? "
                "Waiting before the next request.",
                error,
            )

    def _tell(self, plan: Plan, item: Item) -> None:
        """Say what was archived; where there are many, at times how far it is instead."""
        level = logging.DEBUG if self._are_many else logging.INFO
        log.log(level, "Archived %s (%d bytes)", self.archive.uri(item.entry.place.audio), item.entry.size)
        self._archived += 1
        if self._are_many and self._archived % MANY == 0:
            log.info("%s", plan.progress())


def _add(report: Report, outcome: Outcome) -> None:
    """Add what became of a permit to what the ledger is still to be told."""
    report.add(outcome.permit, was_sent=outcome.sent, answered_at=outcome.answered_at)
    if isinstance(outcome.error, RateLimitExceededError):
        report.add_refusal(outcome.error.retry_after)


class _Crew:
    """
    The threads of one run: some download and, so that no download waits for an upload, as many others publish.

    :param fetcher: does the work.
    :param size: downloads at once.
    :param directory: where recordings lie until they are published.
    """

    def __init__(self, fetcher: Fetcher, size: int, directory: Path) -> None:
        self._fetcher = fetcher
        self._directory = directory
        self._downloaders = Workers(size, "amplemarket-download")
        self._publishers = Workers(size, "amplemarket-publish")
        self._outcomes: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._is_ending = False
        #: Permits that something is still to become of.
        self.busy = 0

    def take(self, item: Item, permit: Permit) -> None:
        """Spend a permit on a call."""
        self.busy += 1
        self._downloaders.submit(partial(self._download, Job(item, permit, self._directory)))

    def outcomes(self, timeout: float | None = None) -> list[Outcome | BaseException]:
        """Return what has become of permits; wait for the first, for some seconds at most."""
        found: list[Outcome | BaseException] = []
        with suppress(Empty):
            found.append(self._outcomes.get(timeout is not None, timeout))
            while True:
                found.append(self._outcomes.get_nowait())
        self.busy -= len(found)
        return found

    def forget(self) -> int:
        """Expect nothing any more; return of how many permits nothing has become."""
        forgotten, self.busy = self.busy, 0
        return forgotten

    def end(self) -> None:
        """Let the threads end; those that hang are left behind."""
        if not self._is_ending:
            self._is_ending = True
            deadline = time.monotonic() + PATIENCE
            self._downloaders.end(deadline)
            self._publishers.end(deadline)

    def _download(self, job: Job) -> None:
        try:
            result = self._fetcher.download(job)
        except BaseException as error:
            self._outcomes.put(error)
            return
        if isinstance(result, Outcome):
            self._outcomes.put(result)
        else:
            self._publishers.submit(partial(self._publish, *result))

    def _publish(self, sent: Sent, recording: Recording) -> None:
        try:
            self._outcomes.put(self._fetcher.publish(sent, recording))
        except BaseException as error:
            self._outcomes.put(error)


def _since_first(item: Item) -> timedelta:
    first = moment_of((item.last_record or {}).get("first_requested_at"))
    return timedelta(0) if first is None else timedelta(seconds=int((pendulum.now("UTC") - first).total_seconds()))
