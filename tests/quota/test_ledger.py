"""The quota: no period holds more requests than the limit, whatever dies or lags, and no permit is lost for good."""

from __future__ import annotations

import json
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_amplemarket.exceptions import LedgerBusyError, LedgerError
from airflow_provider_amplemarket.quota import ledger as quota
from airflow_provider_amplemarket.quota.ledger import PERMIT_VALIDITY, VARIABLE_PREFIX, Ledger, Permit, variable_name
from airflow_provider_amplemarket.quota.lock import FREE, HOLD, SETTLE, TURN
from airflow_provider_amplemarket.quota.rate import LedgerState, RateLimit
from airflow_provider_amplemarket.quota.variables import Store

NOW = 1_800_000_000.0
HOUR = RateLimit(50, 3600)
ANSWER_TIMEOUT = 120.0
HORIZON = PERMIT_VALIDITY + ANSWER_TIMEOUT
KEY = f"{VARIABLE_PREFIX}vendor"

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


class Killed(BaseException):
    """The worker was killed; nothing in the package may catch this."""


@dataclass
class Clock:
    """A clock that only moves when it is told to, or when somebody sleeps."""

    now: float = NOW
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class MemoryStore:
    """
    Keep the ledger in memory, and let things go wrong.

    :param faults: what happens to each of the next calls: ``lost`` (a read answers None), ``fails`` (it raises
        and does nothing), ``fails late`` (it raises, but did it), ``dies`` and ``dies late`` (the worker is killed
        before, or after it was done); anything else is no fault. They befall the ledger alone, not the lock.
    """

    def __init__(self, text: str | None = None, faults: Iterable[str] = ()) -> None:
        self.text = text
        self.faults = deque(faults)
        self.reads = 0
        self.written: list[str] = []
        self.others: dict[str, str] = {f"{KEY}__lock": FREE}
        self.is_killed = False
        self._is_out = self._proved = False

    def get(self, key: str) -> str | None:
        self._check_alive()
        if key != KEY:
            self._proved = self._is_out
            return self.others.get(key)
        self.reads += 1
        fault = self._fault(key)
        proved, self._proved = self._proved, False
        self._is_out = fault == "lost" and not proved  # an outage is over once the store has just answered
        if self._is_out:
            return None
        self._late(fault)
        return self.text

    def set(self, key: str, text: str) -> None:
        self._check_alive()
        if key != KEY:
            self.others[key] = text
            return
        fault = self._fault(key)
        self.text = text
        self.written.append(text)
        self._late(fault)

    @property
    def state(self) -> LedgerState:
        assert self.text is not None
        return LedgerState.load(self.text)

    def _check_alive(self) -> None:
        """Let the dead write nothing."""
        if self.is_killed:
            raise Killed

    def _fault(self, key: str) -> str:
        assert key == KEY
        fault = self.faults.popleft() if self.faults else ""
        self.is_killed = fault == "dies"
        self._check_alive()
        if fault == "fails":
            raise OSError("no API server")
        return fault

    def _late(self, fault: str) -> None:
        self.is_killed = fault == "dies late"
        self._check_alive()
        if fault == "fails late":
            raise OSError("no answer from the API server")


class SlowStore:
    """Answer what a function makes of the stored text: a store that others write, or that does not keep."""

    def __init__(self, seen: Callable[[str | None, int], str | None]) -> None:
        self.text: str | None = None
        self.others: dict[str, str] = {f"{KEY}__lock": FREE}
        self.reads = 0
        self.seen = seen

    def get(self, key: str) -> str | None:
        if key != KEY:
            return self.others.get(key)
        self.reads += 1
        return self.seen(self.text, self.reads)

    def set(self, key: str, text: str) -> None:
        if key != KEY:
            self.others[key] = text
        else:
            self.text = text


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(LedgerState().dump())


def open_ledger(
    store: Store,
    clock: Clock,
    limit: RateLimit = HOUR,
    legacy_evidence: Iterable[float] = (),
    timeout: float = 120,
    evidence: Mapping[str, float] | None = None,
) -> Ledger:
    return Ledger(
        "vendor",
        limit,
        answer_timeout=timeout,
        evidence=evidence,
        legacy_evidence=legacy_evidence,
        store=store,
        clock=clock,
        sleep=clock.sleep,
        monotonic=clock,
    )


# --- RateLimit ------------------------------------------------------------------------------------------------------

limits = st.builds(RateLimit, st.integers(1, 8), st.one_of(st.integers(1, 500), st.floats(0.5, 7200, allow_nan=False)))


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[RateLimit, list[float]]:
    """A limit and moments as a ledger can hold them: also more than the limit, over, and up to a horizon ahead."""
    limit = draw(limits)
    ages = draw(st.lists(st.floats(-HORIZON, 1.2 * limit.hold), max_size=2 * limit.requests))
    return limit, [NOW - age for age in ages]


@pytest.mark.parametrize(("requests", "period"), [(0, 10), (-1, 10), (1, 0), (1, -1), (1, math.inf), (1, math.nan)])
def test_what_is_no_rate_limit_is_refused(requests: int, period: float) -> None:
    with pytest.raises(ValueError, match="not a rate limit"):
        RateLimit(requests, period)


@pytest.mark.parametrize(("period", "hold"), [(3600, 3601), (100, 101), (10, 10.1)])
def test_a_permit_is_held_for_a_period_and_a_margin(period: float, hold: float) -> None:
    assert RateLimit(1, period).hold == pytest.approx(hold)


@relaxed
@given(ledgers())
def test_moments_are_sorted_and_as_many_as_the_limit_and_none_is_past(given: tuple[RateLimit, list[float]]) -> None:
    limit, spent = given
    moments = limit.moments(spent, NOW)
    assert len(moments) == limit.requests
    assert moments == sorted(moments)
    assert moments[0] >= NOW


@relaxed
@given(ledgers())
def test_each_moment_is_the_first_at_which_so_many_permits_are_free(given: tuple[RateLimit, list[float]]) -> None:
    limit, spent = given

    def free(at: float) -> int:
        return limit.requests - sum(moment + limit.hold > at for moment in spent)

    candidates = sorted([NOW, *(end for moment in spent if (end := moment + limit.hold) > NOW)])
    expected = [min(at for at in candidates if free(at) > n) for n in range(limit.requests)]
    assert limit.moments(spent, NOW) == expected


@relaxed
@given(ledgers(), st.integers(0, 30))
def test_waking_is_neither_early_nor_later_than_useful(given: tuple[RateLimit, list[float]], backlog: int) -> None:
    limit, spent = given
    moments = limit.moments(spent, NOW)
    wake = limit.wake(moments, backlog)
    last = moments[max(min(backlog, limit.requests), 1) - 1]
    assert moments[0] <= wake <= min(last, moments[0] + limit.period / 10)
    # What comes free within that tenth, and is needed, is waited for.
    assert not [moment for moment in moments if wake < moment <= min(last, moments[0] + limit.period / 10)]


def test_waking_waits_some_minutes_for_several_permits_but_not_for_more_than_are_needed() -> None:
    limit = RateLimit(4, 3600)
    moments = [NOW, NOW + 300, NOW + 360, NOW + 361]
    assert limit.wake(moments, 9) == NOW + 360
    assert limit.wake(moments, 2) == NOW + 300
    assert limit.wake(moments, 1) == NOW
    assert limit.wake(moments, 0) == NOW


def test_waking_does_not_wait_for_permits_that_are_free_by_the_time_it_is_their_turn() -> None:
    limit = RateLimit(4, 3600)
    burst = [NOW, NOW + 10, NOW + 20, NOW + 30]
    assert limit.wake(burst, 9, pace=10) == NOW
    assert limit.wake(burst, 9, pace=9) == NOW + 3
    assert limit.wake(burst, 2, pace=9) == NOW + 1
    # Two bursts: the second begins where the first ends.
    assert limit.wake([NOW, NOW + 1, NOW + 300, NOW + 301], 9, pace=10) == NOW + 280


@relaxed
@given(ledgers(), st.integers(0, 30), st.floats(0, 100))
def test_requests_at_that_pace_find_their_permits(
    given: tuple[RateLimit, list[float]], backlog: int, pace: float
) -> None:
    limit, spent = given
    moments = limit.moments(spent, NOW)
    wake = limit.wake(moments, backlog, pace)
    assert moments[0] <= wake <= limit.wake(moments, backlog)
    waited_for = [moment for moment in moments[:backlog] if moment <= moments[0] + limit.period / 10]
    assert all(wake + turn * pace >= moment - 1e-3 for turn, moment in enumerate(waited_for))


@relaxed
@given(ledgers(), st.integers(1, 40))
@example((RateLimit(2, 100), [NOW + 50]), 2)  # an unanswered request is held for longer than a period
def test_the_finish_is_when_the_last_request_can_be_sent(given: tuple[RateLimit, list[float]], backlog: int) -> None:
    limit, spent = given
    moments = limit.moments(spent, NOW)
    # Each permit is used the moment it is free, and is free again when it was held.
    sent: list[float] = []
    permits = list(moments)
    for _ in range(backlog):
        sent.append(permits.pop(0))
        insort(permits, sent[-1] + limit.hold)
    assert limit.finish(moments, backlog) == pytest.approx(sent[-1], abs=1e-3)


@relaxed
@given(ledgers())
@example((RateLimit(2, 100), [NOW + 50]))
def test_a_longer_backlog_never_finishes_earlier(given: tuple[RateLimit, list[float]]) -> None:
    limit, spent = given
    moments = limit.moments(spent, NOW)
    finishes = [limit.finish(moments, backlog) for backlog in range(4 * limit.requests)]
    assert all(earlier <= later for earlier, later in pairwise(finishes))


# --- LedgerState ----------------------------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@relaxed
@given(st.builds(LedgerState, st.dictionaries(st.text(), finite), finite, st.integers(0, 10**6)))
def test_what_is_dumped_is_loaded_to_the_millisecond(state: LedgerState) -> None:
    loaded = LedgerState.load(state.dump())
    assert loaded.spent == pytest.approx(dict(state.spent), abs=6e-4)
    assert loaded.blocked_until == pytest.approx(state.blocked_until, abs=6e-4)
    assert loaded.refusals == state.refusals
    assert LedgerState.load(loaded.dump()) == loaded


def text_of(**changes: Any) -> str:
    """Write a ledger, with some of it changed."""
    return json.dumps({"version": 1, "spent": {"a": NOW}, "blocked_until": 0.0, "refusals": 0, **changes})


NONSENSE = {
    "nothing": "",
    "no JSON": "{",
    "a number": "7",
    "null": "null",
    "a text": '"version"',
    "a list": "[]",
    "an empty object": "{}",
    "no version": json.dumps({"spent": {}, "blocked_until": 0, "refusals": 0}),
    "another version": text_of(version=2),
    "a list of moments": text_of(spent=[NOW]),
    "a nameless moment": text_of(spent=NOW),
    "a moment that is a list": text_of(spent={"a": [NOW]}),
    "a moment that is no number": text_of(spent={"a": "soon"}),
    "a moment that is null": text_of(spent={"a": None}),
    "a moment that is NaN": text_of(spent={"a": math.nan}),
    "a moment without end": text_of(spent={"a": math.inf}),
    "a moment beyond floats": text_of(spent={"a": 10**400}),
    "a block that is NaN": text_of(blocked_until=math.nan),
    "a block without end": text_of(blocked_until=math.inf),
    "a block that is null": text_of(blocked_until=None),
    "a block beyond floats": text_of(blocked_until=10**400),
    "refusals that are no number": text_of(refusals="many"),
    "refusals that are NaN": text_of(refusals=math.nan),
    "refusals without end": text_of(refusals=math.inf),
    "lists without end": "[" * 100_000,
}
nonsense = pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE.keys())


@nonsense
def test_nonsense_is_no_ledger(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each kind has its own message)
        LedgerState.load(text)


def test_what_is_over_is_dropped_and_what_lies_too_far_ahead_is_brought_down() -> None:
    state = LedgerState({"over": NOW - 3601, "held": NOW - 3600, "ahead": NOW + 150, "far": NOW + 9e9}, NOW + 9e9, 2)
    now = state.at(NOW, limit=HOUR, horizon=150)
    assert now == LedgerState({"held": NOW - 3600, "ahead": NOW + 150, "far": NOW + 150}, now.blocked_until, 2)
    assert NOW + 3600 < now.blocked_until <= NOW + 3601 + 150
    assert now.at(NOW + 9e9, limit=HOUR, horizon=150) == LedgerState({}, 0.0, 2)


def test_a_block_holds_every_permit_back() -> None:
    limit = RateLimit(2, 100)
    state = LedgerState({"a": NOW}, blocked_until=NOW + 7)
    assert state.moments(limit, NOW) == [NOW + 7, NOW + 101]
    assert state.grant(limit, NOW + 6.9, 5) == 0
    assert state.grant(limit, NOW + 7, 5) == 1


# --- The ledger, by examples ----------------------------------------------------------------------------------------


def test_the_limit_is_granted_at_once_and_no_more(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    permits = ledger.exchange(60)
    assert len({permit.id for permit in permits}) == 50
    assert {permit.use_before for permit in permits} == {NOW + PERMIT_VALIDITY}
    assert ledger.exchange(1) == []
    assert open_ledger(store, clock).exchange(1) == []
    assert store.state.spent == {permit.id: NOW + HORIZON for permit in permits}


def test_no_more_is_granted_than_wanted(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    assert len(ledger.exchange(3)) == 3
    assert ledger.exchange(0) == []
    assert len(store.state.spent) == 3


def test_a_permit_stands_in_the_ledger_and_was_read_back_before_it_is_given(clock: Clock) -> None:
    store = MemoryStore()
    seen: list[str | None] = []
    read = store.get
    store.get = lambda key: seen.append(read(key)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    (permit,) = open_ledger(store, clock).exchange(1)
    assert len(store.written) == 1
    assert permit.id in store.written[0]
    assert seen[-1] == store.written[0]


def test_an_answered_permit_counts_from_its_answer(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock, RateLimit(1, 100))
    (permit,) = ledger.exchange(1)
    clock.now += 5
    assert ledger.exchange(0, answered={permit: NOW + 2}) == []
    assert store.state.spent == {permit.id: NOW + 2}
    assert ledger.moments() == [NOW + 103]
    clock.now = NOW + 102.9
    assert ledger.exchange(1) == []
    clock.now = NOW + 103
    assert len(ledger.exchange(1)) == 1


def test_a_permit_of_which_nothing_is_heard_keeps_its_careful_entry(store: MemoryStore, clock: Clock) -> None:
    open_ledger(store, clock, RateLimit(1, 100)).exchange(1)
    after = open_ledger(store, clock, RateLimit(1, 100))
    clock.now = NOW + HORIZON + 100.9
    assert after.exchange(1) == []
    assert after.moments() == [NOW + HORIZON + 101]
    clock.now = NOW + HORIZON + 101
    assert len(after.exchange(1)) == 1


def test_unused_permits_are_given_back_at_once(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock, RateLimit(2, 100))
    first, second = ledger.exchange(2)
    (third,) = ledger.exchange(2, unused=[first])
    assert set(store.state.spent) == {second.id, third.id}


def test_a_greedy_task_gets_all_of_the_quota_and_not_more(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(5, 100)
    ledger = open_ledger(store, clock, limit)
    sent: list[float] = []
    for _ in range(10):
        while (permits := ledger.exchange(3)) and len(sent) < 100:
            sent += [clock.now] * len(permits)
            ledger.exchange(0, answered=dict.fromkeys(permits, clock.now))
        clock.now = ledger.moments()[0]
    assert clock.now == pytest.approx(NOW + 10 * limit.hold, abs=0.01)
    assert len(sent) == 10 * 5
    assert all(later - earlier >= limit.period for earlier, later in zip(sent, sent[5:], strict=False))


def test_nothing_is_written_where_nothing_changed(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    ledger.exchange(50)
    ledger.exchange(1)
    ledger.exchange(1)
    assert len(store.written) == 1


def test_each_connection_has_its_own_ledger() -> None:
    keys = {Ledger(conn_id, HOUR, answer_timeout=1).key for conn_id in ("one", "two")}
    assert keys == {"amplemarket_quota__one", "amplemarket_quota__two"}


def test_a_clock_set_back_holds_a_permit_for_one_period_more_at_most(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(2, 100)
    ledger = open_ledger(store, clock, limit)
    first, second = ledger.exchange(2)
    ledger.exchange(0, answered={first: NOW, second: NOW})
    clock.now -= 1e6
    after = open_ledger(store, clock, limit)
    assert after.exchange(2) == []
    assert after.moments() == [clock.now + HORIZON + 101] * 2
    clock.now += HORIZON + 101
    assert len(after.exchange(2)) == 2


# --- The ledger is not there, or not to be had ----------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2])
def test_a_not_found_or_two_are_not_believed(lost: int, clock: Clock) -> None:
    store = MemoryStore()
    open_ledger(store, clock).exchange(50)
    store.faults.extend(["lost"] * lost)
    assert open_ledger(store, clock).exchange(1) == []
    store.faults.extend(["lost"] * lost)
    assert open_ledger(store, clock).moments()[0] > clock.now


def test_a_not_found_is_asked_again_after_a_pause_until_it_is_believed(clock: Clock) -> None:
    store = MemoryStore()
    assert len(open_ledger(store, clock).exchange(1)) == 1
    assert store.reads == 3 + 1 + 1  # once more after the proof that the store answers, and the read-back
    assert len(clock.slept) == 2
    assert all(pause >= 0.5 for pause in clock.slept)


@pytest.mark.parametrize("lost", [3, 5])
def test_an_outage_that_looks_like_an_empty_ledger_is_not_believed(lost: int, clock: Clock) -> None:
    store = MemoryStore()
    open_ledger(store, clock).exchange(50)
    store.faults.extend(["lost"] * lost)
    assert open_ledger(store, clock).exchange(1) == []


def test_a_ledger_is_not_missing_while_nothing_can_be_written(clock: Clock) -> None:
    class Down(MemoryStore):
        def set(self, key: str, text: str) -> None:
            raise OSError("down")

    with pytest.raises(LedgerError, match="cannot be read"):
        open_ledger(Down(), clock).moments()


@pytest.mark.parametrize("fault", ["fails", "fails late"])
def test_the_last_look_for_a_missing_ledger_may_fail_like_any_other(fault: str, clock: Clock) -> None:
    store = MemoryStore(None, ["lost", "lost", "lost", fault])
    with pytest.raises(LedgerError, match="cannot be read"):
        open_ledger(MemoryStore(None, ["lost", "lost", "lost", *[fault] * 6]), clock).exchange(1)
    spent = MemoryStore()
    open_ledger(spent, clock).exchange(50)
    store.text = spent.text
    assert open_ledger(store, clock).exchange(1) == []


def test_not_founds_count_only_in_a_row() -> None:
    clock = Clock()
    spent = MemoryStore()
    open_ledger(spent, clock).exchange(50)
    store = MemoryStore(spent.text, ["lost", "lost", "fails", "lost", "lost"])
    assert open_ledger(store, clock).exchange(1) == []
    assert store.reads == 6


def test_a_failing_read_is_tried_again(clock: Clock) -> None:
    store = MemoryStore(LedgerState({"a": NOW}).dump(), ["fails"] * 5)
    assert len(open_ledger(store, clock).exchange(50)) == 49


@pytest.mark.parametrize("ask", [lambda ledger: ledger.exchange(1), lambda ledger: ledger.moments()])
def test_an_unreadable_store_grants_nothing(ask: Callable[[Ledger], object], clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["fails"] * 6)
    with pytest.raises(LedgerError, match=f"{KEY}.* cannot be read") as caught:
        ask(open_ledger(store, clock))
    assert isinstance(caught.value.__cause__, OSError)
    assert store.written == []
    assert sum(clock.slept) < PERMIT_VALIDITY


@pytest.mark.parametrize("fault", ["fails", "fails late"])
def test_a_failing_write_is_tried_again(fault: str, clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["", *[fault] * 3])
    permits = open_ledger(store, clock).exchange(2)
    assert sum(clock.slept) < 10
    assert set(store.state.spent) == {permit.id for permit in permits}
    assert len(permits) == 2


@pytest.mark.parametrize("fault", ["fails", "fails late"])
def test_after_an_outage_it_is_begun_again(fault: str, clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["", *[fault] * 5])
    permits = open_ledger(store, clock).exchange(2)
    assert set(store.state.spent) == {permit.id for permit in permits}
    assert len(permits) == 2
    # Copies of what was refused may be under way for so long.
    assert sum(clock.slept) >= SETTLE


@pytest.mark.parametrize("fault", ["fails", "fails late"])
def test_an_unwritable_store_grants_nothing(fault: str, clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["", *[fault] * 6])
    write = store.set

    def set(key: str, text: str) -> None:
        store.faults = deque([fault])
        write(key, text)

    def get(key: str) -> str | None:
        store.faults.clear()
        return read(key)

    read = store.get
    store.set, store.get = set, get  # type: ignore[method-assign]
    with pytest.raises(LedgerError, match=f"{KEY}.* cannot be written") as caught:
        open_ledger(store, clock).exchange(2)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("fixed", [None, LedgerState().dump(), "nonsense"], ids=["nothing", "a ledger", "nonsense"])
def test_a_store_that_does_not_keep_what_is_written_grants_nothing(fixed: str | None, clock: Clock) -> None:
    store = SlowStore(lambda text, reads: fixed)
    with pytest.raises(LedgerError, match="does not keep what is written"):
        open_ledger(store, clock).exchange(1)


def test_a_permit_whose_entry_was_overwritten_before_the_read_back_is_not_given(clock: Clock) -> None:
    full = LedgerState({str(n): NOW for n in range(50)}).dump()
    store = SlowStore(lambda text, reads: text if reads <= 3 else full)
    assert open_ledger(store, clock).exchange(1) == []


def test_overwritten_entries_are_written_again_at_the_next_exchange(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    mine = ledger.exchange(2)
    store.text = LedgerState({"theirs": NOW}).dump()
    clock.now += 1
    ledger.exchange(0, answered={mine[0]: NOW + 0.5})
    assert store.state.spent == {"theirs": NOW, mine[0].id: NOW + 0.5, mine[1].id: NOW + HORIZON}


def test_what_is_over_is_not_written_again(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    ledger.exchange(2)
    clock.now += 2 * HOUR.hold
    ledger.exchange(0)
    assert store.state.spent == {}


def test_legacy_evidence_counts_where_the_ledger_is_not_there(clock: Clock) -> None:
    store = MemoryStore()
    evidence = [NOW - 9000, NOW - 3000, NOW - 2000, NOW - 1000]
    assert len(open_ledger(store, clock, legacy_evidence=evidence).exchange(50)) == 47
    assert sorted(store.state.spent.values())[:3] == [NOW - 3000, NOW - 2000, NOW - 1000]


def test_legacy_evidence_is_seen_by_moments_too(clock: Clock) -> None:
    assert open_ledger(MemoryStore(), clock, RateLimit(1, 100), [NOW - 1]).moments() == [NOW + 100]


def spend(store: MemoryStore, clock: Clock, count: int) -> dict[str, float]:
    """Let a task send so many requests, and return what the archive knows of them afterwards."""
    ledger = open_ledger(store, clock)
    permits = ledger.exchange(count)
    clock.now += 1
    ledger.exchange(0, answered=dict.fromkeys(permits, clock.now))
    # A sidecar is written after the answer.
    return {permit.id: clock.now + 0.2 for permit in permits}


@pytest.mark.parametrize("seen", [None, LedgerState().dump(), LedgerState({"old": NOW - 9000}).dump()], ids=repr)
def test_what_the_archive_knows_counts_though_the_ledger_forgot_it(seen: str | None, clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump())
    evidence = spend(store, clock, 50)
    assert len(evidence) == 50
    # The Variable is gone, or cannot be decrypted any more and so reads as missing; or an older export is imported.
    store.text = seen
    ledger = open_ledger(store, clock, evidence=evidence)
    assert ledger.moments()[0] > NOW + HOUR.period
    assert ledger.exchange(50) == []
    clock.now = ledger.moments()[-1]
    assert len(open_ledger(store, clock, evidence=evidence).exchange(50)) == 50


def test_what_the_archive_and_the_ledger_know_counts_once(store: MemoryStore, clock: Clock) -> None:
    evidence = spend(store, clock, 20)
    ledger = open_ledger(store, clock, evidence=evidence)
    assert sum(moment <= clock.now for moment in ledger.moments()) == 30
    assert len(ledger.exchange(50)) == 30
    # The ledger's own entry is the one that counts.
    assert {store.state.spent[permit] for permit in evidence} == {NOW + 1}


def test_half_of_it_lost_and_half_of_it_known(store: MemoryStore, clock: Clock) -> None:
    evidence = spend(store, clock, 25)
    before = store.text
    evidence |= spend(store, clock, 15)
    store.text = before
    assert len(open_ledger(store, clock, evidence=evidence).exchange(50)) == 10


def test_evidence_that_the_ledger_has_is_no_reason_to_write(store: MemoryStore, clock: Clock) -> None:
    evidence = spend(store, clock, 50)
    written = len(store.written)
    assert open_ledger(store, clock, evidence=dict(reversed(evidence.items()))).exchange(1) == []
    assert len(store.written) == written


def test_a_permit_does_not_outlive_its_entry_where_the_clock_is_set_back(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(1, 100)
    ledger = open_ledger(store, clock, limit)
    (permit,) = ledger.exchange(1)  # it waits for a thread, which is busy with a long download
    clock.now -= 1e6
    ledger.exchange(0)
    clock.now += HORIZON + limit.hold
    is_usable = clock() <= permit.use_before
    assert not (is_usable and ledger.exchange(1))


def test_legacy_evidence_does_not_count_where_the_ledger_is_there(clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["lost", "lost"])
    assert len(open_ledger(store, clock, legacy_evidence=[NOW - 10] * 50).exchange(50)) == 50


def test_evidence_with_its_permit_counts_where_the_ledger_lacks_it(clock: Clock) -> None:
    store = MemoryStore(LedgerState({"a": NOW - 20}).dump())
    ledger = open_ledger(store, clock, RateLimit(4, 3600), evidence={"a": NOW - 10, "b": NOW - 30, "old": NOW - 9000})
    assert ledger.moments() == [NOW, NOW, NOW - 30 + HOUR.hold, NOW - 20 + HOUR.hold]
    assert len(ledger.exchange(50)) == 2
    assert {"a": NOW - 20, "b": NOW - 30}.items() <= store.state.spent.items()
    assert "old" not in store.state.spent


@nonsense
def test_a_garbled_ledger_grants_nothing_for_a_period_and_heals(
    text: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(text)
    ledger = open_ledger(store, clock)
    assert ledger.moments()[0] > NOW + HOUR.period
    assert ledger.exchange(50) == []
    assert "garbled" in caplog.text
    clock.now = NOW + HOUR.period
    assert open_ledger(store, clock).exchange(50) == []
    clock.now = NOW + HOUR.hold + HORIZON
    assert len(open_ledger(store, clock).exchange(50)) == 50


def test_a_garbled_ledger_waits_for_the_requests_that_are_still_under_way(clock: Clock) -> None:
    store = MemoryStore()
    limit = RateLimit(1, 100)
    open_ledger(store, clock, limit).exchange(1)
    # The task sends its request and dies; the API counts it as late as it may.
    counted = NOW + ANSWER_TIMEOUT
    clock.now += 1
    store.text = "garbled"
    ledger = open_ledger(store, clock, limit)
    assert ledger.exchange(1) == []
    clock.now = ledger.moments()[0]
    assert len(ledger.exchange(1)) == 1
    assert clock.now > counted + limit.period


# --- Refusals -------------------------------------------------------------------------------------------------------


def refuse(ledger: Ledger, clock: Clock, *retry_after: float | None) -> float:
    """Let the API refuse requests; answer for how long nothing is granted."""
    permits = ledger.exchange(len(retry_after))
    assert permits
    ledger.exchange(0, answered=dict.fromkeys(permits, clock.now), refusals=retry_after)
    return ledger.moments()[0] - clock.now


@pytest.mark.parametrize(
    ("retry_after", "wait"), [(90.0, 90), (0.0, 1), (0.2, 1), (1e9, 3601), (math.inf, 3601), (None, 72)]
)
def test_retry_after_is_honoured_within_reason(
    retry_after: float | None, wait: float, store: MemoryStore, clock: Clock
) -> None:
    assert refuse(open_ledger(store, clock), clock, retry_after) == pytest.approx(wait)


def test_of_several_refusals_at_once_the_longest_counts_and_they_are_one(store: MemoryStore, clock: Clock) -> None:
    assert refuse(open_ledger(store, clock), clock, 5.0, None, 40.0, 7.0) == pytest.approx(40)
    assert store.state.refusals == 1


def test_a_block_is_seen_by_the_next_task(store: MemoryStore, clock: Clock) -> None:
    refuse(open_ledger(store, clock), clock, 90.0)
    assert open_ledger(store, clock).exchange(5) == []
    clock.now += 89.9
    assert open_ledger(store, clock).exchange(5) == []
    clock.now += 0.2
    assert len(open_ledger(store, clock).exchange(5)) == 1


def test_a_shorter_block_does_not_end_a_longer_one(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock, RateLimit(50, 100))
    first, second = ledger.exchange(2)
    ledger.exchange(0, answered={first: NOW}, refusals=[90.0])
    ledger.exchange(0, answered={second: NOW}, refusals=[5.0])
    assert ledger.moments()[0] == NOW + 90


def test_back_off_doubles_up_to_a_period(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(50, 3600)
    waits = []
    for _ in range(40):
        ledger = open_ledger(store, clock, limit)
        waits.append(refuse(ledger, clock, None))
        clock.now = ledger.moments()[0]
    assert waits[:6] == pytest.approx([72, 144, 288, 576, 1152, 2304])
    assert waits[6:] == pytest.approx([3601] * 34)


def test_after_a_refusal_one_request_goes_ahead_and_its_answer_opens_the_rest(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    refuse(ledger, clock, 10.0)
    clock.now += 10
    (probe,) = ledger.exchange(20)
    assert len(ledger.exchange(20, answered={probe: clock.now})) == 20
    assert store.state.refusals == 0


def test_a_refused_probe_backs_off_again(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    refuse(ledger, clock, None)
    clock.now += 72
    assert refuse(ledger, clock, None) == pytest.approx(144)
    assert store.state.refusals == 2


def test_an_answer_beside_a_refusal_does_not_hide_it(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    served, refused = ledger.exchange(2)
    ledger.exchange(0, answered={served: NOW, refused: NOW}, refusals=[None])
    assert store.state.refusals == 1
    assert ledger.exchange(1) == []


def test_a_probe_that_is_not_answered_does_not_open_the_rest(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    refuse(ledger, clock, 10.0)
    clock.now += 10
    assert len(ledger.exchange(20)) == 1
    assert len(ledger.exchange(20)) == 1


# --- The name of the Variable ---------------------------------------------------------------------------------------


def maskers() -> dict[str, ModuleType]:
    """Return Airflow's modules that hide secrets: of the tasks, and where it is another, of the API server."""
    names = ("airflow.sdk._shared.secrets_masker", "airflow._shared.secrets_masker")
    found = {name: import_module(name) for name in names if _is_there(name)}
    return found or {"3.0": import_module("airflow.sdk.execution_time.secrets_masker")}


def _is_there(name: str) -> bool:
    with suppress(ModuleNotFoundError):
        return find_spec(name) is not None
    return False


class MaskingStore(MemoryStore):
    """Let Airflow hide what is read, as it does for Variables."""

    def __init__(self, masker: ModuleType) -> None:
        super().__init__()
        self.masker = masker
        self.texts: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        text = self.texts.get(key)
        if text is not None:
            self.masker.mask_secret(text, key)
        return text

    def set(self, key: str, text: str) -> None:
        self.texts[key] = text


SENSITIVE = ["amplemarket_token", "API-Key of sales", "secret", "my.password"]


@pytest.mark.parametrize("conn_id", ["amplemarket_default", *SENSITIVE])
@pytest.mark.parametrize("name", maskers())
def test_airflow_takes_no_text_of_the_ledger_for_a_secret(name: str, conn_id: str, clock: Clock) -> None:
    masker = maskers()[name]
    patterns = masker._secrets_masker().patterns
    before = set(patterns)
    store = MaskingStore(masker)
    ledger = Ledger(conn_id, HOUR, answer_timeout=1, store=store, clock=clock, sleep=clock.sleep, monotonic=clock)
    for _ in range(200):
        ledger.exchange(1)
        clock.now += 60
    assert set(masker._secrets_masker().patterns) == before
    assert masker.redact(store.texts[ledger.key]) == store.texts[ledger.key]
    # The masker would have seen it.
    masker.mask_secret("a secret of the test", "amplemarket_quota__amplemarket_token")
    assert masker.redact("a secret of the test") == "***"


def test_an_ordinary_id_is_in_the_name_of_its_variable() -> None:
    assert variable_name("amplemarket_emea") == "amplemarket_quota__amplemarket_emea"


def test_each_sensitive_id_has_a_name_of_its_own() -> None:
    names = {variable_name(conn_id) for conn_id in SENSITIVE}
    assert len(names) == len(SENSITIVE)
    assert all(name.startswith(VARIABLE_PREFIX) for name in names)


def test_a_word_of_the_prefix_may_be_sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "redact", lambda text, name: "***" if "amplemarket" in name else text)
    assert len(variable_name("amplemarket_default")) == 16
    monkeypatch.setattr(quota, "redact", lambda text, name: "***")
    assert variable_name("vendor") == KEY


# --- The ledger, by whatever may happen -----------------------------------------------------------------------------


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
        answer_timeout=st.sampled_from([1.0, 20.0, 100.0]),
        skews=st.tuples(fractions, fractions, fractions),
    )
    def begin(self, requests: int, period: float, answer_timeout: float, skews: tuple[float, float, float]) -> None:
        self.limit = RateLimit(requests, period)
        self.answer_timeout = answer_timeout
        self.horizon = PERMIT_VALIDITY + answer_timeout
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

    def shown(self, moment: float) -> float:
        """Answer what the clocks showed at a true time, but for their skews."""
        return moment + next(offset for since, offset in reversed(self.settings) if since <= moment)

    def set_clocks(self, seconds: float) -> None:
        self.settings.append((self.now, self.settings[-1][1] + seconds))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def open(self, worker: int) -> Ledger:
        return Ledger(
            "vendor",
            self.limit,
            answer_timeout=self.answer_timeout,
            store=self.store,
            clock=lambda: self.shown(self.now) + self.skews[worker],
            sleep=self.sleep,
            monotonic=lambda: self.now,
        )

    def exchange(self, task: Task, wanted: int) -> None:
        """Report what is known by now, and take permits, as the downloads do."""
        known = [r for r in task.requests if r.answered_at is not None and r.answered_at <= self.now]
        skew = task.ledger.clock() - self.shown(self.now)
        permits = task.ledger.exchange(
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
            self.exchange(self.task, wanted)
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
            latest = self.now + latency * self.answer_timeout
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
        self.now += max(self.limit.wake(ledger.moments(), backlog) - ledger.clock(), 0)

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
        self.exchange(self.task, 0)
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
        """Take all there is at the first moment, send it at once or as late as may be, and end or die."""
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
            self.open(0).exchange(0)  # the first look at the ledger sees the clock set back
        self.now += self.limit.hold + self.horizon + 1.001  # a skew, and a millisecond for rounding
        ledger = self.open(0)
        # After a refusal one request goes first.
        permits = ledger.exchange(self.limit.requests)
        assert permits
        more = ledger.exchange(self.limit.requests, answered=dict.fromkeys(permits, ledger.clock()))
        assert len(permits) + len(more) == self.limit.requests


TestQuotaMachine = QuotaMachine.TestCase
TestQuotaMachine.settings = settings(relaxed, max_examples=300, stateful_step_count=40)


class TimeOut(BaseException):
    """As Airflow ends a task from within a call that takes too long."""


class HangingStore(MemoryStore):
    """Keeps the ledger until it hangs, or answers just in time for the task to be ended."""

    def __init__(self, clock: Clock, *, seconds: float) -> None:
        super().__init__()
        self.hangs = False
        self.accesses = 0
        self._clock = clock
        self._seconds = seconds

    def get(self, key: str) -> str | None:
        if self.hangs and key == KEY:
            self._wait()
            raise TimeOut
        return super().get(key)

    def set(self, key: str, text: str) -> None:
        if self.hangs and self.accesses:
            self._wait()
        super().set(key, text)

    def _wait(self) -> None:
        self.accesses += 1
        self._clock.now += self._seconds


def test_a_task_that_is_to_end_waits_for_no_store_that_hangs() -> None:
    clock = Clock()
    store = HangingStore(clock, seconds=27.0)
    ledger = Ledger(
        "vendor", HOUR, answer_timeout=ANSWER_TIMEOUT, store=store, clock=clock, sleep=clock.sleep, monotonic=clock
    )
    ledger.exchange(1)
    assert ledger.is_quick
    store.hangs = True
    with pytest.raises(TimeOut):
        ledger.exchange(1)
    assert store.accesses == 1
    assert not ledger.is_quick


class OvertakenStore(MemoryStore):
    """The first write takes so long that another task has taken the lock by then, and was killed while it had it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def set(self, key: str, text: str) -> None:
        super().set(key, text)
        if key == KEY and len(self.written) == 1:
            self._clock.now += TURN + 1
        if key == f"{KEY}__next" and len(self.written) == 1:
            self.others[f"{KEY}__lock"] = json.dumps({"turn": "another", "taken_at": self._clock.now - HOLD / 3})


def test_permits_that_were_written_and_given_to_nobody_are_given_back() -> None:
    clock = Clock()
    store = OvertakenStore(clock)
    ledger = Ledger(
        "vendor",
        HOUR,
        answer_timeout=ANSWER_TIMEOUT,
        patience=60.0,
        store=store,
        clock=clock,
        sleep=clock.sleep,
        monotonic=clock,
    )
    with pytest.raises(LedgerBusyError):
        ledger.exchange(8)
    assert len(store.state.spent) == 8
    clock.now += HOLD
    assert len(ledger.exchange(3)) == 3
    assert len(store.state.spent) == 3
