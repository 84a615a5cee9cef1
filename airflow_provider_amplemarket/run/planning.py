"""From a list of calls to a plan."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive.entry import Item
from airflow_provider_amplemarket.archive.sidecar import Status
from airflow_provider_amplemarket.calls import Call
from airflow_provider_amplemarket.run.named import NamedCalls
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.selection import Selection, choose, give_up_old, without_clashes
from airflow_provider_amplemarket.run.window import Window
from airflow_provider_amplemarket.run.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """
    List calls, choose the wanted ones, and see what the archive has of them.

    :param work: what the try works with.
    :param select: whether the DAG wants a call.
    :param key: the format of the objects' names, for messages.
    """

    work: Work
    select: Callable[[Call], Any]
    key: str

    def of_window(self, window: Window, user_id: str | None) -> Plan:
        """Return the plan for the calls of a window."""
        made_at = time.time()
        log.info("Window of calls: %s", window)
        calls = self._go_on(self.work.hook.iter_calls(start=window.start, end=window.end, user_id=user_id))
        selection = choose(calls, self.select)
        if user_id is not None and selection.is_empty:
            self._warn_of_user(window, user_id)
        entries = self.work.archive.find(selection.wanted.values())
        items = [Item(call, entries[call_id]) for call_id, call in selection.wanted.items()]
        return self._plan(items, selection, made_at=made_at, window=window)

    def of_named(self, named: NamedCalls) -> Plan:
        """Return the plan for the calls that ``call_ids`` names."""
        made_at = time.time()
        log.info("Calls: the %d of call_ids", len(named.starts))
        items = named.find(self.work.archive, self._go_on(self.work.hook.iter_calls()), self._is_pending)
        skipped = Counter({Status.EXTERNAL: len(named.external)})
        return self._plan(items, Selection({}, skipped, []), made_at=made_at)

    def _plan(self, items: list[Item], selection: Selection, *, made_at: float, window: Window | None = None) -> Plan:
        good, clashing = without_clashes(items, self.key)
        invalid, given_up = give_up_old([*selection.invalid, *clashing], self.work.rules, are_named=window is None)
        plan = Plan(skipped=selection.skipped + given_up, invalid=invalid, window=window, made_at=made_at)
        plan = plan.with_results((item, self._status_of(item)) for item in good)
        log.info(
            "Found %d wanted calls (%d external, %d not selected); %d recordings to ask for",
            len(items),
            selection.skipped[Status.EXTERNAL],
            selection.skipped[Status.NOT_SELECTED],
            plan.left,
        )
        return plan

    def _status_of(self, item: Item) -> Status:
        return self.work.rules.status_of(item, pendulum.now("UTC"))

    def _is_pending(self, item: Item) -> bool:
        return self._status_of(item) == Status.PENDING

    def _warn_of_user(self, window: Window, user_id: str) -> None:
        """Warn where the window has calls, but none of the user."""
        others = sum(1 for _ in self._go_on(self.work.hook.iter_calls(start=window.start, end=window.end)))
        if others:
            log.warning(
                "Of the %d calls of the window that the API lists, none is of user_id=%r. Is that the user's id "
                "in Amplemarket?",
                others,
                user_id,
            )

    def _go_on(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Read a list until the task is told to stop."""
        for call in calls:
            self.work.go_on()
            yield call
