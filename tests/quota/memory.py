"""The Variables in memory, for all tests of the quota: what is written there, and what may go wrong."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

from airflow_provider_amplemarket.quota.ledger import VARIABLE_PREFIX, Ledger
from airflow_provider_amplemarket.quota.lock import FREE
from airflow_provider_amplemarket.quota.rate import PERMIT_VALIDITY, LedgerState, Permit, RateLimit, Report

T = TypeVar("T")

NOW = 1_800_000_000.0
KEY = f"{VARIABLE_PREFIX}vendor"
HOUR = RateLimit(50, 3600)
ANSWER_TIMEOUT = 120.0
HORIZON = PERMIT_VALIDITY + ANSWER_TIMEOUT

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


class Killed(BaseException):
    """The worker was killed; nothing in the package may catch this."""


@dataclass
class Clock:
    """A clock that only moves when it is told to, or when somebody sleeps."""

    now: float = NOW
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def name_of(key: str) -> str:
    """Return ``lock``, ``next`` or ``done``, and ``vendor`` for the ledger itself."""
    return key.rpartition("__")[2]


class MemoryStore:
    """
    Keep the Variables in memory, and let things happen.

    An access takes no time, but something may happen before or after it; accesses are named like ``set lock``.

    :param text: the ledger; None where there is none.
    :param faults: what happens to each of the next accesses of the ledger: ``lost`` (a read returns None), ``fails``
        (it raises and does nothing), ``fails late`` (it raises, but did it), ``dies`` and ``dies late`` (the worker is
        killed before, or after it was done); anything else is no fault. They befall the ledger alone, not the lock.
    :param texts: where the texts are, if somebody else has them, too.
    """

    def __init__(
        self, text: str | None = None, faults: Iterable[str] = (), *, texts: dict[str, str] | None = None
    ) -> None:
        self.texts = {f"{KEY}__lock": FREE} if texts is None else texts
        if text is not None:
            self.texts[KEY] = text
        self.faults = deque(faults)
        self.accesses: list[str] = []
        #: The texts that were written, by the name of the Variable.
        self.written: defaultdict[str, list[str]] = defaultdict(list)
        self.is_killed = False
        self._before: dict[str, Callable[[], None]] = {}
        self._after_first: dict[str, Callable[[], None]] = {}
        self._is_out = self._proved = False

    @property
    def text(self) -> str | None:
        """The ledger's text."""
        return self.texts.get(KEY)

    @text.setter
    def text(self, text: str | None) -> None:
        self.texts.pop(KEY, None)
        if text is not None:
            self.texts[KEY] = text

    @property
    def state(self) -> LedgerState:
        assert self.text is not None
        return LedgerState.load(self.text)

    @property
    def reads(self) -> int:
        """How often the ledger was read."""
        return self.accesses.count("get vendor")

    def before(self, access: str, event: Callable[[], None]) -> None:
        """Let something happen before each such access; where it raises, there is no access."""
        self._before[access] = event

    def after_first(self, access: str, event: Callable[[], None]) -> None:
        """Let something happen before the next such access returns."""
        self._after_first[access] = event

    def get(self, key: str) -> str | None:
        return self._access(f"get {name_of(key)}", lambda: self._get(key))

    def set(self, key: str, text: str) -> None:
        self._access(f"set {name_of(key)}", lambda: self._set(key, text))

    def _access(self, access: str, work: Callable[[], T]) -> T:
        if self.is_killed:  # the dead do nothing
            raise Killed
        self.accesses.append(access)
        self._before.get(access, lambda: None)()
        answer = work()
        self._after_first.pop(access, lambda: None)()
        return answer

    def _get(self, key: str) -> str | None:
        if key != KEY:
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
        fault = self._fault() if key == KEY else ""
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


def acquire(
    ledger: Ledger,
    wanted: int,
    *,
    answered: dict[Permit, float] | None = None,
    unused: Iterable[Permit] = (),
    refusals: Iterable[float | None] = (),
) -> list[Permit]:
    """Report what became of permits, and take new ones."""
    return ledger.report_and_acquire(Report(answered or {}, list(unused), list(refusals)), wanted)


def text_of(**changes: Any) -> str:
    """Write a ledger, with some of it changed."""
    return json.dumps({"version": 1, "spent": {"a": NOW}, "blocked_until": 0.0, "refusals": 0, **changes})


#: Texts that are no ledger.
NONSENSE = {
    "nothing": "",
    "no JSON": "{",
    "a number": "7",
    "null": "null",
    "a text": '"version"',
    "a list": "[]",
    "an empty object": "{}",
    "no version": json.dumps({"spent": {}, "blocked_until": 0, "refusals": 0}),
    "another version": text_of(version=2),
    "a list of timestamps": text_of(spent=[NOW]),
    "a nameless timestamp": text_of(spent=NOW),
    "a timestamp that is a list": text_of(spent={"a": [NOW]}),
    "a timestamp that is no number": text_of(spent={"a": "soon"}),
    "a timestamp that is null": text_of(spent={"a": None}),
    "a timestamp that is NaN": text_of(spent={"a": math.nan}),
    "a timestamp without end": text_of(spent={"a": math.inf}),
    "a timestamp beyond floats": text_of(spent={"a": 10**400}),
    "a block that is NaN": text_of(blocked_until=math.nan),
    "a block without end": text_of(blocked_until=math.inf),
    "a block that is null": text_of(blocked_until=None),
    "a block beyond floats": text_of(blocked_until=10**400),
    "refusals that are no number": text_of(refusals="many"),
    "refusals that are NaN": text_of(refusals=math.nan),
    "refusals without end": text_of(refusals=math.inf),
    "lists without end": "[" * 100_000,
}
