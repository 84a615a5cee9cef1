"""Airflow's Variables in memory, for tests and benchmarks: what was written there, and what may go wrong."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from airflow_provider_amplemarket.quota.ledger import variable_name
from airflow_provider_amplemarket.quota.lock import FREE
from airflow_provider_amplemarket.quota.rate import LedgerState

T = TypeVar("T")


class Killed(BaseException):
    """The worker was killed; nothing in the package may catch this."""


def name_of(key: str) -> str:
    """Return ``lock``, ``next`` or ``done``, and the connection's id for the ledger itself."""
    return key.rpartition("__")[2]


class MemoryStore:
    """Keep the Variables in memory, and let things happen.

    An access takes no time, but something may happen before or after it; accesses are named like ``set lock``.

    :param text: the ledger; None where there is none.
    :param faults: what happens to each of the next accesses of the ledger: ``lost`` (a read returns None), ``fails``
        (it raises and does nothing), ``fails late`` (it raises, but did it), ``dies`` and ``dies late`` (the worker is
        killed before, or after it was done); anything else is no fault. They befall the ledger alone, not the lock.
    :param conn_id: the connection whose ledger it is.
    :param texts: where the texts are, if somebody else has them, too.
    """

    def __init__(
        self,
        text: str | None = None,
        faults: Iterable[str] = (),
        *,
        conn_id: str = "vendor",
        texts: dict[str, str] | None = None,
    ) -> None:
        self.key = variable_name(conn_id)
        self.texts = {f"{self.key}__lock": FREE} if texts is None else texts
        if text is not None:
            self.texts[self.key] = text
        self.faults = deque(faults)
        self.accesses: list[str] = []
        #: The texts that were written, by the name of the Variable.
        self.written: defaultdict[str, list[str]] = defaultdict(list)
        self.is_killed = False
        self._before: dict[str, Callable[[], None]] = {}
        self._after_first: dict[str, Callable[[], None]] = {}
        self._is_out = self._proved = False

    @classmethod
    def empty(cls, conn_id: str) -> MemoryStore:
        """Return one with an empty ledger: where there is none at all, it takes a while to be believed."""
        return cls(LedgerState().dump(), conn_id=conn_id)

    @property
    def text(self) -> str | None:
        """The ledger's text."""
        return self.texts.get(self.key)

    @text.setter
    def text(self, text: str | None) -> None:
        self.texts.pop(self.key, None)
        if text is not None:
            self.texts[self.key] = text

    @property
    def state(self) -> LedgerState:
        """What the ledger's text stands for."""
        assert self.text is not None
        return LedgerState.load(self.text)

    @property
    def spent(self) -> int:
        """The number of permits in the ledger."""
        return len(self.state.spent)

    @property
    def reads(self) -> int:
        """How often the ledger was read."""
        return self.accesses.count(f"get {name_of(self.key)}")

    def before(self, access: str, event: Callable[[], None]) -> None:
        """Let something happen before each such access; where it raises, there is no access."""
        self._before[access] = event

    def after_first(self, access: str, event: Callable[[], None]) -> None:
        """Let something happen before the next such access returns."""
        self._after_first[access] = event

    def get(self, key: str) -> str | None:
        """Return the Variable's text, None when there is none."""
        return self._access(f"get {name_of(key)}", lambda: self._get(key))

    def set(self, key: str, text: str) -> None:
        """Store the Variable's text."""
        self._access(f"set {name_of(key)}", lambda: self._set(key, text))

    def _access(self, access: str, work: Callable[[], T]) -> T:
        if self.is_killed:  # the dead do nothing
            raise Killed
        self.accesses.append(access)
        self._before.get(access, lambda: None)()
        found = work()
        self._after_first.pop(access, lambda: None)()
        return found

    def _get(self, key: str) -> str | None:
        if key != self.key:
            self._proved = self._is_out
            return self.texts.get(key)
        fault = self._fault()
        proved, self._proved = self._proved, False
        self._is_out = fault == "lost" and not proved  # an outage is over once the store has just answered
        if self._is_out:
            return None
        self._late(fault)
        return self.text

    def _set(self, key: str, text: str) -> None:
        fault = self._fault() if key == self.key else ""
        self.texts[key] = text
        self.written[name_of(key)].append(text)
        self._late(fault)

    def _fault(self) -> str:
        fault = self.faults.popleft() if self.faults else ""
        if fault == "dies":
            self._die()
        if fault == "fails":
            raise OSError("no API server")
        return fault

    def _late(self, fault: str) -> None:
        if fault == "dies late":
            self._die()
        if fault == "fails late":
            raise OSError("no answer from the API server")

    def _die(self) -> None:
        self.is_killed = True
        raise Killed
