"""Which of the calls that the API lists are wanted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive.entry import Item
from airflow_provider_amplemarket.archive.sidecar import Status
from airflow_provider_amplemarket.calls import Call, is_plain_id, start_of
from airflow_provider_amplemarket.run.rules import Rules

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Invalid:
    """
    A call that cannot even be asked for.

    :param name: what it is called in messages.
    :param start: when it began.
    :param reason: why it cannot be asked for.
    """

    name: str
    start: datetime | None
    reason: str


@dataclass(frozen=True)
class Selection:
    """
    What a list of calls comes to.

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
    """
    Choose the wanted calls.

    :param select: what the DAG says of a call; where it raises, the call is invalid.
    """
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
    """
    Leave out calls whose recording would lie where another's does: one would replace the other.

    :param key: the format of the objects' names.
    :return: the others, and those left out.
    """
    count = Counter(item.entry.place.audio for item in items)
    good: list[Item] = []
    invalid: list[Invalid] = []
    for item in items:
        audio = item.entry.place.audio
        is_of_another = item.sidecar.call_id not in (None, item.call_id)
        if count[audio] > 1 or is_of_another:
            reason = f"key={key!r} gives it the name of another call, {audio}"
            invalid.append(Invalid(item.call_id, item.start, reason))
        else:
            good.append(item)
    return good, invalid


def give_up_old(invalid: Iterable[Invalid], rules: Rules, *, are_named: bool) -> tuple[dict[str, str], Counter[Status]]:
    """
    Give up invalid calls that are as old as others that are given up, so that none keeps a DAG red for ever.

    :param are_named: whether ``call_ids`` names them; then none is given up.
    :return: the younger ones with the reason, which fail the run; and how many were given up.
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
