"""A client without any cleverness, as the sandbox's tests need one."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

from airflow_provider_amplemarket.sandbox import Sandbox

END = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEY = "sandbox-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}


Row = dict[str, Any]
Query = Mapping[str, str | int]


@dataclass
class Got:
    """What a client without any cleverness got from one request."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    problem: BaseException | None = None

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        document = self.json()
        assert document["object"] == "error"
        (error,) = document["_errors"]
        assert {"code", "title", "detail"} <= set(error)
        return dict(error)


def get(
    base: str,
    path: str,
    query: Query | None = None,
    *,
    key: str | None = KEY,
    method: str = "GET",
    timeout: float = 10,
) -> Got:
    """Send one request on a connection of its own, and follow nothing."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=timeout)
    got = Got()
    try:
        target = f"{path}?{urlencode(query)}" if query else path
        connection.request(method, target, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        got.status = response.status
        got.headers = {name.lower(): value for name, value in response.getheaders()}
        got.body = response.read()
    except http.client.IncompleteRead as problem:
        got.body, got.problem = problem.partial, problem
    except (http.client.HTTPException, OSError) as problem:
        got.problem = problem
    finally:
        connection.close()
    return got


def fetch(sandbox: Sandbox, call_id: str, **options: Any) -> Got:
    """Ask for a recording."""
    return get(sandbox.url, f"/calls/{call_id}/recording", **options)


def walk(sandbox: Sandbox, query: Query | None = None, *, link: str = "next", href: str = "/calls") -> list[list[Row]]:
    """Follow the links from page to page, and return the rows of each."""
    pages = []
    got = get(sandbox.url, href, query)
    while True:
        assert got.status == 200
        pages.append(got.json()["calls"])
        if link not in got.json()["_links"]:
            return pages
        got = get(sandbox.url, got.json()["_links"][link]["href"])


def ids(pages: list[list[Row]]) -> list[str]:
    return [row["id"] for page in pages for row in page]


def good_call(sandbox: Sandbox) -> str:
    return str(next(call["id"] for call in sandbox.calls if not call["external"]))
