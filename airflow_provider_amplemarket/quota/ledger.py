"""
The hourly quota: an exact sliding window that every task of one connection shares.

A *permit* is the right to send one request to the recording endpoint. The *ledger* remembers the permits
of the last period as the moments they count from, in one Airflow Variable per connection. A permit stands
in the ledger before its request is sent, at the latest moment at which the API can have counted it; when
the answer arrives, the entry moves back to that moment. So a task that dies between any two steps leaves
the ledger too careful, never too generous.

All arithmetic is in :class:`RateLimit` and :class:`LedgerState`: pure, with the time passed in.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from airflow.providers.common.compat.sdk import redact

from airflow_provider_amplemarket.exceptions import LedgerError
from airflow_provider_amplemarket.quota.lock import Lock
from airflow_provider_amplemarket.quota.rate import LedgerState, RateLimit
from airflow_provider_amplemarket.quota.variables import (
    OTHER_TEAM,
    PatientStore,
    Pause,
    Store,
    VariableStore,
    is_multi_team,
)

log = logging.getLogger(__name__)

VARIABLE_PREFIX = "amplemarket_quota__"


def variable_name(conn_id: str) -> str:
    """
    Return the name of the Variable that has a connection's ledger.

    Airflow takes a Variable whose name contains a sensitive word for a secret, and looks for all texts that it ever
    had in all that is logged. A ledger has many texts, so its name has a digest where the id has such a word.
    """
    digest = hashlib.sha256(conn_id.encode()).hexdigest()[:16]
    plain = VARIABLE_PREFIX + conn_id
    # The last one is for those who declare a word of the prefix sensitive.
    return next((name for name in (plain, VARIABLE_PREFIX + digest, digest) if not _is_secret(name)), plain)


def _is_secret(name: str) -> bool:
    """Tell whether Airflow hides the Variable of that name."""
    return bool(redact("x", name) != "x")


#: Seconds for which a permit may be used after it was written; an older one is given back unused.
PERMIT_VALIDITY = 30.0

#: How often an exchange is begun again when the ledger does not say afterwards what was written.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Permit:
    """
    The right to send one request.

    :param id: its entry in the ledger.
    :param use_before: moment (seconds since the epoch) after which it must be given back instead of used.
    """

    id: str
    use_before: float


class Ledger:
    """
    Hand out permits and remember them where every task sees them.

    One task at a time should use a ledger; the pool sees to that. Where it does not (a pool of the wrong
    size, ``dag.test()``), a lock does, at the cost of some waiting.

    :param conn_id: the connection whose API key the quota belongs to.
    :param limit: the quota.
    :param answer_timeout: seconds after sending in which the answer has begun or the request has failed.
    :param evidence: requests of the last period that are known from elsewhere: the moment of each by its permit's id.
        They count, whether the ledger has them or not, and never twice.
    :param legacy_evidence: moments of such requests whose permits are not known; they count when the ledger is missing.
    :param patience: seconds for which :meth:`exchange` may wait for other tasks.
    :param cancelled: whether the task is told to stop.
    :param store: where the ledger is kept.
    :param clock: the time in seconds since the epoch.
    :param sleep: how to pause between tries.
    :param monotonic: a clock in seconds that is never set.
    """

    def __init__(
        self,
        conn_id: str,
        limit: RateLimit,
        *,
        answer_timeout: float,
        evidence: Mapping[str, float] | None = None,
        legacy_evidence: Iterable[float] = (),
        patience: float = math.inf,
        cancelled: Callable[[], bool] = lambda: False,
        store: Store | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key = variable_name(conn_id)
        self.limit = limit
        self.clock = clock
        self._horizon = PERMIT_VALIDITY + answer_timeout
        self._evidence = dict(evidence or {})
        self._legacy_evidence = tuple(legacy_evidence)
        store = store or VariableStore(f"The hourly quota of connection {conn_id}. Do not edit.")
        pause = Pause(sleep, cancelled)
        self._store = PatientStore(store, proof=f"{self.key}__next", pause=pause, monotonic=monotonic)
        self._lock = Lock(self._store, self.key, pause=pause, clock=clock, monotonic=monotonic, patience=patience)
        self._mine: dict[str, float] = {}
        #: Permits that were written, perhaps, and handed to nobody.
        self._unconfirmed: list[Permit] = []

    def exchange(
        self,
        wanted: int,
        *,
        answered: Mapping[Permit, float] | None = None,
        unused: Iterable[Permit] = (),
        refusals: Iterable[float | None] = (),
    ) -> list[Permit]:
        """
        Report what became of permits, and take up to ``wanted`` new ones, in one step.

        A permit that is reported neither answered nor unused keeps its careful entry: its request may or
        may not have reached the API.

        :param wanted: how many permits could be used right now.
        :param answered: for each permit whose answer has arrived, the moment it did.
        :param unused: permits whose request was never sent.
        :param refusals: for each request refused with 429, the ``Retry-After`` in seconds or None.
        :return: the new permits, fewer than wanted where the quota gives no more.
        :raises LedgerBusyError: when others have the ledger for longer than ``patience``.
        :raises LedgerError: when the ledger cannot be read or written; then nothing may be sent.
        :raises AmplemarketError: when the task is told to stop while it waits.
        """
        answered, unused, refusals = dict(answered or {}), list(unused), list(refusals)
        self._mine.update({permit.id: moment for permit, moment in answered.items()})
        attempts = 0
        while True:
            with self._lock:
                now = self.clock()
                text = self._store.get(self.key)
                state = self._settle(
                    self._load(text, now),
                    now,
                    is_answered=bool(answered),
                    unused=[*unused, *self._unconfirmed],
                    refusals=refusals,
                )
                # A living task does not lower its own entries: it knows by which clock they were written.
                mine = {permit: moment for permit, moment in self._mine.items() if permit in state.spent}
                granted = state.grant(self.limit, now, wanted)
                permits = [Permit(uuid.uuid4().hex[:12], now + PERMIT_VALIDITY) for _ in range(granted)]
                mine |= {permit.id: now + self._horizon for permit in permits}
                self._unconfirmed += permits
                new = replace(state, spent={**state.spent, **mine}).dump()
                problem = None if new == text else self._write(new)
            if problem is None:
                self._mine = mine
                self._unconfirmed.clear()
                return permits
            attempts += 1
            if attempts == _ATTEMPTS:
                raise problem
            log.warning("The quota ledger %s may have changed while it was written; once more", self.key)

    def _settle(
        self,
        state: LedgerState,
        now: float,
        *,
        is_answered: bool,
        unused: Iterable[Permit],
        refusals: list[float | None],
    ) -> LedgerState:
        """Take into the state what became of permits."""
        spent = {**state.spent, **self._mine}
        for permit in unused:
            spent.pop(permit.id, None)
        state = replace(state, spent=spent).at(now, limit=self.limit, horizon=self._horizon)
        if refusals:
            # Requests that were under way together are refused together: that is one refusal.
            asked = [seconds for seconds in refusals if seconds is not None]
            return state.refused(self.limit, now, max(asked, default=None))
        return replace(state, refusals=0) if is_answered else state

    def _write(self, text: str) -> LedgerError | None:
        """Write the ledger; return why it may not say so afterwards, or another task can have written meanwhile."""
        if not self._lock.may_write:
            return self._lock.too_slow()
        try:
            self._lock.write(self.key, text)
        except LedgerError as error:
            return error
        if self._store.get(self.key) == text and self._lock.is_sure:
            return None
        return self._not_kept() if self._lock.is_sure else self._lock.too_slow()

    def _not_kept(self) -> LedgerError:
        cause = "Does a secrets backend or an environment variable set a Variable of that name?"
        if is_multi_team():
            cause = OTHER_TEAM.format(key=self.key)
        return LedgerError(
            f"The quota ledger (Airflow Variable {self.key}) does not keep what is written to it. {cause}"
        )

    @property
    def is_quick(self) -> bool:
        """Whether it answered at once when it was last asked."""
        return self._store.is_quick

    def moments(self) -> list[float]:
        """List when the next permits become free (seconds since the epoch), sorted."""
        now = self.clock()
        state = self._load(self._store.get(self.key), now).at(now, limit=self.limit, horizon=self._horizon)
        return state.moments(self.limit, now)

    def _load(self, text: str | None, now: float) -> LedgerState:
        """Read the state, with what is known from elsewhere: a ledger may be lost, and an old copy of it restored."""
        state = self._read(text, now)
        unknown = {permit: moment for permit, moment in self._evidence.items() if permit not in state.spent}
        return replace(state, spent={**state.spent, **unknown})

    def _read(self, text: str | None, now: float) -> LedgerState:
        if text is None:
            if is_multi_team():
                log.warning(
                    "The quota ledger (Airflow Variable %s) is missing. %s", self.key, OTHER_TEAM.format(key=self.key)
                )
            return LedgerState({f"evidence-{n}": moment for n, moment in enumerate(self._legacy_evidence)})
        try:
            return LedgerState.load(text)
        except ValueError as error:
            # What was spent is unknown, so it may have been everything, and a moment ago.
            pause = self._horizon + self.limit.hold
            log.warning(
                "The quota ledger (Airflow Variable %s) is garbled (%s): no request for %.0f s. "
                "Delete the Variable if the API key was not used in that time.",
                self.key,
                error,
                pause,
            )
            return LedgerState(blocked_until=now + pause)
