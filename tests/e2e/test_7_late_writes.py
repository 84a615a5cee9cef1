"""The API server gets a write long after its sender has given it up, and later ones in between: the limit holds."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow
from dev.postgres import Postgres
from dev.processes import free_port
from tests.e2e import truth
from tests.e2e.conftest import API_KEY, CONN_ID, DAGS, connect

pytestmark = pytest.mark.e2e

LEDGER = f"amplemarket_quota__{CONN_ID}"
LIMIT, PERIOD = 10, 30
HELD_FOR = 15.0
START = datetime.now(UTC) - timedelta(days=30)
#: What concerns one connection only, and is not handed on.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class HoldingProxy:
    """
    Stand before the API server, and hold the first write of the ledger; copies of it are handed on at once.

    :param port: the API server's.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        #: For each write of the ledger, in the order in which they arrive, its text.
        self.writes: list[bytes] = []
        self.delivered = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/execution/"

    def __enter__(self) -> HoldingProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def hand_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        """Send a request to the API server, late if it is the one that is held, and return the response."""
        is_held = False
        if method == "PUT" and unquote(path).endswith(f"/variables/{LEDGER}"):
            self.writes.append(body)
            is_held = len(self.writes) == 1
        if is_held:
            threading.Event().wait(HELD_FOR)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()
            if is_held:
                self.delivered.set()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
                status, fields, text = proxy.hand_on(self.command, self.path, headers, body)
                try:
                    self.send_response(status)
                    for name, value in fields:
                        if name.lower() not in HOP_BY_HOP:
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except ConnectionError:  # its sender has given it up
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = handle_any

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


@pytest.fixture(scope="module")
def late_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the archives of this module's Airflow."""
    return tmp_path_factory.mktemp("late-archives")


@pytest.fixture(scope="module")
def port() -> int:
    """Give the port of this module's API server."""
    return free_port()


@pytest.fixture(scope="module")
def proxy(port: int) -> Iterator[HoldingProxy]:
    """Give the proxy through which this module's tasks reach it."""
    with HoldingProxy(port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def late_airflow(
    tmp_path_factory: pytest.TempPathFactory, late_archives: Path, port: int, proxy: HoldingProxy
) -> Iterator[ObservedAirflow]:
    """Give an Airflow of this module's own: the others' has a client that waits for thirty seconds."""
    environment = {
        "E2E_ARCHIVES": late_archives.as_uri(),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": proxy.url,
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "5",
    }
    home, dags = tmp_path_factory.mktemp("late-airflow"), {"e2e": DAGS["e2e"]}
    with Postgres() as postgres, ObservedAirflow(home, postgres, dags, environment, port) as airflow:
        yield airflow


def test_a_write_of_the_ledger_that_arrives_late_costs_no_request_over_the_limit(
    late_airflow: ObservedAirflow, proxy: HoldingProxy, late_archives: Path
) -> None:
    with Sandbox(api_key=API_KEY, limit=LIMIT, period=PERIOD) as sandbox:
        connect(late_airflow, CONN_ID, sandbox, LIMIT, PERIOD)
        late_airflow.unpause("mishap")
        calls = truth.add_calls(sandbox, "first", LIMIT, START)
        late_airflow.trigger("mishap", call_ids=calls)
        late_airflow.wait("the write that is held", proxy.delivered.is_set)
        # Its copy was handed on meanwhile; else nothing is late.
        assert len(proxy.writes) > 1
        assert proxy.writes[0] == proxy.writes[1]
        late_airflow.wait_for_runs("mishap", count=1)
        more = truth.add_calls(sandbox, "second", LIMIT, START + timedelta(days=1))
        late_airflow.trigger("mishap", call_ids=more)
        late_airflow.wait_for_runs("mishap", count=2)
        calls += more
        most = truth.most_in_any_period(sandbox, calls, PERIOD)
        print(f"\none write {HELD_FOR:.0f} s late: {most} requests in any period")
        assert most <= LIMIT
        assert not truth.refused(truth.requests_of(sandbox, calls))
        assert truth.times_asked(sandbox, calls) == Counter(calls)
        truth.check_archive(sandbox, late_archives / "mishap", calls)
