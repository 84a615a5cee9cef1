"""The ledger, by whatever may happen: no period holds more requests than the limit, and no permit is lost for good."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_amplemarket.exceptions import LedgerError
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.rate import PERMIT_VALIDITY, LedgerState, Permit, RateLimit
from dev.memory import Killed, MemoryStore
from tests.quota.tools import NOW, acquire, relaxed


@dataclass
class Request:
    """
    A request that was sent.

    :param answered_at: true time of the answer; None where none comes.
    :param is_refused: whether the answer is a refusal.
    """

    permit: Permit
    answered_at: float | None
    is_refused: bool


@dataclass
class Task:
    """A task that holds the pool's slot: its ledger, the permits in its hands, the requests it waits for."""

    ledger: Ledger
    unsent: list[Permit] = field(default_factory=list)
    unused: list[Permit] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)


FAULTS = ["lost", "fails", "fails late", "dies", "dies late"]
fractions = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
answers = st.sampled_from(["served", "served", "none", "refused"])


class QuotaMachine(RuleBasedStateMachine):
    """
    Tasks on several workers, one at a time, against the API's own count.

    ``now`` is the true time; the workers' clocks are set to other times, and each has a small skew of its own. The
    API counts a request somewhere between its sending and its answer, or the time-out where there is none.
    """

    @initialize(
        requests=st.integers(1, 4),
        period=st.sampled_from([10.0, 60.0, 300.0]),
        response_timeout=st.sampled_from([1.0, 20.0, 100.0]),
        skews=st.tuples(fractions, fractions, fractions),
    )
    def begin(self, requests: int, period: float, response_timeout: float, skews: tuple[float, float, float]) -> None:
        self.limit = RateLimit(requests, period)
        self.response_timeout = response_timeout
        self.horizon = PERMIT_VALIDITY + response_timeout
        # The ledger's milliseconds take a little of the margin for clocks that do not agree.
        self.skews = [skew * (self.limit.hold - period - 0.002) for skew in skews]
        self.now = NOW
        #: How far the clocks are from the true time, from which true time on.
        self.settings = [(-math.inf, 0.0)]
        self.store = MemoryStore(LedgerState().dump())
        self.task: Task | None = None
        self.is_set_back = False
        #: True times of the counted requests, since the clock last leapt forward.
        self.counted: list[float] = []

    def shown(self, true_time: float) -> float:
        """Return what the clocks showed at a true time, but for their skews."""
        return true_time + next(offset for since, offset in reversed(self.settings) if since <= true_time)

    def set_clocks(self, seconds: float) -> None:
        self.settings.append((self.now, self.settings[-1][1] + seconds))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def open(self, worker: int) -> Ledger:
        return Ledger(
            conn_id="vendor",
            limit=self.limit,
            response_timeout=self.response_timeout,
            store=self.store,
            clock=lambda: self.shown(self.now) + self.skews[worker],
            sleep=self.sleep,
            monotonic=lambda: self.now,
        )

    def settle(self, task: Task, wanted: int) -> None:
        """Report what is known by now, and take permits, as the downloads do."""
        known = [r for r in task.requests if r.answered_at is not None and r.answered_at <= self.now]
        skew = task.ledger.clock() - self.shown(self.now)
        permits = acquire(
            task.ledger,
            wanted,
            answered={r.permit: self.shown(r.answered_at) + skew for r in known if r.answered_at is not None},
            unused=task.unused,
            refusals=[None for r in known if r.is_refused],
        )
        task.requests = [r for r in task.requests if r not in known]
        task.unused = []
        task.unsent += permits

    @rule(
        worker=st.integers(0, 2),
        wanted=st.integers(0, 6),
        faults=st.one_of(st.just([]), st.lists(st.sampled_from(["", *FAULTS]), max_size=8)),
    )
    def ask(self, worker: int, wanted: int, faults: list[str]) -> None:
        self.task = self.task or Task(self.open(worker))
        self.store.faults = deque(faults)
        try:
            self.settle(self.task, wanted)
        except (LedgerError, Killed):
            self.task = None
        self.store.faults.clear()
        self.store.is_killed = False

    @precondition(lambda self: self.task and self.task.unsent)
    @rule(
        most=st.sampled_from([1, 9]),
        latency=fractions,
        counted=fractions,
        answer=answers,
    )
    def send(self, most: int, latency: float, counted: float, answer: str) -> None:
        assert self.task
        permits, self.task.unsent = self.task.unsent[:most], self.task.unsent[most:]
        for permit in permits:
            if self.task.ledger.clock() > permit.use_before:
                self.task.unused.append(permit)
                continue
            latest = self.now + latency * self.response_timeout
            insort(self.counted, self.now + counted * (latest - self.now))
            request = Request(permit, None if answer == "none" else latest, answer == "refused")
            self.task.requests.append(request)

    @precondition(lambda self: self.task and self.task.unsent)
    @rule()
    def give_back(self) -> None:
        assert self.task
        self.task.unused += self.task.unsent
        self.task.unsent = []

    @rule(seconds=st.one_of(st.floats(0, 1), st.floats(0, 400), st.sampled_from([PERMIT_VALIDITY, 10, 60, 300, 500])))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(worker=st.integers(0, 2), backlog=st.integers(1, 6))
    def await_permits(self, worker: int, backlog: int) -> None:
        ledger = self.open(worker)
        self.now += max(self.limit.next_wakeup(ledger.free_times(), backlog) - ledger.clock(), 0)

    @precondition(lambda self: self.task)
    @rule()
    def die(self) -> None:
        self.task = None

    @precondition(lambda self: self.task)
    @rule()
    def end(self) -> None:
        """Let the task end in order: every answer is there or timed out, and is reported."""
        assert self.task
        self.give_back()
        self.now = max([self.now, *(r.answered_at for r in self.task.requests if r.answered_at is not None)])
        self.settle(self.task, 0)
        self.task = None

    @rule(
        worker=st.integers(0, 2),
        pause=fractions,
        latency=fractions,
        counted=fractions,
        answer=answers,
        is_ended=st.booleans(),
    )
    def burst(self, worker: int, pause: float, latency: float, counted: float, answer: str, is_ended: bool) -> None:
        """Take all there is as soon as there is any, send it at once or as late as may be, and end or die."""
        self.task = None
        self.await_permits(worker, 1)
        self.ask(worker, 9, [])
        self.now += pause * PERMIT_VALIDITY
        if self.task and self.task.unsent:
            self.send(9, latency, counted, answer)
            if is_ended:
                self.end()
        self.task = None

    @rule(seconds=st.one_of(st.floats(0, 100), st.sampled_from([1e3, 1e6])))
    def set_clock_back(self, seconds: float) -> None:
        self.set_clocks(-seconds)
        self.is_set_back = True

    @precondition(lambda self: not self.task and (not self.counted or self.counted[-1] <= self.now))
    @rule(seconds=st.sampled_from([1.0, 30.0, 1e3, 1e6]))
    def leap_forward(self, seconds: float) -> None:
        # Nothing in a task can see this: to the ledger all of it has passed. So windows that span the leap are
        # not looked at.
        self.set_clocks(seconds)
        self.counted = []

    @invariant()
    def no_period_holds_more_than_the_limit(self) -> None:
        for first, next_one in zip(self.counted, self.counted[self.limit.requests :], strict=False):
            assert next_one - first > self.limit.period

    def teardown(self) -> None:
        if not hasattr(self, "limit"):
            return
        if self.is_set_back:
            acquire(self.open(0), 0)  # the first look at the ledger sees the clock set back
        self.now += self.limit.hold + self.horizon + 1.001  # a skew, and a millisecond for rounding
        ledger = self.open(0)
        # After a refusal one request goes first.
        permits = acquire(ledger, self.limit.requests)
        assert permits
        more = acquire(ledger, self.limit.requests, answered=dict.fromkeys(permits, ledger.clock()))
        assert len(permits) + len(more) == self.limit.requests


TestQuotaMachine = pytest.mark.no_cover(QuotaMachine.TestCase)
TestQuotaMachine.settings = settings(relaxed, max_examples=300, stateful_step_count=40)
