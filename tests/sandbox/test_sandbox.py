"""The sandbox tells the truth: what it counts, lists and serves, and how it lets things go wrong."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from airflow_provider_amplemarket.sandbox import LIST_FAULTS, RECORDING_FAULTS, Sandbox, make_call, make_calls
from airflow_provider_amplemarket.sandbox.faults import bomb
from airflow_provider_amplemarket.sandbox.limiter import SlidingWindow, most_in_any
from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE, id3, recording_of, samples
from dev.stores import free_port

END = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEY = "sandbox-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
ROOT = Path(__file__).parents[2]

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


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(calls=make_calls(50, end=END)) as running:
        yield running


def good_call(sandbox: Sandbox) -> str:
    return str(next(call["id"] for call in sandbox.calls if not call["external"]))


class TestCalls:
    def test_are_the_same_for_the_same_seed(self) -> None:
        assert make_calls(30, end=END, seed=1) == make_calls(30, end=END, seed=1)
        assert make_calls(30, end=END, seed=1) != make_calls(30, end=END, seed=2)

    def test_lie_in_their_span_newest_first(self) -> None:
        calls = make_calls(120, end=END, days=3)
        starts = [datetime.fromisoformat(call["start_date"]) for call in calls]
        assert starts == sorted(starts, reverse=True)
        assert all(END - timedelta(days=3) <= start < END for start in starts)
        assert all(re.fullmatch(r"2026-11-\d\dT\d\d:\d\d:\d\dZ", call["start_date"]) for call in calls)

    def test_look_like_those_of_the_api(self) -> None:
        calls = make_calls(120, end=END)
        assert len({call["id"] for call in calls}) == 120
        assert sum(call["external"] for call in calls) == 10
        assert sum(call["duration"] == 0 for call in calls) == 10
        assert all(re.fullmatch(r"\+120255501\d\d", call[end]) for call in calls for end in ("from", "to"))
        assert all(call["user_email"].endswith("@example.com") for call in calls)
        urls = [call.get("recording_url", "absent") for call in calls]
        assert None in urls
        assert "absent" in urls
        assert 1 < len({call["user_id"] for call in calls}) < 10
        assert {call["contact"] is None for call in calls} == {True, False}
        assert {call["task_id"] is None for call in calls} == {True, False}

    def test_can_be_made_by_hand(self) -> None:
        call = make_call(id="one", start_date=END, duration=7, novel=True, **{"from": "+12025550199"})
        assert call["start_date"] == "2026-11-20T12:00:00Z"
        assert (call["duration"], call["novel"], call["from"]) == (7, True, "+12025550199")
        assert make_call(id="two", start_date="yesterday")["start_date"] == "yesterday"
        with pytest.raises(ValueError, match="time zone"):
            make_call(id="three", start_date=END.replace(tzinfo=None))


class TestAudio:
    def test_is_unique_playable_and_always_the_same(self, sandbox: Sandbox) -> None:
        recordings = {call["id"]: sandbox.recording(call["id"]) for call in sandbox.calls}
        assert len(set(recordings.values())) == len(recordings)
        for call_id, recording in recordings.items():
            tag = id3(call_id)
            assert recording.startswith(b"ID3\x03\x00\x00")
            assert call_id.encode() in tag
            # The tag says where the sound begins.
            length = 10 + (recording[8] << 7 | recording[9])
            assert recording[:length] == tag
            assert recording[length:] in samples()
            assert sandbox.recording_sha256(call_id) == hashlib.sha256(recording).hexdigest()
            assert sandbox.recording_size(call_id) == len(recording)

    @pytest.mark.parametrize("sample", samples())
    def test_samples_are_small_and_whole_frames(self, sample: bytes) -> None:
        assert len(sample) < 15_000
        # MPEG-2 layer III, mono, 16 kbit/s at 16 kHz: frames of 72 bytes, from the first byte to the last.
        assert len(sample) % 72 == 0
        assert {sample[at : at + 2] for at in range(0, len(sample), 72)} == {b"\xff\xf3"}

    def test_large_ones_have_the_very_size_and_whole_frames(self) -> None:
        recording = recording_of("call--large-3", mebibytes=3)
        data = b"".join(recording)
        assert len(data) == recording.size == 3 * MEBIBYTE
        assert data.endswith(recording.sample)
        assert data[len(recording.tag) :][:2] == b"\xff\xf3"


class TestAuthorization:
    @pytest.mark.parametrize("path", ["/account-info", "/calls", "/calls/x/recording", "/nowhere"])
    @pytest.mark.parametrize("key", [None, "wrong", KEY + "x", ""])
    def test_is_asked_for_everywhere(self, sandbox: Sandbox, path: str, key: str | None) -> None:
        got = get(sandbox.url, path, key=key)
        assert got.status == 401
        assert got.error()["code"] == "unauthorized"
        assert [entry.authorized for entry in sandbox.log] == [False]

    def test_comes_before_the_limit(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=1) as sandbox:
            assert [fetch(sandbox, "a", key="wrong").status for _ in range(3)] == [401] * 3
            assert [fetch(sandbox, "a").status for _ in range(2)] == [200, 429]

    def test_account_info_takes_the_key(self, sandbox: Sandbox) -> None:
        got = get(sandbox.url, "/account-info")
        assert (got.status, got.headers["content-type"]) == (200, "application/json")
        assert isinstance(got.json(), dict)

    def test_must_not_be_empty(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            Sandbox(api_key="")


class TestRecordings:
    def test_are_served_byte_for_byte(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        got = fetch(sandbox, call_id)
        assert (got.status, got.headers["content-type"]) == (200, "audio/mpeg")
        assert got.headers["content-length"] == str(len(got.body))
        assert got.body == sandbox.recording(call_id)

    def test_of_external_and_unknown_calls_are_not_found(self, sandbox: Sandbox) -> None:
        external = next(call["id"] for call in sandbox.calls if call["external"])
        for call_id in (external, "unknown", "%2e%2e%2fsecret", "unknown--nofault"):
            got = fetch(sandbox, call_id)
            assert got.status == 404
            assert got.error() == {
                "code": "not_found",
                "title": "Not Found",
                "detail": "Call not found",
                "source": {"pointer": "/id"},
            }

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/"),
            ("GET", "/calls/"),
            ("GET", "/calls/x"),
            ("GET", "/calls/x/y/recording"),
            ("GET", "/v1/calls"),
            ("POST", "/calls"),
            ("DELETE", "/calls/x/recording"),
        ],
    )
    def test_nothing_else_is_there(self, sandbox: Sandbox, method: str, path: str) -> None:
        got = get(sandbox.url, path, method=method)
        assert got.status == 404
        assert got.error()["code"] == "not_found"
        assert sandbox.recording_requests() == []

    def test_head_gets_no_body(self, sandbox: Sandbox) -> None:
        got = get(sandbox.url, "/calls", method="HEAD")
        assert (got.status, got.body) == (404, b"")

    def test_connections_are_kept(self, sandbox: Sandbox) -> None:
        connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)
        paths = ["/calls", f"/calls/{good_call(sandbox)}/recording", "/calls/x--chunked/recording", "/x"]
        for path in paths:
            connection.request("GET", path, headers=HEADERS)
            own = connection.sock
            connection.getresponse().read()
            assert connection.sock is own
        connection.close()

    def test_a_body_is_not_taken_for_the_next_request(self, sandbox: Sandbox) -> None:
        connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)
        connection.request("POST", "/calls", body=b"GET / HTTP/1.1\r\n\r\n")
        assert connection.getresponse().read()
        connection.request("GET", "/account-info", headers=HEADERS)
        assert connection.getresponse().status == 200
        connection.close()


class TestSlidingWindow:
    def test_slides(self) -> None:
        window = SlidingWindow(2, 10)
        assert [window.admit(now) for now in (0, 6)] == [None, None]
        # A window that is reset every ten seconds would admit two at 10, and with those three in 4 seconds.
        assert [window.admit(now) for now in (9.5, 10, 11)] == [0.5, None, 5]
        assert window.admit(16) is None

    def test_may_count_what_it_refuses(self) -> None:
        window = SlidingWindow(1, 10, count_refused=True)
        # Who comes back too early has to wait for a whole period again.
        assert [window.admit(now) for now in (0, 4, 13.5)] == [None, 10, 10]
        assert window.admit(23.5) is None

    def test_may_admit_nothing(self) -> None:
        window = SlidingWindow(0, 10)
        assert [window.admit(now) for now in (0, 100)] == [10, 10]

    @pytest.mark.parametrize(
        ("times", "most"),
        [([], 0), ([5], 1), ([0, 10], 1), ([0, 9.9], 2), ([20, 0, 19, 11, 5], 3), ([1, 1, 1], 3)],
    )
    def test_the_fullest_window_is_found(self, times: list[float], most: int) -> None:
        assert most_in_any(times, 10) == most


class TestLimit:
    def test_admits_again_as_places_get_free(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=2, period=0.8) as sandbox:
            assert fetch(sandbox, "a").status == 200
            time.sleep(0.4)
            assert [fetch(sandbox, "a").status for _ in range(2)] == [200, 429]
            time.sleep(0.45)
            # Only the first has left the window.
            assert [fetch(sandbox, "a").status for _ in range(2)] == [200, 429]
            assert sandbox.most_in_any_period() == 4
            statuses = [entry.status for entry in sandbox.recording_requests()]
            assert statuses == [200, 200, 429, 200, 429]

    def test_says_when_to_come_back(self) -> None:
        with Sandbox(limit=0, period=1234.5) as sandbox:
            got = fetch(sandbox, "a")
            assert (got.status, got.headers["retry-after"]) == (429, "1235")
            assert got.error()["title"] == "Too Many Requests"

    def test_may_keep_it_to_itself(self) -> None:
        with Sandbox(limit=0, retry_after=False) as sandbox:
            got = fetch(sandbox, "a")
            assert got.status == 429
            assert "retry-after" not in got.headers

    def test_after_the_time_it_says_it_admits(self) -> None:
        with Sandbox(limit=1, period=3.0) as sandbox:
            assert [fetch(sandbox, "a").status, fetch(sandbox, "a").status] == [404, 429]
            time.sleep(3.2)
            assert fetch(sandbox, "a").status == 404

    @pytest.mark.parametrize(
        ("call_id", "status"),
        [
            ("a", 200),
            ("nobody", 404),
            ("a--too-large", 413),
            ("a--error-500", 500),
            ("a--too-many", 429),
            ("a--redirect", 302),
            ("a--refuse", 0),
        ],
    )
    def test_counts_whatever_the_answer(self, call_id: str, status: int) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=1) as sandbox:
            assert fetch(sandbox, call_id).status == status
            assert fetch(sandbox, "a").headers["retry-after"] == "3600"

    def test_counts_nothing_else(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=1) as sandbox:
            for path in ("/calls", "/account-info", "/sandbox/files/a", "/nowhere", "/sandbox/log"):
                get(sandbox.url, path)
            get(sandbox.away_url, "/calls/a/recording")
            assert fetch(sandbox, "a").status == 200
            assert len(sandbox.recording_requests()) == 1

    def test_counts_what_others_spend(self) -> None:
        with Sandbox(limit=5) as sandbox:
            sandbox.spend(3)
            assert [fetch(sandbox, "x").status for _ in range(3)] == [404, 404, 429]
            assert sandbox.most_in_any_period() == 3

    def test_what_others_spend_in_vain_takes_no_place(self) -> None:
        with Sandbox(limit=2, period=0.3) as sandbox:
            sandbox.spend(99)
            assert fetch(sandbox, "x").status == 429
            time.sleep(0.35)
            assert fetch(sandbox, "x").status == 404

    def test_holds_for_requests_at_once(self) -> None:
        with Sandbox(limit=7) as sandbox, ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(lambda _: fetch(sandbox, "x").status, range(60)))
            assert (statuses.count(404), statuses.count(429)) == (7, 53)
            entries = sandbox.recording_requests()
            assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
            assert all(entry.answered and entry.answered >= entry.time for entry in entries)


class TestPages:
    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    @pytest.mark.parametrize("size", [1, 7, 20, 25])
    def test_have_every_call_once_in_both_directions(self, order: Any, size: int) -> None:
        calls = make_calls(50, end=END)
        with Sandbox(calls=calls, order=order) as sandbox:
            pages = walk(sandbox, {"page[size]": size})
            assert [len(page) for page in pages[:-1]] == [min(size, 20)] * (len(pages) - 1)
            assert sorted(ids(pages)) == sorted(call["id"] for call in calls)
            assert [row for page in pages for row in page] == sandbox._pages.ordered(calls)
            last = sandbox.log[-1]
            back = walk(sandbox, link="prev", href=f"{last.path}?{last.query}")
            assert sorted(ids(back)) == sorted(ids(pages))
            assert ids(back[::-1]) == ids(pages)

    def test_are_twenty_rows_unless_asked_otherwise(self) -> None:
        with Sandbox(calls=make_calls(50, end=END), page_size=30) as sandbox:
            assert [len(page) for page in walk(sandbox)] == [20, 20, 10]
            assert [len(page) for page in walk(sandbox, {"page[size]": 100})] == [30, 20]

    def test_links_are_relative_and_keep_the_query(self, sandbox: Sandbox) -> None:
        got = get(sandbox.url, "/calls", {"user_id": sandbox.calls[0]["user_id"], "page[size]": 2})
        links = got.json()["_links"]
        assert set(links) == {"self", "next"}
        assert links["next"]["href"].startswith("/calls?")
        second = get(sandbox.url, links["next"]["href"]).json()
        assert set(second["_links"]) == {"self", "prev", "next"}
        assert {row["user_id"] for row in second["calls"]} == {sandbox.calls[0]["user_id"]}

    def test_of_nothing_are_empty(self) -> None:
        with Sandbox() as sandbox:
            assert get(sandbox.url, "/calls").json() == {"calls": [], "_links": {"self": {"href": "/calls"}}}

    def test_orders(self) -> None:
        calls = make_calls(100, end=END)
        newest = [call["id"] for call in calls]
        with Sandbox(calls=calls[::-1], order="newest") as sandbox:
            assert ids(walk(sandbox)) == newest
        with Sandbox(calls=calls, order="oldest") as sandbox:
            assert ids(walk(sandbox)) == newest[::-1]
        with Sandbox(calls=calls, order="shuffled") as sandbox:
            shuffled = ids(walk(sandbox))
            assert shuffled != newest
            strays = [abs(place - newest.index(call_id)) for place, call_id in enumerate(shuffled)]
            assert 1 < max(strays) <= 5

    @pytest.mark.parametrize("order", ["newest", "shuffled"])
    def test_calls_that_appear_on_the_way_displace_none(self, order: Any) -> None:
        calls = make_calls(40, end=END)
        with Sandbox(calls=calls[10:], order=order, page_size=8) as sandbox:
            first = get(sandbox.url, "/calls").json()
            sandbox.add_calls(*calls[:10])
            rest = walk(sandbox, href=first["_links"]["next"]["href"])
            assert sorted(ids([first["calls"], *rest])) == sorted(call["id"] for call in calls[10:])

    def test_strange_rows_are_listed_as_they_are(self) -> None:
        calls: list[Row] = [{"id": "../x"}, {"id": "../x"}, {}, {"id": None, "start_date": 5}, {"id": 7}]
        with Sandbox(calls=calls) as sandbox:
            rows = [row for page in walk(sandbox, {"page[size]": 1}) for row in page]
            assert sorted(map(str, rows)) == sorted(map(str, calls))

    def test_filters_take_the_documentation_at_its_word(self, sandbox: Sandbox) -> None:
        starts = sorted(call["start_date"] for call in sandbox.calls)
        early, late = starts[10], starts[20]
        pages = walk(sandbox, {"start_date_from": early, "start_date_to": late})
        assert [row["start_date"] for page in pages for row in page] == starts[11:20][::-1]
        user = sandbox.calls[0]["user_id"]
        theirs = [row["id"] for row in sandbox.calls if row["user_id"] == user]
        assert ids(walk(sandbox, {"user_id": user})) == theirs
        number = sandbox.calls[3]["to"]
        assert sandbox.calls[3]["id"] in ids(walk(sandbox, {"to": number}))
        assert ids(walk(sandbox, {"from": "+12025550999"})) == []

    def test_filters_know_time_zones(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END), {"id": "undated"}]) as sandbox:
            assert ids(walk(sandbox, {"start_date_from": "2026-11-20T13:59:59+02:00"})) == ["a"]
            assert ids(walk(sandbox, {"start_date_from": "2026-11-20T14:00:00+02:00"})) == []
            assert ids(walk(sandbox, {"start_date_to": "2026-11-20T12:00:01"})) == ["a"]

    def test_filters_can_be_ignored(self) -> None:
        with Sandbox(calls=make_calls(30, end=END), honour_filters=False) as sandbox:
            pages = walk(sandbox, {"start_date_from": "2030-01-01T00:00:00Z", "user_id": "nobody"})
            assert len(ids(pages)) == 30

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            ("page[size]", "0"),
            ("page[size]", "-1"),
            ("page[size]", "many"),
            ("page[after]", "made-up"),
            ("page[before]", ""),
            ("start_date_from", "yesterday"),
            ("start_date_to", ""),
        ],
    )
    def test_nonsense_is_refused(self, sandbox: Sandbox, parameter: str, value: str) -> None:
        got = get(sandbox.url, "/calls", {parameter: value})
        assert got.status == 400
        assert got.error()["source"] == {"parameter": parameter}


def is_error(status: int, code: str, **headers: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.error()["code"]) == (status, code)
        assert got.headers.get("retry-after") == headers.get("retry_after")

    return check


def is_healthy(got: Got, healthy: bytes) -> None:
    assert (got.status, got.body, got.problem) == (200, healthy, None)


def is_redirect(pattern: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.body) == (302, b"")
        assert re.fullmatch(pattern, got.headers["location"])

    return check


def is_chunked(got: Got, healthy: bytes) -> None:
    is_healthy(got, healthy)
    assert got.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in got.headers


def is_cut(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, http.client.IncompleteRead)
    assert got.headers["content-length"] == str(len(healthy))
    assert got.body == healthy[: len(healthy) // 2]


def is_cut_chunked(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, http.client.IncompleteRead)
    assert got.headers["transfer-encoding"] == "chunked"


def is_unsized(got: Got, healthy: bytes) -> None:
    is_healthy(got, healthy)
    assert not {"content-length", "transfer-encoding"} & set(got.headers)
    assert got.headers["connection"] == "close"


def is_unsized_cut(got: Got, healthy: bytes) -> None:
    # The client has no way to see that anything is missing.
    is_unsized(got, healthy[: len(healthy) // 2])


def is_short_length(got: Got, healthy: bytes) -> None:
    half = healthy[: len(healthy) // 2]
    is_healthy(got, half)
    assert got.headers["content-length"] == str(len(half))


def is_html(status: int, content_type: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.headers["content-type"]) == (status, content_type)
        assert got.body.startswith(b"<!DOCTYPE html>")

    return check


def is_json(content_type: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.headers["content-type"]) == (200, content_type)
        assert isinstance(got.json(), dict)

    return check


def has_type(content_type: str | None) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        is_healthy(got, healthy)
        assert got.headers.get("content-type") == content_type

    return check


def is_empty(got: Got, healthy: bytes) -> None:
    is_healthy(got, b"")
    assert (got.headers["content-length"], got.headers["content-type"]) == ("0", "audio/mpeg")


def is_gzip(got: Got, healthy: bytes) -> None:
    assert got.headers["content-encoding"] == "gzip"
    assert gzip.decompress(got.body) == healthy


def is_gzip_bomb(got: Got, healthy: bytes) -> None:
    assert got.headers["content-encoding"] == "gzip"
    assert len(got.body) < 2 * MEBIBYTE
    assert int.from_bytes(got.body[-4:], "little") == len(healthy) + 1024 * MEBIBYTE


def is_not_mpeg(got: Got, healthy: bytes) -> None:
    assert (got.status, got.headers["content-type"]) == (200, "audio/mpeg")
    assert len(got.body) > 1000
    assert b"\xff" not in got.body
    assert not got.body.startswith(b"ID3")


def is_partial(got: Got, healthy: bytes) -> None:
    half = len(healthy) // 2
    assert (got.status, got.body) == (206, healthy[:half])
    assert got.headers["content-range"] == f"bytes 0-{half - 1}/{len(healthy)}"


def is_refused(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, http.client.RemoteDisconnected)


def is_reset(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, ConnectionResetError)
    assert got.status == 200


def echoes_the_key(got: Got, healthy: bytes) -> None:
    assert got.status == 500
    assert f"Bearer {KEY}" in got.error()["detail"]


# Each with what its first request and, if that differs, the second gets.
FAULTS: dict[str, tuple[Callable[[Got, bytes], None], ...]] = {
    "ok": (is_error(404, "not_found"),),
    "not-found": (is_error(404, "not_found"),),
    "too-large": (is_error(413, "content_too_large"),),
    "error-500": (is_error(500, "internal_server_error"),),
    "error-503": (is_error(503, "service_unavailable"),),
    "error-503-html": (is_html(503, "text/html"),),
    "flaky": (is_error(503, "service_unavailable"), is_healthy),
    "late": (is_error(404, "not_found"), is_healthy),
    "cut": (is_cut,),
    "cut-chunked": (is_cut_chunked,),
    "chunked": (is_chunked,),
    "unsized": (is_unsized,),
    "unsized-cut": (is_unsized_cut,),
    "short-length": (is_short_length,),
    "empty": (is_empty,),
    "html": (is_html(200, "text/html"),),
    "json": (is_json("application/json"),),
    "html-as-audio": (is_html(200, "audio/mpeg"),),
    "json-as-audio": (is_json("audio/mpeg"),),
    "octet-stream": (has_type("application/octet-stream"),),
    "no-type": (has_type(None),),
    "gzip": (is_gzip,),
    "gzip-bomb": (is_gzip_bomb,),
    "not-mpeg": (is_not_mpeg,),
    "redirect": (is_redirect(r"/sandbox/files/call--redirect"),),
    "redirect-away": (is_redirect(r"http://127\.0\.0\.1:\d+/sandbox/files/call--redirect-away"),),
    "redirect-loop": (is_redirect(r"/calls/call--redirect-loop/recording"),),
    "redirect-http": (is_redirect(r"http://recordings\.invalid/.+"),),
    "refuse": (is_refused,),
    "reset": (is_reset,),
    "too-many": (is_error(429, "too_many_requests"),),
    "too-many-N": (is_error(429, "too_many_requests", retry_after="17"),),
    "unauthorized": (is_error(401, "unauthorized"),),
    "forbidden": (is_error(403, "forbidden"),),
    "partial": (is_partial,),
    "echo-key": (echoes_the_key,),
}
TESTED_ON_THEIR_OWN = {"slow", "drip", "hang", "endless", "large-N"}


class TestFaults:
    def test_all_are_tested(self) -> None:
        assert set(FAULTS) | TESTED_ON_THEIR_OWN == set(RECORDING_FAULTS)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_behave_as_they_are_called(self, sandbox: Sandbox, fault: str) -> None:
        call_id = f"call--{fault.replace('-N', '-17')}"
        for check in (*FAULTS[fault], FAULTS[fault][-1]):
            check(fetch(sandbox, call_id), sandbox.recording(call_id))
        assert {entry.call_id for entry in sandbox.recording_requests()} == {call_id}
        # Whatever the fault did to its own connection, the next is served.
        is_healthy(fetch(sandbox, good_call(sandbox)), sandbox.recording(good_call(sandbox)))

    def test_slow_keeps_one_waiting(self, sandbox: Sandbox) -> None:
        began = time.monotonic()
        is_healthy(fetch(sandbox, "call--slow"), sandbox.recording("call--slow"))
        assert 2 <= time.monotonic() - began < 8

    def test_drip_comes_in_drops(self, sandbox: Sandbox) -> None:
        began = time.monotonic()
        is_healthy(fetch(sandbox, "call--drip"), sandbox.recording("call--drip"))
        assert 2.5 <= time.monotonic() - began < 10
        (entry,) = sandbox.recording_requests()
        assert entry.answered is not None
        assert entry.answered - entry.time > 2.5

    def test_hang_answers_nothing(self, sandbox: Sandbox) -> None:
        got = fetch(sandbox, "call--hang", timeout=0.3)
        assert isinstance(got.problem, TimeoutError)
        (entry,) = sandbox.recording_requests()
        assert (entry.status, entry.answered) == (0, None)

    def test_endless_ends_only_with_the_client(self, sandbox: Sandbox) -> None:
        connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)
        connection.request("GET", "/calls/call--endless/recording", headers=HEADERS)
        response = connection.getresponse()
        assert response.read(10 * MEBIBYTE).startswith(b"ID3")
        response.close()
        connection.close()
        deadline = time.monotonic() + 5
        while sandbox.recording_requests()[0].answered is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sandbox.recording_requests()[0].bytes_sent >= 10 * MEBIBYTE

    def test_large_ones_cost_no_memory(self, sandbox: Sandbox) -> None:
        call_id = "call--large-64"
        with pytest.raises(ValueError, match="SHA-256"):
            sandbox.recording(call_id)
        tracemalloc.start()
        connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)
        connection.request("GET", f"/calls/{call_id}/recording", headers=HEADERS)
        response = connection.getresponse()
        assert response.headers["Content-Length"] == str(64 * MEBIBYTE)
        assert sandbox.recording_size(call_id) == 64 * MEBIBYTE
        digest = hashlib.sha256()
        while piece := response.read(MEBIBYTE):
            digest.update(piece)
        connection.close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert digest.hexdigest() == sandbox.recording_sha256(call_id)
        assert peak < 8 * MEBIBYTE

    def test_redirects_lead_to_the_bytes_without_a_key(self, sandbox: Sandbox) -> None:
        here = fetch(sandbox, "call--redirect").headers["location"]
        is_healthy(get(sandbox.url, here, key=None), sandbox.recording("call--redirect"))
        away = urlsplit(fetch(sandbox, "call--redirect-away").headers["location"])
        assert f"http://{away.netloc}" == sandbox.away_url != sandbox.url
        is_healthy(get(sandbox.away_url, away.path, key=None), sandbox.recording("call--redirect-away"))
        is_healthy(get(sandbox.away_url, away.path), sandbox.recording("call--redirect-away"))
        assert [entry.has_authorization for entry in sandbox.away_requests()] == [False, True]
        assert sandbox.away_requests()[0].host == away.netloc

    def test_can_be_set_for_any_call(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        sandbox.set_fault(call_id, "error-500", times=2)
        assert [fetch(sandbox, call_id).status for _ in range(4)] == [500, 500, 200, 200]
        sandbox.set_fault(call_id, "flaky")
        assert [fetch(sandbox, call_id).status for _ in range(2)] == [503, 200]
        sandbox.set_fault(call_id, "forbidden")
        sandbox.set_fault(call_id, None)
        assert fetch(sandbox, call_id).status == 200
        sandbox.set_fault("elsewhere--forbidden", "ok")
        assert fetch(sandbox, "elsewhere--forbidden").status == 404

    def test_set_large_changes_the_recording(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        sandbox.set_fault(call_id, "large-2")
        assert hashlib.sha256(fetch(sandbox, call_id).body).hexdigest() == sandbox.recording_sha256(call_id)
        assert sandbox.recording_size(call_id) == 2 * MEBIBYTE

    @pytest.mark.parametrize("name", ["", "nofault", "large-N", "large-", "too-many-x", "loop", "cut-1"])
    def test_must_exist(self, sandbox: Sandbox, name: str) -> None:
        if name:
            with pytest.raises(ValueError, match="is no fault"):
                sandbox.set_fault("call", name)
        assert fetch(sandbox, f"call--{name}").status == 404

    def test_a_bomb_is_sound_gzip(self) -> None:
        assert gzip.decompress(b"".join(bomb(b"opening", 3))) == b"opening" + b" " * 3 * MEBIBYTE


def page_of(got: Got) -> dict[str, Any]:
    assert got.status == 200
    return dict(got.json())


class TestListFaults:
    def first(self, sandbox: Sandbox, fault: str) -> Got:
        """Get the first page with a fault, and see that the second request has none."""
        sandbox.list_faults.append(fault)
        got = get(sandbox.url, "/calls")
        healthy = get(sandbox.url, "/calls")
        assert len(page_of(healthy)["calls"]) == 20
        assert not sandbox.list_faults
        return got

    def test_the_own_ones_are_tested(self) -> None:
        own = set(LIST_FAULTS) - set(RECORDING_FAULTS)
        tested = {name.removeprefix("test_").replace("_", "-") for name in dir(self)}
        assert own <= tested

    @pytest.mark.parametrize("fault", ["error-500", "error-503", "too-many", "too-many-N", "html", "refuse"])
    def test_those_shared_with_recordings_behave_alike(self, sandbox: Sandbox, fault: str) -> None:
        FAULTS[fault][0](self.first(sandbox, fault.replace("-N", "-17")), b"")

    @pytest.mark.parametrize("fault", ["cut", "gzip", "gzip-bomb", "chunked", "reset", "unsized"])
    def test_those_of_the_wire_have_the_page(self, sandbox: Sandbox, fault: str) -> None:
        healthy = get(sandbox.url, "/calls").body
        FAULTS[fault][0](self.first(sandbox, fault), healthy)

    def test_loop(self, sandbox: Sandbox) -> None:
        page = page_of(self.first(sandbox, "loop"))
        assert page["_links"]["next"] == page["_links"]["self"] == {"href": "/calls"}

    def test_next_away(self, sandbox: Sandbox) -> None:
        href = page_of(self.first(sandbox, "next-away"))["_links"]["next"]["href"]
        assert href.startswith(f"{sandbox.away_url}/calls?")
        second = page_of(get(sandbox.away_url, href.removeprefix(sandbox.away_url), key=None))
        assert [row["id"] for row in second["calls"]] == [row["id"] for row in sandbox.calls[20:40]]
        assert [entry.has_authorization for entry in sandbox.away_requests()] == [False]

    def test_next_http(self, sandbox: Sandbox) -> None:
        href = page_of(self.first(sandbox, "next-http"))["_links"]["next"]["href"]
        assert href.startswith("http://api.invalid/calls?")

    def test_no_links(self, sandbox: Sandbox) -> None:
        assert set(page_of(self.first(sandbox, "no-links"))) == {"calls"}

    def test_not_json(self, sandbox: Sandbox) -> None:
        got = self.first(sandbox, "not-json")
        assert (got.status, got.headers["content-type"]) == (200, "application/json")
        with pytest.raises(json.JSONDecodeError):
            got.json()

    def test_not_a_list(self, sandbox: Sandbox) -> None:
        assert isinstance(page_of(self.first(sandbox, "not-a-list"))["calls"], dict)

    def test_row_not_object(self, sandbox: Sandbox) -> None:
        rows = page_of(self.first(sandbox, "row-not-object"))["calls"]
        assert [type(row) for row in rows] == [dict] * 20 + [str]

    def test_giant(self, sandbox: Sandbox) -> None:
        got = self.first(sandbox, "giant")
        assert got.headers["transfer-encoding"] == "chunked"
        assert len(got.body) > 64 * MEBIBYTE
        assert len(page_of(got)["calls"]) == 20

    def test_repeat(self, sandbox: Sandbox) -> None:
        sandbox.list_faults.extend(["repeat", "ok"])
        pages = walk(sandbox)
        assert pages[0][-1] == pages[1][0]
        assert [len(page) for page in pages] == [20, 20, 11]
        assert set(ids(pages)) == {call["id"] for call in sandbox.calls}

    def test_come_one_at_a_time(self, sandbox: Sandbox) -> None:
        sandbox.list_faults.extend(["error-500", "ok", "error-503"])
        statuses = [get(sandbox.url, "/calls").status for _ in range(4)]
        assert statuses == [500, 200, 503, 200]

    def test_wait_for_a_request_with_the_key(self, sandbox: Sandbox) -> None:
        sandbox.list_faults.append("error-500")
        assert get(sandbox.url, "/calls", key=None).status == 401
        assert get(sandbox.away_url, "/calls").status == 200
        assert get(sandbox.url, "/calls").status == 500


class TestLog:
    def test_has_what_was_asked_and_answered(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        before = time.time()
        get(sandbox.url, "/calls", {"user_id": "u"})
        fetch(sandbox, call_id, key="wrong")
        got = fetch(sandbox, call_id)
        listing, refused, served = sandbox.log
        assert (listing.method, listing.path, listing.query) == ("GET", "/calls", "user_id=u")
        assert (listing.call_id, listing.recording, listing.listener) == (None, False, "api")
        assert (refused.status, refused.authorized, refused.has_authorization) == (401, False, True)
        assert (served.status, served.authorized, served.call_id) == (200, True, call_id)
        assert served.bytes_sent == len(got.body)
        assert f"http://{served.host}" == sandbox.url
        assert served.answered is not None
        assert before - 0.1 <= served.time <= served.answered <= time.time() + 0.1

    def test_is_complete_as_soon_as_the_answer_is(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        for _ in range(40):
            fetch(sandbox, call_id)
            assert sandbox.log[-1].answered is not None

    def test_is_a_copy(self, sandbox: Sandbox) -> None:
        get(sandbox.url, "/calls")
        sandbox.log[0].status = 999
        sandbox.log.clear()
        assert [entry.status for entry in sandbox.log] == [200]

    def test_never_has_the_key(self, tmp_path: Path) -> None:
        path, key = tmp_path / "log", "s3cret/key+="
        with Sandbox(api_key=key, log_path=path) as sandbox:
            get(sandbox.url, "/calls/s3cret%2Fkey%2B%3D/recording", {"key": key}, key=key)
            get(sandbox.url, f"/{key}", key=key)
            fetch(sandbox, "call--echo-key", key=key)
            connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)
            connection.request("GET", "/calls", headers={"Authorization": f"Bearer {key}", "User-Agent": key})
            connection.getresponse().read()
            connection.close()
            seen = repr(sandbox.log) + get(sandbox.url, "/sandbox/log").body.decode()
            assert len(sandbox.log) == 4
        assert "s3cret" not in seen + path.read_text()

    def test_file_is_appended_to_line_by_line(self, tmp_path: Path) -> None:
        path = tmp_path / "requests.jsonl"
        path.write_text('{"earlier": true}\n')
        with Sandbox(log_path=path) as sandbox:
            fetch(sandbox, "x")
            assert len(path.read_text().splitlines()) == 2
            fetch(sandbox, "x--hang", timeout=0.2)
            fetch(sandbox, "y")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        # What hung is entered when it ends, with the sandbox.
        assert [line.get("call_id") for line in lines] == [None, "x", "y", "x--hang"]
        assert all(line["answered"] >= line["time"] for line in lines[1:])

    def test_is_served_to_other_processes(self, sandbox: Sandbox) -> None:
        fetch(sandbox, "x")
        fetch(sandbox, "y")
        document = get(sandbox.url, "/sandbox/log", key=None).json()
        assert (document["recording_requests"], document["most_in_any_period"]) == (2, 2)
        assert (document["limit"], document["period"]) == (50, 3600)
        assert [entry["call_id"] for entry in document["requests"]] == ["x", "y"]
        # Asking for the log does not change it.
        assert get(sandbox.url, "/sandbox/log", key=None).json() == document


class TestLife:
    def test_leaves_no_thread_behind(self) -> None:
        before = set(threading.enumerate())
        sandbox = Sandbox(calls=make_calls(30, end=END)).start()
        clients = []
        # A connection that is idle, one that hangs, one that drips, and some whose data nobody takes.
        for fault in (None, "hang", "slow", "drip", "endless", "large-100"):
            client = socket.create_connection(("127.0.0.1", int(sandbox.url.rpartition(":")[2])))
            if fault:
                request = f"GET /calls/x--{fault}/recording HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n\r\n"
                client.sendall(request.encode())
            clients.append(client)
        deadline = time.monotonic() + 5
        while len(sandbox.log) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        sandbox.stop()
        assert time.monotonic() - began < 1
        assert set(threading.enumerate()) == before
        assert all(entry.answered is not None for entry in sandbox.log)
        for client in clients:
            client.close()

    def test_can_be_interrupted_like_an_outage(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=2) as sandbox:
            url = sandbox.url
            assert fetch(sandbox, "a").status == 200
            sandbox.stop()
            assert isinstance(get(url, "/calls").problem, ConnectionRefusedError)
            sandbox.start()
            assert sandbox.url == url
            assert [fetch(sandbox, "a").status for _ in range(2)] == [200, 429]
            assert len(sandbox.log) == 3

    def test_is_started_once_and_stopped_at_will(self) -> None:
        sandbox = Sandbox()
        with pytest.raises(RuntimeError, match="not been started"):
            _ = sandbox.url
        sandbox.stop()
        with sandbox, pytest.raises(RuntimeError, match="already"):
            sandbox.start()
        sandbox.stop()

    def test_says_when_the_port_is_taken(self, sandbox: Sandbox) -> None:
        with pytest.raises(OSError, match="in use"):
            Sandbox(port=int(sandbox.url.rpartition(":")[2])).start()

    def test_listens_on_the_loopback_interface_only(self, sandbox: Sandbox) -> None:
        assert {listener.server_address[0] for listener in sandbox._listeners} == {"127.0.0.1"}


class TestProgram:
    def run(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_amplemarket.sandbox", *arguments],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_serves_until_it_is_told_to_stop(self, tmp_path: Path, number: signal.Signals) -> None:
        log = tmp_path / "log"
        options = f"--calls 5 --api-key k --limit 2 --log {log} --page-size 9 --faults"
        with self.run(*options.split()) as process:
            assert process.stdout
            assert process.stderr
            printed = ""
            while "export" not in printed:
                printed += process.stdout.readline()
            exported = re.search(r"AIRFLOW_CONN_AMPLEMARKET_DEFAULT='(.+)'", printed)
            assert exported
            connection = json.loads(exported[1])
            assert (connection["conn_type"], connection["password"]) == ("amplemarket", "k")
            assert connection["extra"] == {"recording_limit": 2, "recording_period": 3600.0}
            first = get(connection["host"], "/calls", key="k").json()
            assert len(first["calls"]) == 9
            assert first["calls"][0]["id"] == "sandbox--chunked"
            paths = [f"/calls/sandbox--{fault}/recording" for fault in ("chunked", "too-large", "late")]
            assert [get(connection["host"], path, key="k").status for path in paths] == [200, 413, 429]
            assert get(connection["host"], "/sandbox/log").json()["most_in_any_period"] == 3
            process.send_signal(number)
            assert process.wait(5) == 0
            assert process.stderr.read() == ""
        assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [200, 200, 413, 429]

    def beginning(self, **env: str) -> str:
        """Start it with this environment, and answer what it prints before it is stopped again."""
        with self.run(**env) as process:
            assert process.stdout
            printed = "".join(iter(process.stdout.readline, "For Airflow:\n"))
            process.terminate()
        return printed

    def test_takes_a_free_port_where_none_is_chosen(self) -> None:
        ports = {re.findall(r"URL +http://127\.0\.0\.1:(\d+)", self.beginning())[0] for _ in range(2)}
        assert ports.isdisjoint({"0", "8080"})

    def test_reads_port_limit_and_period_from_the_environment(self) -> None:
        port = str(free_port())
        printed = self.beginning(PORT=port, LIMIT="7", PERIOD="90")
        assert f"127.0.0.1:{port}\n" in printed
        assert "7 recordings in 90 s" in printed

    def test_takes_what_is_empty_in_the_environment_for_unset(self) -> None:
        assert "50 recordings in 3600 s" in self.beginning(PORT="", LIMIT="", PERIOD="")

    def test_refuses_an_unknown_fault(self) -> None:
        with self.run("--port", "0", "--faults", "nofault") as process:
            _, problems = process.communicate(timeout=10)
            assert process.returncode == 2
            assert "'nofault' is no fault" in problems

    def test_says_when_the_port_is_taken(self, sandbox: Sandbox) -> None:
        with self.run("--port", sandbox.url.rpartition(":")[2]) as process:
            _, problems = process.communicate(timeout=10)
            assert process.returncode == 1
            assert "cannot start" in problems
