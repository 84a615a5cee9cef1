"""The lock: where the pool lets several tasks in, the ledger still holds what each of them has spent."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_amplemarket.exceptions import LedgerError
from airflow_provider_amplemarket.lock import FREE, TURN, Lock
from airflow_provider_amplemarket.quota import Ledger, LedgerState, RateLimit
from airflow_provider_amplemarket.variables import PatientStore

NOW = 1_800_000_000.0
KEY = "amplemarket_quota__vendor"
LIMIT = RateLimit(6, 3600)


class Killed(BaseException):
    """The worker was killed."""


class World:
    """
    Several tasks in one virtual time: each is a thread, and one at a time runs, the one whose moment is next.

    :param chance: decides how long each access of a Variable takes, and who dies.
    :param outage: from when to when no access succeeds.
    """

    def __init__(self, chance: random.Random, outage: tuple[float, float] = (0.0, 0.0)) -> None:
        self.chance = chance
        self.outage = outage
        self.now = 0.0
        self.texts = {KEY: LedgerState().dump(), f"{KEY}__lock": FREE}
        self._order = itertools.count()
        self._due: list[tuple[float, int, threading.Semaphore]] = []
        self._idle = threading.Semaphore(0)

    def sleep(self, seconds: float) -> None:
        """Let the others run until so much time has passed."""
        mine = threading.Semaphore(0)
        heapq.heappush(self._due, (self.now + seconds, next(self._order), mine))
        self._idle.release()
        mine.acquire()

    def run(self, tasks: list[Callable[[], None]]) -> None:
        """Run all tasks to their end."""
        threads = [threading.Thread(target=self._live, args=(task,)) for task in tasks]
        for thread in threads:
            thread.start()
            self._idle.acquire()
        while self._due:
            self.now, _, semaphore = heapq.heappop(self._due)
            semaphore.release()
            self._idle.acquire()
        for thread in threads:
            thread.join()

    def _live(self, task: Callable[[], None]) -> None:
        try:
            self.sleep(self.chance.uniform(0, 1))
            task()
        except Killed:
            pass
        finally:
            self._idle.release()


class Variables:
    """
    The Variables, as one task reaches them.

    :param slowest: seconds that an access may take.
    :param lives: after so many accesses the task is killed.
    :param stalls: how often the task stands still for a while after it has read something.
    """

    def __init__(self, world: World, slowest: float, lives: float = math.inf, stalls: float = 0.0) -> None:
        self.world = world
        self.slowest = slowest
        self.lives = lives
        self.stalls = stalls

    def get(self, key: str) -> str | None:
        self._travel()
        text = self.world.texts.get(key)
        self._travel()
        if self.world.chance.random() < self.stalls:
            self.world.sleep(self.world.chance.uniform(0, 2 * TURN))
        return text

    def set(self, key: str, text: str) -> None:
        self._travel()
        self.world.texts[key] = text
        self._travel()

    def _travel(self) -> None:
        """Take half of the way to or from the database."""
        self.lives -= 0.5
        if self.lives < 0:
            raise Killed
        chance = self.world.chance
        is_slow = chance.random() < 0.1
        self.world.sleep(chance.uniform(0, self.slowest / 2 if is_slow else 0.02))
        if self.world.outage[0] <= self.world.now < self.world.outage[1]:
            raise OSError("no API server")


def open_ledger(world: World, store: Variables) -> Ledger:
    return Ledger(
        "vendor",
        LIMIT,
        answer_timeout=60,
        store=store,
        clock=lambda: NOW + world.now,
        sleep=world.sleep,
        monotonic=lambda: world.now,
    )


@given(
    seed=st.integers(0, 2**32),
    tasks=st.integers(2, 5),
    slowest=st.sampled_from([0.1, 1.0, TURN / 2]),
    stalls=st.sampled_from([0.0, 0.02]),
    outage=st.sampled_from([0.0, 5.0, 12.0, 40.0]),
)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_tasks_at_the_same_time_never_get_more_permits_than_there_are(
    seed: int, tasks: int, slowest: float, stalls: float, outage: float
) -> None:
    chance = random.Random(seed)
    begin = chance.uniform(0, 1.5)
    world = World(chance, (begin, begin + outage))
    given_out: list[str] = []

    def task(lives: float) -> None:
        ledger = open_ledger(world, Variables(world, slowest, lives, stalls))
        for _ in range(4):
            # An outage, or accesses too slow to be sure again and again.
            with suppress(LedgerError):
                given_out.extend(permit.id for permit in ledger.exchange(chance.randint(0, 2)))
            world.sleep(chance.uniform(0, 0.2))

    world.run([partial(task, chance.choice([10, 40, math.inf])) for _ in range(tasks)])
    assert len(given_out) == len(set(given_out)) <= LIMIT.requests
    assert set(given_out) <= set(LedgerState.load(world.texts[KEY]).spent)


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


def test_variables_that_are_much_too_slow_are_named_as_the_cause() -> None:
    world = World(random.Random(0))
    problems: list[str] = []

    def task() -> None:
        store = Variables(world, 0.0)
        store._travel = partial(world.sleep, TURN / 8)  # type: ignore[method-assign]
        with pytest.raises(LedgerError) as caught:
            open_ledger(world, store).exchange(1)
        problems.append(str(caught.value))

    world.run([task])
    assert "answer too slowly" in problems[0]


def alone(world: World) -> tuple[Variables, Lock]:
    """Give a task that nothing delays, and its lock."""
    store = Variables(world, 0.0)
    store._travel = lambda: None  # type: ignore[method-assign]

    def sleep(seconds: float) -> None:
        world.now += seconds

    return store, Lock(PatientStore(store, f"{KEY}__next", sleep), KEY, sleep=sleep, monotonic=lambda: world.now)


def ledger_of(store: Variables, world: World) -> Ledger:
    """Give the ledger of a task that nothing delays."""

    def sleep(seconds: float) -> None:
        world.now += seconds

    return Ledger(
        "vendor", LIMIT, answer_timeout=60, store=store, clock=lambda: NOW, sleep=sleep, monotonic=lambda: world.now
    )


def refuse_once(store: Variables, world: World, is_meant: Callable[[str, str], bool]) -> None:
    """Let the first such write fail, after a whole turn."""
    write = store.set

    def set(key: str, text: str) -> None:
        if is_meant(key, text) and world.now < TURN:
            world.now = TURN
            raise OSError("no API server")
        write(key, text)

    store.set = set  # type: ignore[method-assign]


@pytest.fixture
def world() -> World:
    """Give an empty world."""
    return World(random.Random(0))


def test_without_others_it_takes_no_time(world: World) -> None:
    store, lock = alone(world)
    with lock:
        assert lock.is_sure
        assert store.get(lock.key) != FREE
    assert store.get(lock.key) == FREE
    assert world.now == 0


def test_what_a_dead_task_holds_is_taken_after_three_turns(world: World) -> None:
    store, lock = alone(world)
    store.set(lock.key, "dead")
    with lock:
        assert 3 * TURN <= world.now < 3 * TURN + 5
        assert lock.is_sure
    assert store.get(lock.key) == FREE


def test_who_takes_too_long_is_not_sure_any_more_and_leaves_the_lock_alone(world: World) -> None:
    store, lock = alone(world)
    with lock:
        world.now += TURN / 2
        assert not lock.is_sure
        store.set(lock.key, "another")
    assert store.get(lock.key) == "another"


def test_what_this_task_could_not_let_go_of_is_its_own_still(world: World) -> None:
    store, lock = alone(world)
    with lock:
        world.now += TURN / 2
    assert store.get(lock.key) != FREE
    with lock:
        assert world.now == TURN / 2
    assert store.get(lock.key) == FREE


def test_who_waited_for_another_has_half_a_turn_as_well(world: World) -> None:
    store, lock = alone(world)
    write = store.set

    def set(key: str, text: str) -> None:
        write(key, text)
        if key == lock.key and text != FREE:
            write(lock.next_key, "another")

    store.set = set  # type: ignore[method-assign]
    with lock:
        assert world.now == TURN
        world.now += TURN / 2 - 1
        assert lock.is_sure
        world.now += 2
        assert not lock.is_sure


def test_it_lets_go_no_more_once_it_is_not_sure(world: World) -> None:
    store, lock = alone(world)
    refuse_once(store, world, lambda key, text: text == FREE)
    with lock:
        pass
    assert store.get(lock.key) != FREE


def test_a_ledger_that_was_refused_is_not_written_once_others_may_have_been_there(world: World) -> None:
    store, _ = alone(world)
    refuse_once(store, world, lambda key, text: key == KEY)
    before = world.texts[KEY]
    with pytest.raises(LedgerError, match="cannot be written"):
        ledger_of(store, world).exchange(1)
    assert world.texts[KEY] == before


def test_permits_whose_entries_others_may_have_overwritten_are_not_given(world: World) -> None:
    store, _ = alone(world)
    read, write = store.get, store.set
    written: list[str] = []

    def set(key: str, text: str) -> None:
        write(key, text)
        written.extend([text] if key == KEY else [])

    def get(key: str) -> str | None:
        if key == KEY and written and world.now < TURN / 2:
            world.now = TURN / 2
        return read(key)

    store.set, store.get = set, get  # type: ignore[method-assign]
    [permit] = ledger_of(store, world).exchange(1)
    first, second = (LedgerState.load(text).spent for text in written)
    assert permit.id not in first
    assert second.keys() == {permit.id}


def test_it_gives_up_where_others_never_let_go(world: World) -> None:
    store, lock = alone(world)
    store.get = lambda key: str(world.now)  # type: ignore[method-assign]
    with pytest.raises(LedgerError, match=f"{lock.key}.* for 30 minutes. Give the pool one slot"), lock:
        pass
