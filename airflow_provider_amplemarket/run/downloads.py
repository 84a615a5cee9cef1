"""Spend permits: recordings from the API into the archive, several at once, each asked for once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from airflow_provider_amplemarket.archive.sidecar import Item
from airflow_provider_amplemarket.exceptions import (
    AmplemarketError,
    ArchiveError,
    LedgerBusyError,
    LedgerError,
    RateLimitExceededError,
)
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.rate import Permit, Report
from airflow_provider_amplemarket.run.backlog import Backlog
from airflow_provider_amplemarket.run.fetch import Fetcher, Outcome
from airflow_provider_amplemarket.run.giving_up import Failures
from airflow_provider_amplemarket.run.judge import Judge
from airflow_provider_amplemarket.run.orphans import commit_orphans
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.report import Progress
from airflow_provider_amplemarket.run.work import Work
from airflow_provider_amplemarket.threads import Workers

#: Seconds that threads are waited for which do not end when they are told to.
PATIENCE = 3.0

#: Seconds after which the calling thread looks whether the task was told to stop.
_LOOK = 0.25


class Downloads:
    """Ask for the pending recordings of a plan as long as the quota gives permits.

    The ledger is used by the calling thread alone; the threads here use neither it nor anything of Airflow.

    :param concurrency: downloads at once.
    """

    def __init__(self, plan: Plan, work: Work, *, ledger: Ledger, concurrency: int) -> None:
        #: The plan, with what has become of it so far.
        self.plan = plan
        #: What gives the permits.
        self.ledger = ledger
        #: How many requests were sent.
        self.requests = 0
        #: What the try works with.
        self.work = work
        self._concurrency = concurrency
        self._judge = Judge(work.hook.amplemarket_conn_id)
        self._fetcher = Fetcher(
            work=work, judge=self._judge, clock=ledger.clock, downloads=threading.Semaphore(concurrency)
        )
        self._failures = Failures(work)
        self._progress = Progress(work.archive)
        self._answered_at: list[float] = []
        self._report = Report()
        self._is_ledger_busy = False
        self._under_way: set[Future[Outcome]] = set()
        self._finished: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self._backlog: Backlog

    @property
    def pace(self) -> float:
        """Seconds from one response to the next, on average; 0 where there were less than two."""
        count = len(self._answered_at)
        if count < 2:
            return 0.0
        return (max(self._answered_at) - min(self._answered_at)) / (count - 1)

    def prepare(self) -> None:
        """Do what needs no permit: commit orphaned audio, and see that the archive can be written.

        :raises ArchiveError: when it cannot.
        :raises AmplemarketError: when the task is told to stop.
        """
        if not self.work.rules.overwrite:
            for result in commit_orphans(self.plan, self.work):
                self.plan = self.plan.with_results([result])
        if self.plan.left:
            self.work.archive.check_writable()

    def run(self) -> None:
        """Archive what is pending; what is still pending afterwards had no permit.

        A task that is told to stop leaves within seconds, and leaves behind what hangs: that writes nothing any more.

        :raises AuthenticationError: when the API key is refused.
        :raises ArchiveError: when the archive does not take what was downloaded.
        :raises LedgerError: when the ledger cannot be trusted, or others have it.
        :raises AmplemarketError: when request after request fails, or the task was told to stop.
        """
        if not self.plan.left:
            return
        self._backlog = Backlog(self.plan, self.work, self.ledger.clock)
        self._progress.wanted = len(self._backlog)
        with self.work.archive.staging() as directory:
            # So many download, and as many others publish meanwhile.
            workers = Workers(2 * min(self._concurrency, len(self._backlog)), "amplemarket-fetch")
            try:
                self._spend(workers, directory)
            except BaseException:  # a time-out, for example
                self._abandon(workers)
                raise
            finally:
                was_waited_for = self.work.cancel.is_set()
                workers.end(time.monotonic() + (0.0 if was_waited_for else PATIENCE))
            given_up = self._failures.give_up(self._judge, self._progress.archived, directory)
            self.plan = self.plan.with_results(given_up)
        if self._judge.fatal is not None:
            raise self._judge.fatal

    def _spend(self, workers: Workers, directory: Path) -> None:
        while not self.work.cancel.is_set():
            if self._is_exchange_due():
                self._exchange(workers, directory)
            if not (self._under_way or self._report):
                return
            for outcome in self._next_outcomes():
                self._note(outcome)
        self._abandon(workers)
        if self._report and self.ledger.is_quick:
            with suppress(LedgerBusyError):
                self._ask_ledger(0)

    @property
    def _room(self) -> int:
        """How many permits can be used now.

        As many as are downloaded wait with their permits, or are published, so that no download waits for the ledger.
        Once something has stopped the run, what is under way ends first and is reported together.
        """
        is_waiting = self._judge.has_stopped or (self._is_ledger_busy and self._under_way)
        return 0 if is_waiting else min(len(self._backlog), 2 * self._concurrency - len(self._under_way))

    def _is_exchange_due(self) -> bool:
        """Return whether to ask the ledger: that is several round trips, so for half as many permits at a time."""
        room = self._room
        is_worth_it = room > 0 and room >= min(len(self._backlog), (self._concurrency + 1) // 2)
        is_report_due = bool(self._report) and not self._under_way
        return is_worth_it or is_report_due

    def _exchange(self, workers: Workers, directory: Path) -> None:
        """Report to the ledger, and spend the permits that it gives."""
        try:
            permits = deque(self._ask_ledger(self._room))
        except LedgerBusyError as error:
            if self._under_way:  # that is paid for; then it is reported, and more asked for
                self._is_ledger_busy = True
                return
            self._judge.stop(error)
            permits = deque()
        self._is_ledger_busy = False
        self._report = Report()
        for item in self._take(len(permits)):
            self._fetcher.admitted.put((item, permits.popleft()))
            future = workers.submit(self._fetcher.fetch_next, directory)
            self._under_way.add(future)
            future.add_done_callback(self._finished.put)
        self._report.unused.extend(permits)

    def _take(self, count: int) -> list[Item]:
        """Take the next calls, and what was seen of others on the way into the plan."""
        try:
            return self._backlog.take(count)
        except ArchiveError as error:
            self._judge.stop(error)
            return []
        finally:
            self.plan = self.plan.with_results(self._backlog.pop_seen())

    def _ask_ledger(self, wanted: int) -> list[Permit]:
        if isinstance(self._judge.fatal, LedgerError):
            return []
        try:
            return self.ledger.report_and_acquire(self._report, wanted)
        except LedgerBusyError:
            raise
        except LedgerError as error:
            self._judge.stop(error)
            return []

    def _next_outcomes(self) -> Iterator[Outcome]:
        """Wait until something has become of a permit, or the task is told to stop."""
        # No wait() of concurrent.futures: a time-out of the task that is raised in it could leave futures locked.
        timeout = _LOOK
        while self._under_way and not self.work.cancel.is_set():
            try:
                future = self._finished.get(timeout=timeout)
            except Empty:
                if not timeout:
                    return
                continue
            timeout = 0.0
            self._under_way.discard(future)
            yield future.result()

    def _abandon(self, workers: Workers) -> None:
        """End what lets itself be ended, and leave behind what hangs."""
        self.work.cancel.set()
        self._judge.stop(AmplemarketError("The task was told to stop"))
        if self._under_way:
            self.work.hook.abort()
            self.work.archive.abort()
        workers.end(time.monotonic() + PATIENCE)
        for future in self._under_way:
            if not future.done():
                self.requests += 1  # sent, as far as anybody knows
            elif future.exception() is None:
                self._note(future.result())
        self._under_way = set()

    def _note(self, outcome: Outcome) -> None:
        """Take an outcome into the plan and the report, and log it."""
        self.plan = self.plan.with_results([(outcome.item, outcome.status)])
        self.requests += outcome.sent
        if outcome.answered_at is not None:
            self._answered_at.append(outcome.answered_at)
        self._report.add(outcome.permit, was_sent=outcome.sent, answered_at=outcome.answered_at)
        if not outcome.sent:
            self._backlog.put_back(outcome.item)
        if isinstance(outcome.error, RateLimitExceededError):
            self._report.add_refusal(outcome.error.retry_after)
        self._failures.add(outcome)
        self._progress.log(outcome, self.plan)
