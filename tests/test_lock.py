"""The lock: where the pool lets several tasks in, the ledger still holds what each of them has spent."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_amplemarket.exceptions import LedgerError
from airflow_provider_amplemarket.lock import FREE, PATIENCE, TURN, Lock
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
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
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
    """

    def __init__(self, world: World, slowest: float, lives: float) -> None:
        self.world = world
        self.slowest = slowest
        self.lives = lives

    def get(self, key: str) -> str | None:
        self._travel()
        text = self.world.texts.get(key)
        self._travel()
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


@given(seed=st.integers(0, 2**32), tasks=st.integers(2, 5), slowest=st.sampled_from([0.1, 1.0, TURN / 2]))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_tasks_at_the_same_time_never_get_more_permits_than_there_are(seed: int, tasks: int, slowest: float) -> None:
    world = World(random.Random(seed))
    given_out: list[str] = []

    def task(lives: float) -> None:
        ledger = Ledger(
            "vendor",
            LIMIT,
            answer_timeout=60,
            store=Variables(world, slowest, lives),
            clock=lambda: NOW + world.now,
            sleep=world.sleep,
            monotonic=lambda: world.now,
        )
        for _ in range(4):
            try:
                given_out.extend(permit.id for permit in ledger.exchange(world.chance.randint(0, 2)))
            except LedgerError:  # too slow to be sure, again and again
                return
            world.sleep(world.chance.uniform(0, 0.2))

    world.run([partial(task, world.chance.choice([10, 40, 1e9])) for _ in range(tasks)])
    assert len(given_out) == len(set(given_out)) <= LIMIT.requests
    assert set(given_out) <= set(LedgerState.load(world.texts[KEY]).spent)


def alone(world: World) -> tuple[Variables, Lock]:
    """Give a task that nothing delays, and its lock."""
    store = Variables(world, 0.0, 1e9)
    store._travel = lambda: None  # type: ignore[method-assign]

    def sleep(seconds: float) -> None:
        world.now += seconds

    return store, Lock(PatientStore(store, f"{KEY}__next", sleep), KEY, sleep=sleep, monotonic=lambda: world.now)


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
        assert 3 * TURN <= world.now < 3 * TURN + 1
        assert lock.is_sure
    assert store.get(lock.key) == FREE


def test_who_takes_too_long_is_not_sure_any_more_and_leaves_the_lock_alone(world: World) -> None:
    store, lock = alone(world)
    with lock:
        world.now += TURN / 2
        assert not lock.is_sure
        store.set(lock.key, "another")
    assert store.get(lock.key) == "another"


def test_it_gives_up_where_others_never_let_go(world: World) -> None:
    store, lock = alone(world)
    store.get = lambda key: str(world.now)  # type: ignore[method-assign]
    with pytest.raises(LedgerError, match=f"{lock.key}.* for {PATIENCE:.0f} s"), lock:
        pass
