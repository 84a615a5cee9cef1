"""From a list of calls to a plan: which calls are wanted, and what the archive has of them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive.sidecar import Item, Status
from airflow_provider_amplemarket.calls import Call, is_plain_id, start_of
from airflow_provider_amplemarket.run.named import NamedCalls
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.rules import Rules
from airflow_provider_amplemarket.run.window import Window
from airflow_provider_amplemarket.run.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Invalid:
    """A call that cannot even be asked for: its name for messages, when it began, and why."""

    name: str
    start: datetime | None
    reason: str


@dataclass(frozen=True)
class Selection:
    """What a list of calls comes to.

    :param wanted: the calls to archive, by id.
    :param skipped: how many are not wanted, by status.
    :param invalid: those that cannot be asked for.
    """

    wanted: Mapping[str, Call]
    skipped: Counter[Status]
    invalid: list[Invalid]

    @property
    def is_empty(self) -> bool:
        """Whether there were no calls at all."""
        return not (self.wanted or self.invalid or self.skipped.total())


def has_duration(call: Call) -> bool:
    """Select the calls whose ``duration`` is not 0: nobody spoke in the others."""
    return bool(call.get("duration") != 0)


def choose(calls: Iterable[Call], select: Callable[[Call], Any]) -> Selection:
    """Choose the wanted calls; those for which ``select`` raises are invalid."""
    wanted: dict[str, Call] = {}
    skipped: Counter[Status] = Counter()
    invalid: list[Invalid] = []
    for call in calls:
        if call.get("external") is True:
            skipped[Status.EXTERNAL] += 1
            continue
        name = f"#{len(invalid) + 1}: {call.get('id')!r:.100}"
        try:
            is_selected = select(call)
        except Exception as error:
            invalid.append(Invalid(name, start_of(call), f"select failed with {type(error).__name__}: {error}"))
            continue
        if not is_selected:
            skipped[Status.NOT_SELECTED] += 1
        elif is_plain_id(call.get("id")):
            wanted[call["id"]] = call
        else:
            invalid.append(Invalid(name, start_of(call), "its id is not a plain token"))
    return Selection(wanted, skipped, invalid)


def without_clashes(items: list[Item], key: str) -> tuple[list[Item], list[Invalid]]:
    """Return the calls whose recordings have names of their own, and those that would replace another's."""
    count = Counter(item.entry.place.audio for item in items)
    good: list[Item] = []
    invalid: list[Invalid] = []
    for item in items:
        audio = item.entry.place.audio
        is_of_another = item.sidecar.call_id not in (None, item.call_id)
        if count[audio] > 1 or is_of_another:
            reason = f"key={key!r} gives it the name of another call, {audio}"
            invalid.append(Invalid(item.call_id, start_of(item.call), reason))
        else:
            good.append(item)
    return good, invalid


def give_up_old(invalid: Iterable[Invalid], rules: Rules, *, are_named: bool) -> tuple[dict[str, str], Counter[Status]]:
    """Give up invalid calls that are as old as others that are given up, so that none keeps a DAG red for ever.

    :return: the younger ones, or all that ``call_ids`` names, with the reason; and how many were given up.
    """
    now = pendulum.now("UTC")
    young: dict[str, str] = {}
    given_up: Counter[Status] = Counter()
    for call in invalid:
        if are_named or not rules.is_too_old(call.start, now):
            young[call.name] = call.reason
        else:
            given_up[Status.GIVEN_UP] += 1
            log.warning("Call %s cannot be archived, and is given up: %s", call.name, call.reason)
    return young, given_up


@dataclass(frozen=True, kw_only=True)
class Planner:
    """List calls, choose those that ``select`` wants, and see what the archive has of them."""

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
