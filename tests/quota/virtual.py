"""Airflow's Variables in virtual time: what they may do to those who use them, and the ledger and its lock on top."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.lock import Lock
from airflow_provider_amplemarket.quota.rate import LedgerState, RateLimit
from airflow_provider_amplemarket.quota.variables import Pause, RetryingStore, Store
from dev.memory import Killed, name_of
from tests.quota.tools import KEY, NOW

T = TypeVar("T")

#: No permit comes free again while a world lasts.
LIMIT = RateLimit(6, 1e6)
#: Seconds after which a request has its answer, or gets none.
RESPONSE_TIMEOUT = 60.0

#: Airflow's client: seconds that it gives a request, and how often it sends one.
CLIENT_TIMEOUT, CLIENT_ATTEMPTS = 5.0, 5
#: No message arrives later than so many seconds after it was sent.
LATEST = 30.0


# --- Time -----------------------------------------------------------------------------------------------------------


class World:
    """
    A virtual time and the Variables in it.

    Several tasks are threads of :meth:`run`, one at a time of which runs, the one that is due next. Outside of
    that a test is the only task.

    :param chance: decides how long each access of a Variable takes, and who dies.
    :param outage: from when to when no access succeeds.
    """

    def __init__(self, chance: random.Random | None = None, outage: tuple[float, float] = (0.0, 0.0)) -> None:
        self.chance = chance or random.Random(0)
        self.outage = outage
        self.now = 0.0
        self.texts = {KEY: LedgerState().dump(), f"{KEY}__lock": "free"}
        self._order = itertools.count()
        self._due: list[tuple[float, int, threading.Semaphore | Callable[[], None]]] = []
        self._idle = threading.Semaphore(0)
        self._is_running = False
        self._faults: list[BaseException] = []

    def sleep(self, seconds: float) -> None:
        """Let the others run until so much time has passed."""
        assert seconds >= 0
        if not self._is_running:
            end = self.now + seconds
            while self._due and self._due[0][0] <= end:
                self._next()
            self.now = end
            return
        mine = threading.Semaphore(0)
        heapq.heappush(self._due, (self.now + seconds, next(self._order), mine))
        self._idle.release()
        mine.acquire()

    def nap(self, seconds: float) -> None:
        """Sleep, as somebody does who would notice within a second that he is told to stop."""
        assert 0 < seconds <= 1
        self.sleep(seconds)

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen when so much time has passed, whatever becomes of who asked for it."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), event))

    def run(self, tasks: list[Callable[[], None]]) -> None:
        """Run all tasks to their end, and what they have set off."""
        self._is_running = True
        threads = [threading.Thread(target=self._live, args=(task,)) for task in tasks]
        for thread in threads:
            thread.start()
            self._idle.acquire()
        while self._due:
            self._next()
        for thread in threads:
            thread.join()
        self._is_running = False
        if self._faults:
            raise self._faults[0]

    def _next(self) -> None:
        """Let happen what is due next."""
        self.now, _, due = heapq.heappop(self._due)
        if isinstance(due, threading.Semaphore):
            due.release()
            self._idle.acquire()
        else:
            due()

    def _live(self, task: Callable[[], None]) -> None:
        try:
            self.sleep(self.chance.uniform(0, 1))
            with suppress(Killed):
                task()
        except BaseException as fault:
            self._faults.append(fault)
        finally:
            self._idle.release()


# --- Variables ------------------------------------------------------------------------------------------------------


class Variables:
    """
    The Variables, as one task reaches them through Airflow's client, which sends again what is not answered in time.

    :param slowest: seconds that an access may take on both ways together, now and then.
    :param lives: after so many accesses the task is killed.
    :param stalls: how often the task stands still for a while after it has read something.
    :param late: how often a write, on its way, is held for 5 to 30 seconds.
    :param late_keys: the Variables that this happens to, by the ends of their names.
    """

    def __init__(
        self,
        world: World,
        slowest: float,
        lives: float = math.inf,
        stalls: float = 0.0,
        late: float = 0.0,
        late_keys: tuple[str, ...] = ("",),
    ) -> None:
        self.world = world
        self.slowest = slowest
        self.lives = lives
        self.stalls = stalls
        self.late = late
        self.late_keys = late_keys

    def get(self, key: str) -> str | None:
        text = self._request(f"get {name_of(key)}", lambda: self.world.texts.get(key))
        if self.world.chance.random() < self.stalls:
            self.world.sleep(self.world.chance.uniform(0, 120))
        return text

    def set(self, key: str, text: str) -> None:
        self._request(f"set {name_of(key)}", lambda: self.world.texts.__setitem__(key, text))

    def ways(self, access: str, attempt: int) -> tuple[float, float]:
        """Return the seconds that a message takes there, and its answer back."""
        chance = self.world.chance
        there, back = self._way(), self._way()
        is_write = access.startswith("set ")
        if is_write and access.endswith(self.late_keys) and chance.random() < self.late:
            there = chance.uniform(CLIENT_TIMEOUT, LATEST)
        return there, back

    def _way(self) -> float:
        is_slow = self.world.chance.random() < 0.1
        return self.world.chance.uniform(0, min(self.slowest / 2, LATEST) if is_slow else 0.02)

    def _request(self, access: str, work: Callable[[], T]) -> T:
        """Send a request until it is answered."""
        for attempt in range(CLIENT_ATTEMPTS):
            if attempt:
                self.world.sleep(self.world.chance.uniform(1, max(1, 2 ** (attempt - 1))))
            with suppress(OSError):
                return self._send(work, *self.ways(access, attempt))
        raise OSError("no answer from the API server")

    def _send(self, work: Callable[[], T], there: float, back: float) -> T:
        """Send one message, which arrives even if its sender is dead or does not wait for it any more."""
        world = self.world
        self._age()
        if world.outage[0] <= world.now + there < world.outage[1]:
            world.sleep(min(there, CLIENT_TIMEOUT))
            raise OSError("no API server")
        answers: list[T] = []
        world.later(there, lambda: answers.append(work()))
        world.sleep(min(there, CLIENT_TIMEOUT))
        self._age()
        world.sleep(max(0.0, min(there + back, CLIENT_TIMEOUT) - min(there, CLIENT_TIMEOUT)))
        if there + back >= CLIENT_TIMEOUT:
            raise OSError("timed out")
        return answers[0]

    def _age(self) -> None:
        self.lives -= 0.5
        if self.lives < 0:
            raise Killed


#: Seconds there and back of a message: of an access (``set lock``), which one of these it is, and which attempt.
Script = Mapping[tuple[str, int, int], tuple[float, float]]


class Scripted(Variables):
    """
    The Variables, with a time for each message.

    :param others: seconds there and back of the messages that the script does not tell of.
    """

    def __init__(self, world: World, script: Script, others: tuple[float, float] = (0.01, 0.01)) -> None:
        super().__init__(world, 0.0)
        self.script = script
        self.others = others
        self.begun: Counter[str] = Counter()

    def ways(self, access: str, attempt: int) -> tuple[float, float]:
        if attempt == 0:
            self.begun[access] += 1
        return self.script.get((access, self.begun[access] - 1, attempt), self.others)


# --- What a task has ------------------------------------------------------------------------------------------------


def open_ledger(world: World, store: Store, *, limit: RateLimit = LIMIT, ahead: float = 0.0, **options: Any) -> Ledger:
    """Return the ledger as a task has it, whose clock may be ahead."""
    return Ledger(
        conn_id="vendor",
        limit=limit,
        response_timeout=RESPONSE_TIMEOUT,
        store=store,
        clock=lambda: NOW + world.now + ahead,
        sleep=world.nap,
        monotonic=lambda: world.now,
        **options,
    )


def open_lock(
    world: World, store: Store, *, patience: float = math.inf, cancelled: Callable[[], bool] = lambda: False
) -> Lock:
    """Return the lock as a task has it."""
    pause = Pause(world.nap, cancelled)
    return Lock(
        store=RetryingStore(store=store, proof=f"{KEY}__next", pause=pause, monotonic=lambda: world.now),
        key=KEY,
        pause=pause,
        clock=lambda: NOW + world.now,
        monotonic=lambda: world.now,
        patience=patience,
    )


def take(world: World, turn: str = "another", at: float = 0.0) -> None:
    """Let another task take the lock."""
    world.texts[f"{KEY}__lock"] = json.dumps({"turn": turn, "taken_at": NOW + at})


def holder(world: World) -> str:
    """Return whose turn the lock says it is."""
    return str(json.loads(world.texts[f"{KEY}__lock"])["turn"])
