"""The arithmetic of the quota: when permits are free, what a ledger says, and what settling makes of it."""

from __future__ import annotations

import math
from bisect import insort
from functools import partial
from itertools import count, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_amplemarket.quota.rate import PERMIT_VALIDITY, LedgerState, Permit, RateLimit, Report, settle
from tests.quota.tools import HORIZON, HOUR, NONSENSE, NOW, relaxed

# --- RateLimit ------------------------------------------------------------------------------------------------------

limits = st.builds(RateLimit, st.integers(1, 8), st.one_of(st.integers(1, 500), st.floats(0.5, 7200, allow_nan=False)))


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[RateLimit, list[float]]:
    """A limit and timestamps as a ledger can hold them: also more than the limit, over, and up to a horizon ahead."""
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
def test_free_times_are_sorted_and_as_many_as_the_limit_and_none_is_past(given: tuple[RateLimit, list[float]]) -> None:
    limit, spent = given
    free_times = limit.free_times(spent, NOW)
    assert len(free_times) == limit.requests
    assert free_times == sorted(free_times)
    assert free_times[0] >= NOW


@relaxed
@given(ledgers())
def test_each_free_time_is_the_first_at_which_so_many_permits_are_free(given: tuple[RateLimit, list[float]]) -> None:
    limit, spent = given

    def free(at: float) -> int:
        return limit.requests - sum(timestamp + limit.hold > at for timestamp in spent)

    candidates = sorted([NOW, *(end for timestamp in spent if (end := timestamp + limit.hold) > NOW)])
    expected = [min(at for at in candidates if free(at) > n) for n in range(limit.requests)]
    assert limit.free_times(spent, NOW) == expected


@relaxed
@given(ledgers(), st.integers(0, 30))
def test_waking_is_neither_early_nor_later_than_useful(given: tuple[RateLimit, list[float]], backlog: int) -> None:
    limit, spent = given
    free_times = limit.free_times(spent, NOW)
    wakeup = limit.next_wakeup(free_times, backlog)
    last = free_times[max(min(backlog, limit.requests), 1) - 1]
    assert free_times[0] <= wakeup <= min(last, free_times[0] + limit.period / 10)
    # What comes free within that tenth, and is needed, is waited for.
    assert not [free_at for free_at in free_times if wakeup < free_at <= min(last, free_times[0] + limit.period / 10)]


def test_waking_waits_some_minutes_for_several_permits_but_not_for_more_than_are_needed() -> None:
    limit = RateLimit(4, 3600)
    free_times = [NOW, NOW + 300, NOW + 360, NOW + 361]
    assert limit.next_wakeup(free_times, 9) == NOW + 360
    assert limit.next_wakeup(free_times, 2) == NOW + 300
    assert limit.next_wakeup(free_times, 1) == NOW
    assert limit.next_wakeup(free_times, 0) == NOW


def test_waking_does_not_wait_for_permits_that_are_free_by_the_time_it_is_their_turn() -> None:
    limit = RateLimit(4, 3600)
    burst = [NOW, NOW + 10, NOW + 20, NOW + 30]
    assert limit.next_wakeup(burst, 9, pace=10) == NOW
    assert limit.next_wakeup(burst, 9, pace=9) == NOW + 3
    assert limit.next_wakeup(burst, 2, pace=9) == NOW + 1
    # Two bursts: the second begins where the first ends.
    assert limit.next_wakeup([NOW, NOW + 1, NOW + 300, NOW + 301], 9, pace=10) == NOW + 280


@relaxed
@given(ledgers(), st.integers(0, 30), st.floats(0, 100))
def test_requests_at_that_pace_find_their_permits(
    given: tuple[RateLimit, list[float]], backlog: int, pace: float
) -> None:
    limit, spent = given
    free_times = limit.free_times(spent, NOW)
    wakeup = limit.next_wakeup(free_times, backlog, pace)
    assert free_times[0] <= wakeup <= limit.next_wakeup(free_times, backlog)
    waited_for = [free_at for free_at in free_times[:backlog] if free_at <= free_times[0] + limit.period / 10]
    assert all(wakeup + turn * pace >= free_at - 1e-3 for turn, free_at in enumerate(waited_for))


@relaxed
@given(ledgers(), st.integers(1, 40))
@example((RateLimit(2, 100), [NOW + 50]), 2)  # an unanswered request is held for longer than a period
def test_the_estimated_end_is_when_the_last_request_can_be_sent(
    given: tuple[RateLimit, list[float]], backlog: int
) -> None:
    limit, spent = given
    free_times = limit.free_times(spent, NOW)
    # Each permit is used as soon as it is free, and is free again when it was held.
    sent: list[float] = []
    permits = list(free_times)
    for _ in range(backlog):
        sent.append(permits.pop(0))
        insort(permits, sent[-1] + limit.hold)
    assert limit.estimate_end(free_times, backlog) == pytest.approx(sent[-1], abs=1e-3)


@relaxed
@given(ledgers())
@example((RateLimit(2, 100), [NOW + 50]))
def test_a_longer_backlog_never_ends_earlier(given: tuple[RateLimit, list[float]]) -> None:
    limit, spent = given
    free_times = limit.free_times(spent, NOW)
    ends = [limit.estimate_end(free_times, backlog) for backlog in range(4 * limit.requests)]
    assert all(earlier <= later for earlier, later in pairwise(ends))


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


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE.keys())
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
    assert state.free_times(limit, NOW) == [NOW + 7, NOW + 101]
    assert state.grant(limit, NOW + 6.9, 5) == 0
    assert state.grant(limit, NOW + 7, 5) == 1


# --- Settling -------------------------------------------------------------------------------------------------------

LIMIT = RateLimit(3, 100)


def settled(state: LedgerState, report: Report, wanted: int) -> tuple[LedgerState, list[Permit]]:
    """Settle now, with the ids new-0, new-1 and so on."""
    new_id = partial(next, (f"new-{number}" for number in count()))
    return settle(state, report, wanted, limit=LIMIT, horizon=HORIZON, now=NOW, new_id=new_id)


def permit(name: str) -> Permit:
    return Permit(name, NOW + 1)


def test_settling_grants_what_is_free_and_enters_it_as_late_as_it_may_be_counted() -> None:
    state, permits = settled(LedgerState({"held": NOW - 50, "over": NOW - 101}), Report(), 9)
    assert permits == [Permit("new-0", NOW + PERMIT_VALIDITY), Permit("new-1", NOW + PERMIT_VALIDITY)]
    assert state == LedgerState({"held": NOW - 50, "new-0": NOW + HORIZON, "new-1": NOW + HORIZON})


def test_settling_moves_what_is_answered_and_takes_out_what_is_unused() -> None:
    before = LedgerState({"answered": NOW + 9, "unused": NOW + 9, "silent": NOW + 9}, refusals=1)
    report = Report(answered={permit("answered"): NOW - 1}, unused=[permit("unused"), permit("unknown")])
    assert settled(before, report, 0) == (LedgerState({"answered": NOW - 1, "silent": NOW + 9}), [])
    assert before.spent["answered"] == NOW + 9


def test_settling_with_a_refusal_grants_nothing() -> None:
    report = Report(answered={permit("refused"): NOW}, refusals=[None, 20.0, 7.0])
    assert settled(LedgerState(), report, 1) == (LedgerState({"refused": NOW}, NOW + 20, 1), [])


def test_settling_with_nothing_to_report_and_nothing_wanted_changes_nothing() -> None:
    state = LedgerState({"held": NOW - 50}, NOW + 5, 2)
    assert settled(state, Report(), 0) == (state, [])


def test_a_report_is_true_where_there_is_something_to_report() -> None:
    report = Report()
    report.add(permit("silent"), was_sent=True)
    assert not report
    report.add(permit("answered"), was_sent=True, answered_at=NOW)
    report.add(permit("unused"), was_sent=False)
    report.add_refusal(None)
    assert report == Report({permit("answered"): NOW}, [permit("unused")], [None])
    assert all([Report(answered=report.answered), Report(unused=report.unused), Report(refusals=report.refusals)])
    assert report.retry_after is None
