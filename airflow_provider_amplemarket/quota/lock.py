"""A lock among tasks that share nothing but Airflow's Variables: Lamport's fast mutual exclusion, with late writes.

``docs/quota.md`` explains the algorithm, why no two tasks are inside, and what the constants are made of. It calls the
Variables N (``…__next``), L (``…__lock``) and D (``…__done``).
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from airflow_provider_amplemarket.exceptions import AmplemarketError, LedgerBusyError, LedgerError
from airflow_provider_amplemarket.quota.variables import RetryingStore

log = logging.getLogger(__name__)

#: Seconds over which Airflow's client may send copies of one write: five of 5 seconds each, and pauses.
SENDING = 45.0
#: Seconds after the end of a write in which its last copy has arrived: 30, and some for clocks.
SETTLE = 35.0
#: Seconds after its announcement in which a turn may begin to write.
BEGIN = 10.0
#: Seconds after its announcement in which all that a turn has written has arrived.
REACH = BEGIN + SENDING + SETTLE
#: Seconds after its announcement for which a turn may rely on what it reads.
TURN = 60.0
#: Seconds after which a lock is free, whoever took it.
HOLD = 2 * REACH
#: Seconds after which a task gives up; many turns of others.
PATIENCE = 1800.0
#: Seconds after which those who wait for living tasks try again; such tasks take turns.
RETRY_AFTER = 15.0
#: Seconds over which those who wait for the same end come back.
SPREAD = 20.0
#: How often a turn that was too slow is begun again.
TRIES = 5
#: What L is before anybody has taken the lock; also what an earlier edition let go with.
FREE = "free"


class Lock:
    """Let one task at a time into a ``with`` block.

    Inside, what is written goes through :meth:`write` while :attr:`may_write`, and what is read afterwards is to be
    relied on only while :attr:`is_sure`.

    :param key: what the names of the three Variables begin with.
    :param clock: the time in seconds since the epoch; ``monotonic``, a clock that is never set.
    :param patience: seconds for which to wait for others.
    """

    def __init__(
        self,
        *,
        store: RetryingStore,
        key: str,
        pause: Callable[[float], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        patience: float = math.inf,
    ) -> None:
        self.next_key = f"{key}__next"
        self.key = f"{key}__lock"
        self.done_key = f"{key}__done"
        self._store = store
        self._pause = pause
        self._clock = clock
        self._monotonic = monotonic
        self._patience = patience
        self._announced = ""
        self._began = -math.inf
        self._slow_turns = 0
        #: The last turn of this task that L may hold, when it is over, and whether that is in D.
        self._turn = ""
        self._over = -math.inf
        self._is_end_recorded = True
        #: When no copy of what this task has written into L, or inside, can be under way.
        self._landed = -math.inf
        #: The turn of another task that L holds, and when this task saw that first.
        self._seen = ""
        self._seen_at = -math.inf

    @property
    def may_write(self) -> bool:
        """Whether there is time to write inside."""
        return self._monotonic() < self._began + BEGIN

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can be inside, or has been since this task entered."""
        return self._monotonic() < self._began + TURN

    def __enter__(self) -> Self:
        """Take the lock.

        :raises LedgerBusyError: when that takes longer than this task may wait.
        :raises LedgerError: when the Variables cannot be read or written, or others do not let go.
        :raises AmplemarketError: when the task is told to stop.
        """
        began, self._slow_turns = self._monotonic(), 0
        try:
            while not self._try_to_enter():
                if self._slow_turns >= TRIES:
                    raise self.too_slow()
                self._wait_until_free(began)
        except BaseException:  # a time-out, for example
            self._record_end_if_quick()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        self._over = self._landed
        if kind is None:
            self._record_end()
        else:
            self._record_end_if_quick()

    def write(self, key: str, text: str) -> bool:
        """Write inside, unless it is too late for that, and return whether it was quick.

        :raises LedgerError: when that fails.
        """
        is_quick = False
        try:
            is_quick = self._store.set(key, text, unless=lambda: not self.may_write)
        finally:
            self._landed = self._monotonic()
            if not is_quick:
                self._landed += SETTLE
        return is_quick

    def too_slow(self) -> LedgerError:
        """Return the error of Variables that are too slow."""
        return LedgerError(
            f"Airflow's Variables are too slow: the quota ledger ({self.key.removesuffix('__lock')}) could not be "
            f"read and written within {BEGIN:.0f} s, each write within a second. "
            "Look at the API server and at the secrets backends."
        )

    def _try_to_enter(self) -> bool:
        """Begin a turn, and return whether this task is inside."""
        self._announce()
        return self._look().is_free and self._take()

    def _announce(self) -> None:
        """Announce a new turn, and wait until no copy of that can be under way."""
        self._pause(self._landed - self._monotonic())
        self._announced = uuid.uuid4().hex
        self._began = self._monotonic()
        if not self._store.set(self.next_key, self._announced):
            self._pause(SETTLE)
            self._began = self._monotonic()

    def _take(self) -> bool:
        """Take the lock, which was free after this task announced itself, and return whether this task is inside."""
        if not self.may_write:
            self._slow_turns += 1
            return False
        self._turn, self._is_end_recorded = self._announced, False
        try:
            is_quick = self.write(self.key, _dump(self._turn, taken_at=self._clock()))
        finally:
            # Others may have read the lock as free before; so long they may be inside.
            self._over = self._landed + REACH
        self._pause(self._landed - self._monotonic())
        if self._store.get(self.next_key) != self._turn:
            log.info("Another task takes the lock of the quota ledger at the same time: waiting for %.0f s", REACH)
            return False
        self._over = self._landed
        self._slow_turns += not is_quick
        return is_quick

    def _record_end(self) -> None:
        """Write into D when this task's last turn is over, where L may hold that turn."""
        if self._is_end_recorded:
            return
        left = self._over - self._monotonic()
        with suppress(AmplemarketError):
            over_at = self._clock() + left if left > 0 else 0.0
            self._store.set(self.done_key, _dump(self._turn, over_at=over_at))
            self._is_end_recorded = True

    def _record_end_if_quick(self) -> None:
        """Do so unless that may keep a task that is to end; for the others, the hold ends all the same."""
        if self._store.is_quick:
            self._record_end()

    def _look(self) -> _View:
        """Read the lock, and return when it is free."""
        text = self._store.get(self.key)
        if text is None or text == FREE:
            return _View(0.0, is_certain=True)
        turn, taken_at = _load(text, "taken_at")
        if turn == self._turn:
            return _View(self._over - self._monotonic(), is_certain=True)
        return self._look_at_other(turn, taken_at)

    def _look_at_other(self, turn: str, taken_at: float) -> _View:
        """Return when the lock is free that another turn has taken."""
        now = self._monotonic()
        if turn != self._seen:
            self._seen, self._seen_at = turn, now
        # The time since this task saw it counts where the other's clock is wrong, or the timestamp is not there.
        left = min(taken_at + HOLD - self._clock(), self._seen_at + HOLD - now)
        if left <= 0:
            return _View(left, is_certain=True)
        done, over_at = _load(self._store.glance(self.done_key) or "", "over_at")
        if done == turn:
            return _View(min(left, over_at - self._clock()), is_certain=True)
        return _View(left, is_certain=left < HOLD - TURN)

    def _wait_until_free(self, began: float) -> None:
        """Watch the lock until it is free."""
        is_first = True
        while not (view := self._look()).is_free:
            waited = self._monotonic() - began
            self._check_patience(view, waited)
            if is_first:
                is_first = False
                log.info(
                    "Another task uses the quota ledger, or was killed while it did: waiting for it, %.0f s at most. "
                    "If this comes again and again, give the pool one slot.",
                    view.left,
                )
            self._pause(min(view.left, random.uniform(0.1, 0.5) + waited / 60))  # noqa: S311

    def _check_patience(self, view: _View, waited: float) -> None:
        """Refuse to wait longer than this task may, or than it makes sense."""
        left = self._patience - waited
        if view.is_certain and view.left > left:
            raise self._busy(view.left)
        if left <= 0:
            raise self._busy(RETRY_AFTER)
        if waited > PATIENCE:
            raise LedgerError(
                f"Other tasks have held the quota ledger (Airflow Variable {self.key}) for "
                f"{PATIENCE / 60:.0f} minutes. Give the pool one slot: more do not make it faster."
            )

    def _busy(self, seconds: float) -> LedgerBusyError:
        # Those who wait for the same end should not come back at the same instant, and be in each other's way again.
        until = self._clock() + seconds + random.uniform(0, SPREAD)  # noqa: S311
        return LedgerBusyError(
            f"Another task uses the quota ledger (Airflow Variable {self.key}), or was killed while it did. It is "
            f"worth trying again at {datetime.fromtimestamp(until, UTC):%H:%M:%S} UTC.",
            until=until,
        )


@dataclass(frozen=True)
class _View:
    """In how many seconds, at most, the lock is free, and whether it is certain that it takes so long."""

    left: float
    is_certain: bool

    @property
    def is_free(self) -> bool:
        return self.left <= 0


def _dump(turn: str, **timestamps: float) -> str:
    return json.dumps({"turn": turn} | {name: round(value, 3) for name, value in timestamps.items()})


def _load(text: str, name: str) -> tuple[str, float]:
    """Return the turn in a text, and the timestamp of that name; an earlier edition wrote the turn alone."""
    try:
        data = json.loads(text)
        turn, timestamp = str(data["turn"]), float(data[name])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return text, math.inf
    return turn, timestamp if math.isfinite(timestamp) else math.inf
