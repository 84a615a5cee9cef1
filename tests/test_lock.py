"""The lock: where several tasks want the ledger, or Airflow's API delivers a write late, it holds what was spent."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_amplemarket.exceptions import AmplemarketError, LedgerBusyError, LedgerError
from airflow_provider_amplemarket.lock import FREE, HOLD, PATIENCE, REACH, SETTLE, SPREAD, TURN, Lock
from airflow_provider_amplemarket.quota import Ledger, LedgerState
from airflow_provider_amplemarket.variables import QUICK, PatientStore, Pause
from tests.worlds import CLIENT_TIMEOUT, KEY, LIMIT, NOW, Fate, T, Variables, World, open_ledger, run_any, run_world

#: How often a test of many worlds is run; ``python -m tests.worlds`` runs more.
WORLDS = 100


def check(fate: Fate) -> None:
    """See that no more permits were given than there are, and that the ledger still has them all."""
    assert not fate.is_over
    assert not fate.is_forgetful


# --- Worlds ---------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    is_sequential=st.booleans(),
    tasks=st.integers(2, 5),
    slowest=st.sampled_from([0.1, 1.0, TURN / 2]),
    stalls=st.sampled_from([0.0, 0.02]),
    outage=st.sampled_from([0.0, 5.0, 12.0, 40.0]),
    late=st.sampled_from([0.0, 0.1]),
)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_tasks_never_get_more_permits_than_there_are(
    seed: int, is_sequential: bool, tasks: int, slowest: float, stalls: float, outage: float, late: float
) -> None:
    check(
        run_world(
            seed,
            is_sequential=is_sequential,
            tasks=tasks,
            slowest=slowest,
            stalls=stalls,
            outage=outage,
            late=late,
        )
    )


@pytest.mark.parametrize("is_hard", [False, True], ids=["mild", "hard"])
@pytest.mark.parametrize("is_sequential", [True, False], ids=["sequential", "concurrent"])
def test_no_late_copy_of_a_write_costs_a_permit(is_sequential: bool, is_hard: bool) -> None:
    fates = [run_any(seed, is_sequential=is_sequential, is_hard=is_hard) for seed in range(WORLDS)]
    for fate in fates:
        check(fate)
    if not is_hard:
        assert not any(fate.errors for fate in fates)
        assert not any(fate.is_stuck for fate in fates)


@pytest.mark.parametrize("slowest", [0.1, 2.0, TURN / 8])
def test_a_lone_task_gets_what_it_wants_however_slow_the_variables_are(slowest: float) -> None:
    world = World(random.Random(0))
    given_out: list[str] = []

    def task() -> None:
        ledger = open_ledger(world, Variables(world, slowest))
        for _ in range(LIMIT.requests // 2):
            given_out.extend(permit.id for permit in ledger.exchange(2))

    world.run([task])
    assert len(given_out) == LIMIT.requests


class Scripted(Variables):
    """
    The Variables, with a time for each message; those that are not named take a hundredth of a second each way.

    :param script: seconds there and back, for the method, the end of the key, which call it is, and which attempt.
    """

    def __init__(self, world: World, script: Mapping[tuple[str, str, int, int], tuple[float, float]]) -> None:
        super().__init__(world, 0.0)
        self.script = script
        self.calls: Counter[tuple[str, str]] = Counter()

    def get(self, key: str) -> str | None:
        return self._call("get", key, lambda: self.world.texts.get(key))

    def set(self, key: str, text: str) -> None:
        self._call("set", key, lambda: self.world.texts.__setitem__(key, text))

    def _call(self, method: str, key: str, work: Callable[[], T]) -> T:
        name = (method, key.rpartition("__")[2])
        for attempt in range(5):
            there, back = self.script.get((*name, self.calls[name], attempt), (0.01, 0.01))
            answers: list[T] = []
            self.world.later(there, lambda answers=answers: answers.append(work()))  # type: ignore[misc]
            self.world.sleep(min(there + back, CLIENT_TIMEOUT))
            if there + back < CLIENT_TIMEOUT:
                self.calls[name] += 1
                return answers[0]
            self.world.sleep(1.0)
        raise OSError("no answer")


def run_scripted(*tasks: tuple[float, dict[tuple[str, str, int, int], tuple[float, float]]]) -> Fate:
    """Let each task take half of the permits, from a given moment on, with Variables that follow its script."""
    chance = random.Random(0)
    chance.uniform = lambda a, b: 0.0  # type: ignore[method-assign]  # all begin at 0
    world, fate = World(chance), Fate()

    def task(begin: float, script: dict[tuple[str, str, int, int], tuple[float, float]]) -> None:
        world.sleep(begin)
        ledger = open_ledger(world, Scripted(world, script))
        fate.given.extend(permit.id for permit in ledger.exchange(LIMIT.requests // 2))

    world.run([partial(task, begin, script) for begin, script in tasks])
    fate.known = set(LedgerState.load(world.texts[KEY]).spent)
    assert len(fate.given) == LIMIT.requests
    return fate


def test_a_late_copy_of_the_lock_hides_no_other_task_that_is_inside() -> None:
    first = {("set", "lock", 0, 0): (29.9, 0.01)}  # its second copy is quick, and lands at 6.05
    # It has read the lock as free just before, takes it just after, and copies of its ledger come late.
    second = {("set", "vendor", 0, 0): (29.9, 0.01), ("set", "vendor", 0, 1): (29.9, 0.01)}
    check(run_scripted((0.0, first), (6.01, second)))


def test_a_late_copy_of_the_announcement_does_not_hide_another() -> None:
    first = {("set", "next", 0, 0): (7.0, 0.01), ("get", "next", 0, 0): (1.0, 0.01)}
    second = {("get", "vendor", 0, 0): (0.01, 1.5)}
    check(run_scripted((0.0, first), (6.005, second)))


def test_a_late_copy_of_the_ledger_is_waited_for_by_its_own_task_and_by_the_next() -> None:
    world = World(random.Random(0))
    fate = Fate()

    def task(script: dict[tuple[str, str, int, int], tuple[float, float]], count: int) -> None:
        ledger = open_ledger(world, Scripted(world, script))
        for _ in range(count):
            fate.given.extend(permit.id for permit in ledger.exchange(1))

    def tasks() -> None:
        task({("set", "vendor", 0, 0): (29.0, 0.0)}, 2)
        assert world.now > 6 + SETTLE
        task({("set", "vendor", 0, 0): (29.0, 0.0)}, 1)
        took = world.now
        task({}, 3)
        assert world.now > took + SETTLE - 1

    world.run([tasks])
    fate.known = set(LedgerState.load(world.texts[KEY]).spent)
    assert len(fate.given) == LIMIT.requests
    check(fate)


def test_variables_that_are_always_slow_are_named_as_the_cause() -> None:
    world = World(random.Random(0))
    problems: list[str] = []

    def task() -> None:
        store = Variables(world, 0.0)
        store._way = lambda: QUICK / 2  # type: ignore[method-assign]
        with pytest.raises(LedgerError) as caught:
            open_ledger(world, store).exchange(1)
        problems.append(str(caught.value))

    world.run([task])
    assert "answer too slowly" in problems[0]
    assert f"({KEY})" in problems[0]


# --- One task at a time, by examples --------------------------------------------------------------------------------


class Table:
    """Variables that take no time, and count how they are used."""

    def __init__(self, world: World) -> None:
        self.texts = world.texts
        self.calls: list[tuple[str, str]] = []

    def get(self, key: str) -> str | None:
        self.calls.append(("get", key))
        return self.texts.get(key)

    def set(self, key: str, text: str) -> None:
        self.calls.append(("set", key))
        self.texts[key] = text


@pytest.fixture
def world() -> World:
    """Give an empty world."""
    return World(random.Random(0))


@pytest.fixture
def table(world: World) -> Table:
    """Give its Variables."""
    return Table(world)


def pause_of(world: World, cancelled: Callable[[], bool] = lambda: False) -> Pause:
    def sleep(seconds: float) -> None:
        assert 0 < seconds <= 1
        world.now += seconds

    return Pause(sleep, cancelled)


def lock_of(
    store: Table, world: World, patience: float = float("inf"), cancelled: Callable[[], bool] = lambda: False, ahead=0.0
) -> Lock:
    """Give the lock of a task; its clock may be ahead."""
    pause = pause_of(world, cancelled)
    return Lock(
        PatientStore(store, proof=f"{KEY}__next", pause=pause, monotonic=lambda: world.now),
        KEY,
        pause=pause,
        clock=lambda: NOW + world.now + ahead,
        monotonic=lambda: world.now,
        patience=patience,
    )


def ledger_of(store: Table, world: World, **options: float) -> Ledger:
    """Give the ledger of a task."""
    return Ledger(
        "vendor",
        LIMIT,
        answer_timeout=60,
        store=store,
        clock=lambda: NOW + world.now,
        sleep=pause_of(world)._sleep,
        monotonic=lambda: world.now,
        **options,
    )


def take(world: World, turn: str = "another", at: float = 0.0) -> None:
    """Let another task take the lock."""
    world.texts[f"{KEY}__lock"] = json.dumps({"turn": turn, "taken_at": NOW + at})


def holder(world: World) -> str:
    return str(json.loads(world.texts[f"{KEY}__lock"])["turn"])


def test_without_others_it_takes_no_time_and_says_when_it_is_over(world: World, table: Table) -> None:
    with lock_of(table, world) as lock:
        assert lock.may_write
        assert lock.is_sure
    assert json.loads(world.texts[lock.done_key]) == {"turn": holder(world), "over_at": 0.0}
    with lock_of(table, world):
        pass
    assert world.now == 0


def test_a_lone_task_pays_eight_accesses_for_an_exchange(world: World, table: Table) -> None:
    open_first = ledger_of(table, world)
    open_first.exchange(1)
    assert len(table.calls) == 8
    ledger = ledger_of(table, world)
    counts = []
    for _ in range(3):
        table.calls.clear()
        ledger.exchange(1)
        counts.append(len(table.calls))
    # Once for each task: whether the one before it is over.
    assert counts == [9, 8, 8]
    assert world.now == 0


def test_an_exchange_without_change_is_six_accesses(world: World, table: Table) -> None:
    ledger = ledger_of(table, world)
    ledger.exchange(LIMIT.requests)
    table.calls.clear()
    ledger.exchange(1)
    assert len(table.calls) == 6


@pytest.mark.parametrize("text", [FREE, None])
def test_it_is_free_where_nobody_has_taken_it_yet(text: str | None, world: World, table: Table) -> None:
    world.texts.pop(f"{KEY}__lock")
    if text is not None:
        world.texts[f"{KEY}__lock"] = text
    with lock_of(table, world) as lock:
        assert lock.is_sure
    assert world.now < 2  # that it is not there is not believed at once


@pytest.mark.parametrize("age", [0.0, 60.0, 170.0])
def test_all_who_wait_for_a_dead_task_wait_for_the_same_end(age: float, world: World, table: Table) -> None:
    take(world, at=-age)
    with lock_of(table, world):
        assert HOLD - age - 0.01 <= world.now < HOLD - age + 5
    assert holder(world) != "another"


@pytest.mark.parametrize("text", ["3f2a", "1234", '{"turn": "another"}', '{"turn": "another", "taken_at": NaN}', "[]"])
def test_where_the_lock_does_not_say_since_when_it_is_watched(text: str, world: World, table: Table) -> None:
    world.texts[f"{KEY}__lock"] = text
    with lock_of(table, world):
        assert HOLD - 0.01 <= world.now < HOLD + 5


def test_a_clock_that_is_ahead_holds_others_up_no_longer(world: World, table: Table) -> None:
    take(world, at=1e6)
    with lock_of(table, world):
        assert HOLD - 0.01 <= world.now < HOLD + 5


def test_what_is_over_is_free_but_only_once_its_copies_have_landed(world: World, table: Table) -> None:
    take(world)
    world.texts[f"{KEY}__done"] = json.dumps({"turn": "another", "over_at": NOW + 20})
    with lock_of(table, world):
        assert 20 - 0.01 <= world.now < 22


def test_that_another_turn_is_over_frees_nothing(world: World, table: Table) -> None:
    take(world)
    world.texts[f"{KEY}__done"] = json.dumps({"turn": "somebody else", "over_at": 0.0})
    with lock_of(table, world):
        assert world.now >= HOLD - 0.01


def test_a_living_task_is_waited_for_a_moment(world: World, table: Table) -> None:
    first, second = lock_of(table, world), lock_of(table, world, patience=30)
    first.__enter__()
    read = table.get

    def get(key: str) -> str | None:
        if world.now > 3:
            first.__exit__(None, None, None)
        return read(key)

    table.get = get  # type: ignore[method-assign]
    with second:
        assert 3 < world.now < 5


def test_who_takes_too_long_may_not_write_any_more_and_then_is_not_sure(world: World, table: Table) -> None:
    with lock_of(table, world) as lock:
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


def make_slow(table: Table, world: World, is_meant: Callable[[str], bool], seconds: float = 6.0) -> list[float]:
    """Let the next write that is meant take so long; return the moment of its end, once it is there."""
    write = table.set
    ends: list[float] = []

    def set(key: str, text: str) -> None:
        write(key, text)
        if is_meant(key) and not ends:
            world.now += seconds
            ends.append(world.now)

    table.set = set  # type: ignore[method-assign]
    return ends


@pytest.mark.parametrize("name", ["__next", "__lock"])
def test_nobody_gets_in_by_a_slow_write_before_its_copies_have_landed(name: str, world: World, table: Table) -> None:
    ends = make_slow(table, world, lambda key: key.endswith(name))
    with lock_of(table, world) as lock:
        assert ends[0] + SETTLE - 0.01 <= world.now < ends[0] + SETTLE + 2
        assert lock.may_write


def test_who_did_not_get_in_by_a_slow_write_is_over_late_where_another_may_be_inside(
    world: World, table: Table
) -> None:
    write = table.set

    def set(key: str, text: str) -> None:
        write(key, text)
        if key.endswith("__lock") and world.now == 0:
            world.now += 6
            write(f"{KEY}__next", "another")

    table.set = set  # type: ignore[method-assign]
    with lock_of(table, world):
        assert 6 + SETTLE + REACH - 0.01 <= world.now < 6 + SETTLE + REACH + 5


def test_who_wants_in_at_the_same_moment_waits_until_the_other_must_have_finished(world: World, table: Table) -> None:
    write = table.set

    def set(key: str, text: str) -> None:
        write(key, text)
        if key.endswith("__lock") and world.now == 0:
            write(f"{KEY}__next", "another")

    table.set = set  # type: ignore[method-assign]
    with lock_of(table, world) as lock:
        assert REACH - 0.01 <= world.now < REACH + 5
        assert lock.may_write


def test_who_is_overtaken_waits_for_the_other(world: World, table: Table) -> None:
    write = table.set

    def set(key: str, text: str) -> None:
        write(key, text)
        if key.endswith("__lock") and world.now == 0:
            write(f"{KEY}__next", "another")
            take(world)

    table.set = set  # type: ignore[method-assign]
    with lock_of(table, world):
        assert HOLD - 0.01 <= world.now < HOLD + 5


def test_a_ledger_that_was_refused_is_not_written_once_it_is_too_late(world: World, table: Table) -> None:
    write = table.set

    def set(key: str, text: str) -> None:
        if key == KEY:
            world.now += 12
            raise OSError("no API server")
        write(key, text)

    table.set = set  # type: ignore[method-assign]
    before = world.texts[KEY]
    with pytest.raises(LedgerError, match="cannot be written"):
        ledger_of(table, world).exchange(1)
    assert world.texts[KEY] == before
    # Copies may be under way, and the others know how long.
    assert json.loads(world.texts[f"{KEY}__done"])["over_at"] == pytest.approx(NOW + world.now + SETTLE, abs=1)


def test_permits_whose_entries_others_may_have_overwritten_are_not_given(world: World, table: Table) -> None:
    read, write = table.get, table.set
    written: list[str] = []

    def set(key: str, text: str) -> None:
        write(key, text)
        written.extend([text] if key == KEY else [])

    def get(key: str) -> str | None:
        if key == KEY and len(written) == 1 and world.now < TURN:
            world.now = TURN
        return read(key)

    table.set, table.get = set, get  # type: ignore[method-assign]
    [permit] = ledger_of(table, world).exchange(1)
    first, second = (LedgerState.load(text).spent for text in written)
    assert permit.id not in first
    assert second.keys() == {permit.id}


# --- Waiting --------------------------------------------------------------------------------------------------------


def test_what_a_dead_task_holds_is_not_waited_for_in_a_worker(world: World, table: Table) -> None:
    take(world, at=-TURN)
    with pytest.raises(LedgerBusyError, match=f"{KEY}__lock") as caught, lock_of(table, world, patience=5):
        pass
    assert 0 <= caught.value.until - (NOW - TURN + HOLD) <= SPREAD
    assert world.now < 1
    world.now = caught.value.until - NOW
    with lock_of(table, world, patience=5):
        pass


def test_a_short_end_of_a_dead_tasks_hold_is_waited_for(world: World, table: Table) -> None:
    take(world, at=-HOLD + 4)
    with lock_of(table, world, patience=5):
        assert 4 - 0.01 <= world.now < 5


def test_living_tasks_are_tried_again_at_moments_of_their_own(world: World, table: Table) -> None:
    untils = set()
    for _ in range(5):
        take(world, at=world.now)
        began = world.now
        with pytest.raises(LedgerBusyError) as caught, lock_of(table, world, patience=5):
            pass
        assert began + 5 <= world.now < began + 7
        assert 15 <= caught.value.until - NOW - world.now <= 45
        untils.add(caught.value.until - world.now)
    assert len(untils) == 5


def test_who_goes_away_says_when_its_turn_is_over(world: World, table: Table) -> None:
    write = table.set

    def set(key: str, text: str) -> None:
        write(key, text)
        if key.endswith("__lock") and world.now == 0:
            write(f"{KEY}__next", "another")

    table.set = set  # type: ignore[method-assign]
    with pytest.raises(LedgerBusyError) as caught, lock_of(table, world, patience=5):
        pass
    assert -1 <= caught.value.until - (NOW + REACH) <= SPREAD + 1
    done = json.loads(world.texts[f"{KEY}__done"])
    assert done == {"turn": holder(world), "over_at": pytest.approx(NOW + REACH)}
    with lock_of(table, world):
        assert world.now >= REACH - 0.01


def test_it_gives_up_where_others_never_let_go(world: World, table: Table) -> None:
    read = table.get

    def get(key: str) -> str | None:
        if key.endswith("__lock"):
            take(world, turn=str(world.now), at=world.now)
        return read(key)

    table.get = get  # type: ignore[method-assign]
    with pytest.raises(LedgerError, match=f"{KEY}__lock.* for 30 minutes. Give the pool one slot"):
        lock_of(table, world).__enter__()
    assert world.now > PATIENCE


@pytest.mark.parametrize("name", ["__next", "__lock"])
def test_a_task_that_is_told_to_stop_waits_no_longer_for_its_copies(name: str, world: World, table: Table) -> None:
    ends = make_slow(table, world, lambda key: key.endswith(name))
    with pytest.raises(AmplemarketError, match="told to stop"):
        lock_of(table, world, cancelled=lambda: world.now >= 10).__enter__()
    assert ends[0] < 10 <= world.now <= 11


def test_a_task_that_is_told_to_stop_waits_no_longer_for_others(world: World, table: Table) -> None:
    take(world)
    with pytest.raises(AmplemarketError, match="told to stop"):
        lock_of(table, world, cancelled=lambda: world.now >= 10).__enter__()
    assert 10 <= world.now <= 11


def test_a_ledger_takes_patience_and_stop_along(world: World, table: Table) -> None:
    take(world, at=-TURN)
    with pytest.raises(LedgerBusyError):
        ledger_of(table, world, patience=5.0).exchange(1)
    with pytest.raises(AmplemarketError, match="told to stop"):
        ledger_of(table, world, cancelled=lambda: True).exchange(1)  # type: ignore[arg-type]
    assert world.now < 1
