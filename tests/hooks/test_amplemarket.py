"""The hook: from an Airflow connection to requests to a server on the loopback interface."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests

from airflow_provider_amplemarket import __version__
from airflow_provider_amplemarket.exceptions import AuthenticationError
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.sandbox import Sandbox, make_call, make_calls
from tests.api.servers import END, KEY, MIB, MP3, RawServer, echo, everything_said, ids, list_requests, page, raw

Connect = Callable[..., "Hook"]


class Hook(AmplemarketHook):
    """The hook, which notes the waits between two requests for the list instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._watchdog.sleep = self.waits.append  # type: ignore[method-assign, assignment]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Give a function that makes the connection and returns a hook for it."""

    def connect(url: str, key: str = KEY, **extra: object) -> Hook:
        connection = {"conn_type": "amplemarket", "host": url, "password": key, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(connection))
        return Hook()

    return connect


class TestAskingThroughTheHook:
    def test_calls_are_asked_for_with_window_and_user_once_they_are_read(self, connect: Connect) -> None:
        start, end = END - timedelta(days=1), END - timedelta(hours=1)
        calls = make_calls(40, end=END, days=2)
        user = calls[10]["user_id"]
        wanted = [
            call["id"]
            for call in calls
            if call["user_id"] == user and start <= datetime.fromisoformat(call["start_date"]) < end
        ]
        assert wanted
        with Sandbox(calls=calls) as sandbox:
            found = connect(sandbox.url).iter_calls(start=start, end=end, user_id=user)
            assert sandbox.log == []
            assert sorted(ids(found)) == sorted(wanted)
        assert parse_qs(sandbox.log[0].query)["user_id"] == [user]

    def test_a_download_reports_its_response_and_asks_whether_it_is_cancelled(
        self, connect: Connect, tmp_path: Path
    ) -> None:
        told: list[str] = []

        def cancelled() -> bool:
            told.append("asked")
            return False

        with Sandbox(calls=[make_call(id="abc--large-3", start_date=END)]) as sandbox:
            hook = connect(sandbox.url)
            found = hook.download_recording(
                "abc--large-3", str(tmp_path / "abc"), cancelled=cancelled, on_response=lambda: told.append("responded")
            )
        assert found.size == (tmp_path / "abc").stat().st_size == 3 * MIB
        assert told == ["responded", "asked", "asked", "asked"]

    def test_the_hook_as_it_is_waits_for_real(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            sandbox.list_faults.append("too-many-1")
            connect(sandbox.url)
            assert list(AmplemarketHook().iter_calls()) == []
        first, second = list_requests(sandbox)
        assert second.time - first.time >= 1

    @pytest.mark.parametrize("fault", ["unauthorized", "forbidden"])
    def test_a_refused_key_is_not_tried_again(self, connect: Connect, fault: str) -> None:
        with Sandbox() as sandbox:
            sandbox.list_faults.append(fault)
            with pytest.raises(AuthenticationError, match="amplemarket_default") as caught:
                list(connect(sandbox.url).iter_calls())
        assert caught.value.status in (401, 403)
        assert caught.value.code in ("unauthorized", "forbidden")
        assert len(sandbox.log) == 1

    def test_a_refused_key_names_the_connection(self, connect: Connect, tmp_path: Path) -> None:
        with (
            Sandbox(calls=[make_call(id="abc", start_date=END)]) as sandbox,
            pytest.raises(AuthenticationError, match="connection 'amplemarket_default'") as caught,
        ):
            connect(sandbox.url, "wrong-key").download_recording("abc", tmp_path / "recording")
        assert "wrong-key" not in everything_said(caught.value)


class TestTestingTheConnection:
    def test_a_right_key_is_accepted_at_no_cost(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            assert connect(sandbox.url).test_connection() == (True, f"{sandbox.url} accepts the API key")
        assert [entry.path for entry in sandbox.log] == ["/account-info"]

    def test_a_wrong_key_is_refused_without_being_shown(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            ok, message = connect(sandbox.url, "wrong-key").test_connection()
        assert not ok
        assert message.startswith("AuthenticationError: GET /account-info returned 401 (unauthorized: ")
        assert "wrong-key" not in message
        assert len(sandbox.log) == 1

    def test_a_server_that_is_down_is_told(self, connect: Connect) -> None:
        sandbox = Sandbox()
        with sandbox:
            hook = connect(sandbox.url)
        ok, message = hook.test_connection()
        assert not ok
        assert message.startswith("AmplemarketConnectionError: GET /account-info: no response")
        assert hook.waits == []

    @pytest.mark.parametrize(
        "response",
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
    def test_a_response_that_makes_no_sense_is_told(self, connect: Connect, response: bytes) -> None:
        with RawServer(response) as server:
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

    @pytest.mark.parametrize("key", [KEY, 'quo"te-back\\slash-sl/ash-<tag>'])
    @pytest.mark.parametrize("escape", [True, False])
    def test_a_response_that_echoes_the_key_is_told_without_it(self, connect: Connect, key: str, escape: bool) -> None:
        with RawServer(raw(echo(key, escape), 500)) as server:
            ok, message = connect(server.url, key).test_connection()
        assert not ok
        assert key not in message


class TestTheSession:
    def test_every_request_carries_the_key_who_asks_and_no_wish_for_compression(
        self, connect: Connect, tmp_path: Path
    ) -> None:
        with RawServer(page(), raw(b"{}"), raw(MP3)) as server:
            hook = connect(server.url)
            list(hook.iter_calls())
            assert hook.test_connection()[0]
            hook.download_recording("abc", tmp_path / "recording")
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

    def test_the_key_is_not_shown_by_what_holds_it(self, connect: Connect) -> None:
        hook = connect("http://127.0.0.1:9")
        for thing in (hook, hook.settings, hook.get_conn(), hook.get_conn().auth):
            assert KEY not in repr(thing)
            assert KEY not in str(thing)

    def test_making_a_hook_reads_no_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", raising=False)
        assert AmplemarketHook("not-there").amplemarket_conn_id == "not-there"
