"""The sandbox asks for the key, knows its paths, and leaves nothing behind when it is stopped."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox, make_call, make_calls
from tests.sandbox.client import END, HEADERS, KEY, fetch, get, good_call


class TestAuthorization:
    @pytest.mark.parametrize("path", ["/account-info", "/calls", "/calls/x/recording", "/nowhere"])
    @pytest.mark.parametrize("key", [None, "wrong", KEY + "x", ""])
    def test_the_key_is_asked_for_everywhere(self, sandbox: Sandbox, path: str, key: str | None) -> None:
        got = get(sandbox.url, path, key=key)
        assert got.status == 401
        assert got.error()["code"] == "unauthorized"
        assert [entry.authorized for entry in sandbox.log] == [False]

    def test_the_key_is_checked_before_the_limit(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=1) as sandbox:
            assert [fetch(sandbox, "a", key="wrong").status for _ in range(3)] == [401] * 3
            assert [fetch(sandbox, "a").status for _ in range(2)] == [200, 429]

    def test_account_info_takes_the_key(self, sandbox: Sandbox) -> None:
        got = get(sandbox.url, "/account-info")
        assert (got.status, got.headers["content-type"]) == (200, "application/json")
        assert isinstance(got.json(), dict)

    def test_the_key_must_not_be_empty(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            Sandbox(api_key="")


class TestRequests:
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
    def test_other_paths_and_methods_are_not_found(self, sandbox: Sandbox, method: str, path: str) -> None:
        got = get(sandbox.url, path, method=method)
        assert got.status == 404
        assert got.error()["code"] == "not_found"
        assert sandbox.recording_requests() == []

    def test_a_head_request_gets_no_body(self, sandbox: Sandbox) -> None:
        got = get(sandbox.url, "/calls", method="HEAD")
        assert (got.status, got.body) == (404, b"")

    def test_a_connection_is_kept_for_the_next_request(self, sandbox: Sandbox) -> None:
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


class TestLife:
    def test_a_sandbox_leaves_no_thread_behind(self) -> None:
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

    def test_a_sandbox_can_be_stopped_and_started_like_an_outage(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=2) as sandbox:
            url = sandbox.url
            assert fetch(sandbox, "a").status == 200
            sandbox.stop()
            assert isinstance(get(url, "/calls").problem, ConnectionRefusedError)
            sandbox.start()
            assert sandbox.url == url
            assert [fetch(sandbox, "a").status for _ in range(2)] == [200, 429]
            assert len(sandbox.log) == 3

    def test_a_sandbox_is_started_once_and_stopped_at_will(self) -> None:
        sandbox = Sandbox()
        with pytest.raises(RuntimeError, match="not been started"):
            _ = sandbox.url
        sandbox.stop()
        with sandbox, pytest.raises(RuntimeError, match="already"):
            sandbox.start()
        sandbox.stop()

    def test_a_port_that_is_taken_is_an_error(self, sandbox: Sandbox) -> None:
        with pytest.raises(OSError, match="in use"):
            Sandbox(port=int(sandbox.url.rpartition(":")[2])).start()

    def test_a_sandbox_listens_on_the_loopback_interface_only(self, sandbox: Sandbox) -> None:
        assert {listener.server_address[0] for listener in sandbox._listeners} == {"127.0.0.1"}
