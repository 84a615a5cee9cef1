"""The lock: where several tasks want the ledger, or Airflow's API delivers a write late, it holds what was spent."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_amplemarket.exceptions import AmplemarketError, LedgerBusyError, LedgerError
from airflow_provider_amplemarket.quota.lock import FREE, HOLD, PATIENCE, REACH, SETTLE, SPREAD, TURN
from airflow_provider_amplemarket.quota.rate import LedgerState
from airflow_provider_amplemarket.quota.variables import QUICK
from dev.memory import MemoryStore
from tests.quota.tools import KEY, NOW, acquire
from tests.quota.virtual import (
    LIMIT,
    Script,
    Scripted,
    Variables,
    World,
    holder,
    open_ledger,
    open_lock,
    take,
)
from tests.quota.worlds import KINDS, Conditions, run_any, run_world

#: How often a test of many worlds is run; ``python -m tests.quota.worlds`` runs more.
WORLDS = 100


# --- Worlds ---------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    conditions=st.builds(
        Conditions,
        is_sequential=st.booleans(),
        tasks=st.integers(2, 5),
        slowest=st.sampled_from([0.1, 1.0, TURN / 2]),
        stalls=st.sampled_from([0.0, 0.02]),
        outage=st.sampled_from([0.0, 5.0, 12.0, 40.0]),
        late=st.sampled_from([0.0, 0.1]),
    ),
)
@pytest.mark.no_cover
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_tasks_never_get_more_permits_than_there_are(seed: int, conditions: Conditions) -> None:
    assert not run_world(seed, conditions).wrongs


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_to_the_variables_the_limit_holds(kind: str) -> None:
    fates = [run_any(seed, kind) for seed in range(WORLDS)]
    assert {seed: fate.wrongs for seed, fate in enumerate(fates) if fate.wrongs} == {}
    assert any(fate.is_full for fate in fates)
    if "mild" in kind:
        assert not any(fate.errors for fate in fates)
        assert not any(fate.is_stuck for fate in fates)
    if "held" not in kind:
        assert any(fate.is_spent_again for fate in fates)
        assert any(fate.given_back for fate in fates)
        assert any(fate.blocks for fate in fates)
    if "lost" in kind:
        assert all(fate.is_lost for fate in fates)
        assert any(fate.is_spent_after_loss for fate in fates)


@pytest.mark.parametrize("slowest", [0.1, 2.0, TURN / 8])
def test_a_lone_task_gets_what_it_wants_however_slow_the_variables_are(slowest: float) -> None:
    world = World()
    given_out: list[str] = []

    def task() -> None:
        ledger = open_ledger(world, Variables(world, slowest))
        for _ in range(LIMIT.requests // 2):
            given_out.extend(permit.id for permit in acquire(ledger, 2))

    world.run([task])
    assert len(given_out) == LIMIT.requests


class Taken:
    """A world of tasks with scripts, and the permits that they have got."""

    def __init__(self) -> None:
        self.world = World()
        self.permits: list[str] = []

    def take(self, script: Script, *, times: int = 1, each: int = 1, after: float = 0.0) -> None:
        """Be a task that begins after so many seconds, and takes some permits so many times."""
        self.world.sleep(after)
        ledger = open_ledger(self.world, Scripted(self.world, script))
        for _ in range(times):
            self.permits.extend(permit.id for permit in acquire(ledger, each))

    def check(self) -> None:
        """See that all permits were given, no other and none twice, and that the ledger has them all."""
        assert len(self.permits) == LIMIT.requests
        assert sorted(self.permits) == sorted(LedgerState.load(self.world.texts[KEY]).spent)


@pytest.fixture
def taken() -> Taken:
    """Give a world in which all tasks begin at 0, and the client tries again after a second."""
    taken = Taken()
    taken.world.chance.uniform = lambda a, b: a  # type: ignore[method-assign]
    return taken


def test_a_late_copy_of_the_lock_hides_no_other_task_that_is_inside(taken: Taken) -> None:
    first = {("set lock", 0, 0): (29.9, 0.01)}  # its second copy is quick, and lands at 6.05
    # It has read the lock as free just before, takes it just after, and copies of its ledger come late.
    second = {("set vendor", 0, 0): (29.9, 0.01), ("set vendor", 0, 1): (29.9, 0.01)}
    taken.world.run([partial(taken.take, first, each=3), partial(taken.take, second, each=3, after=6.01)])
    taken.check()


def test_a_late_copy_of_the_announcement_does_not_hide_another(taken: Taken) -> None:
    first = {("set next", 0, 0): (7.0, 0.01), ("get next", 0, 0): (1.0, 0.01)}
    second = {("get vendor", 0, 0): (0.01, 1.5)}
    taken.world.run([partial(taken.take, first, each=3), partial(taken.take, second, each=3, after=6.005)])
    taken.check()


def test_a_late_copy_of_the_ledger_is_waited_for_by_its_own_task_and_by_the_next(taken: Taken) -> None:
    late = {("set vendor", 0, 0): (29.0, 0.0)}
    world = taken.world

    def tasks() -> None:
        taken.take(late, times=2)
        assert world.now > 6 + SETTLE
        taken.take(late)
        took = world.now
        taken.take({}, times=3)
        assert world.now > took + SETTLE - 1

    world.run([tasks])
    taken.check()


def test_variables_that_are_always_slow_are_named_as_the_cause() -> None:
    world = World()
    store = Scripted(world, {}, others=(QUICK / 2, QUICK / 2))
    with pytest.raises(LedgerError, match="are too slow") as caught:
        acquire(open_ledger(world, store), 1)
    assert f"({KEY})" in str(caught.value)


# --- One task at a time, by examples --------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    """Give an empty world."""
    return World()


@pytest.fixture
def table(world: World) -> MemoryStore:
    """Give its Variables."""
    return MemoryStore(texts=world.texts)


def test_without_others_it_takes_no_time_and_says_when_it_is_over(world: World, table: MemoryStore) -> None:
    with open_lock(world, table) as lock:
        assert lock.may_write
        assert lock.is_sure
    assert json.loads(world.texts[lock.done_key]) == {"turn": holder(world), "over_at": 0.0}
    with open_lock(world, table):
        pass
    assert world.now == 0


def test_a_lone_task_pays_eight_accesses_for_permits(world: World, table: MemoryStore) -> None:
    open_first = open_ledger(world, table)
    acquire(open_first, 1)
    assert len(table.accesses) == 8
    ledger = open_ledger(world, table)
    counts = []
    for _ in range(3):
        table.accesses.clear()
        acquire(ledger, 1)
        counts.append(len(table.accesses))
    # Once for each task: whether the one before it is over.
    assert counts == [9, 8, 8]
    assert world.now == 0


def test_a_report_without_change_is_six_accesses(world: World, table: MemoryStore) -> None:
    ledger = open_ledger(world, table)
    acquire(ledger, LIMIT.requests)
    table.accesses.clear()
    acquire(ledger, 1)
    assert len(table.accesses) == 6


@pytest.mark.parametrize("text", [FREE, None])
def test_it_is_free_where_nobody_has_taken_it_yet(text: str | None, world: World, table: MemoryStore) -> None:
    world.texts.pop(f"{KEY}__lock")
    if text is not None:
        world.texts[f"{KEY}__lock"] = text
    with open_lock(world, table) as lock:
        assert lock.is_sure
    assert world.now < 2  # that it is not there is not believed at once


@pytest.mark.parametrize("age", [0.0, 60.0, 170.0])
def test_all_who_wait_for_a_dead_task_wait_for_the_same_end(age: float, world: World, table: MemoryStore) -> None:
    take(world, at=-age)
    with open_lock(world, table):
        assert HOLD - age - 0.01 <= world.now < HOLD - age + 5
    assert holder(world) != "another"


@pytest.mark.parametrize("text", ["3f2a", "1234", '{"turn": "another"}', '{"turn": "another", "taken_at": NaN}', "[]"])
def test_where_the_lock_does_not_say_since_when_it_is_watched(text: str, world: World, table: MemoryStore) -> None:
    world.texts[f"{KEY}__lock"] = text
    with open_lock(world, table):
        assert HOLD - 0.01 <= world.now < HOLD + 5


def test_a_clock_that_is_ahead_holds_others_up_no_longer(world: World, table: MemoryStore) -> None:
    take(world, at=1e6)
    with open_lock(world, table):
        assert HOLD - 0.01 <= world.now < HOLD + 5


def test_what_is_over_is_free_but_only_once_its_copies_have_landed(world: World, table: MemoryStore) -> None:
    take(world)
    world.texts[f"{KEY}__done"] = json.dumps({"turn": "another", "over_at": NOW + 20})
    with open_lock(world, table):
        assert 20 - 0.01 <= world.now < 22


def test_that_another_turn_is_over_frees_nothing(world: World, table: MemoryStore) -> None:
    take(world)
    world.texts[f"{KEY}__done"] = json.dumps({"turn": "somebody else", "over_at": 0.0})
    with open_lock(world, table):
        assert world.now >= HOLD - 0.01


def test_a_living_task_is_waited_for_a_while(world: World, table: MemoryStore) -> None:
    first, second = open_lock(world, table), open_lock(world, table, patience=30)
    first.__enter__()
    world.later(3, lambda: first.__exit__(None, None, None))
    with second:
        assert 3 < world.now < 5


def test_who_takes_too_long_may_not_write_any_more_and_then_is_not_sure(world: World, table: MemoryStore) -> None:
    with open_lock(world, table) as lock:
        world.now += 9
        assert lock.may_write
        world.now += 2
        assert not lock.may_write
        assert lock.is_sure
        world.now = TURN
        assert not lock.is_sure
        with pytest.raises(LedgerError, match="cannot be written"):
            lock.write(KEY, "too late")
    assert world.texts[KEY] != "too late"


def announce(world: World) -> None:
    """Let another task want the lock."""
    world.texts[f"{KEY}__next"] = "another"


@pytest.mark.parametrize("name", ["next", "lock"])
def test_nobody_gets_in_by_a_slow_write_before_its_copies_have_landed(
    name: str, world: World, table: MemoryStore
) -> None:
    table.after_first(f"set {name}", lambda: world.sleep(6))
    with open_lock(world, table) as lock:
        assert 6 + SETTLE - 0.01 <= world.now < 6 + SETTLE + 2
        assert lock.may_write


def test_who_did_not_get_in_by_a_slow_write_is_over_late_where_another_may_be_inside(
    world: World, table: MemoryStore
) -> None:
    def linger() -> None:
        world.sleep(6)
        announce(world)

    table.after_first("set lock", linger)
    with open_lock(world, table):
        assert 6 + SETTLE + REACH - 0.01 <= world.now < 6 + SETTLE + REACH + 5


def test_who_wants_in_at_the_same_time_waits_until_the_other_must_have_finished(
    world: World, table: MemoryStore
) -> None:
    table.after_first("set lock", lambda: announce(world))
    with open_lock(world, table) as lock:
        assert REACH - 0.01 <= world.now < REACH + 5
        assert lock.may_write


def test_who_is_overtaken_waits_for_the_other(world: World, table: MemoryStore) -> None:
    def overtake() -> None:
        announce(world)
        take(world)

    table.after_first("set lock", overtake)
    with open_lock(world, table):
        assert HOLD - 0.01 <= world.now < HOLD + 5


def test_a_ledger_that_was_refused_is_not_written_once_it_is_too_late(world: World, table: MemoryStore) -> None:
    def refuse() -> None:
        world.sleep(12)
        raise OSError("no API server")

    table.before("set vendor", refuse)
    before = world.texts[KEY]
    with pytest.raises(LedgerError, match="cannot be written"):
        acquire(open_ledger(world, table), 1)
    assert world.texts[KEY] == before
    # Copies may be under way, and the others know how long.
    assert json.loads(world.texts[f"{KEY}__done"])["over_at"] == pytest.approx(NOW + world.now + SETTLE, abs=1)


def test_permits_whose_entries_others_may_have_overwritten_are_not_given(world: World, table: MemoryStore) -> None:
    def linger() -> None:
        if len(table.written["vendor"]) == 1:
            world.sleep(max(0.0, TURN - world.now))

    table.before("get vendor", linger)
    [permit] = acquire(open_ledger(world, table), 1)
    first, second = (LedgerState.load(text).spent for text in table.written["vendor"])
    assert permit.id not in first
    assert second.keys() == {permit.id}


# --- Waiting --------------------------------------------------------------------------------------------------------


def test_what_a_dead_task_holds_is_not_waited_for_in_a_worker(world: World, table: MemoryStore) -> None:
    take(world, at=-TURN)
    with pytest.raises(LedgerBusyError, match=f"{KEY}__lock") as caught, open_lock(world, table, patience=5):
        pass
    assert 0 <= caught.value.until - (NOW - TURN + HOLD) <= SPREAD
    assert world.now < 1
    world.now = caught.value.until - NOW
    with open_lock(world, table, patience=5):
        pass


def test_a_short_end_of_a_dead_tasks_hold_is_waited_for(world: World, table: MemoryStore) -> None:
    take(world, at=-HOLD + 4)
    with open_lock(world, table, patience=5):
        assert 4 - 0.01 <= world.now < 5


def test_living_tasks_are_tried_again_at_times_of_their_own(world: World, table: MemoryStore) -> None:
    untils = set()
    for _ in range(5):
        take(world, at=world.now)
        began = world.now
        with pytest.raises(LedgerBusyError) as caught, open_lock(world, table, patience=5):
            pass
        assert began + 5 <= world.now < began + 7
        assert 15 <= caught.value.until - NOW - world.now <= 45
        untils.add(caught.value.until - world.now)
    assert len(untils) == 5


def test_who_goes_away_says_when_its_turn_is_over(world: World, table: MemoryStore) -> None:
    table.after_first("set lock", lambda: announce(world))
    with pytest.raises(LedgerBusyError) as caught, open_lock(world, table, patience=5):
        pass
    assert -1 <= caught.value.until - (NOW + REACH) <= SPREAD + 1
    done = json.loads(world.texts[f"{KEY}__done"])
    assert done == {"turn": holder(world), "over_at": pytest.approx(NOW + REACH)}
    with open_lock(world, table):
        assert world.now >= REACH - 0.01


def test_it_gives_up_where_others_never_let_go(world: World, table: MemoryStore) -> None:
    table.before("get lock", lambda: take(world, turn=str(world.now), at=world.now))
    with pytest.raises(LedgerError, match=f"{KEY}__lock.* for 30 minutes. Give the pool one slot"):
        open_lock(world, table).__enter__()
    assert world.now > PATIENCE


@pytest.mark.parametrize("name", ["next", "lock"])
def test_a_task_that_is_told_to_stop_waits_no_longer_for_its_copies(
    name: str, world: World, table: MemoryStore
) -> None:
    table.after_first(f"set {name}", lambda: world.sleep(6))
    with pytest.raises(AmplemarketError, match="told to stop"):
        open_lock(world, table, cancelled=lambda: world.now >= 10).__enter__()
    assert 10 <= world.now <= 11


def test_a_task_that_is_told_to_stop_waits_no_longer_for_others(world: World, table: MemoryStore) -> None:
    take(world)
    with pytest.raises(AmplemarketError, match="told to stop"):
        open_lock(world, table, cancelled=lambda: world.now >= 10).__enter__()
    assert 10 <= world.now <= 11


def test_a_ledger_takes_patience_and_stop_along(world: World, table: MemoryStore) -> None:
    take(world, at=-TURN)
    with pytest.raises(LedgerBusyError):
        acquire(open_ledger(world, table, patience=5.0), 1)
    with pytest.raises(AmplemarketError, match="told to stop"):
        acquire(open_ledger(world, table, cancelled=lambda: True), 1)
    assert world.now < 1
