"""What all tests of the quota use: a clock, a connection with its limit, and texts that are no ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings

from airflow_provider_amplemarket.quota.ledger import VARIABLE_PREFIX, Ledger
from airflow_provider_amplemarket.quota.rate import PERMIT_VALIDITY, Permit, RateLimit, Report

NOW = 1_800_000_000.0
KEY = f"{VARIABLE_PREFIX}vendor"
HOUR = RateLimit(50, 3600)
RESPONSE_TIMEOUT = 120.0
HORIZON = PERMIT_VALIDITY + RESPONSE_TIMEOUT

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


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
