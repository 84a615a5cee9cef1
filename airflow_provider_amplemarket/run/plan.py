"""What a run has to do: a value; what becomes of calls makes another one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from airflow_provider_amplemarket.archive.sidecar import Item, Status
from airflow_provider_amplemarket.run.window import Window

#: What a call can come to in the end, as the summary counts it.
OUTCOMES = (
    Status.STORED,
    Status.ALREADY_STORED,
    Status.NOT_FOUND,
    Status.TOO_LARGE,
    Status.GIVEN_UP,
    Status.EXTERNAL,
    Status.NOT_SELECTED,
    Status.DELETED,
    Status.FAILED,
)

#: What has been asked for before is asked for after what has not; what has failed, last.
_TURN: dict[Status | None, int] = {Status.NOT_FOUND: 1, Status.TOO_LARGE: 1, Status.FAILED: 2, Status.GIVEN_UP: 2}

_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Plan:
    """What is with every call that a run looks at.

    :param items: the wanted calls by id, and ``statuses`` their status.
    :param skipped: how many calls are not wanted, by status.
    :param invalid: calls that cannot even be asked for, with the reason.
    :param window: the span that was listed; None where calls were named instead.
    :param made_at: timestamp from which on the archive was looked at.
    """

    items: Mapping[str, Item] = field(default_factory=dict)
    statuses: Mapping[str, Status] = field(default_factory=dict)
    skipped: Mapping[Status, int] = field(default_factory=dict)
    invalid: Mapping[str, str] = field(default_factory=dict)
    window: Window | None = None
    made_at: float = field(default_factory=time.time)

    def with_results(self, results: Iterable[tuple[Item, Status]]) -> Plan:
        """Return the plan after these calls came to these statuses."""
        items, statuses = dict(self.items), dict(self.statuses)
        for item, status in results:
            items[item.call_id] = item
            statuses[item.call_id] = status
        return replace(self, items=items, statuses=statuses)

    def items_with(self, *statuses: Status) -> list[Item]:
        """Return the wanted calls of these statuses, oldest first."""
        chosen = [item for call_id, item in self.items.items() if self.statuses[call_id] in statuses]
        return sorted(chosen, key=_age)

    @property
    def pending(self) -> list[Item]:
        """What is to be asked for: first what never was, last what has failed.

        Of those that were never asked for, the oldest comes first, because old calls drop out of the API's list first;
        of the others, the one that has waited longest, so that those at which a run stops do not keep it from the rest
        for ever.
        """
        return sorted(self.items_with(Status.PENDING), key=_turn)

    @property
    def left(self) -> int:
        """How many calls are still to be asked for."""
        return Counter(self.statuses.values())[Status.PENDING]

    def progress(self) -> str:
        """Return in a few words how far it is."""
        counts = Counter(self.statuses.values())
        archived, failed = counts[Status.STORED] + counts[Status.ALREADY_STORED], counts[Status.FAILED]
        parts = [f"{archived} of {len(self.statuses)} archived", f"{counts[Status.PENDING]} left"]
        if failed:
            parts.append(f"{failed} failed")
        return ", ".join(parts)

    def failures(self) -> dict[str, str]:
        """Return the calls that failed, with the reason."""
        reasons = {item.call_id: str(item.last.error) for item in self.items_with(Status.FAILED)}
        return {**self.invalid, **reasons}

    def counts(self) -> dict[str, int]:
        """Return how many calls came to each of :data:`OUTCOMES`."""
        counts = Counter(self.statuses.values()) + Counter(self.skipped) + Counter({Status.FAILED: len(self.invalid)})
        return {str(status): counts[status] for status in OUTCOMES}


def _age(item: Item) -> tuple[datetime, str]:
    """Return what sorts the oldest first, and those without a date last."""
    return item.start or _LATEST, item.call_id


def _turn(item: Item) -> tuple[int, float]:
    turn = _TURN.get(item.last.status, 0)
    asked_at = item.last.answered_at
    if turn == 0 or asked_at is None:
        return turn, 0.0
    return turn, asked_at.timestamp()
