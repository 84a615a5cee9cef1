"""The hourly quota: an exact sliding window that every task of one connection shares.

A *permit* is the right to send one request to the recording endpoint. The *ledger* is one Airflow Variable per
connection, with the timestamps that the permits of the last period count from. ``docs/quota.md`` explains how it is
used, and why no period sees more requests than the limit.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from airflow.providers.common.compat.sdk import redact

from airflow_provider_amplemarket.exceptions import LedgerError
from airflow_provider_amplemarket.quota.lock import Lock
from airflow_provider_amplemarket.quota.rate import PERMIT_VALIDITY, LedgerState, Permit, RateLimit, Report, settle
from airflow_provider_amplemarket.quota.variables import (
    OTHER_TEAM,
    Pause,
    RetryingStore,
    Store,
    VariableStore,
    is_multi_team,
)

log = logging.getLogger(__name__)

VARIABLE_PREFIX = "amplemarket_quota__"

#: How often it is tried to settle when the ledger does not read afterwards as it was written.
_ATTEMPTS = 5


def variable_name(conn_id: str) -> str:
    """Return the name of the Variable that has a connection's ledger.

    Airflow takes a Variable whose name contains a sensitive word for a secret, and looks for all texts that it ever
    had in all that is logged. A ledger has many texts, so its name has a digest where the id has such a word.
    """
    digest = hashlib.sha256(conn_id.encode()).hexdigest()[:16]
    plain = VARIABLE_PREFIX + conn_id
    # The last one is for those who declare a word of the prefix sensitive.
    candidates = (plain, VARIABLE_PREFIX + digest, digest)
    return next((name for name in candidates if not _is_secret(name)), plain)


def _is_secret(name: str) -> bool:
    """Return whether Airflow hides the Variable of that name."""
    return bool(redact("x", name) != "x")


class Ledger:
    """Hand out permits and remember them where every task sees them.

    One task at a time should use a ledger; the pool sees to that. Where it does not (a pool of the wrong
    size, ``dag.test()``), a lock does, at the cost of some waiting.

    :param conn_id: the connection whose API key the quota belongs to.
    :param limit: the quota.
    :param response_timeout: seconds after sending in which the response has begun or the request has failed.
    :param known_requests: requests of the last period that the archive knows of: the timestamp of each by its permit's
        id. They count, whether the ledger has them or not, and never twice.
    :param anonymous_requests: timestamps of such requests whose permits' ids are not known; they count when the ledger
        is missing.
    :param patience: seconds for which :meth:`report_and_acquire` may wait for other tasks.
    :param cancelled: whether the task is told to stop.
    :param clock: the time in seconds since the epoch; ``monotonic``, a clock that is never set.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        limit: RateLimit,
        response_timeout: float,
        known_requests: Mapping[str, float] | None = None,
        anonymous_requests: Iterable[float] = (),
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
        self._horizon = PERMIT_VALIDITY + response_timeout
        self._known_requests = dict(known_requests or {})
        self._anonymous_requests = tuple(anonymous_requests)
        pause = Pause(sleep, cancelled)
        self._store = RetryingStore(
            store=store or VariableStore(f"The hourly quota of connection {conn_id}. Do not edit."),
            proof=f"{self.key}__next",
            pause=pause,
            monotonic=monotonic,
        )
        self._lock = Lock(
            store=self._store, key=self.key, pause=pause, clock=clock, monotonic=monotonic, patience=patience
        )
        #: Entries of this task's own permits. Nobody but this task lowers them: it knows by which clock they were set.
        self._own: dict[str, float] = {}
        #: Permits that were written, perhaps, and handed to nobody.
        self._unconfirmed: list[Permit] = []

    @property
    def is_quick(self) -> bool:
        """Whether the ledger was read or written at once when that was last tried."""
        return self._store.is_quick

    def free_times(self) -> list[float]:
        """Return when the next permits become free (seconds since the epoch), sorted."""
        now = self.clock()
        return self._state(self._store.get(self.key), now).free_times(self.limit, now)

    def report_and_acquire(self, report: Report, wanted: int) -> list[Permit]:
        """Report what became of permits, and take up to ``wanted`` new ones, in one step.

        :param report: what became of permits; where this raises an error, it is to be reported again.
        :param wanted: how many permits could be used right now.
        :return: the new permits, fewer than wanted where the quota gives no more.
        :raises LedgerBusyError: when others have the ledger for longer than ``patience``.
        :raises LedgerError: when the ledger cannot be read or written; then nothing may be sent.
        :raises AmplemarketError: when the task is told to stop while it waits.
        """
        self._own.update(report.answered_by_id)
        attempts = 0
        while True:
            with self._lock:
                state, permits, problem = self._try_to_settle(report, wanted)
            if problem is None:
                self._confirm(state, permits)
                return permits
            attempts += 1
            if attempts == _ATTEMPTS:
                raise problem
            log.warning("The quota ledger %s may have changed while it was written; trying again", self.key)

    def _try_to_settle(self, report: Report, wanted: int) -> tuple[LedgerState, list[Permit], LedgerError | None]:
        """Read, settle and write; return the new state, the permits, and why they must not be used; None if nothing."""
        now = self.clock()
        text = self._store.get(self.key)
        state, permits = settle(
            self._state(text, now).with_spent(self._own),
            replace(report, unused=[*report.unused, *self._unconfirmed]),
            wanted,
            limit=self.limit,
            horizon=self._horizon,
            now=now,
            new_id=_new_id,
        )
        self._unconfirmed += permits
        new_text = state.dump()
        problem = None if new_text == text else self._write(new_text)
        return state, permits, problem

    def _confirm(self, state: LedgerState, permits: list[Permit]) -> None:
        """Remember what stands in the ledger now of this task's permits."""
        own = [*self._own, *(permit.id for permit in permits)]
        self._own = {permit: state.spent[permit] for permit in own if permit in state.spent}
        self._unconfirmed.clear()

    def _write(self, text: str) -> LedgerError | None:
        """Write the ledger; return why it may not read so afterwards, or another task can have written meanwhile."""
        if not self._lock.may_write:
            return self._lock.too_slow()
        try:
            self._lock.write(self.key, text)
        except LedgerError as error:
            return error
        is_kept = self._store.get(self.key) == text
        if not self._lock.is_sure:
            return self._lock.too_slow()
        if not is_kept:
            return self._not_kept()
        return None

    def _not_kept(self) -> LedgerError:
        cause = "Does a secrets backend or an environment variable set a Variable of that name?"
        if is_multi_team():
            cause = OTHER_TEAM.format(key=self.key)
        return LedgerError(
            f"The quota ledger (Airflow Variable {self.key}) does not keep what is written to it. {cause}"
        )

    def _state(self, text: str | None, now: float) -> LedgerState:
        """Return the state at ``now``, with the known requests: a ledger may be lost, or replaced by an older one."""
        state = self._missing() if text is None else self._load(text, now)
        state = state.with_spent({**self._known_requests, **state.spent})
        return state.at(now, limit=self.limit, horizon=self._horizon)

    def _missing(self) -> LedgerState:
        """Return the state where there is no ledger."""
        if is_multi_team():
            log.warning(
                "The quota ledger (Airflow Variable %s) is missing. %s", self.key, OTHER_TEAM.format(key=self.key)
            )
        # Ledgers that are there have these names.
        return LedgerState({f"evidence-{n}": timestamp for n, timestamp in enumerate(self._anonymous_requests)})

    def _load(self, text: str, now: float) -> LedgerState:
        try:
            return LedgerState.load(text)
        except ValueError as error:
            # What was spent is unknown, so it may have been everything, and just now.
            pause = self._horizon + self.limit.hold
            log.warning(
                "The quota ledger (Airflow Variable %s) is garbled (%s): no request for %.0f s. "
                "Delete the Variable if the API key was not used in that time.",
                self.key,
                error,
                pause,
            )
            return LedgerState(blocked_until=now + pause)


def _new_id() -> str:
    return uuid.uuid4().hex[:12]
