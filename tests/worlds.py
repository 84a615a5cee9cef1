"""
Worlds of tasks that share a ledger, in virtual time, with everything that Airflow's Variables may do to them.

``python -m tests.worlds 10000`` runs so many of each kind, and counts those in which the limit did not hold.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import logging
import math
import multiprocessing
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from airflow_provider_amplemarket.exceptions import AmplemarketError
from airflow_provider_amplemarket.quota import Ledger, LedgerState, Permit, RateLimit

T = TypeVar("T")

NOW = 1_800_000_000.0
KEY = "amplemarket_quota__vendor"
#: No permit comes free again while a world lasts.
LIMIT = RateLimit(6, 1e6)

#: Airflow's client: seconds that it gives a request, and how often it sends one.
CLIENT_TIMEOUT, CLIENT_ATTEMPTS = 5.0, 5
#: No message arrives later than so many seconds after it was sent.
LATEST = 30.0


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
        self.texts = {KEY: LedgerState().dump(), f"{KEY}__lock": "free"}
        self._order = itertools.count()
        self._due: list[tuple[float, int, threading.Semaphore | Callable[[], None]]] = []
        self._idle = threading.Semaphore(0)

    def sleep(self, seconds: float) -> None:
        """Let the others run until so much time has passed."""
        mine = threading.Semaphore(0)
        heapq.heappush(self._due, (self.now + seconds, next(self._order), mine))
        self._idle.release()
        mine.acquire()

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen when so much time has passed, whatever becomes of who asked for it."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), event))

    def run(self, tasks: list[Callable[[], None]]) -> None:
        """Run all tasks to their end, and what they have set off."""
        threads = [threading.Thread(target=self._live, args=(task,)) for task in tasks]
        for thread in threads:
            thread.start()
            self._idle.acquire()
        while self._due:
            self.now, _, due = heapq.heappop(self._due)
            if isinstance(due, threading.Semaphore):
                due.release()
                self._idle.acquire()
            else:
                due()
        for thread in threads:
            thread.join()

    def _live(self, task: Callable[[], None]) -> None:
        try:
            self.sleep(self.chance.uniform(0, 1))
            with suppress(Killed):
                task()
        finally:
            self._idle.release()


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
        text = self._request(lambda: self.world.texts.get(key), 0.0)
        if self.world.chance.random() < self.stalls:
            self.world.sleep(self.world.chance.uniform(0, 120))
        return text

    def set(self, key: str, text: str) -> None:
        late = self.late if key.endswith(self.late_keys) else 0.0
        self._request(lambda: self.world.texts.__setitem__(key, text), late)

    def _request(self, work: Callable[[], T], late: float) -> T:
        """Send a request until it is answered."""
        for attempt in range(CLIENT_ATTEMPTS):
            if attempt:
                self.world.sleep(self.world.chance.uniform(1, max(1, 2 ** (attempt - 1))))
            with suppress(OSError):
                return self._send(work, late)
        raise OSError("no answer from the API server")

    def _send(self, work: Callable[[], T], late: float) -> T:
        """Send one message, which arrives even if its sender is dead or does not wait for it any more."""
        chance, world = self.world.chance, self.world
        self._age()
        there, back = self._way(), self._way()
        if chance.random() < late:
            there = chance.uniform(CLIENT_TIMEOUT, LATEST)
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

    def _way(self) -> float:
        """Return the seconds that a message takes in one direction."""
        is_slow = self.world.chance.random() < 0.1
        return self.world.chance.uniform(0, min(self.slowest / 2, LATEST) if is_slow else 0.02)


def open_ledger(world: World, store: Variables) -> Ledger:
    """Return the ledger as a task has it."""
    return Ledger(
        "vendor",
        LIMIT,
        answer_timeout=60,
        store=store,
        clock=lambda: NOW + world.now,
        sleep=world.sleep,
        monotonic=lambda: world.now,
    )


@dataclass
class Fate:
    """
    What became of a world.

    :param given: the ids of the permits that were given.
    :param known: those that the ledger has in the end.
    :param wanted: permits that were wanted in exchanges that came to an end.
    :param exchanges: exchanges that came to an end.
    :param errors: why some of them failed.
    :param seconds: how long it lasted.
    """

    given: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    wanted: int = 0
    exchanges: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether more permits were given than there are, or one twice."""
        return len(self.given) > LIMIT.requests or len(set(self.given)) < len(self.given)

    @property
    def is_forgetful(self) -> bool:
        """Whether the ledger has lost a permit that was given."""
        return not set(self.given) <= self.known

    @property
    def is_stuck(self) -> bool:
        """Whether nobody got anything, though somebody asked and lived."""
        return self.wanted > 0 and not self.known and not self.given


def run_world(
    seed: int,
    *,
    is_sequential: bool = False,
    tasks: int = 3,
    slowest: float = 0.1,
    stalls: float = 0.0,
    outage: float = 0.0,
    late: float = 0.0,
    late_keys: tuple[str, ...] = ("",),
    spread: float = 0.2,
) -> Fate:
    """
    Run one world: tasks that exchange permits, some of which are killed.

    :param is_sequential: whether the tasks come one after the other, or at the same time.
    :param outage: seconds for which no access succeeds, soon after the begin.
    :param spread: seconds that a task may let pass between two exchanges.
    """
    chance = random.Random(seed)
    begin = chance.uniform(0, 1.5)
    world = World(chance, (begin, begin + outage))
    fate = Fate()

    def task(lives: float) -> None:
        ledger = open_ledger(world, Variables(world, slowest, lives, stalls, late, late_keys))
        unanswered: list[Permit] = []
        for _ in range(4):
            # An outage, or accesses too slow to be sure again and again.
            wanted = chance.randint(0, 2)
            try:
                permits = ledger.exchange(wanted, answered=dict.fromkeys(unanswered, ledger.clock()))
                unanswered = permits
                fate.given.extend(permit.id for permit in permits)
            except AmplemarketError as error:
                fate.errors.append(str(error))
            fate.exchanges += 1
            fate.wanted += wanted
            world.sleep(chance.uniform(0, spread))

    def one_after_the_other(lives: list[float]) -> None:
        for each in lives:
            with suppress(Killed):
                task(each)
            world.sleep(chance.uniform(0, 5))

    lives = [chance.choice([10, 40, math.inf]) for _ in range(tasks)]
    world.run([partial(one_after_the_other, lives)] if is_sequential else [partial(task, each) for each in lives])
    fate.known = set(LedgerState.load(world.texts[KEY]).spent)
    fate.seconds = world.now
    return fate


def run_any(seed: int, *, is_sequential: bool, is_hard: bool) -> Fate:
    """Run a world whose number decides all of it; in a hard one much goes wrong at once."""
    chance = random.Random(f"{seed} {is_sequential} {is_hard}")
    return run_world(
        seed,
        is_sequential=is_sequential,
        tasks=chance.randint(2, 5),
        slowest=chance.choice([0.1, 1.0, 15.0, 60.0] if is_hard else [0.1, 1.0]),
        stalls=chance.choice([0.0, 0.02]) if is_hard else 0.0,
        outage=chance.choice([0.0, 0.0, 5.0, 40.0]) if is_hard else 0.0,
        late=chance.choice([0.05, 0.2, 0.5] if is_hard else [0.05, 0.15]),
        late_keys=chance.choice([("",), ("vendor",), ("__lock",), ("__next",), ("__done",), ("__lock", "__next")]),
        spread=chance.choice([0.2, 5.0, 40.0]),
    )


def count(worlds: int, *, is_sequential: bool, is_hard: bool) -> str:
    """Run so many worlds, and return what became of them."""
    with multiprocessing.Pool(initializer=logging.disable) as pool:
        fates = pool.map(partial(run_any, is_sequential=is_sequential, is_hard=is_hard), range(worlds), chunksize=20)
    errors = Counter(re.sub(r" \(.*?\)|: .*", "", error) for fate in fates for error in fate.errors)
    figures = {
        "over the limit": sum(fate.is_over for fate in fates),
        "with a permit lost": sum(fate.is_forgetful for fate in fates),
        "in which nobody got anything": sum(fate.is_stuck for fate in fates),
        "with a failed exchange": sum(bool(fate.errors) for fate in fates),
    }
    kind = f"{'sequential' if is_sequential else 'concurrent'}, {'hard' if is_hard else 'mild'}"
    lines = [f"{worlds} worlds, {kind}, {sum(fate.seconds for fate in fates) / worlds:.0f} s each"]
    lines += [f"  {number} {what}" for what, number in figures.items()]
    lines += [f"  {sum(errors.values())} of {sum(fate.exchanges for fate in fates)} exchanges failed: {dict(errors)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worlds", type=int)
    for is_hard in (False, True):
        for is_sequential in (True, False):
            print(count(parser.parse_args().worlds, is_sequential=is_sequential, is_hard=is_hard), flush=True)
