"""
Worlds of tasks that share a ledger, in virtual time, with everything that Airflow's Variables may do to them.

``python -m tests.quota.worlds 10000`` runs so many of each kind, and counts those in which something did not hold;
``python -m tests.quota.worlds 10000 freed lost`` runs the kinds whose names have one of these words.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from airflow_provider_amplemarket.exceptions import AmplemarketError
from airflow_provider_amplemarket.quota.rate import PERMIT_VALIDITY, LedgerState, Permit, RateLimit
from dev.memory import Killed
from tests.quota.tools import KEY, NOW, acquire
from tests.quota.virtual import LIMIT, RESPONSE_TIMEOUT, Variables, World, open_ledger

#: Nobody waits longer than so many seconds for the next permit.
LONGEST_WAIT = 300.0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """
    What a world is like.

    :param is_sequential: whether the tasks come one after the other, or at the same time.
    :param tasks: how many there are.
    :param lives: after so many accesses of Variables a task may be killed.
    :param visits: how often each comes to the ledger, if nobody kills it.
    :param slowest: see :class:`Variables`; likewise ``stalls``, ``late`` and ``late_keys``.
    :param outage: seconds for which no access succeeds, soon after the begin.
    :param spread: seconds that a task may let pass between two visits.
    :param skew: seconds that a task's clock may be ahead.
    :param unused: how often a permit is given back.
    :param refused: how often a request is refused with 429.
    :param unanswered: how often a request has no answer.
    :param knows_requests: whether a task is told, when it begins, of the requests that are on record.
    :param lost_at: when the ledger is lost.
    :param kept_at: it is not deleted then, but set to what it was at this time.
    """

    limit: RateLimit = LIMIT
    is_sequential: bool = False
    tasks: int = 3
    lives: tuple[float, ...] = (10, 40, math.inf)
    visits: int = 4
    slowest: float = 0.1
    stalls: float = 0.0
    outage: float = 0.0
    late: float = 0.0
    late_keys: tuple[str, ...] = ("",)
    spread: float = 0.2
    skew: float = 0.0
    unused: float = 0.0
    refused: float = 0.0
    unanswered: float = 0.0
    knows_requests: bool = False
    lost_at: float = math.inf
    kept_at: float | None = None


@dataclass
class Request:
    """
    A request that was sent. The API has counted it at some time from its permit's grant to its end.

    :param ended_at: when its answer came, or none was expected any more.
    :param is_on_record: whether its task has lived to write its sidecar.
    """

    permit: Permit
    granted_at: float
    ended_at: float
    is_answered: bool
    is_refused: bool
    retry_after: float | None
    is_on_record: bool = False


@dataclass(frozen=True)
class Block:
    """Since when a refusal is in the ledger, and until when nothing may be sent."""

    reported_at: float
    until: float


@dataclass
class Fate:
    """
    What became of a world.

    :param granted: permits that were given.
    :param requests: what they were spent on.
    :param given_back: the ids of those that were not spent, as the ledger was told.
    :param on_record: the requests that sidecars tell of: their timestamps, by the ids of their permits.
    :param blocks: the refusals that the ledger was told of.
    :param is_hasty: whether a permit was given in a block.
    :param known: the ids that the ledger has in the end.
    :param wanted: permits that were wanted in visits that came to an end.
    :param visits: visits that came to an end.
    :param errors: why some of them failed.
    :param seconds: how long it lasted.
    """

    conditions: Conditions = field(default_factory=Conditions)
    granted: int = 0
    requests: list[Request] = field(default_factory=list)
    given_back: set[str] = field(default_factory=set)
    on_record: dict[str, float] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    is_hasty: bool = False
    known: set[str] = field(default_factory=set)
    wanted: int = 0
    visits: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def most(self) -> int:
        """
        The most requests that the API can have counted in a period.

        Of a lost ledger, nobody knows the requests that are on no record.
        """
        counted = [each for each in self.requests if each.is_on_record or each.granted_at > self.conditions.lost_at]
        # A period that has the most can be moved until it begins where a request ends.
        begins = [each.ended_at for each in counted]
        return max((_meeting(counted, begin, begin + self.conditions.limit.period) for begin in begins), default=0)

    @property
    def is_over(self) -> bool:
        """Whether the API can have counted more requests in a period than it allows, or a permit was spent twice."""
        ids = [each.permit.id for each in self.requests]
        return self.most > self.conditions.limit.requests or len(set(ids)) < len(ids)

    @property
    def is_forgetful(self) -> bool:
        """Whether the ledger has lost a request of the last period by itself."""
        since = self.seconds - self.conditions.limit.period
        recent = {each.permit.id for each in self.requests if each.ended_at > since}
        return not self.is_lost and not recent <= self.known

    @property
    def is_stingy(self) -> bool:
        """Whether the ledger has a permit still that was given back."""
        return not self.is_lost and bool(self.given_back & self.known)

    @property
    def is_stuck(self) -> bool:
        """Whether nobody got anything, though somebody asked and lived."""
        return self.wanted > 0 and not self.known and not self.granted

    @property
    def is_lost(self) -> bool:
        """Whether the ledger was lost."""
        return self.conditions.lost_at <= self.seconds

    @property
    def is_full(self) -> bool:
        """Whether all permits of a period were spent: one more would have been too many."""
        return self.most >= self.conditions.limit.requests

    @property
    def is_spent_again(self) -> bool:
        """Whether permits have come free and were spent again."""
        return len(self.requests) > self.conditions.limit.requests

    @property
    def is_spent_after_loss(self) -> bool:
        """Whether permits were spent after the ledger was lost."""
        return any(each.granted_at > self.conditions.lost_at for each in self.requests)

    @property
    def wrongs(self) -> list[str]:
        """What did not hold."""
        wrongs = {
            "over the limit": self.is_over,
            "a request forgotten": self.is_forgetful,
            "a permit held that was given back": self.is_stingy,
            "a permit given in a block": self.is_hasty,
        }
        return [what for what, is_so in wrongs.items() if is_so]


def _meeting(requests: Iterable[Request], begin: float, end: float) -> int:
    """Return how many requests can have been counted between two times."""
    return sum(each.granted_at <= end and each.ended_at >= begin for each in requests)


class Task:
    """
    A task: takes permits, sends requests, and reports what became of them.

    :param lives: after so many accesses of Variables it is killed.
    """

    def __init__(self, world: World, fate: Fate, lives: float) -> None:
        self.world = world
        self.chance = world.chance
        self.fate = fate
        self.conditions = it = fate.conditions
        self.ahead = self.chance.uniform(0, it.skew)
        self.ledger = open_ledger(
            world,
            Variables(world, it.slowest, lives, it.stalls, it.late, it.late_keys),
            limit=it.limit,
            ahead=self.ahead,
            known_requests=dict(fate.on_record) if it.knows_requests else {},
        )
        self.under_way: list[Request] = []
        self.unused: list[Permit] = []

    def live(self) -> None:
        """Come to the ledger again and again, and report at last what is still under way."""
        for _ in range(self.conditions.visits):
            wanted = self.chance.choice([0, 1, 2, 6])
            permits = self.visit(wanted)
            for permit in permits:
                self.spend(permit)
            self.rest(is_short=len(permits) < wanted)
        self.world.sleep(max([0.0, *(each.ended_at - self.world.now for each in self.under_way)]))
        self.visit(0)

    def visit(self, wanted: int) -> list[Permit]:
        """Report what has ended, and take permits. An outage, or slow accesses again and again, make that fail."""
        began, fate = self.world.now, self.fate
        ended = [each for each in self.under_way if each.ended_at <= began]
        for each in ended:
            each.is_on_record = True
            fate.on_record[each.permit.id] = self.on_clock(each.ended_at)
        refusals = [each.retry_after for each in ended if each.is_refused]
        permits = []
        try:
            permits = acquire(
                self.ledger,
                wanted,
                answered={each.permit: self.on_clock(each.ended_at) for each in ended if each.is_answered},
                unused=self.unused,
                refusals=refusals,
            )
        except AmplemarketError as error:
            fate.errors.append(str(error))
        else:
            if permits and self.world.now < self.conditions.lost_at:
                fate.is_hasty |= any(each.reported_at <= began and self.world.now < each.until for each in fate.blocks)
            if refusals:
                fate.blocks.append(self.block(began, refusals))
            fate.given_back |= {permit.id for permit in self.unused}
            self.under_way, self.unused = [each for each in self.under_way if each not in ended], []
        fate.visits += 1
        fate.wanted += wanted
        fate.granted += len(permits)
        return permits

    def block(self, began: float, refusals: list[float | None]) -> Block:
        """Return what the ledger promises after these refusals, reported just now."""
        limit = self.conditions.limit
        asked = [seconds for seconds in refusals if seconds is not None]
        seconds = min(max(asked, default=limit.period / limit.requests), limit.hold)
        return Block(self.world.now, began + seconds - self.conditions.skew)

    def spend(self, permit: Permit) -> None:
        """Send a request, after a while, or do not."""
        chance, it = self.chance, self.conditions
        self.world.sleep(chance.uniform(0, chance.choice([0.1, 1.0, 20.0])))
        if chance.random() < it.unused or self.ledger.clock() > permit.use_before:
            self.unused.append(permit)
            return
        is_answered = chance.random() >= it.unanswered
        takes = chance.uniform(0, chance.choice([1.0, RESPONSE_TIMEOUT])) if is_answered else RESPONSE_TIMEOUT
        request = Request(
            permit,
            granted_at=permit.use_before - PERMIT_VALIDITY - NOW - self.ahead,
            ended_at=self.world.now + takes,
            is_answered=is_answered,
            is_refused=is_answered and chance.random() < it.refused,
            retry_after=chance.choice([None, chance.uniform(0, 2 * it.limit.period)]),
        )
        self.under_way.append(request)
        self.fate.requests.append(request)

    def rest(self, *, is_short: bool) -> None:
        """Wait a while, or until a permit comes free."""
        seconds = self.chance.uniform(0, self.conditions.spread)
        if is_short and self.chance.random() < 0.5:
            with suppress(AmplemarketError):
                wait = self.conditions.limit.next_wakeup(self.ledger.free_times(), 1) - self.ledger.clock()
                seconds = wait if 0 < wait < LONGEST_WAIT else seconds
        self.world.sleep(seconds)

    def on_clock(self, world_time: float) -> float:
        """Return what the task's clock shows at a time of the world."""
        return NOW + world_time + self.ahead


def run_world(seed: int, conditions: Conditions) -> Fate:
    """Run one world: tasks that take permits, some of which are killed."""
    chance = random.Random(seed)
    random.seed(f"the lock's {seed}")
    begin = chance.uniform(0, 1.5)
    world = World(chance, (begin, begin + conditions.outage))
    fate = Fate(conditions)

    def task(lives: float) -> None:
        Task(world, fate, lives).live()

    def one_after_the_other(lives: list[float]) -> None:
        for each in lives:
            with suppress(Killed):
                task(each)
            world.sleep(chance.uniform(0, 5))

    _lose_the_ledger(world, conditions)
    lives = [chance.choice(conditions.lives) for _ in range(conditions.tasks)]
    is_sequential = conditions.is_sequential
    world.run([partial(one_after_the_other, lives)] if is_sequential else [partial(task, each) for each in lives])
    fate.known = set(LedgerState.load(world.texts.get(KEY) or LedgerState().dump()).spent)
    fate.seconds = world.now
    return fate


def _lose_the_ledger(world: World, conditions: Conditions) -> None:
    """Let the ledger be lost when it is time."""
    lost_at, kept_at = conditions.lost_at, conditions.kept_at
    kept: dict[str, str] = {}

    def keep() -> None:
        kept[KEY] = world.texts[KEY]

    def lose() -> None:
        world.texts.pop(KEY, None)
        world.texts.update(kept)

    if kept_at is not None:
        world.later(kept_at, keep)
    if lost_at < math.inf:
        world.later(lost_at, lose)


# --- Kinds ----------------------------------------------------------------------------------------------------------


def held(chance: random.Random, *, is_sequential: bool, is_hard: bool) -> Conditions:
    """Draw conditions under which no permit comes free again; in hard ones much goes wrong at once."""
    return Conditions(
        is_sequential=is_sequential,
        tasks=chance.randint(2, 5),
        slowest=chance.choice([0.1, 1.0, 15.0, 60.0] if is_hard else [0.1, 1.0]),
        stalls=chance.choice([0.0, 0.02]) if is_hard else 0.0,
        outage=chance.choice([0.0, 0.0, 5.0, 40.0]) if is_hard else 0.0,
        late=chance.choice([0.05, 0.2, 0.5] if is_hard else [0.05, 0.15]),
        late_keys=chance.choice([("",), ("vendor",), ("lock",), ("next",), ("done",), ("lock", "next")]),
        spread=chance.choice([0.2, 5.0, 40.0]),
    )


def freed(chance: random.Random, *, is_sequential: bool, knows_requests: bool | None = None) -> Conditions:
    """Draw conditions under which permits come free, are given back and spent again, and requests are refused."""
    limit = RateLimit(chance.choice([2, 6]), chance.choice([20.0, 60.0, 250.0]))
    return replace(
        held(chance, is_sequential=is_sequential, is_hard=chance.random() < 0.3),
        limit=limit,
        visits=10,
        # The ledger's milliseconds take a little of the margin for clocks that do not agree.
        skew=chance.choice([0.0, min(1.0, limit.period / 100) - 0.002]),
        unused=chance.choice([0.0, 0.3]),
        refused=chance.choice([0.0, 0.1]),
        unanswered=chance.choice([0.0, 0.1]),
        knows_requests=chance.random() < 0.5 if knows_requests is None else knows_requests,
    )


def lost(chance: random.Random) -> Conditions:
    """
    Draw conditions under which the ledger is lost, or replaced by an old copy, while its requests are on record.

    Tasks come one after the other, as they do in a pool with one slot: each is told of those on record when it begins.
    """
    lost_at = chance.uniform(10, 200)
    return replace(
        freed(chance, is_sequential=True, knows_requests=True),
        tasks=chance.randint(4, 8),
        lives=(40, math.inf),
        visits=chance.choice([1, 2, 4]),
        lost_at=lost_at,
        kept_at=chance.choice([None, chance.uniform(0, lost_at)]),
    )


KINDS: dict[str, Callable[[random.Random], Conditions]] = {
    "held, mild, sequential": partial(held, is_sequential=True, is_hard=False),
    "held, mild, concurrent": partial(held, is_sequential=False, is_hard=False),
    "held, hard, sequential": partial(held, is_sequential=True, is_hard=True),
    "held, hard, concurrent": partial(held, is_sequential=False, is_hard=True),
    "freed, sequential": partial(freed, is_sequential=True),
    "freed, concurrent": partial(freed, is_sequential=False),
    "lost, sequential": lost,
}


def run_any(seed: int, kind: str) -> Fate:
    """Run a world of that kind, whose number decides all of it."""
    return run_world(seed, KINDS[kind](random.Random(f"{seed} {kind}")))


def count(worlds: int, kind: str) -> str:
    """Run so many worlds of that kind, and return what became of them."""
    with multiprocessing.Pool(initializer=logging.disable) as pool:
        fates = pool.map(partial(run_any, kind=kind), range(worlds), chunksize=20)
    errors = Counter(re.sub(r" \(.*?\)|: .*", "", error) for fate in fates for error in fate.errors)
    figures = {
        "over the limit": [fate.is_over for fate in fates],
        "with a request forgotten": [fate.is_forgetful for fate in fates],
        "with a permit held that was given back": [fate.is_stingy for fate in fates],
        "with a permit given in a block": [fate.is_hasty for fate in fates],
        "in which nobody got anything": [fate.is_stuck for fate in fates],
        "with a failed visit": [bool(fate.errors) for fate in fates],
        "in which all permits of a period were spent": [fate.is_full for fate in fates],
        "with permits that came free and were spent again": [fate.is_spent_again for fate in fates],
        "with permits given back": [bool(fate.given_back) for fate in fates],
        "with requests refused": [bool(fate.blocks) for fate in fates],
        "with permits spent after the ledger was lost": [fate.is_spent_after_loss for fate in fates],
    }
    seconds, requests = sum(fate.seconds for fate in fates), sum(len(fate.requests) for fate in fates)
    lines = [f"{worlds} worlds, {kind}: {seconds / worlds:.0f} s and {requests / worlds:.1f} requests each"]
    for what, are in figures.items():
        seeds = [seed for seed, is_so in enumerate(are) if is_so]
        lines.append(f"  {len(seeds)} {what}" + (f": {seeds[:5]}…" if seeds else ""))
    lines += [f"  {sum(errors.values())} of {sum(fate.visits for fate in fates)} visits failed: {dict(errors)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worlds", type=int)
    parser.add_argument("words", nargs="*", default=[""])
    arguments = parser.parse_args()
    for kind in KINDS:
        if any(word in kind for word in arguments.words):
            print(count(arguments.worlds, kind), flush=True)
