"""The calls that wait for a permit, in their order; what other tasks do meanwhile is seen before it is spent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pendulum

from airflow_provider_amplemarket.archive.sidecar import Item, Status
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.work import Work

#: Seconds after which the archive is looked at again before a request is sent: another task may have been there.
FRESH_FOR = 30.0
#: So many calls are then looked up together.
LOOK_AHEAD = 50


class Backlog:
    """Keep the pending calls of a plan."""

    def __init__(self, plan: Plan, work: Work, clock: Callable[[], float]) -> None:
        self._items = deque(plan.pending)
        self._seen_at = plan.made_at
        self._seen_again_at: dict[str, float] = {}
        self._seen: list[tuple[Item, Status]] = []
        self._work = work
        self._clock = clock

    def __len__(self) -> int:
        """Return how many calls wait."""
        return len(self._items)

    def put_back(self, item: Item) -> None:
        """Let a call be the next one again."""
        self._items.appendleft(item)

    def take(self, count: int) -> list[Item]:
        """Take the next calls, at most so many, that are still to be asked for.

        :raises ArchiveError: when the archive cannot be listed.
        """
        now = self._clock()
        chosen: list[Item] = []
        while self._items and len(chosen) < count:
            if self._is_fresh(self._items[0], now):
                chosen.append(self._items.popleft())
            else:
                self._look_again(now)
        return chosen

    def pop_seen(self) -> list[tuple[Item, Status]]:
        """Return the calls that were looked up again since the last time, with their status by then."""
        seen, self._seen = self._seen, []
        return seen

    def _is_fresh(self, item: Item, now: float) -> bool:
        return now - self._seen_again_at.get(item.call_id, self._seen_at) <= FRESH_FOR

    def _look_again(self, now: float) -> None:
        """See what other tasks have done: one listing of each folder for the next calls together."""
        items = [self._items.popleft() for _ in range(min(LOOK_AHEAD, len(self._items)))]
        entries = self._work.archive.entries(item.entry.place for item in items)
        for item in reversed(items):
            seen = Item(item.call, entries[item.entry.place.audio])
            status = self._work.rules.status_of(seen, pendulum.now("UTC"))
            self._seen.append((seen, status))
            self._seen_again_at[seen.call_id] = now
            if status == Status.PENDING:
                self._items.appendleft(seen)
