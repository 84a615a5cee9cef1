"""A server on the loopback interface that sends what it is told to send, and a client to ask it."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import requests

from airflow_provider_amplemarket.api.client import Client
from airflow_provider_amplemarket.api.download import Recording, download_recording
from airflow_provider_amplemarket.api.listing import CallFilter, iter_calls
from airflow_provider_amplemarket.api.settings import Settings
from airflow_provider_amplemarket.sandbox import LogEntry, Sandbox

KEY = "sandbox-key"
END = datetime(2026, 11, 20, 12, tzinfo=UTC)
MP3 = b"\xff\xfb\x90\x00" + bytes(range(256)) * 40
MIB = 1024**2

Call = dict[str, Any]


class Api:
    """
    What a script asks the API for, which notes the waits between two requests for the list instead of waiting.

    :param url: the base URL.
    :param key: the API key.
    :param timeout: seconds.
    """

    def __init__(self, url: str, key: str = KEY, timeout: float = 60.0) -> None:
        self.client = Client(Settings(base_url=url, api_key=key, limit=50, period=3600.0, timeout=timeout))
        self.waits: list[float] = []
        self.client.watchdog.sleep = self.waits.append  # type: ignore[method-assign, assignment]

    @property
    def session(self) -> requests.Session:
        return self.client.session

    @property
    def clock_skew(self) -> float:
        return self.client.clock_skew.seconds

    def iter_calls(self, **wanted: Any) -> Iterator[Call]:
        return iter_calls(self.client, CallFilter(**wanted))

    def download_recording(self, call_id: str, target: str | Path, **options: Any) -> Recording:
        return download_recording(self.client, call_id, Path(target), **options)

    def abort(self) -> None:
        self.client.watchdog.stop()


Connect = Callable[..., Api]


class RawServer:
    """
    A server that sends, byte for byte, what it is told to send, and hangs up.

    :param responses: one for each request; the last one is for all that follow, too.
    """

    def __init__(self, *responses: bytes) -> None:
        self.responses = list(responses)
        self.seen: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.seen.append((self.path, dict(self.headers.items())))
                # A client may hang up first.
                with contextlib.suppress(OSError):
                    self.wfile.write(server.responses[min(len(server.seen), len(server.responses)) - 1])
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]


def raw(body: bytes = b"", status: int = 200, **headers: str | None) -> bytes:
    """Write a response; an underscore in a header's name is a hyphen, and None takes the header away."""
    fields = {"Content-Type": "audio/mpeg", "Content-Length": str(len(body)), "Connection": "close"}
    merged: dict[str, str | None] = {**fields, **{k.replace("_", "-"): v for k, v in headers.items()}}
    head = [f"HTTP/1.1 {status} Whatever", *(f"{k}: {v}" for k, v in merged.items() if v is not None)]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def chunks(*pieces: bytes) -> bytes:
    """Write a body in chunks of these sizes."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def page(*calls: Call, **members: object) -> bytes:
    """Write a response that is a page of calls."""
    return raw(json.dumps({"calls": calls, **members}).encode(), Content_Type="application/json")


def pages_of(calls: list[Call], size: int) -> list[bytes]:
    """Write responses that are pages of calls, in this order."""
    starts = range(0, len(calls), size)
    links = [{"next": {"href": f"?page={start}"}} for start in starts[1:]]
    return [page(*calls[start : start + size], _links=link) for start, link in zip(starts, [*links, {}], strict=True)]


def problem(**fields: object) -> bytes:
    """Write the body of an error in the shape that the API documents."""
    return json.dumps({"object": "error", "_errors": [fields]}).encode()


def echo(key: str, escape: bool) -> bytes:
    """Write an error with the key in every field, with all that may be escaped in JSON escaped, or not."""
    text = "".join(f"\\u{ord(character):04x}" for character in key) if escape else json.dumps(key)[1:-1]
    fields = ", ".join(f'"{name}": "Bearer {text}"' for name in ("code", "title", "detail"))
    return f'{{"_errors": [{{{fields}}}]}}'.encode()


def download(api: Api, call_id: str, target: Path, **options: Any) -> Recording:
    return api.download_recording(call_id, target, **options)


def ids(calls: Iterator[Call] | list[Call]) -> list[Any]:
    return [call.get("id") for call in calls]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Leave out that Airflow 3.0 tells of the connection."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def list_requests(sandbox: Sandbox) -> list[LogEntry]:
    return [entry for entry in sandbox.log if entry.path == "/calls"]


def everything_said(error: BaseException) -> str:
    """Return all that an exception, and those behind it, could tell a log: texts, attributes, requests."""
    said: list[str] = []
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        said += [str(item), repr(item)]
        if isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            left += item
        elif isinstance(item, BaseException):
            left += [item.args, vars(item), item.__cause__, item.__context__]
        elif isinstance(item, requests.PreparedRequest | requests.Response):
            left += vars(item).values()
    return "\n".join(said)
