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
#: slow to arrive.
TURN = 10.0

#: Seconds after which a task gives up; many turns of others.
PATIENCE = 300.0

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
        waited = 0.0
        watched, watched_since = FREE, 0.0
        while waited < PATIENCE:
            began = self._monotonic()
            me = uuid.uuid4().hex
            self._store.set(self.next_key, me)
            holder = self._store.get(self.key) or FREE
            if holder != watched:
                watched, watched_since = holder, waited
            # Who has held it for so long is dead: a living one has finished, or knows that it is too late.
            if holder == FREE or waited - watched_since >= 3 * TURN:
                self._store.set(self.key, me)
                if self._store.get(self.next_key) == me:
                    self._until = began + TURN / 2
                    return self
                log.info("Another task uses the quota ledger at this moment; is its pool larger than one slot?")
                began = self._monotonic()
                pause = TURN
            else:
                pause = random.uniform(0.1, 0.5)  # noqa: S311
            self._sleep(pause)
            waited += pause
            if pause == TURN and self._store.get(self.key) == me:
                self._until = began + 1.5 * TURN
                return self
        raise LedgerError(f"Other tasks have held the quota ledger (Airflow Variable {self.key}) for {PATIENCE:.0f} s")

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go, unless it may be another's by now."""
        if self.is_sure:
            with suppress(LedgerError):
                self._store.set(self.key, FREE)
