"""Every request ends: at its deadline, when the task is told to stop, and when a signal's handler raises."""

from __future__ import annotations

import gc
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_amplemarket.api import download as download_module
from airflow_provider_amplemarket.api import listing
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    AmplemarketError,
    InvalidRecordingError,
    RequestAbortedError,
)
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from tests.api.drips import LASTING, MODES, REQUESTS, RESPONSES, Drips, download, read_list

END = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEY = "sandbox-key"
#: Far more than anything here takes, and far less than the drips last.
SOON = 15.0

Connect = Callable[..., AmplemarketHook]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Give a function that makes the connection and returns a hook for it."""

    def connect(url: str, timeout: float = 60.0) -> AmplemarketHook:
        connection = {"conn_type": "amplemarket", "host": url, "password": KEY, "extra": {"timeout": timeout}}
        monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(connection))
        return AmplemarketHook()

    return connect


@contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON < LASTING


@contextmanager
def meanwhile(function: Callable[[], object], server: Drips | None = None) -> Iterator[None]:
    """Call the function in another thread, once the server has a request."""

    def run() -> None:
        if server:
            server.wait_for(1)
        else:
            time.sleep(0.3)
        function()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


@contextmanager
def alarm(handler: Callable[..., None], server: Drips | None = None) -> Iterator[None]:
    """Let a signal come to this thread, the main one, as Airflow lets it come for ``execution_timeout``."""
    old = signal.signal(signal.SIGALRM, handler)
    this_thread = threading.get_ident()
    try:
        with meanwhile(lambda: signal.pthread_kill(this_thread, signal.SIGALRM), server):
            yield
    finally:
        signal.signal(signal.SIGALRM, old)


def time_out(*_: Any) -> None:
    raise AirflowTaskTimeout("Timeout")


class TestTheDeadline:
    @pytest.mark.parametrize("response", RESPONSES)
    def test_a_list_ends_however_it_drips(
        self, connect: Connect, tmp_path: Path, response: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(listing, "_ATTEMPTS", 1)
        with Drips(response) as server, soon(), pytest.raises(AmplemarketAPIError, match="GET /calls"):
            read_list(connect(server.url, timeout=0.4), tmp_path)

    def test_a_list_that_drips_is_asked_for_again(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listing, "_backoff", lambda state: 0.0)
        with Drips("body") as server, soon(), pytest.raises(AmplemarketConnectionError, match="cut short"):
            list(connect(server.url, timeout=0.2).iter_calls())
        assert len(server.connections) == 6

    @pytest.mark.parametrize("response", RESPONSES)
    def test_the_test_of_the_connection_ends(self, connect: Connect, tmp_path: Path, response: str) -> None:
        with Drips(response) as server, soon():
            ok, message = connect(server.url, timeout=0.4).test_connection()
        assert not ok
        assert "GET /account-info" in message

    @pytest.mark.parametrize(
        ("response", "error", "message"),
        [
            ("nothing at all", AmplemarketConnectionError, "no response"),
            ("status line", AmplemarketConnectionError, "no response .*DeadlineError: not over after 0.8 s"),
            ("header", AmplemarketConnectionError, "no response .*DeadlineError: not over after 0.8 s"),
            ("error body", AmplemarketAPIError, "returned 500$"),
            ("body", InvalidRecordingError, r"cut short after \d+ of 99999 bytes \(DeadlineError\)"),
            ("body in chunks", InvalidRecordingError, r"cut short after \d+ of an unknown number.*DeadlineError"),
        ],
    )
    def test_a_recording_ends_however_it_drips(
        self,
        connect: Connect,
        tmp_path: Path,
        response: str,
        error: type[AmplemarketError],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(download_module, "MAX_DOWNLOAD_TIME", 1.0)
        with Drips(response) as server, soon(), pytest.raises(error, match=message) as caught:
            download(connect(server.url, timeout=0.4), tmp_path)
        assert type(caught.value) is error
        assert list(tmp_path.iterdir()) == []

    def test_a_recording_may_take_longer_than_its_header_and_the_request_before_on_the_connection(
        self, connect: Connect, tmp_path: Path
    ) -> None:
        with Sandbox(calls=[make_call(id="abc--drip", start_date=END)]) as sandbox:
            hook = connect(sandbox.url, timeout=0.7)
            assert len(list(hook.iter_calls())) == 1
            hook.download_recording("abc--drip", tmp_path / "abc")
            assert (tmp_path / "abc").read_bytes() == sandbox.recording("abc--drip")

    def test_a_request_of_ones_own_on_the_session_has_one(self, connect: Connect) -> None:
        with Drips("body") as server, soon(), pytest.raises(requests.RequestException):
            connect(server.url, timeout=0.4).get_conn().get(f"{server.url}/calls")

    def test_a_host_that_does_not_respond_at_all(self, connect: Connect, tmp_path: Path) -> None:
        with unreachable() as url, soon(), pytest.raises(AmplemarketConnectionError, match="Timeout"):
            download(connect(url, timeout=0.4), tmp_path)

    def test_a_proxy_that_drips(self, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_PROXY", "")
        with Drips("header") as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            with soon(), pytest.raises(AmplemarketConnectionError, match="no response"):
                download(connect("https://api.example.com", timeout=0.4), tmp_path)

    def test_a_name_service_that_does_not_respond(
        self, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with nameless(monkeypatch), soon(), pytest.raises(AmplemarketConnectionError, match="DeadlineError"):
            download(connect("https://api.example.com", timeout=0.4), tmp_path)


@contextmanager
def unreachable() -> Iterator[str]:
    """Give the URL of a server at which connecting gets no response: more wait there already than it lets wait."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listening.getsockname()
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"


@contextmanager
def nameless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let looking up a name take long."""
    is_over = threading.Event()

    def look_up(*_: Any, **__: Any) -> None:
        is_over.wait(LASTING)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        yield
    finally:
        is_over.set()


class TestATaskThatIsToldToStop:
    @pytest.mark.parametrize(("request_", "response"), MODES)
    def test_another_thread_ends_a_request(
        self, connect: Connect, tmp_path: Path, request_: str, response: str
    ) -> None:
        with Drips(response) as server:
            hook = connect(server.url)
            with (
                soon(),
                meanwhile(hook.abort, server),
                pytest.raises((RequestAbortedError, RuntimeError), match="told to stop"),
            ):
                REQUESTS[request_](hook, tmp_path)
        assert len(server.connections) == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("request_", "response"), MODES)
    def test_the_handler_of_a_signal_ends_a_request(
        self, connect: Connect, tmp_path: Path, request_: str, response: str
    ) -> None:
        with Drips(response) as server:
            hook = connect(server.url)
            with (
                soon(),
                alarm(lambda *_: hook.abort(), server),
                pytest.raises((RequestAbortedError, RuntimeError), match="told to stop"),
            ):
                REQUESTS[request_](hook, tmp_path)
        assert len(server.connections) == 1

    @pytest.mark.parametrize(("request_", "response"), MODES)
    def test_what_the_handler_of_a_signal_raises_comes_out_at_once(
        self, connect: Connect, tmp_path: Path, request_: str, response: str
    ) -> None:
        with Drips(response) as server, soon(), alarm(time_out, server), pytest.raises(AirflowTaskTimeout):
            REQUESTS[request_](connect(server.url), tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("end", ["abort", "signal"])
    def test_a_host_that_does_not_respond_at_all(self, connect: Connect, tmp_path: Path, end: str) -> None:
        with unreachable() as url:
            self.stop_early(connect(url), tmp_path, end)

    @pytest.mark.parametrize("end", ["abort", "signal"])
    def test_a_name_service_that_does_not_respond(
        self, connect: Connect, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with nameless(monkeypatch):
            self.stop_early(connect("https://api.example.com"), tmp_path, end)

    # Where a handler raises, ssl leaves it to the garbage collector to close the socket.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("end", ["abort", "signal"])
    def test_a_host_that_does_not_shake_hands(self, connect: Connect, tmp_path: Path, end: str) -> None:
        with Drips("nothing at all") as server:
            self.stop_early(connect(server.url.replace("http:", "https:")), tmp_path, end)
        gc.collect()

    @pytest.mark.parametrize("end", ["abort", "signal"])
    def test_a_proxy_that_drips(
        self, connect: Connect, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Drips("header") as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "")
            self.stop_early(connect("https://api.example.com"), tmp_path, end)
        assert len(proxy.connections) == 1

    def stop_early(self, hook: AmplemarketHook, tmp_path: Path, end: str) -> None:
        is_signal = end == "signal"
        error = AirflowTaskTimeout if is_signal else RequestAbortedError
        with soon(), alarm(time_out) if is_signal else meanwhile(hook.abort), pytest.raises(error):
            download(hook, tmp_path)

    @pytest.mark.parametrize("fault", ["too-many-60", "error-503"])
    def test_the_wait_before_another_try_ends(
        self, connect: Connect, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        monkeypatch.setattr(listing, "_backoff", lambda state: 30.0)
        with Sandbox() as sandbox:
            sandbox.list_faults.append(fault)
            hook = connect(sandbox.url)
            with soon(), meanwhile(hook.abort), pytest.raises(RequestAbortedError):
                list(hook.iter_calls())
            assert len(sandbox.log) == 1

    def test_all_requests_end_together(self, connect: Connect, tmp_path: Path) -> None:
        responses = [response for request, response in MODES if request == "recording"]
        with Drips(*responses) as server, ThreadPoolExecutor(len(responses)) as pool, soon():
            hook = connect(server.url)
            running = [
                pool.submit(hook.download_recording, f"abc-{number}", tmp_path / str(number))
                for number, _ in enumerate(responses)
            ]
            server.wait_for(len(responses))
            hook.abort()
            assert {type(future.exception()) for future in running} == {RequestAbortedError}

    def test_stopping_never_raises(self, connect: Connect, tmp_path: Path) -> None:
        with Sandbox(calls=[make_call(id="abc", start_date=END)]) as sandbox:
            hook = connect(sandbox.url)
            hook.abort()
            hook = connect(sandbox.url)
            # By the end of the body the connection has gone back to where it is kept.
            with pytest.raises(RequestAbortedError):
                hook.download_recording("abc", tmp_path / "abc", cancelled=lambda: bool(hook.abort()))
            hook.abort()
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_asked_for_any_more(self, connect: Connect, tmp_path: Path) -> None:
        with Sandbox(calls=[make_call(id="abc", start_date=END)]) as sandbox:
            hook = connect(sandbox.url)
            assert len(list(hook.iter_calls())) == 1
            hook.abort()
            for request in (read_list, download):
                with pytest.raises(RequestAbortedError, match="The task was told to stop"):
                    request(hook, tmp_path)
            with pytest.raises(RequestAbortedError):
                hook.get_conn().get(f"{sandbox.url}/calls")
            assert hook.test_connection() == (False, "RequestAbortedError: The task was told to stop")
            assert len(sandbox.log) == 1
            assert len(list(connect(sandbox.url).iter_calls())) == 1

    def test_no_connection_is_left_open(self, connect: Connect, tmp_path: Path) -> None:
        with Drips("body") as server:
            hook = connect(server.url)
            with meanwhile(hook.abort, server), pytest.raises(RequestAbortedError):
                download(hook, tmp_path)
            server.connections[0].settimeout(SOON)
            with pytest.raises(OSError, match=r"(?i)reset|closed|pipe"):
                send_for_ever(server.connections[0])


def send_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(b" " * 65536)
