"""Pages of ``GET /calls``: filters, order, cursors and links."""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

from airflow_provider_amplemarket.sandbox.calls import Call

Order = Literal["newest", "oldest", "shuffled"]
Query = Mapping[str, str]

DEFAULT_SIZE = 20
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class BadQueryError(Exception):
    """A parameter has a value that the API does not understand.

    :param parameter: The parameter's name.
    """

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


@dataclass(frozen=True)
class Pages:
    """How the list of calls behaves.

    ``shuffled`` is newest first with rows a few places off. No page is larger than ``max_size``, whatever is asked for.
    """

    honour_filters: bool = True
    order: Order = "newest"
    max_size: int = DEFAULT_SIZE

    def page(self, calls: list[Call], query: Query, overlap: int = 0) -> dict[str, Any]:
        """Return the page that a query asks for.

        :param calls: All calls.
        :param query: The parameters.
        :param overlap: So many rows of this page come again on the next.
        """
        if self.honour_filters:
            calls = filtered(calls, query)
        rows = dict(with_cursors(self.ordered(calls)))
        cursors = list(rows)
        size = min(_number(query, "page[size]", DEFAULT_SIZE), self.max_size)
        if "page[before]" in query:
            end = _position(cursors, query, "page[before]")
            start = max(0, end - size)
        else:
            start = _position(cursors, query, "page[after]") + 1 if "page[after]" in query else 0
            end = min(start + size, len(cursors))
        links = {"self": _link(query)}
        others = {name: value for name, value in query.items() if name not in ("page[after]", "page[before]")}
        if 0 < start < end:
            links["prev"] = _link({**others, "page[before]": cursors[start]})
        if start < end < len(cursors):
            last = max(start, end - 1 - overlap)
            links["next"] = _link({**others, "page[after]": cursors[last]})
        return {"calls": [rows[cursor] for cursor in cursors[start:end]], "_links": links}

    def ordered(self, calls: list[Call]) -> list[Call]:
        """Return the calls in the order in which the list has them.

        :param calls: The calls.
        """
        calls = sorted(calls, key=started)
        if self.order == "oldest":
            return calls
        if self.order == "shuffled":
            # Places are counted from the oldest, so that newer calls leave these where they are.
            places = sorted((place + _stray(call), place) for place, call in enumerate(calls))
            calls = [calls[place] for _, place in places]
        return calls[::-1]


def filtered(calls: list[Call], query: Query) -> list[Call]:
    """Return the calls that a query selects.

    :param calls: The calls.
    :param query: The parameters.
    """
    # The API's documentation says "after" and "before": a call at that very time is on neither side.
    if "start_date_from" in query:
        after = _date(query, "start_date_from")
        calls = [call for call in calls if started(call) > after]
    if "start_date_to" in query:
        before = _date(query, "start_date_to")
        calls = [call for call in calls if LONG_AGO < started(call) < before]
    for name in ("user_id", "from", "to"):
        if name in query:
            calls = [call for call in calls if call.get(name) == query[name]]
    return calls


def started(call: Call) -> datetime:
    """Return when a call began; one without a date comes before all others.

    :param call: The call.
    """
    try:
        return _aware(call["start_date"])
    except (KeyError, TypeError, ValueError):
        return LONG_AGO


def with_cursors(calls: list[Call]) -> Iterator[tuple[str, Call]]:
    """Yield each call with its cursor.

    :param calls: The calls, in order.
    """
    # An id alone is not enough: a test may list a call twice, or leave its id out.
    seen: Counter[str] = Counter()
    for call in calls:
        label = str(call.get("id"))
        seen[label] += 1
        yield base64.urlsafe_b64encode(f"{seen[label]} {label}".encode()).decode().rstrip("="), call


def _stray(call: Call) -> float:
    return zlib.crc32(str(call.get("id")).encode()) / 2**32 * 5


def _position(cursors: list[str], query: Query, parameter: str) -> int:
    try:
        return cursors.index(query[parameter])
    except ValueError:
        raise BadQueryError(parameter) from None


def _number(query: Query, parameter: str, default: int) -> int:
    text = query.get(parameter, str(default))
    if not (text.isascii() and text.isdigit() and int(text[:9])):
        raise BadQueryError(parameter)
    return int(text[:9])


def _date(query: Query, parameter: str) -> datetime:
    try:
        return _aware(query[parameter])
    except ValueError:
        raise BadQueryError(parameter) from None


def _aware(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _link(query: Query) -> dict[str, str]:
    return {"href": f"/calls?{urlencode(query)}" if query else "/calls"}
