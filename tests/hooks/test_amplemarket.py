"""The hook against a server on the loopback interface: the list, one recording at a time, and the session."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import logging
import socket
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

import pendulum
import pytest
import requests

from airflow_provider_amplemarket import __version__
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConfigurationError,
    AmplemarketConnectionError,
    AmplemarketError,
    AuthenticationError,
    InvalidRecordingError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
    RequestAbortedError,
)
from airflow_provider_amplemarket.hooks import amplemarket
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook, BearerAuth, Recording
from airflow_provider_amplemarket.sandbox import LogEntry, Sandbox, make_call, make_calls
from tests.api.drips import Drips

KEY = "sandbox-key"
END = datetime(2026, 11, 20, 12, tzinfo=UTC)
MP3 = b"\xff\xfb\x90\x00" + bytes(range(256)) * 40
MIB = 1024**2

Connect = Callable[..., "Hook"]
Call = dict[str, Any]


class Hook(AmplemarketHook):
    """The hook, which notes the waits between two requests for the list instead of waiting."""

    # Airflow's own logger goes to another place from version to version.
    log = logging.getLogger("tests.hook")  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


class RawServer:
    """
    A server that sends, byte for byte, what it is told to send, and hangs up.

    :param answers: one for each request; the last one is for all that follow, too.
    """

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.seen.append((self.path, dict(self.headers.items())))
                # A client may hang up first.
                with contextlib.suppress(OSError):
                    self.wfile.write(server.answers[min(len(server.seen), len(server.answers)) - 1])
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
    """Write an answer; an underscore in a header's name is a hyphen, and None takes the header away."""
    fields = {"Content-Type": "audio/mpeg", "Content-Length": str(len(body)), "Connection": "close"}
    merged: dict[str, str | None] = {**fields, **{k.replace("_", "-"): v for k, v in headers.items()}}
    head = [f"HTTP/1.1 {status} Whatever", *(f"{k}: {v}" for k, v in merged.items() if v is not None)]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def chunks(*pieces: bytes) -> bytes:
    """Write a body in chunks of these sizes."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def page(*calls: Call, **members: object) -> bytes:
    """Write an answer that is a page of calls."""
    return raw(json.dumps({"calls": calls, **members}).encode(), Content_Type="application/json")


def pages_of(calls: list[Call], size: int) -> list[bytes]:
    """Write answers that are pages of calls, in this order."""
    starts = range(0, len(calls), size)
    links = [{"next": {"href": f"?page={start}"}} for start in starts[1:]]
    return [page(*calls[start : start + size], _links=link) for start, link in zip(starts, [*links, {}], strict=True)]


def problem(**fields: object) -> bytes:
    """Write the body of an error in the shape that the API documents."""
    return json.dumps({"object": "error", "_errors": [fields]}).encode()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Give a function that makes the connection and answers a hook for it."""

    def connect(url: str, key: str = KEY, **extra: object) -> Hook:
        connection = {"conn_type": "amplemarket", "host": url, "password": key, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(connection))
        return Hook()

    return connect


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Give the file to download to, alone in its directory."""
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads" / "recording.part"


def ids(calls: Iterator[Call] | list[Call]) -> list[Any]:
    return [call.get("id") for call in calls]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Leave out that Airflow 3.0 tells of the connection."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def list_requests(sandbox: Sandbox) -> list[LogEntry]:
    return [entry for entry in sandbox.log if entry.path == "/calls"]


def everything_said(error: BaseException) -> str:
    """Answer all that an exception, and those behind it, could tell a log: texts, attributes, requests."""
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


class TestListingCalls:
    @pytest.mark.parametrize("honour_filters", [True, False])
    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    def test_every_call_comes_once_from_all_pages(self, connect: Connect, order: Any, honour_filters: bool) -> None:
        calls = make_calls(50, end=END)
        with Sandbox(calls=calls, order=order, honour_filters=honour_filters, page_size=7) as sandbox:
            found = list(connect(sandbox.url).iter_calls())
        assert len(list_requests(sandbox)) == 8
        assert sorted(ids(found)) == sorted(ids(calls))
        assert sorted(found, key=lambda call: call["id"]) == sorted(calls, key=lambda call: call["id"])

    @pytest.mark.parametrize("honour_filters", [True, False])
    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    def test_the_window_has_its_start_and_not_its_end(self, connect: Connect, order: Any, honour_filters: bool) -> None:
        start, end = END - timedelta(days=2), END - timedelta(days=1)
        second = timedelta(seconds=1)
        edge = {"before": start - second, "first": start, "last": end - second, "after": end}
        calls = make_calls(80, end=END, days=4) + [
            make_call(id=name, start_date=moment) for name, moment in edge.items()
        ]
        wanted = [call["id"] for call in calls if start <= datetime.fromisoformat(call["start_date"]) < end]
        assert {"first", "last"} < set(wanted)
        with Sandbox(calls=calls, order=order, honour_filters=honour_filters, page_size=9) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=start, end=end))
        assert sorted(found) == sorted(wanted)

    def test_the_filters_are_asked_for_in_utc_with_a_second_to_spare(self, connect: Connect) -> None:
        start = pendulum.datetime(2026, 11, 20, 1, tz="Europe/Berlin")
        with Sandbox() as sandbox:
            list(connect(sandbox.url).iter_calls(start=start, end=END, user_id="a&b"))
        assert parse_qs(list_requests(sandbox)[0].query) == {
            "start_date_from": ["2026-11-19T23:59:59Z"],
            "start_date_to": ["2026-11-20T12:00:01Z"],
            "user_id": ["a&b"],
        }

    def test_no_filter_is_asked_for_that_was_not_given(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            assert list(connect(sandbox.url).iter_calls()) == []
        assert [entry.query for entry in sandbox.log] == [""]

    @pytest.mark.parametrize(("order", "most"), [("newest", 5), ("shuffled", 6), ("oldest", 20)])
    def test_reading_stops_after_some_pages_that_are_wholly_older_unless_newer_ones_follow(
        self, connect: Connect, order: Any, most: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = make_calls(200, end=END, days=20)
        with Sandbox(calls=calls, order=order, honour_filters=False, page_size=10) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=END - timedelta(days=1)))
        assert sorted(found) == sorted(ids(calls[:10]))
        # One page of the window, one within the margin, and three that are older.
        assert len(list_requests(sandbox)) <= most
        assert "older than the window" not in caplog.text

    @pytest.mark.parametrize("late", [20, 39, 60])
    def test_old_calls_that_were_logged_late_do_not_hide_the_newest(
        self, connect: Connect, late: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = make_calls(200, end=END, days=20)
        logged_late = [make_call(id=f"late-{n}", start_date=END - timedelta(days=40, minutes=n)) for n in range(late)]
        with RawServer(*pages_of([*logged_late, *calls], 20)) as server:
            found = ids(connect(server.url).iter_calls(start=END - timedelta(days=1)))
        assert found == ids(calls[:10])
        assert [record.levelname for record in warnings_in(caplog)] == ["WARNING"]
        assert "begins at 2026-11-19" in caplog.text
        assert "call_ids" in caplog.text

    def test_old_calls_between_newer_ones_do_not_hide_those_that_follow(self, connect: Connect) -> None:
        calls = make_calls(60, end=END, days=0.9)
        old = [make_call(id=f"old-{n}", start_date=END - timedelta(days=9, minutes=n)) for n in range(40)]
        with RawServer(*pages_of([*calls[:20], *old, *calls[20:]], 20)) as server:
            found = ids(connect(server.url).iter_calls(start=END - timedelta(days=1)))
        assert found == ids(calls)

    def test_a_list_of_nothing_but_older_calls_is_not_read_to_its_end(
        self, connect: Connect, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = make_calls(400, end=END - timedelta(days=3), days=300)
        with Sandbox(calls=calls, honour_filters=False) as sandbox:
            assert list(connect(sandbox.url).iter_calls(start=END - timedelta(days=1))) == []
        assert len(list_requests(sandbox)) == 10
        assert len(warnings_in(caplog)) == 1

    def test_calls_just_before_the_window_do_not_count_as_older(self, connect: Connect) -> None:
        before = [make_call(id=f"before-{n}", start_date=END - timedelta(days=1, minutes=n)) for n in range(1, 241)]
        within = make_call(id="within", start_date=END - timedelta(hours=1))
        with RawServer(*pages_of([*before, within], 20)) as server:
            assert ids(connect(server.url).iter_calls(start=END - timedelta(days=1))) == ["within"]

    @pytest.mark.parametrize("user_id", [7, "7"])
    def test_a_user_may_be_a_number(self, connect: Connect, user_id: int | str) -> None:
        rows = [make_call(id=f"of-{user!r}", start_date=END, user_id=user) for user in (7, "7", 8, None)]
        with Sandbox(calls=rows, honour_filters=False) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(user_id=user_id))
        assert sorted(found) == ["of-'7'", "of-7"]
        assert parse_qs(list_requests(sandbox)[0].query) == {"user_id": ["7"]}

    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    def test_a_page_of_one_old_call_says_nothing_of_those_that_follow(self, connect: Connect, order: Any) -> None:
        calls = make_calls(6, end=END, days=6)
        with Sandbox(calls=calls, order=order, honour_filters=False, page_size=1) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=END - timedelta(days=3)))
        assert sorted(found) == sorted(ids(calls[:3]))

    def test_a_page_with_an_undated_call_does_not_end_the_reading(self, connect: Connect) -> None:
        old = [make_call(id=f"old-{n}", start_date=END - timedelta(days=9, minutes=n)) for n in range(2)]
        pages = [
            page(old[0], {"id": "undated"}, old[1], _links={"next": {"href": "?page=2"}}),
            page({"id": "undated-too"}, _links={"next": {"href": "?page=3"}}),
            page(make_call(id="new", start_date=END)),
        ]
        with RawServer(*pages) as server:
            found = ids(connect(server.url).iter_calls(start=END - timedelta(days=1)))
        assert found == ["undated", "undated-too", "new"]

    def test_rows_that_are_repeated_come_once(self, connect: Connect) -> None:
        calls = make_calls(12, end=END)
        with Sandbox(calls=[*calls, calls[0], calls[5]], page_size=4) as sandbox:
            sandbox.list_faults.extend(["repeat", "repeat", "repeat"])
            found = ids(connect(sandbox.url).iter_calls())
        assert sorted(found) == sorted(ids(calls))

    def test_rows_with_nothing_but_an_id_and_unknown_fields_come_as_they_are(self, connect: Connect) -> None:
        rows = [{"id": "bare"}, make_call(id="rich", start_date=END, mood={"score": [1, None]})]
        with Sandbox(calls=rows, honour_filters=False) as sandbox:
            found = list(connect(sandbox.url).iter_calls(user_id=rows[1]["user_id"]))
        assert sorted(found, key=lambda call: call["id"]) == rows

    def test_rows_without_an_id_are_not_taken_for_repetitions(self, connect: Connect) -> None:
        rows: list[Call] = [{"duration": 1}, {"duration": 2}, {"id": None, "duration": 3}]
        with Sandbox(calls=rows) as sandbox:
            found = [call["duration"] for call in connect(sandbox.url).iter_calls()]
        assert sorted(found) == [1, 2, 3]

    @pytest.mark.parametrize("moment", [None, "", "yesterday", 1763640000, ["2026-11-20"], "2026-13-45", "9" * 80])
    def test_a_call_whose_start_cannot_be_read_is_in_every_window(self, connect: Connect, moment: object) -> None:
        row = {**make_call(id="undated", start_date=END), "start_date": moment}
        with Sandbox(calls=[row, *make_calls(3, end=END)], honour_filters=False) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=END + timedelta(days=1), end=END + timedelta(days=2)))
        assert found == ["undated"]

    @pytest.mark.parametrize("honour_filters", [True, False])
    def test_only_the_calls_of_the_user_come(self, connect: Connect, honour_filters: bool) -> None:
        calls = make_calls(40, end=END)
        user = calls[0]["user_id"]
        wanted = [call["id"] for call in calls if call["user_id"] == user]
        assert 0 < len(wanted) < 40
        with Sandbox(calls=calls, honour_filters=honour_filters) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(user_id=user))
        assert sorted(found) == sorted(wanted)

    def test_pages_are_read_only_as_they_are_needed(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(60, end=END)) as sandbox:
            calls = connect(sandbox.url).iter_calls()
            assert sandbox.log == []
            for _ in range(20):
                next(calls)
            assert len(list_requests(sandbox)) == 1
            next(calls)
            assert len(list_requests(sandbox)) == 2

    def test_listing_never_asks_for_a_recording(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(30, end=END)) as sandbox:
            list(connect(sandbox.url).iter_calls())
        assert sandbox.recording_requests() == []


class TestListingCallsFromATroubledServer:
    @pytest.mark.parametrize(
        "fault",
        ["too-many", "too-many-3", "error-500", "error-503", "error-503-html", "refuse", "reset", "cut", "cut-chunked"],
    )
    @pytest.mark.parametrize("healthy_pages", [0, 1])
    def test_a_passing_fault_is_waited_out(self, connect: Connect, fault: str, healthy_pages: int) -> None:
        calls = make_calls(30, end=END)
        with Sandbox(calls=calls) as sandbox:
            sandbox.list_faults.extend([*["ok"] * healthy_pages, fault, fault])
            hook = connect(sandbox.url)
            found = ids(hook.iter_calls())
        assert sorted(found) == sorted(ids(calls))
        assert len(list_requests(sandbox)) == 4
        assert len(hook.waits) == 2

    def test_a_server_that_hangs_is_asked_again_after_the_timeout(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.append("hang")
            assert len(ids(connect(sandbox.url, timeout=0.2).iter_calls())) == 3

    @pytest.mark.parametrize(("retry_after", "waited"), [(0, 0), (7, 7), (60, 60), (900, 60)])
    def test_retry_after_is_honoured_up_to_a_minute(self, connect: Connect, retry_after: int, waited: float) -> None:
        with Sandbox() as sandbox:
            sandbox.list_faults.append(f"too-many-{retry_after}")
            hook = connect(sandbox.url)
            list(hook.iter_calls())
        assert hook.waits == [waited]

    def test_the_hook_as_it_is_waits_for_real(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            sandbox.list_faults.append("too-many-1")
            connect(sandbox.url)
            assert list(AmplemarketHook().iter_calls()) == []
        first, second = list_requests(sandbox)
        assert second.time - first.time >= 1

    @pytest.mark.parametrize(
        ("fault", "error", "status"),
        [
            ("too-many", RateLimitExceededError, 429),
            ("too-many-2", RateLimitExceededError, 429),
            ("error-500", AmplemarketAPIError, 500),
            ("error-503-html", AmplemarketAPIError, 503),
            ("refuse", AmplemarketConnectionError, None),
            ("cut", AmplemarketConnectionError, None),
        ],
    )
    def test_a_fault_that_does_not_pass_ends_it_after_a_bounded_wait(
        self, connect: Connect, fault: str, error: type[AmplemarketAPIError], status: int | None
    ) -> None:
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.extend([fault] * 50)
            hook = connect(sandbox.url)
            with pytest.raises(error) as caught:
                list(hook.iter_calls())
        assert type(caught.value) is error
        assert caught.value.status == status
        assert len(list_requests(sandbox)) == 6
        assert len(hook.waits) == 5
        assert all(0 <= wait <= 60 for wait in hook.waits)

    def test_a_server_that_is_down_is_given_up(self, connect: Connect) -> None:
        sandbox = Sandbox()
        with sandbox:
            hook = connect(sandbox.url)
        with pytest.raises(AmplemarketConnectionError, match="no answer"):
            list(hook.iter_calls())
        assert len(hook.waits) == 5

    @pytest.mark.parametrize("fault", ["unauthorized", "forbidden"])
    def test_a_refused_key_is_not_tried_again(self, connect: Connect, fault: str) -> None:
        with Sandbox() as sandbox:
            sandbox.list_faults.append(fault)
            with pytest.raises(AuthenticationError, match="amplemarket_default") as caught:
                list(connect(sandbox.url).iter_calls())
        assert caught.value.status in (401, 403)
        assert caught.value.code in ("unauthorized", "forbidden")
        assert len(sandbox.log) == 1

    @pytest.mark.parametrize(
        "fault",
        [
            "not-json",
            "html",
            "empty",
            "not-a-list",
            "row-not-object",
            "giant",
            "gzip",
            "gzip-bomb",
            "short-length",
            "unsized-cut",
            "partial",
            "redirect-loop",
            "loop",
            "next-away",
            "next-http",
        ],
    )
    def test_an_answer_that_makes_no_sense_is_an_error_at_once(self, connect: Connect, fault: str) -> None:
        with Sandbox(calls=make_calls(30, end=END)) as sandbox:
            sandbox.list_faults.append(fault)
            hook = connect(sandbox.url)
            with pytest.raises(AmplemarketAPIError, match="GET /calls") as caught:
                list(hook.iter_calls())
            assert type(caught.value) is AmplemarketAPIError
            assert len(sandbox.log) == 1
            assert hook.waits == []
            # The faults are over: the same hook works again.
            assert len(ids(hook.iter_calls())) == 30

    @pytest.mark.parametrize("fault", ["giant", "gzip-bomb"])
    def test_a_page_without_bounds_costs_bounded_memory(
        self, connect: Connect, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        monkeypatch.setattr(amplemarket, "MAX_PAGE_SIZE", 2 * MIB)
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.append(fault)
            hook = connect(sandbox.url)
            tracemalloc.start()
            try:
                with pytest.raises(AmplemarketAPIError):
                    list(hook.iter_calls())
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert peak < 24 * MIB

    @pytest.mark.parametrize("fault", ["no-type", "chunked", "unsized"])
    def test_a_whole_page_in_an_unusual_frame_is_read(self, connect: Connect, fault: str) -> None:
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.append(fault)
            assert len(ids(connect(sandbox.url).iter_calls())) == 3

    def test_a_page_without_links_is_the_last(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(30, end=END)) as sandbox:
            sandbox.list_faults.append("no-links")
            assert len(ids(connect(sandbox.url).iter_calls())) == 20

    @pytest.mark.parametrize(
        "links", [None, [], "next", {}, {"next": None}, {"next": "?page=2"}, {"next": {}}, {"next": {"href": ""}}]
    )
    def test_a_link_that_is_not_there_ends_the_list(self, connect: Connect, links: object) -> None:
        with RawServer(page({"id": "a"}, _links=links)) as server:
            assert ids(connect(server.url).iter_calls()) == ["a"]
        assert server.paths == ["/calls"]

    @pytest.mark.parametrize("href", ["?page=2", "/calls?page=2", "calls?page=2", "{url}/calls?page=2"])
    @pytest.mark.parametrize("prefix", ["", "/api/v1"])
    def test_a_link_is_followed_below_the_base_url(self, connect: Connect, href: str, prefix: str) -> None:
        with RawServer() as server:
            base = server.url + prefix
            link = {"next": {"href": href.format(url=base)}}
            server.answers += [page({"id": "a"}, _links=link), page({"id": "b"})]
            assert ids(connect(base).iter_calls()) == ["a", "b"]
        assert server.paths == [f"{prefix}/calls", f"{prefix}/calls?page=2"]

    @pytest.mark.parametrize(
        "href",
        [
            "/calls/abc/recording",
            "calls/abc/recording",
            "/calls/%61bc/recording",
            "/calls/abc%2Frecording",
            "/calls/../calls/abc/recording",
            "/calls/abc/recording?page=2",
            "/calls/",
            "/account-info",
            "//127.0.0.1:9/calls",
            "https://127.0.0.1/calls",
            "http://127.0.0.1:9/calls",
            "http://api.example.com/calls",
            "file:///etc/hostname",
            "http://[oops/calls",
            "http://127.0.0.1:port/calls",
            7,
            ["/calls"],
        ],
    )
    def test_a_link_that_leads_elsewhere_is_refused(self, connect: Connect, href: object) -> None:
        with RawServer(page({"id": "a"}, _links={"next": {"href": href}})) as server:
            calls = connect(server.url).iter_calls()
            assert next(calls) == {"id": "a"}
            with pytest.raises(AmplemarketAPIError, match="link to the next page"):
                next(calls)
        assert server.paths == ["/calls"]

    def test_a_link_to_a_recording_on_the_own_host_costs_no_permit(self, connect: Connect) -> None:
        calls = make_calls(1, end=END)
        with Sandbox(calls=calls) as sandbox:
            link = {"next": {"href": f"{sandbox.url}/calls/{calls[0]['id']}/recording"}}
            with RawServer(page(_links=link)) as server, pytest.raises(AmplemarketAPIError, match="elsewhere"):
                list(connect(server.url).iter_calls())
            assert sandbox.log == []

    def test_pages_that_never_end_are_given_up(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(amplemarket, "MAX_PAGES", 3)
        with (
            Sandbox(calls=make_calls(40, end=END), page_size=5) as sandbox,
            pytest.raises(AmplemarketAPIError, match=r"do not end \(3 read\)"),
        ):
            list(connect(sandbox.url).iter_calls())
        assert len(sandbox.log) == 3

    @pytest.mark.parametrize("body", [b"[" * 200_000, b"\xff\xfe", b"null", b"[]", b'{"calls": null}', b"{}"])
    def test_json_of_another_shape_is_an_error(self, connect: Connect, body: bytes) -> None:
        with RawServer(raw(body)) as server, pytest.raises(AmplemarketAPIError, match="GET /calls: the answer"):
            list(connect(server.url).iter_calls())

    def test_a_wait_is_logged_without_the_key(self, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
        with Sandbox() as sandbox, caplog.at_level(logging.DEBUG):
            sandbox.list_faults.extend(["echo-key", "too-many-5"])
            list(connect(sandbox.url).iter_calls())
        assert "asking again in 5 s" in caplog.text
        assert "internal_server_error" in caplog.text
        assert KEY not in caplog.text


@pytest.mark.parametrize("key", [KEY, 'quo"te-back\\slash-sl/ash-<tag>'])
@pytest.mark.parametrize("escape", [True, False])
class TestAnAnswerThatEchoesTheKey:
    def body(self, key: str, escape: bool) -> bytes:
        """Answer an error with the key in every field, with all that may be escaped in JSON escaped, or not."""
        text = "".join(f"\\u{ord(character):04x}" for character in key) if escape else json.dumps(key)[1:-1]
        fields = ", ".join(f'"{name}": "Bearer {text}"' for name in ("code", "title", "detail"))
        return f'{{"_errors": [{{{fields}}}]}}'.encode()

    @pytest.mark.parametrize("status", [401, 429, 500])
    def test_an_error_for_a_recording_does_not_show_it(
        self, connect: Connect, target: Path, key: str, escape: bool, status: int
    ) -> None:
        with (
            RawServer(raw(self.body(key, escape), status)) as server,
            pytest.raises(AmplemarketAPIError) as caught,
        ):
            connect(server.url, key).download_recording("abc", target)
        assert caught.value.detail == "Bearer ***"
        assert key not in everything_said(caught.value)

    def test_an_error_for_the_list_does_not_show_it(self, connect: Connect, key: str, escape: bool) -> None:
        with (
            RawServer(raw(self.body(key, escape), 400)) as server,
            pytest.raises(AmplemarketAPIError) as caught,
        ):
            list(connect(server.url, key).iter_calls())
        assert key not in everything_said(caught.value)

    def test_a_call_does_not_carry_it(self, connect: Connect, key: str, escape: bool) -> None:
        body = self.body(key, escape).replace(b"_errors", b"calls")
        with RawServer(raw(body)) as server:
            (call,) = connect(server.url, key).iter_calls()
        assert call["detail"] == "Bearer ***"

    def test_a_test_of_the_connection_does_not_show_it(self, connect: Connect, key: str, escape: bool) -> None:
        with RawServer(raw(self.body(key, escape), 500)) as server:
            ok, message = connect(server.url, key).test_connection()
        assert not ok
        assert key not in message


def download(hook: Hook, call_id: str, target: Path, **options: Any) -> Recording:
    return hook.download_recording(call_id, target, **options)


class TestDownloadingARecording:
    @pytest.mark.parametrize("fault", ["ok", "chunked", "large-3", "redirect", "redirect-away"])
    def test_the_file_has_the_bytes_that_were_served(self, connect: Connect, target: Path, fault: str) -> None:
        call = make_call(id=f"abc--{fault}", start_date=END)
        with Sandbox(calls=[call]) as sandbox:
            found = download(connect(sandbox.url), call["id"], target)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == sandbox.recording_sha256(call["id"])
        assert target.stat().st_size == sandbox.recording_size(call["id"])
        assert found == Recording(
            call_id=call["id"],
            size=sandbox.recording_size(call["id"]),
            sha256=sandbox.recording_sha256(call["id"]),
            content_type="audio/mpeg",
            is_mpeg=True,
            requested_at=found.requested_at,
            answered_at=found.answered_at,
            received_at=found.received_at,
        )
        assert len(sandbox.recording_requests()) == 1

    def test_a_body_may_take_longer_than_the_timeout_and_the_times_tell(self, connect: Connect, target: Path) -> None:
        before = datetime.now(UTC)
        with Sandbox(calls=[make_call(id="abc--drip", start_date=END)]) as sandbox:
            found = download(connect(sandbox.url, timeout=1.5), "abc--drip", target)
            assert target.read_bytes() == sandbox.recording("abc--drip")
        assert before <= found.requested_at <= found.answered_at < found.received_at <= datetime.now(UTC)
        assert found.answered_at - found.requested_at < timedelta(seconds=1)
        assert found.received_at - found.answered_at > timedelta(seconds=2)
        assert all(moment.utcoffset() == timedelta(0) for moment in (found.requested_at, found.received_at))

    @pytest.mark.parametrize("name", [str, Path])
    def test_an_older_file_is_replaced(self, connect: Connect, target: Path, name: type) -> None:
        target.write_bytes(bytes(10 * MIB))
        with RawServer(raw(MP3)) as server:
            connect(server.url).download_recording("abc", name(target))
        assert target.read_bytes() == MP3

    @pytest.mark.parametrize(
        ("content_type", "told"),
        [("audio/mpeg; charset=binary", "audio/mpeg"), ("Audio/X-WAV", "audio/x-wav"), (" audio/ogg", "audio/ogg")],
    )
    def test_the_media_type_is_told_without_parameters(
        self, connect: Connect, target: Path, content_type: str, told: str
    ) -> None:
        with RawServer(raw(MP3, Content_Type=content_type)) as server:
            assert download(connect(server.url), "abc", target).content_type == told

    def test_audio_that_is_not_mpeg_is_taken_and_marked(self, connect: Connect, target: Path) -> None:
        with Sandbox() as sandbox:
            found = download(connect(sandbox.url), "abc--not-mpeg", target)
        assert not found.is_mpeg
        assert found.size == target.stat().st_size == 8_000

    @pytest.mark.parametrize("opening", [b"I", b"ID3", MP3[:1], MP3[:3]])
    def test_audio_is_known_by_its_beginning_however_small_the_first_chunk(
        self, connect: Connect, target: Path, opening: bytes
    ) -> None:
        body = opening + (b"ID3\x03" + MP3 if opening[:1] == b"I" else MP3)[len(opening) :]
        answer = raw(chunks(opening, body[len(opening) :]), Content_Length=None, Transfer_Encoding="chunked")
        with RawServer(answer) as server:
            found = download(connect(server.url), "abc", target)
        assert found.is_mpeg
        assert target.read_bytes() == body

    @pytest.mark.parametrize("opening", [1, 5])
    def test_text_is_known_by_its_beginning_however_small_the_first_chunk(
        self, connect: Connect, target: Path, opening: int
    ) -> None:
        text = b"<html><body>Please try again</body></html>"
        pieces = chunks(text[:opening], text[opening:])
        with (
            RawServer(raw(pieces, Content_Length=None, Transfer_Encoding="chunked")) as server,
            pytest.raises(InvalidRecordingError, match="text"),
        ):
            download(connect(server.url), "abc", target)

    def test_a_large_recording_costs_little_memory(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--large-64", start_date=END)]) as sandbox:
            hook = connect(sandbox.url)
            tracemalloc.start()
            try:
                found = download(hook, "abc--large-64", target)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert found.size == 64 * MIB
        assert found.sha256 == sandbox.recording_sha256("abc--large-64")
        assert peak < 24 * MIB

    @pytest.mark.parametrize(
        "call_id", ["", ".", "..", "a/b", "a/../b", "a b", "a?b", "a#b", "a%2Fb", "ä", "a\n", "x" * 129, None, 7, b"a"]
    )
    def test_an_id_that_is_no_plain_token_is_never_sent(self, connect: Connect, target: Path, call_id: Any) -> None:
        with Sandbox() as sandbox:
            with pytest.raises(AmplemarketConfigurationError, match="call_id"):
                download(connect(sandbox.url), call_id, target)
            assert sandbox.log == []


REFUSALS = [
    ("not-found", RecordingNotFoundError, 404, "not_found"),
    ("too-large", RecordingTooLargeError, 413, "content_too_large"),
    ("too-many", RateLimitExceededError, 429, "too_many_requests"),
    ("too-many-120", RateLimitExceededError, 429, "too_many_requests"),
    ("unauthorized", AuthenticationError, 401, "unauthorized"),
    ("forbidden", RecordingForbiddenError, 403, "forbidden"),
    ("error-500", AmplemarketAPIError, 500, "internal_server_error"),
    ("error-503", AmplemarketAPIError, 503, "service_unavailable"),
    ("error-503-html", AmplemarketAPIError, 503, None),
    ("echo-key", AmplemarketAPIError, 500, "internal_server_error"),
    ("partial", AmplemarketAPIError, 206, None),
    ("redirect-loop", AmplemarketAPIError, 302, None),
    ("redirect-http", AmplemarketAPIError, 302, None),
]
NO_ANSWERS = ["refuse", "hang"]
INVALID = [
    ("cut", r"cut short after \d+ of \d+ bytes"),
    ("cut-chunked", "cut short after .* of an unknown number of bytes"),
    ("reset", "cut short"),
    ("unsized", "neither a length nor chunks"),
    ("unsized-cut", "neither a length nor chunks"),
    ("empty", "empty"),
    ("html", "text/html"),
    ("json", "application/json"),
    ("octet-stream", "application/octet-stream"),
    ("no-type", "missing"),
    ("html-as-audio", "text"),
    ("json-as-audio", "text"),
    ("gzip", "compressed"),
    ("gzip-bomb", "compressed"),
]


class TestARecordingThatDoesNotCome:
    @pytest.mark.parametrize(("fault", "error", "status", "code"), REFUSALS)
    def test_the_answer_becomes_an_error_in_the_words_of_the_api(
        self,
        connect: Connect,
        target: Path,
        fault: str,
        error: type[AmplemarketAPIError],
        status: int,
        code: str | None,
    ) -> None:
        with Sandbox() as sandbox, pytest.raises(AmplemarketAPIError) as caught:
            download(connect(sandbox.url), f"abc--{fault}", target)
        assert type(caught.value) is error
        assert caught.value.status == status
        assert caught.value.code == code
        assert (caught.value.title is None) == (code is None)
        assert (caught.value.detail is None) == (code is None)
        assert code is None or code in str(caught.value)

    def test_the_words_of_the_api_are_kept(self, connect: Connect, target: Path) -> None:
        with Sandbox() as sandbox, pytest.raises(RecordingTooLargeError, match="Recording is too big") as caught:
            download(connect(sandbox.url), "abc--too-large", target)
        assert caught.value.title == "Content Too Large"
        assert caught.value.detail == "Recording is too big"

    def test_a_call_that_the_api_does_not_know_is_not_found(self, connect: Connect, target: Path) -> None:
        with Sandbox() as sandbox, pytest.raises(RecordingNotFoundError, match="/calls/abc/recording answered 404"):
            download(connect(sandbox.url), "abc", target)

    def test_a_refused_key_names_the_connection(self, connect: Connect, target: Path) -> None:
        with (
            Sandbox(calls=[make_call(id="abc", start_date=END)]) as sandbox,
            pytest.raises(AuthenticationError, match="connection 'amplemarket_default'") as caught,
        ):
            download(connect(sandbox.url, "wrong-key"), "abc", target)
        assert "wrong-key" not in everything_said(caught.value)

    @pytest.mark.parametrize("fault", NO_ANSWERS)
    def test_no_answer_is_a_connection_error(self, connect: Connect, target: Path, fault: str) -> None:
        with Sandbox() as sandbox, pytest.raises(AmplemarketConnectionError, match="no answer") as caught:
            download(connect(sandbox.url, timeout=0.2), f"abc--{fault}", target)
        assert caught.value.status is None

    def test_a_server_that_is_down_is_a_connection_error(self, connect: Connect, target: Path) -> None:
        sandbox = Sandbox()
        with sandbox:
            hook = connect(sandbox.url)
        with pytest.raises(AmplemarketConnectionError, match="no answer"):
            download(hook, "abc", target)

    @pytest.mark.parametrize(("fault", "message"), INVALID)
    def test_a_body_that_is_no_whole_audio_is_invalid(
        self, connect: Connect, target: Path, fault: str, message: str
    ) -> None:
        with (
            Sandbox(calls=[make_call(id=f"abc--{fault}", start_date=END)]) as sandbox,
            pytest.raises(InvalidRecordingError, match=message),
        ):
            download(connect(sandbox.url), f"abc--{fault}", target)

    @pytest.mark.parametrize("fault", [*[row[0] for row in REFUSALS], *NO_ANSWERS, *[row[0] for row in INVALID]])
    def test_one_request_is_sent_no_file_is_left_and_the_key_is_not_shown(
        self, connect: Connect, target: Path, fault: str
    ) -> None:
        with (
            Sandbox(calls=[make_call(id=f"abc--{fault}", start_date=END)]) as sandbox,
            pytest.raises(AmplemarketError) as caught,
        ):
            download(connect(sandbox.url, timeout=0.5), f"abc--{fault}", target)
        assert [entry.call_id for entry in sandbox.log] == [f"abc--{fault}"]
        assert list(target.parent.iterdir()) == []
        assert KEY not in everything_said(caught.value)

    def test_one_request_is_sent_though_the_kept_connection_was_closed_meanwhile(
        self, connect: Connect, target: Path
    ) -> None:
        with Sandbox(calls=[make_call(id="abc", start_date=END)]) as sandbox:
            hook = connect(sandbox.url)
            download(hook, "abc", target)
            sandbox.stop()
            sandbox.start()
            download(hook, "abc", target)
        assert len(sandbox.log) == 2

    @pytest.mark.parametrize("attempts", [2])
    def test_nothing_is_tried_again_of_its_own_accord(self, connect: Connect, target: Path, attempts: int) -> None:
        with Sandbox(calls=[make_call(id="abc--flaky", start_date=END)]) as sandbox:
            hook = connect(sandbox.url)
            with pytest.raises(AmplemarketAPIError, match="503"):
                download(hook, "abc--flaky", target)
            download(hook, "abc--flaky", target)
        assert len(sandbox.log) == attempts
        assert hook.waits == []

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("0", 0.0),
            ("120", 120.0),
            ("999999999", 999999999.0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
            (None, None),
            ("", None),
            ("soon", None),
            ("1.5", None),
            ("-5", None),
            ("9999999999", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ],
    )
    def test_retry_after_is_told_where_it_makes_sense(
        self, connect: Connect, target: Path, value: str | None, seconds: float | None
    ) -> None:
        with (
            RawServer(raw(b"", 429, Retry_After=value)) as server,
            pytest.raises(RateLimitExceededError) as caught,
        ):
            download(connect(server.url), "abc", target)
        assert caught.value.retry_after == seconds

    @pytest.mark.parametrize("zone", ["GMT", "-0000"])
    def test_retry_after_may_be_a_date(self, connect: Connect, target: Path, zone: str) -> None:
        moment = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True).replace("GMT", zone)
        with (
            RawServer(raw(b"", 429, Retry_After=moment)) as server,
            pytest.raises(RateLimitExceededError) as caught,
        ):
            download(connect(server.url), "abc", target)
        assert caught.value.retry_after == pytest.approx(600, abs=5)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"null",
            b"[]",
            b'{"_errors": []}',
            b'{"_errors": "no"}',
            b'{"_errors": {"code": 1}}',
            b'{"_errors": ["not_found"]}',
            b'{"_errors": [{"code": null}]}',
            b"[" * 60_000,
            b"\xff\xfe",
            problem(code="not_found", detail="x" * 1_000_000),
        ],
    )
    def test_the_status_decides_where_the_body_says_nothing(self, connect: Connect, target: Path, body: bytes) -> None:
        with RawServer(raw(body, 404)) as server, pytest.raises(RecordingNotFoundError, match=r"404$") as caught:
            download(connect(server.url), "abc", target)
        assert (caught.value.code, caught.value.title, caught.value.detail) == (None, None, None)

    @pytest.mark.parametrize(
        "answer",
        [
            raw(problem(code="not_found"), 404, Content_Length="9999"),
            raw(gzip.compress(problem(code="not_found")), 404, Content_Encoding="gzip"),
        ],
        ids=["cut", "gzip"],
    )
    def test_the_status_decides_where_the_body_cannot_be_read(
        self, connect: Connect, target: Path, answer: bytes
    ) -> None:
        with RawServer(answer) as server, pytest.raises(RecordingNotFoundError) as caught:
            download(connect(server.url), "abc", target)
        assert caught.value.code is None

    def test_long_and_odd_words_of_the_api_are_cut_to_text(self, connect: Connect, target: Path) -> None:
        body = problem(code=40400, title=["Not", "Found"], detail="x" * 1000)
        with RawServer(raw(body, 404)) as server, pytest.raises(RecordingNotFoundError) as caught:
            download(connect(server.url), "abc", target)
        assert (caught.value.code, caught.value.title) == ("40400", "['Not', 'Found']")
        assert caught.value.detail == "x" * 300

    @pytest.mark.parametrize("declared", [len(MP3) - 1, len(MP3) + 1])
    def test_a_body_in_chunks_that_contradicts_its_length_is_invalid(
        self, connect: Connect, target: Path, declared: int
    ) -> None:
        answer = raw(chunks(MP3), Content_Length=str(declared), Transfer_Encoding="chunked")
        with RawServer(answer) as server, pytest.raises(InvalidRecordingError, match=f"declares {declared} bytes"):
            download(connect(server.url), "abc", target)
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    def test_a_transfer_encoding_without_chunks_or_length_proves_nothing(
        self, connect: Connect, target: Path, encoding: str
    ) -> None:
        answer = raw(MP3, Content_Length=None, Transfer_Encoding=encoding)
        with RawServer(answer) as server, pytest.raises(InvalidRecordingError, match="neither a length nor chunks"):
            download(connect(server.url), "abc", target)

    def test_a_recording_that_declares_too_much_is_not_read(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(amplemarket, "MAX_RECORDING_SIZE", 2 * MIB)
        with (
            Sandbox(calls=[make_call(id="abc--large-3", start_date=END)]) as sandbox,
            pytest.raises(InvalidRecordingError, match=rf"declares {3 * MIB} bytes.* is {2 * MIB}"),
        ):
            download(connect(sandbox.url), "abc--large-3", target)
        assert list(target.parent.iterdir()) == []

    def test_a_recording_that_does_not_end_is_given_up(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(amplemarket, "MAX_RECORDING_SIZE", 3 * MIB)
        with (
            Sandbox() as sandbox,
            pytest.raises(InvalidRecordingError, match=f"does not end within {3 * MIB} bytes"),
        ):
            download(connect(sandbox.url), "abc--endless", target)
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("fault", ["large-3", "chunked"])
    def test_a_recording_of_the_greatest_size_is_taken(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        with Sandbox(calls=[make_call(id=f"abc--{fault}", start_date=END)]) as sandbox:
            size = sandbox.recording_size(f"abc--{fault}")
            monkeypatch.setattr(amplemarket, "MAX_RECORDING_SIZE", size)
            assert download(connect(sandbox.url), f"abc--{fault}", target).size == size

    def test_a_download_ends_once_it_is_cancelled(self, connect: Connect, target: Path) -> None:
        asked: list[int] = []

        def cancelled() -> bool:
            asked.append(target.stat().st_size)
            return len(asked) == 3

        with Sandbox() as sandbox, pytest.raises(InvalidRecordingError, match="cancelled"):
            download(connect(sandbox.url), "abc--endless", target, cancelled=cancelled)
        assert len(asked) == 3
        assert list(target.parent.iterdir()) == []

    def test_a_download_goes_on_while_it_is_not_cancelled(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--large-3", start_date=END)]) as sandbox:
            assert download(connect(sandbox.url), "abc--large-3", target, cancelled=lambda: False).size == 3 * MIB

    def test_a_body_that_trickles_in_for_too_long_is_given_up(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(amplemarket, "MAX_DOWNLOAD_TIME", 0.3)
        row = make_call(id="abc--drip", start_date=END)
        with Sandbox(calls=[row]) as sandbox, pytest.raises(InvalidRecordingError, match="cut short"):
            download(connect(sandbox.url), "abc--drip", target)
        assert list(target.parent.iterdir()) == []

    def test_aborting_ends_a_read_that_waits_for_the_next_byte(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--drip", start_date=END)]) as sandbox:
            hook = connect(sandbox.url)
            timer = threading.Timer(0.5, hook.abort)
            timer.start()
            with pytest.raises(RequestAbortedError):
                download(hook, "abc--drip", target)
            timer.join()
        assert list(target.parent.iterdir()) == []

    def test_no_file_is_left_after_an_interruption(self, connect: Connect, target: Path) -> None:
        def interrupt() -> bool:
            raise KeyboardInterrupt

        with RawServer(raw(MP3)) as server, pytest.raises(KeyboardInterrupt):
            download(connect(server.url), "abc", target, cancelled=interrupt)
        assert list(target.parent.iterdir()) == []


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_the_own_host_gets_the_key_again(self, connect: Connect, target: Path, status: int) -> None:
        with RawServer(raw(b"", status, Location="/files/abc"), raw(MP3)) as server:
            download(connect(server.url), "abc", target)
        assert server.paths == ["/calls/abc/recording", "/files/abc"]
        assert [headers["Authorization"] for _, headers in server.seen] == [f"Bearer {KEY}"] * 2
        assert target.read_bytes() == MP3

    def test_another_host_does_not_get_the_key(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--redirect-away", start_date=END)]) as sandbox:
            download(connect(sandbox.url), "abc--redirect-away", target)
        assert [entry.has_authorization for entry in sandbox.log] == [True, False]
        assert [entry.path for entry in sandbox.away_requests()] == ["/sandbox/files/abc--redirect-away"]

    def test_another_host_never_gets_the_key_along_many_redirects(self, connect: Connect, target: Path) -> None:
        with RawServer() as server, RawServer(raw(b"", 302, Location="/files")) as other:
            port = other.url.rpartition(":")[2]
            server.answers.append(raw(b"", 302, Location=f"http://localhost:{port}/files"))
            with pytest.raises(AmplemarketAPIError, match="more than 5 redirects"):
                download(connect(server.url), "abc", target)
        assert ["Authorization" in headers for _, headers in server.seen] == [True]
        assert ["Authorization" in headers for _, headers in other.seen] == [False] * 5

    def test_five_redirects_are_followed(self, connect: Connect, target: Path) -> None:
        hops = [raw(b"", 302, Location=f"/hop/{n}?signature=a%2Fb") for n in range(5)]
        with RawServer(*hops, raw(MP3)) as server:
            download(connect(server.url), "abc", target)
        assert server.paths[1:] == [f"/hop/{n}?signature=a%2Fb" for n in range(5)]

    def test_six_redirects_are_not(self, connect: Connect, target: Path) -> None:
        hops = [raw(b"", 302, Location=f"/hop/{n}") for n in range(6)]
        with RawServer(*hops, raw(MP3)) as server, pytest.raises(AmplemarketAPIError, match="more than 5"):
            download(connect(server.url), "abc", target)
        assert len(server.paths) == 6

    @pytest.mark.parametrize(
        "location",
        [
            "/calls/abc/recording",
            "recording",
            "/calls/other/recording",
            "/calls/abc/recording/",
            "/calls/abc/recording?again=1",
            "/calls/abc/%72ecording",
            "/calls/./abc/../abc/recording",
            "{url}/calls/abc/recording",
        ],
    )
    @pytest.mark.parametrize("detours", [0, 1])
    def test_the_recording_endpoint_is_not_asked_a_second_time(
        self, connect: Connect, target: Path, location: str, detours: int
    ) -> None:
        with RawServer() as server:
            server.answers += [raw(b"", 302, Location="/calls/abc/detour")] * detours
            server.answers += [raw(b"", 302, Location=location.format(url=server.url)), raw(MP3)]
            with pytest.raises(AmplemarketAPIError, match="second permit") as caught:
                download(connect(server.url), "abc", target)
        assert caught.value.status == 302
        assert server.paths == ["/calls/abc/recording", "/calls/abc/detour"][: 1 + detours]

    def test_another_host_cannot_lead_back_to_the_recording_endpoint(self, connect: Connect, target: Path) -> None:
        with RawServer() as server, RawServer(raw(b"", 302, Location=f"{server.url}/calls/abc/recording")) as away:
            server.answers += [raw(b"", 302, Location=f"{away.url}/calls/abc/recording"), raw(MP3)]
            with pytest.raises(AmplemarketAPIError, match="second permit"):
                download(connect(server.url), "abc", target)
        assert (len(server.paths), len(away.paths)) == (1, 1)

    @pytest.mark.parametrize("encoding", [None, "gzip"])
    def test_the_body_of_a_redirect_costs_little_memory(
        self, connect: Connect, target: Path, encoding: str | None
    ) -> None:
        blanks = bytes(64 * MIB)
        body = gzip.compress(blanks, 1) if encoding else blanks
        answer = raw(body, 302, Location="/files/abc", Content_Encoding=encoding)
        with RawServer(answer, raw(MP3)) as server:
            hook = connect(server.url)
            tracemalloc.start()
            try:
                download(hook, "abc", target)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert peak < 24 * MIB

    @pytest.mark.parametrize(
        "location",
        [
            "http://recordings.example.com/abc.mp3",
            "http://127.0.0.1.example.com/abc.mp3",
            "http://localhost.example.com/abc.mp3",
            "ftp://127.0.0.1/abc.mp3",
            "file:///etc/hostname",
            "mailto:someone@example.com",
        ],
    )
    def test_an_address_that_is_not_https_is_refused(self, connect: Connect, target: Path, location: str) -> None:
        with (
            RawServer(raw(b"", 302, Location=location)) as server,
            pytest.raises(AmplemarketAPIError, match="not HTTPS") as caught,
        ):
            download(connect(server.url), "abc", target)
        assert caught.value.status == 302
        assert len(server.paths) == 1

    @pytest.mark.parametrize(
        "location",
        [
            "http://[oops/abc.mp3",
            "https://[oops/abc.mp3",
            "https://",
            "https://127.0.0.1:port/abc.mp3",
            "https://127.0.0.1:99999/abc.mp3",
            f"https://{'a' * 64}.example.com/abc.mp3",
            "https://.example.com/abc.mp3",
            "https://\xa0/abc.mp3",
        ],
    )
    def test_an_address_that_is_none_is_an_error_of_the_api(
        self, connect: Connect, target: Path, location: str
    ) -> None:
        with RawServer(raw(b"", 302, Location=location)) as server, pytest.raises(AmplemarketAPIError):
            download(connect(server.url), "abc", target)
        assert len(server.paths) == 1
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("status", [300, 302, 304])
    def test_a_redirect_to_nowhere_is_an_error(self, connect: Connect, target: Path, status: int) -> None:
        with RawServer(raw(b"", status)) as server, pytest.raises(AmplemarketAPIError) as caught:
            download(connect(server.url), "abc", target)
        assert caught.value.status == status

    @pytest.mark.parametrize("status", [401, 403, 404, 413, 429, 500])
    def test_what_another_host_answers_says_nothing_of_the_key_or_the_call(
        self, connect: Connect, target: Path, status: int
    ) -> None:
        with (
            RawServer(raw(problem(code="not_found"), status, Retry_After="60")) as away,
            RawServer(raw(b"", 302, Location=f"{away.url}/calls/abc/recording?signature=s3cret")) as server,
            pytest.raises(AmplemarketAPIError, match=f"127.0.0.1, which answered {status}") as caught,
        ):
            download(connect(server.url), "abc", target)
        assert type(caught.value) is AmplemarketAPIError
        assert caught.value.status is None
        assert caught.value.code is None
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("status", [404, 413])
    def test_a_file_elsewhere_on_the_own_host_says_nothing_of_the_call(
        self, connect: Connect, target: Path, status: int
    ) -> None:
        answers = raw(b"", 302, Location="/files/abc"), raw(problem(code="not_found"), status)
        with RawServer(*answers) as server, pytest.raises(AmplemarketAPIError, match="/files/abc") as caught:
            download(connect(server.url), "abc", target)
        assert type(caught.value) is AmplemarketAPIError
        assert caught.value.status == status

    @pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (403, RecordingForbiddenError)])
    def test_a_file_elsewhere_on_the_own_host_may_be_forbidden(
        self, connect: Connect, target: Path, status: int, error: type[AmplemarketAPIError]
    ) -> None:
        answers = raw(b"", 302, Location="/files/abc"), raw(b"", status)
        with RawServer(*answers) as server, pytest.raises(AmplemarketAPIError, match="/files/abc") as caught:
            download(connect(server.url), "abc", target)
        assert type(caught.value) is error

    def test_another_host_that_is_down_is_a_connection_error(self, connect: Connect, target: Path) -> None:
        with RawServer(raw()) as away:
            pass
        with (
            RawServer(raw(b"", 302, Location=f"{away.url}/abc")) as server,
            pytest.raises(AmplemarketConnectionError, match="no answer"),
        ):
            download(connect(server.url), "abc", target)

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            b"",
            b"garbage\r\n\r\n",
            raw(MP3, Content_Length="a, b"),
            raw(MP3, Content_Length=str(2 * len(MP3))),
            raw(MP3, Content_Length=None, Transfer_Encoding="chunked"),
            raw(b"", 302, Location="/abc?signature=s3cret&again=1"),
            raw(b"", 302, Location="https://[s3cret"),
            raw(b"", 302, Location="https://127.0.0.1:s3cret/"),
            raw(b"", 302, Location="http://example.com/?s3cret"),
            raw(b"s3cret", 403),
        ],
    )
    def test_an_address_that_may_be_signed_is_in_no_traceback_and_no_log(
        self, connect: Connect, target: Path, answer: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        with RawServer(answer or b"") as away:
            pass
        with ExitStack() as stack:
            if answer is not None:
                away = stack.enter_context(RawServer(answer))
            location = f"{away.url}/files/s3cret.mp3?signature=s3cret"
            server = stack.enter_context(RawServer(raw(b"", 302, Location=location)))
            with pytest.raises(AmplemarketError) as caught:
                download(connect(server.url, timeout=2), "abc", target)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        assert "s3cret" not in everything_said(caught.value)
        assert "s3cret" not in caplog.text

    def test_neither_is_one_whose_answer_is_malformed(
        self, connect: Connect, target: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer = raw(MP3).replace(b"\r\nConn", b"\r\nNo colon here\r\nConn")
        with RawServer(answer) as away:
            location = f"{away.url}/files/s3cret.mp3?signature=s3cret"
            with RawServer(raw(b"", 302, Location=location)) as server:
                download(connect(server.url), "abc", target)
        assert f"Failed to parse headers (url={away.url})" in caplog.text
        assert "s3cret" not in caplog.text

    def test_neither_is_one_that_takes_too_long(self, connect: Connect, target: Path) -> None:
        with Drips("header") as away:
            location = raw(b"", 302, Location=f"{away.url}/files/s3cret.mp3?signature=s3cret")
            with RawServer(location) as server, pytest.raises(AmplemarketConnectionError, match="not over") as caught:
                download(connect(server.url, timeout=0.5), "abc", target)
        assert "127.0.0.1" in str(caught.value)
        assert "s3cret" not in everything_said(caught.value)

    @pytest.mark.parametrize(("body", "match"), [(b"", "empty"), (b"<html>", "text")])
    def test_what_another_host_sends_is_checked_as_well(
        self, connect: Connect, target: Path, body: bytes, match: str
    ) -> None:
        with (
            RawServer(raw(body)) as away,
            RawServer(raw(b"", 302, Location=f"{away.url}/abc")) as server,
            pytest.raises(InvalidRecordingError, match=match),
        ):
            download(connect(server.url), "abc", target)


def dated(moment: datetime, body: bytes = b'{"calls": []}', **headers: str | None) -> bytes:
    return raw(body, Date=format_datetime(moment, usegmt=True), **headers)


class TestTheClock:
    def read(self, connect: Connect, *answers: bytes) -> float:
        with RawServer(*answers) as server:
            hook = connect(server.url)
            for _ in answers:
                list(hook.iter_calls())
        return hook.clock_skew

    def test_nothing_is_known_before_the_first_answer(self, connect: Connect) -> None:
        assert connect("http://127.0.0.1:9").clock_skew == 0.0

    @pytest.mark.parametrize("behind", [60, 3600, -60])
    def test_a_server_with_another_time_is_noticed(self, connect: Connect, behind: int) -> None:
        found = self.read(connect, dated(datetime.now(UTC) - timedelta(seconds=behind)))
        assert found == pytest.approx(behind, abs=5)

    def test_a_server_with_the_same_time_is_not(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(100, end=END)) as sandbox:
            hook = connect(sandbox.url)
            list(hook.iter_calls())
        assert hook.clock_skew == 0.0

    @pytest.mark.parametrize(
        "answer",
        [
            raw(b'{"calls": []}'),
            raw(b'{"calls": []}', Date="yesterday"),
            raw(b'{"calls": []}', Date="Sun, 99 Nov 1994 08:49:37 GMT"),
            raw(b'{"calls": []}', Date=""),
            dated(datetime(2026, 1, 1, tzinfo=UTC), Age="7"),
        ],
    )
    def test_what_tells_no_time_is_ignored(self, connect: Connect, answer: bytes) -> None:
        assert self.read(connect, answer) == 0.0

    def test_errors_and_recordings_tell_it_too(self, connect: Connect, target: Path) -> None:
        moment = datetime.now(UTC) - timedelta(hours=1)
        for answer in dated(moment, b"").replace(b"200", b"404"), dated(moment, MP3):
            with RawServer(answer) as server:
                hook = connect(server.url)
                with suppress(RecordingNotFoundError):
                    download(hook, "abc", target)
            assert hook.clock_skew == pytest.approx(3600, abs=5)

    def test_another_host_does_not(self, connect: Connect, target: Path) -> None:
        with (
            RawServer(dated(datetime(2026, 1, 1, tzinfo=UTC), MP3)) as away,
            RawServer(raw(b"", 302, Location=f"{away.url}/abc")) as server,
        ):
            hook = connect(server.url)
            download(hook, "abc", target)
        assert hook.clock_skew == 0.0


class TestTestingTheConnection:
    def test_a_right_key_is_accepted_at_no_cost(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            assert connect(sandbox.url).test_connection() == (True, f"{sandbox.url} accepts the API key")
        assert [entry.path for entry in sandbox.log] == ["/account-info"]

    def test_a_wrong_key_is_refused_without_being_shown(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            ok, message = connect(sandbox.url, "wrong-key").test_connection()
        assert not ok
        assert message.startswith("AuthenticationError: GET /account-info answered 401 (unauthorized: ")
        assert "wrong-key" not in message
        assert len(sandbox.log) == 1

    def test_a_server_that_is_down_is_told(self, connect: Connect) -> None:
        sandbox = Sandbox()
        with sandbox:
            hook = connect(sandbox.url)
        ok, message = hook.test_connection()
        assert not ok
        assert message.startswith("AmplemarketConnectionError: GET /account-info: no answer")
        assert hook.waits == []

    @pytest.mark.parametrize(
        "answer",
        [
            raw(b"<html>"),
            raw(b"[]"),
            raw(b"\x00\xff"),
            raw(b""),
            raw(b"{}", 302, Location="/login"),
            raw(b"{}", 500),
            raw(gzip.compress(b"{}"), Content_Encoding="gzip"),
            b"garbage\r\n\r\n",
            b"",
        ],
    )
    def test_an_answer_that_makes_no_sense_is_told(self, connect: Connect, answer: bytes) -> None:
        with RawServer(answer) as server:
            ok, message = connect(server.url).test_connection()
        assert not ok
        assert "GET /account-info" in message
        assert KEY not in message
        assert len(server.paths) == 1

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            (None, "amplemarket_default"),
            (json.dumps({"conn_type": "amplemarket"}), "password"),
            (json.dumps({"conn_type": "amplemarket", "password": f"{KEY}\nmore"}), "password"),
            (json.dumps({"conn_type": "amplemarket", "password": KEY, "host": "http://example.com"}), "https"),
            (json.dumps({"conn_type": "amplemarket", "password": KEY, "extra": {"limit": 1}}), "limit"),
            (f"amplemarket://:{KEY}@[oops", ""),
            (f"amplemarket://:{KEY}@host:port", ""),
            (f"amplemarket://:{KEY}/more@host", ""),
            (f'{{"password": "{KEY}"', ""),
        ],
    )
    def test_a_broken_connection_is_told_without_the_key(
        self, monkeypatch: pytest.MonkeyPatch, value: str | None, name: str
    ) -> None:
        if value is not None:
            monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", value)
        ok, message = AmplemarketHook().test_connection()
        assert not ok
        assert name in message
        assert KEY not in message

    def test_an_unknown_connection_is_told(self) -> None:
        ok, message = AmplemarketHook("nowhere").test_connection()
        assert not ok
        assert "nowhere" in message


class TestTheSession:
    def test_every_request_carries_the_key_who_asks_and_no_wish_for_compression(
        self, connect: Connect, target: Path
    ) -> None:
        with RawServer(page(), raw(b"{}"), raw(MP3)) as server:
            hook = connect(server.url)
            list(hook.iter_calls())
            assert hook.test_connection()[0]
            download(hook, "abc", target)
        assert server.paths == ["/calls", "/account-info", "/calls/abc/recording"]
        for _, headers in server.seen:
            assert headers["Authorization"] == f"Bearer {KEY}"
            assert headers["User-Agent"] == f"airflow-provider-amplemarket/{__version__}"
            assert headers["Accept-Encoding"] == "identity"

    def test_the_same_session_is_given_every_time(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            hook = connect(sandbox.url)
            session = hook.get_conn()
            assert session.get(f"{sandbox.url}/account-info").json()["name"] == "Sandbox"
            assert hook.get_conn() is session

    @pytest.mark.parametrize("options", [{}, {"timeout": None}])
    def test_every_request_has_the_timeout_of_the_connection(self, connect: Connect, options: dict[str, Any]) -> None:
        with Sandbox() as sandbox, pytest.raises(requests.exceptions.ReadTimeout, match=r"0\.2"):
            connect(sandbox.url, timeout=0.2).get_conn().get(f"{sandbox.url}/calls/abc--hang/recording", **options)

    def test_a_timeout_of_the_request_goes_before_that_of_the_connection(self, connect: Connect) -> None:
        with Sandbox() as sandbox, pytest.raises(requests.exceptions.ReadTimeout, match=r"0\.1"):
            connect(sandbox.url).get_conn().get(f"{sandbox.url}/calls/abc--hang/recording", timeout=0.1)

    def test_a_host_that_does_not_accept_is_given_up_after_the_timeout(self, connect: Connect, target: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            hook = connect(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.2)
            with pytest.raises(AmplemarketConnectionError, match="Timeout"):
                download(hook, "abc", target)

    def test_the_session_itself_does_not_give_the_key_to_where_it_is_redirected(self, connect: Connect) -> None:
        with Sandbox(calls=[make_call(id="abc--redirect-away", start_date=END)]) as sandbox:
            connect(sandbox.url).get_conn().get(f"{sandbox.url}/calls/abc--redirect-away/recording")
        assert [entry.has_authorization for entry in sandbox.recording_requests()] == [True]
        assert not any(entry.has_authorization for entry in sandbox.away_requests())

    def test_a_proxy_never_sees_the_key_of_a_connection_without_tls(
        self, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with RawServer(page()) as proxy, RawServer(page()) as server:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv("NO_PROXY", "")
            monkeypatch.setenv("no_proxy", "")
            connect(server.url).get_conn().get(f"{server.url}/calls")
        assert (len(server.seen), len(proxy.seen)) == (1, 0)

    def test_a_netrc_file_is_not_asked_for_a_password(
        self, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text("default login someone password other\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with RawServer(page()) as away, RawServer(page()) as server:
            session = connect(server.url).get_conn()
            session.get(f"{server.url}/calls")
            session.get(f"{away.url}/calls")
        assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"
        assert "Authorization" not in away.seen[0][1]

    @pytest.mark.parametrize(
        ("base", "url", "given"),
        [
            ("https://api.example.com", "https://api.example.com/calls", True),
            ("https://api.example.com", "https://API.example.com:443/calls", True),
            ("https://api.example.com:443", "https://api.example.com/calls", True),
            ("https://api.example.com/v1", "https://api.example.com/files", True),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/calls", True),
            ("https://api.example.com", "http://api.example.com/calls", False),
            ("https://api.example.com", "http://api.example.com:443/calls", False),
            ("https://api.example.com", "https://api.example.com:8443/calls", False),
            ("https://api.example.com", "https://example.com/calls", False),
            ("https://api.example.com", "https://api.example.com.evil.example/calls", False),
            ("https://api.example.com", "https://api.example.com@evil.example/calls", False),
            ("https://api.example.com", "https://evil.example/https://api.example.com/calls", False),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8081/calls", False),
            ("http://127.0.0.1:8080", "http://localhost:8080/calls", False),
        ],
    )
    def test_the_key_goes_to_its_own_scheme_host_and_port_alone(self, base: str, url: str, given: bool) -> None:
        request = requests.Request("GET", url, auth=BearerAuth(KEY, base)).prepare()
        assert request.headers.get("Authorization") == (f"Bearer {KEY}" if given else None)

    def test_the_key_is_not_shown_by_what_holds_it(self, connect: Connect) -> None:
        hook = connect("http://127.0.0.1:9")
        for thing in (hook, hook.settings, hook.get_conn(), hook.get_conn().auth):
            assert KEY not in repr(thing)
            assert KEY not in str(thing)

    def test_making_a_hook_reads_no_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", raising=False)
        assert AmplemarketHook("not-there").amplemarket_conn_id == "not-there"
