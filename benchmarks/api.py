"""The sandbox of the API, made fit to be measured against: ``python -m benchmarks.api``, a process of its own."""

from __future__ import annotations

import argparse
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from airflow_provider_amplemarket.sandbox.calls import Call
from airflow_provider_amplemarket.sandbox.listener import Request
from airflow_provider_amplemarket.sandbox.pages import DEFAULT_SIZE, Query, filtered
from airflow_provider_amplemarket.sandbox.responses import Response

API_KEY = "sandbox-key"


class Api(Sandbox):
    """
    The sandbox with a delay, and with pages that cost the same however many there are.

    :param calls: the calls, newest first.
    :param delay: seconds before the first byte of every response.
    """

    def __init__(self, calls: list[Call], delay: float) -> None:
        super().__init__(calls=calls, api_key=API_KEY, limit=10**9)
        self._delay = delay
        self._lists: dict[str, list[Call]] = {}

    def respond(self, request: Request) -> Response | None:
        """Respond after the delay."""
        response = super().respond(request)
        self.pause(self._delay)
        return response

    def page(self, query: Query, overlap: int = 0) -> dict[str, Any]:  # noqa: ARG002
        """Return a page; a cursor is the number of calls before it."""
        others = {name: value for name, value in query.items() if name != "page[after]"}
        name = urlencode(others)
        if name not in self._lists:
            self._lists[name] = filtered(self.calls, others)
        calls = self._lists[name]
        start = int(query.get("page[after]", "0"))
        end = start + DEFAULT_SIZE
        links = {"next": {"href": f"/calls?{urlencode({**others, 'page[after]': end})}"}} if end < len(calls) else {}
        return {"calls": calls[start:end], "_links": links}


def calls_of(count: int, mebibytes: int, *, end: datetime, days: float) -> list[Call]:
    """
    Return calls, newest first, spread evenly over some days.

    :param count: how many.
    :param mebibytes: size of the recording of each.
    :param end: all of them begin before.
    :param days: over so many days.
    """
    step = timedelta(days=days) / count
    return [
        make_call(id=f"{count}-calls-{number:05}--large-{mebibytes}", start_date=end - step * (number + 0.5))
        for number in range(count)
    ]


def main() -> None:
    """Serve until terminated; the first line of output is the address."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__)
    parser.add_argument("--calls", type=int, required=True, help="how many calls there are")
    parser.add_argument("--mebibytes", type=int, default=1, help="size of each recording")
    parser.add_argument("--end", type=datetime.fromisoformat, default=datetime.now(UTC), help="calls begin before")
    parser.add_argument("--days", type=float, default=1.0, help="over so many days")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before the first byte of every response")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    calls = calls_of(options.calls, options.mebibytes, end=options.end, days=options.days)
    with Api(calls, options.delay) as api:
        print(api.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
