"""The ledger, by examples: what it gives, what it forgets, and what it makes of Variables that fail."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest

from airflow_provider_amplemarket.exceptions import LedgerBusyError, LedgerError
from airflow_provider_amplemarket.quota import ledger as quota
from airflow_provider_amplemarket.quota.ledger import VARIABLE_PREFIX, Ledger, variable_name
from airflow_provider_amplemarket.quota.lock import HOLD, SETTLE, TURN
from airflow_provider_amplemarket.quota.rate import PERMIT_VALIDITY, LedgerState, RateLimit
from airflow_provider_amplemarket.quota.variables import Store
from dev.memory import MemoryStore
from tests.quota.tools import HORIZON, HOUR, KEY, NONSENSE, NOW, RESPONSE_TIMEOUT, Clock, acquire


class DistortedStore(MemoryStore):
    """Let a read return what a function makes of the ledger: others write it, or it does not keep what is written."""

    def __init__(self, seen: Callable[[str | None, int], str | None]) -> None:
        super().__init__()
        self.seen = seen

    def get(self, key: str) -> str | None:
        text = super().get(key)
        return self.seen(text, self.reads) if key == KEY else text


def open_ledger(
    store: Store,
    clock: Clock,
    limit: RateLimit = HOUR,
    anonymous_requests: Iterable[float] = (),
    timeout: float = 120,
    known_requests: Mapping[str, float] | None = None,
) -> Ledger:
    return Ledger(
        conn_id="vendor",
        limit=limit,
        response_timeout=timeout,
        known_requests=known_requests,
        anonymous_requests=anonymous_requests,
        store=store,
        clock=clock,
        sleep=clock.sleep,
        monotonic=clock,
    )


# --- The ledger, by examples ----------------------------------------------------------------------------------------


def test_the_limit_is_granted_at_once_and_no_more(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    permits = acquire(ledger, 60)
    assert len({permit.id for permit in permits}) == 50
    assert {permit.use_before for permit in permits} == {NOW + PERMIT_VALIDITY}
    assert acquire(ledger, 1) == []
    assert acquire(open_ledger(store, clock), 1) == []
    assert store.state.spent == {permit.id: NOW + HORIZON for permit in permits}


def test_no_more_is_granted_than_wanted(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    assert len(acquire(ledger, 3)) == 3
    assert acquire(ledger, 0) == []
    assert len(store.state.spent) == 3


def test_a_permit_stands_in_the_ledger_and_was_read_back_before_it_is_given(clock: Clock) -> None:
    store = MemoryStore()
    seen: list[str | None] = []
    read = store.get
    store.get = lambda key: seen.append(read(key)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    (permit,) = acquire(open_ledger(store, clock), 1)
    assert len(store.written["vendor"]) == 1
    assert permit.id in store.written["vendor"][0]
    assert seen[-1] == store.written["vendor"][0]


def test_an_answered_permit_counts_from_its_answer(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock, RateLimit(1, 100))
    (permit,) = acquire(ledger, 1)
    clock.now += 5
    assert acquire(ledger, 0, answered={permit: NOW + 2}) == []
    assert store.state.spent == {permit.id: NOW + 2}
    assert ledger.free_times() == [NOW + 103]
    clock.now = NOW + 102.9
    assert acquire(ledger, 1) == []
    clock.now = NOW + 103
    assert len(acquire(ledger, 1)) == 1


def test_a_permit_of_which_nothing_is_heard_keeps_its_careful_entry(store: MemoryStore, clock: Clock) -> None:
    acquire(open_ledger(store, clock, RateLimit(1, 100)), 1)
    after = open_ledger(store, clock, RateLimit(1, 100))
    clock.now = NOW + HORIZON + 100.9
    assert acquire(after, 1) == []
    assert after.free_times() == [NOW + HORIZON + 101]
    clock.now = NOW + HORIZON + 101
    assert len(acquire(after, 1)) == 1


def test_unused_permits_are_given_back_at_once(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock, RateLimit(2, 100))
    first, second = acquire(ledger, 2)
    (third,) = acquire(ledger, 2, unused=[first])
    assert set(store.state.spent) == {second.id, third.id}


def test_a_greedy_task_gets_all_of_the_quota_and_not_more(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(5, 100)
    ledger = open_ledger(store, clock, limit)
    sent: list[float] = []
    for _ in range(10):
        while (permits := acquire(ledger, 3)) and len(sent) < 100:
            sent += [clock.now] * len(permits)
            acquire(ledger, 0, answered=dict.fromkeys(permits, clock.now))
        clock.now = ledger.free_times()[0]
    assert clock.now == pytest.approx(NOW + 10 * limit.hold, abs=0.01)
    assert len(sent) == 10 * 5
    assert all(later - earlier >= limit.period for earlier, later in zip(sent, sent[5:], strict=False))


def test_nothing_is_written_where_nothing_changed(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    acquire(ledger, 50)
    acquire(ledger, 1)
    acquire(ledger, 1)
    assert len(store.written["vendor"]) == 1


def test_each_connection_has_its_own_ledger() -> None:
    keys = {Ledger(conn_id=conn_id, limit=HOUR, response_timeout=1).key for conn_id in ("one", "two")}
    assert keys == {"amplemarket_quota__one", "amplemarket_quota__two"}


def test_a_clock_set_back_holds_a_permit_for_one_period_more_at_most(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(2, 100)
    ledger = open_ledger(store, clock, limit)
    first, second = acquire(ledger, 2)
    acquire(ledger, 0, answered={first: NOW, second: NOW})
    clock.now -= 1e6
    after = open_ledger(store, clock, limit)
    assert acquire(after, 2) == []
    assert after.free_times() == [clock.now + HORIZON + 101] * 2
    clock.now += HORIZON + 101
    assert len(acquire(after, 2)) == 2


# --- The ledger is not there, or not to be had ----------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2])
def test_a_not_found_or_two_are_not_believed(lost: int, clock: Clock) -> None:
    store = MemoryStore()
    acquire(open_ledger(store, clock), 50)
    store.faults.extend(["lost"] * lost)
    assert acquire(open_ledger(store, clock), 1) == []
    store.faults.extend(["lost"] * lost)
    assert open_ledger(store, clock).free_times()[0] > clock.now


def test_a_not_found_is_asked_again_after_a_pause_until_it_is_believed(clock: Clock) -> None:
    store = MemoryStore()
    assert len(acquire(open_ledger(store, clock), 1)) == 1
    assert store.reads == 3 + 1 + 1  # once more after the proof that the store answers, and the read-back
    assert len(clock.slept) == 2
    assert all(pause >= 0.5 for pause in clock.slept)


@pytest.mark.parametrize("lost", [3, 5])
def test_an_outage_that_looks_like_an_empty_ledger_is_not_believed(lost: int, clock: Clock) -> None:
    store = MemoryStore()
    acquire(open_ledger(store, clock), 50)
    store.faults.extend(["lost"] * lost)
    assert acquire(open_ledger(store, clock), 1) == []


def test_a_ledger_is_not_missing_while_nothing_can_be_written(clock: Clock) -> None:
    class Down(MemoryStore):
        def set(self, key: str, text: str) -> None:
            raise OSError("down")

    with pytest.raises(LedgerError, match="cannot be read"):
        open_ledger(Down(), clock).free_times()


@pytest.mark.parametrize("fault", ["fails", "fails late"])
def test_the_last_look_for_a_missing_ledger_may_fail_like_any_other(fault: str, clock: Clock) -> None:
    store = MemoryStore(None, ["lost", "lost", "lost", fault])
    with pytest.raises(LedgerError, match="cannot be read"):
        acquire(open_ledger(MemoryStore(None, ["lost", "lost", "lost", *[fault] * 6]), clock), 1)
    spent = MemoryStore()
    acquire(open_ledger(spent, clock), 50)
    store.text = spent.text
    assert acquire(open_ledger(store, clock), 1) == []


def test_not_founds_count_only_in_a_row() -> None:
    clock = Clock()
    spent = MemoryStore()
    acquire(open_ledger(spent, clock), 50)
    store = MemoryStore(spent.text, ["lost", "lost", "fails", "lost", "lost"])
    assert acquire(open_ledger(store, clock), 1) == []
    assert store.reads == 6


def test_a_failing_read_is_tried_again(clock: Clock) -> None:
    store = MemoryStore(LedgerState({"a": NOW}).dump(), ["fails"] * 5)
    assert len(acquire(open_ledger(store, clock), 50)) == 49


@pytest.mark.parametrize("ask", [lambda ledger: acquire(ledger, 1), lambda ledger: ledger.free_times()])
def test_an_unreadable_store_grants_nothing(ask: Callable[[Ledger], object], clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["fails"] * 6)
    with pytest.raises(LedgerError, match=f"{KEY}.* cannot be read") as caught:
        ask(open_ledger(store, clock))
    assert isinstance(caught.value.__cause__, OSError)
    assert store.written["vendor"] == []
    assert sum(clock.slept) < PERMIT_VALIDITY


@pytest.mark.parametrize("fault", ["fails", "fails late"])
def test_a_failing_write_is_tried_again(fault: str, clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["", *[fault] * 3])
    permits = acquire(open_ledger(store, clock), 2)
    assert sum(clock.slept) < 10
    assert set(store.state.spent) == {permit.id for permit in permits}
    assert len(permits) == 2


@pytest.mark.parametrize("fault", ["fails", "fails late"])
def test_after_an_outage_it_is_begun_again(fault: str, clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["", *[fault] * 5])
    permits = acquire(open_ledger(store, clock), 2)
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
        acquire(open_ledger(store, clock), 2)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("fixed", [None, LedgerState().dump(), "nonsense"], ids=["nothing", "a ledger", "nonsense"])
def test_a_store_that_does_not_keep_what_is_written_grants_nothing(fixed: str | None, clock: Clock) -> None:
    store = DistortedStore(lambda text, reads: fixed)
    with pytest.raises(LedgerError, match="does not keep what is written"):
        acquire(open_ledger(store, clock), 1)


def test_a_permit_whose_entry_was_overwritten_before_the_read_back_is_not_given(clock: Clock) -> None:
    full = LedgerState({str(n): NOW for n in range(50)}).dump()
    store = DistortedStore(lambda text, reads: text if reads <= 3 else full)
    assert acquire(open_ledger(store, clock), 1) == []


def test_overwritten_entries_are_written_again_with_the_next_report(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    mine = acquire(ledger, 2)
    store.text = LedgerState({"theirs": NOW}).dump()
    clock.now += 1
    acquire(ledger, 0, answered={mine[0]: NOW + 0.5})
    assert store.state.spent == {"theirs": NOW, mine[0].id: NOW + 0.5, mine[1].id: NOW + HORIZON}


def test_what_is_over_is_not_written_again(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    acquire(ledger, 2)
    clock.now += 2 * HOUR.hold
    acquire(ledger, 0)
    assert store.state.spent == {}


def test_anonymous_requests_count_where_the_ledger_is_not_there(clock: Clock) -> None:
    store = MemoryStore()
    requests = [NOW - 9000, NOW - 3000, NOW - 2000, NOW - 1000]
    assert len(acquire(open_ledger(store, clock, anonymous_requests=requests), 50)) == 47
    assert sorted(store.state.spent.values())[:3] == [NOW - 3000, NOW - 2000, NOW - 1000]


def test_anonymous_requests_are_seen_by_free_times_too(clock: Clock) -> None:
    assert open_ledger(MemoryStore(), clock, RateLimit(1, 100), [NOW - 1]).free_times() == [NOW + 100]


def spend(store: MemoryStore, clock: Clock, count: int) -> dict[str, float]:
    """Let a task send so many requests, and return what the archive knows of them afterwards."""
    ledger = open_ledger(store, clock)
    permits = acquire(ledger, count)
    clock.now += 1
    acquire(ledger, 0, answered=dict.fromkeys(permits, clock.now))
    # A sidecar is written after the answer.
    return {permit.id: clock.now + 0.2 for permit in permits}


@pytest.mark.parametrize("seen", [None, LedgerState().dump(), LedgerState({"old": NOW - 9000}).dump()], ids=repr)
def test_what_the_archive_knows_counts_though_the_ledger_forgot_it(seen: str | None, clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump())
    known = spend(store, clock, 50)
    assert len(known) == 50
    # The Variable is gone, or cannot be decrypted any more and so reads as missing; or an older export is imported.
    store.text = seen
    ledger = open_ledger(store, clock, known_requests=known)
    assert ledger.free_times()[0] > NOW + HOUR.period
    assert acquire(ledger, 50) == []
    clock.now = ledger.free_times()[-1]
    assert len(acquire(open_ledger(store, clock, known_requests=known), 50)) == 50


def test_what_the_archive_and_the_ledger_know_counts_once(store: MemoryStore, clock: Clock) -> None:
    known = spend(store, clock, 20)
    ledger = open_ledger(store, clock, known_requests=known)
    assert sum(free_at <= clock.now for free_at in ledger.free_times()) == 30
    assert len(acquire(ledger, 50)) == 30
    # The ledger's own entry is the one that counts.
    assert {store.state.spent[permit] for permit in known} == {NOW + 1}


def test_half_of_it_lost_and_half_of_it_known(store: MemoryStore, clock: Clock) -> None:
    known = spend(store, clock, 25)
    before = store.text
    known |= spend(store, clock, 15)
    store.text = before
    assert len(acquire(open_ledger(store, clock, known_requests=known), 50)) == 10


def test_known_requests_that_the_ledger_has_are_no_reason_to_write(store: MemoryStore, clock: Clock) -> None:
    known = spend(store, clock, 50)
    written = len(store.written["vendor"])
    assert acquire(open_ledger(store, clock, known_requests=dict(reversed(known.items()))), 1) == []
    assert len(store.written["vendor"]) == written


def test_a_permit_does_not_outlive_its_entry_where_the_clock_is_set_back(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(1, 100)
    ledger = open_ledger(store, clock, limit)
    (permit,) = acquire(ledger, 1)  # it waits for a thread, which is busy with a long download
    clock.now -= 1e6
    acquire(ledger, 0)
    clock.now += HORIZON + limit.hold
    is_usable = clock() <= permit.use_before
    assert not (is_usable and acquire(ledger, 1))


def test_anonymous_requests_do_not_count_where_the_ledger_is_there(clock: Clock) -> None:
    store = MemoryStore(LedgerState().dump(), ["lost", "lost"])
    assert len(acquire(open_ledger(store, clock, anonymous_requests=[NOW - 10] * 50), 50)) == 50


def test_known_requests_count_where_the_ledger_lacks_them(clock: Clock) -> None:
    store = MemoryStore(LedgerState({"a": NOW - 20}).dump())
    ledger = open_ledger(
        store, clock, RateLimit(4, 3600), known_requests={"a": NOW - 10, "b": NOW - 30, "old": NOW - 9000}
    )
    assert ledger.free_times() == [NOW, NOW, NOW - 30 + HOUR.hold, NOW - 20 + HOUR.hold]
    assert len(acquire(ledger, 50)) == 2
    assert {"a": NOW - 20, "b": NOW - 30}.items() <= store.state.spent.items()
    assert "old" not in store.state.spent


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_garbled_ledger_grants_nothing_for_a_period_and_heals(
    text: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(text)
    ledger = open_ledger(store, clock)
    assert ledger.free_times()[0] > NOW + HOUR.period
    assert acquire(ledger, 50) == []
    assert "garbled" in caplog.text
    clock.now = NOW + HOUR.period
    assert acquire(open_ledger(store, clock), 50) == []
    clock.now = NOW + HOUR.hold + HORIZON
    assert len(acquire(open_ledger(store, clock), 50)) == 50


def test_a_garbled_ledger_waits_for_the_requests_that_are_still_under_way(clock: Clock) -> None:
    store = MemoryStore()
    limit = RateLimit(1, 100)
    acquire(open_ledger(store, clock, limit), 1)
    # The task sends its request and dies; the API counts it as late as it may.
    counted = NOW + RESPONSE_TIMEOUT
    clock.now += 1
    store.text = "garbled"
    ledger = open_ledger(store, clock, limit)
    assert acquire(ledger, 1) == []
    clock.now = ledger.free_times()[0]
    assert len(acquire(ledger, 1)) == 1
    assert clock.now > counted + limit.period


# --- Refusals -------------------------------------------------------------------------------------------------------


def refuse(ledger: Ledger, clock: Clock, *retry_after: float | None) -> float:
    """Let the API refuse requests; return for how long nothing is granted."""
    permits = acquire(ledger, len(retry_after))
    assert permits
    acquire(ledger, 0, answered=dict.fromkeys(permits, clock.now), refusals=retry_after)
    return ledger.free_times()[0] - clock.now


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
    assert acquire(open_ledger(store, clock), 5) == []
    clock.now += 89.9
    assert acquire(open_ledger(store, clock), 5) == []
    clock.now += 0.2
    assert len(acquire(open_ledger(store, clock), 5)) == 1


def test_a_shorter_block_does_not_end_a_longer_one(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock, RateLimit(50, 100))
    first, second = acquire(ledger, 2)
    acquire(ledger, 0, answered={first: NOW}, refusals=[90.0])
    acquire(ledger, 0, answered={second: NOW}, refusals=[5.0])
    assert ledger.free_times()[0] == NOW + 90


def test_back_off_doubles_up_to_a_period(store: MemoryStore, clock: Clock) -> None:
    limit = RateLimit(50, 3600)
    waits = []
    for _ in range(40):
        ledger = open_ledger(store, clock, limit)
        waits.append(refuse(ledger, clock, None))
        clock.now = ledger.free_times()[0]
    assert waits[:6] == pytest.approx([72, 144, 288, 576, 1152, 2304])
    assert waits[6:] == pytest.approx([3601] * 34)


def test_after_a_refusal_one_request_goes_ahead_and_its_answer_opens_the_rest(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    refuse(ledger, clock, 10.0)
    clock.now += 10
    (probe,) = acquire(ledger, 20)
    assert len(acquire(ledger, 20, answered={probe: clock.now})) == 20
    assert store.state.refusals == 0


def test_a_refused_probe_backs_off_again(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    refuse(ledger, clock, None)
    clock.now += 72
    assert refuse(ledger, clock, None) == pytest.approx(144)
    assert store.state.refusals == 2


def test_an_answer_beside_a_refusal_does_not_hide_it(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    served, refused = acquire(ledger, 2)
    acquire(ledger, 0, answered={served: NOW, refused: NOW}, refusals=[None])
    assert store.state.refusals == 1
    assert acquire(ledger, 1) == []


def test_a_probe_that_is_not_answered_does_not_open_the_rest(store: MemoryStore, clock: Clock) -> None:
    ledger = open_ledger(store, clock)
    refuse(ledger, clock, 10.0)
    clock.now += 10
    assert len(acquire(ledger, 20)) == 1
    assert len(acquire(ledger, 20)) == 1


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
        super().__init__(texts={})
        self.masker = masker

    def get(self, key: str) -> str | None:
        text = super().get(key)
        if text is not None:
            self.masker.mask_secret(text, key)
        return text


SENSITIVE = ["amplemarket_token", "API-Key of sales", "secret", "my.password"]


@pytest.mark.parametrize("conn_id", ["amplemarket_default", *SENSITIVE])
@pytest.mark.parametrize("name", maskers())
def test_airflow_takes_no_text_of_the_ledger_for_a_secret(name: str, conn_id: str, clock: Clock) -> None:
    masker = maskers()[name]
    patterns = masker._secrets_masker().patterns
    before = set(patterns)
    store = MaskingStore(masker)
    ledger = Ledger(
        conn_id=conn_id, limit=HOUR, response_timeout=1, store=store, clock=clock, sleep=clock.sleep, monotonic=clock
    )
    for _ in range(200):
        acquire(ledger, 1)
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


# --- A task that is to end ---


class TimeOut(BaseException):
    """As Airflow ends a task from within a call that takes too long."""


class HangingStore(MemoryStore):
    """Keeps the ledger until it hangs, or answers just in time for the task to be ended."""

    def __init__(self, clock: Clock, *, seconds: float) -> None:
        super().__init__()
        self.hangs = False
        self.waits = 0
        self._clock = clock
        self._seconds = seconds

    def get(self, key: str) -> str | None:
        if self.hangs and key == KEY:
            self._wait()
            raise TimeOut
        return super().get(key)

    def set(self, key: str, text: str) -> None:
        if self.hangs and self.waits:
            self._wait()
        super().set(key, text)

    def _wait(self) -> None:
        self.waits += 1
        self._clock.now += self._seconds


def test_a_task_that_is_to_end_waits_for_no_store_that_hangs() -> None:
    clock = Clock()
    store = HangingStore(clock, seconds=27.0)
    ledger = Ledger(
        conn_id="vendor",
        limit=HOUR,
        response_timeout=RESPONSE_TIMEOUT,
        store=store,
        clock=clock,
        sleep=clock.sleep,
        monotonic=clock,
    )
    acquire(ledger, 1)
    assert ledger.is_quick
    store.hangs = True
    with pytest.raises(TimeOut):
        acquire(ledger, 1)
    assert store.waits == 1
    assert not ledger.is_quick


class OvertakenStore(MemoryStore):
    """The first write takes so long that another task has taken the lock by then, and was killed while it had it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def set(self, key: str, text: str) -> None:
        super().set(key, text)
        if key == KEY and len(self.written["vendor"]) == 1:
            self._clock.now += TURN + 1
        if key == f"{KEY}__next" and len(self.written["vendor"]) == 1:
            self.texts[f"{KEY}__lock"] = json.dumps({"turn": "another", "taken_at": self._clock.now - HOLD / 3})


def test_permits_that_were_written_and_given_to_nobody_are_given_back() -> None:
    clock = Clock()
    store = OvertakenStore(clock)
    ledger = Ledger(
        conn_id="vendor",
        limit=HOUR,
        response_timeout=RESPONSE_TIMEOUT,
        patience=60.0,
        store=store,
        clock=clock,
        sleep=clock.sleep,
        monotonic=clock,
    )
    with pytest.raises(LedgerBusyError):
        acquire(ledger, 8)
    assert len(store.state.spent) == 8
    clock.now += HOLD
    assert len(acquire(ledger, 3)) == 3
    assert len(store.state.spent) == 3
