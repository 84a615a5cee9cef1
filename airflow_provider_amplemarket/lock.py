"""
A lock among tasks that share nothing but Airflow's Variables.

Variables are read and written; there is no "write if nobody else did". Lamport's fast mutual exclusion
(ACM Transactions on Computer Systems 5(1), 1987, the timed algorithm) needs no more than that: whoever wants
the lock announces itself in one Variable, takes the lock in another when it is free, and has it at once if
nobody announced itself meanwhile. Only where somebody did, it pauses, so that who has the lock has finished,
and looks whether the lock still is its own.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from airflow_provider_amplemarket.exceptions import LedgerError
from airflow_provider_amplemarket.variables import PatientStore

log = logging.getLogger(__name__)

#: Seconds in which whoever took the lock has finished: half of them for the work, and half for a write that is
#: slow to arrive. Airflow's client itself may try a write again for half a minute.
TURN = 60.0

#: Seconds after which a task gives up; many turns of others.
PATIENCE = 1800.0

FREE = "free"


class Lock:
    """
    Let one task at a time into a ``with`` block.

    A task that dies inside keeps others out for three turns. One that takes longer than half a turn cannot be sure
    any more to be alone; so :attr:`is_sure` is to be asked before a write, and before what was written is relied on.
    That is exact as long as no read or write takes longer than half a turn.

    :param store: where the two Variables are.
    :param key: what their names begin with.
    :param sleep: how to pause.
    :param monotonic: a clock in seconds that is never set.
    """

    def __init__(
        self,
        store: PatientStore,
        key: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.next_key = f"{key}__next"
        self.key = f"{key}__lock"
        self._store = store
        self._sleep = sleep
        self._monotonic = monotonic
        self._me = FREE
        self._until = 0.0

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can be inside, or has been since this task entered."""
        return self._monotonic() < self._until

    def __enter__(self) -> Self:
        """
        Take the lock.

        :raises LedgerError: when the Variables cannot be read or written, or others do not let go.
        """
        deadline = self._monotonic() + PATIENCE
        dead = FREE
        while not self._take(dead):
            dead = self._wait_until_free(deadline)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go, unless it may be another's by now."""
        with suppress(LedgerError):
            self._store.set(self.key, FREE, unless=lambda: not self.is_sure)

    def _take(self, dead: str) -> bool:
        """
        Announce this task, take the lock if it is free, and tell whether this task has it.

        :param dead: a holder that does not count.
        """
        began = self._monotonic()
        # What this task could not let go of is its own still: nobody else has taken it since.
        free = (None, FREE, self._me, dead)
        self._me = uuid.uuid4().hex
        self._store.set(self.next_key, self._me)
        if self._store.get(self.key) not in free:
            return False
        self._store.set(self.key, self._me)
        if self._store.get(self.next_key) == self._me:
            self._until = began + TURN / 2
            return True
        log.info("Another task takes the lock of the quota ledger at the same moment: waiting for %.0f s", TURN)
        began = self._monotonic()
        self._sleep(TURN)
        self._until = began + 1.5 * TURN
        return self._store.get(self.key) == self._me

    def _wait_until_free(self, deadline: float) -> str:
        """Watch the lock, and answer its holder when that is nobody, or somebody who must be dead."""
        watched, since = "", self._monotonic()
        while (holder := self._store.get(self.key) or FREE) != FREE:
            now = self._monotonic()
            if not watched:
                log.info(
                    "Another task uses the quota ledger, or was killed while it did: waiting for it. "
                    "If this comes again and again, give the pool one slot."
                )
            if holder != watched:
                watched, since = holder, now
            # A living one has finished after so long, or knows that it is too late.
            if now - since >= 3 * TURN:
                break
            if now > deadline:
                raise LedgerError(
                    f"Other tasks have held the quota ledger (Airflow Variable {self.key}) for "
                    f"{PATIENCE / 60:.0f} minutes. Give the pool one slot: more do not make it faster."
                )
            self._sleep(random.uniform(0.1, 0.5) + (now - since) / 60)  # noqa: S311
        return holder
