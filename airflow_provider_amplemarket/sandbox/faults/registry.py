"""The tables of faults, and what a fault is given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_amplemarket.sandbox.responses import Response

if TYPE_CHECKING:
    from airflow_provider_amplemarket.sandbox.listener import Request
    from airflow_provider_amplemarket.sandbox.server import Sandbox

AUDIO = "audio/mpeg"
PROXY_PAGE = b"<!DOCTYPE html>\n<html><title>Oops</title><body><h1>Please try again</h1></body></html>\n"


@dataclass
class Exchange:
    """A request and the healthy response to it, as a fault sees them.

    ``attempt`` counts this call's requests for a recording, from 1; ``number`` is the N of the fault's name.
    """

    sandbox: Sandbox
    request: Request
    healthy: Response
    call_id: str = ""
    attempt: int = 1
    number: int = 0

    @property
    def payload(self) -> bytes:
        """The body of the healthy response."""
        return b"".join(self.healthy.body)

    @property
    def half(self) -> bytes:
        """The first half of it."""
        return self.payload[: len(self.payload) // 2]

    @property
    def page(self) -> dict[str, Any]:
        """The body, read as a page of calls."""
        return dict(json.loads(self.payload))

    def changed(self, headers: Mapping[str, str | None], **fields: Any) -> Response:
        """Return the healthy response with some of its headers changed.

        :param headers: Their new values; None takes a header away.
        :param fields: Other fields of the response to change.
        """
        merged: dict[str, str | None] = {**self.healthy.headers, **headers}
        kept = {name: value for name, value in merged.items() if value is not None}
        return replace(self.healthy, headers=kept, **fields)

    def chunked(self, **fields: Any) -> Response:
        """Return the healthy response, sent in chunks.

        :param fields: Other fields of the response to change.
        """
        return self.changed({"Content-Length": None, "Transfer-Encoding": "chunked"}, **fields)


Fault = Callable[[Exchange], Response | None]
AnyFault = TypeVar("AnyFault", bound=Fault)
Faults = dict[str, Fault]

RECORDING_FAULTS: Faults = {}
LIST_FAULTS: Faults = {}


def fault(name: str, *tables: Faults) -> Callable[[AnyFault], AnyFault]:
    """Add a function to the tables under a fault's name.

    :param name: The name; a final ``-N`` stands for any whole number.
    :param tables: The tables, by default those of recordings and of lists.
    """

    def enter(function: AnyFault) -> AnyFault:
        for table in tables or (RECORDING_FAULTS, LIST_FAULTS):
            table[name] = function
        return function

    return enter


def find(name: str, table: Faults) -> tuple[Fault, int] | None:
    """Return the fault of a name and the number in the name, or None if there is no such fault.

    :param name: A text that may be a fault's name.
    :param table: The faults to look among.
    """
    if name in table and not name.endswith("-N"):
        return table[name], 0
    numbered = re.fullmatch(r"(.+)-([0-9]{1,6})", name)
    if numbered and f"{numbered[1]}-N" in table:
        return table[f"{numbered[1]}-N"], int(numbered[2])
    return None


def known(name: str, table: Faults) -> str:
    """Return a fault's name, or raise ValueError if there is no such fault.

    :param name: The name.
    :param table: The faults to look among.
    """
    if not find(name, table):
        raise ValueError(f"{name!r} is not a fault; use one of: {', '.join(sorted(table))}")
    return name


def go_wrong(name: str, table: Faults, exchange: Exchange) -> Response | None:
    """Return what a fault makes of an exchange.

    :param name: The fault's name.
    :param table: The faults to look among.
    :param exchange: The request and the healthy response.
    """
    found = find(known(name, table), table)
    assert found
    function, exchange.number = found
    return function(exchange)
