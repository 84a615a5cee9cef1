"""The session, its key and its time-outs, and what the responses show of the clock."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import requests

from airflow_provider_amplemarket.api.client import BearerAuth
from airflow_provider_amplemarket.exceptions import AmplemarketConnectionError, RecordingNotFoundError
from airflow_provider_amplemarket.sandbox import Sandbox, make_call, make_calls
from tests.api.servers import END, KEY, MP3, Connect, RawServer, download, page, raw

#: Lists the calls of a sandbox, and downloads the first one's recording; there is no Airflow.
SCRIPT = """
import json, sys
from pathlib import Path
sys.modules.update({"airflow": None, "airflow.sdk": None})
from airflow_provider_amplemarket.api.client import Client
from airflow_provider_amplemarket.api.download import download_recording
from airflow_provider_amplemarket.api.listing import CallFilter, iter_calls
from airflow_provider_amplemarket.api.settings import Settings, parse_base_url
_, url, key, target = sys.argv
client = Client(Settings(base_url=parse_base_url(url), api_key=key, limit=50, period=3600, timeout=10))
ids = [call["id"] for call in iter_calls(client, CallFilter())]
print(json.dumps([ids, download_recording(client, ids[0], Path(target)).sha256]))
"""


def test_a_script_needs_no_airflow(target: Path) -> None:
    with Sandbox(calls=make_calls(3, end=END)) as sandbox:
        command = [sys.executable, "-W", "error", "-c", SCRIPT, sandbox.url, KEY, str(target)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.stderr == ""
        found, sha256 = json.loads(told.stdout)
        assert sorted(found) == sorted(call["id"] for call in sandbox.calls)
        assert sha256 == sandbox.recording_sha256(found[0])


class TestTheSession:
    def test_a_timeout_of_the_request_goes_before_that_of_the_connection(self, connect: Connect) -> None:
        with Sandbox() as sandbox, pytest.raises(requests.exceptions.ReadTimeout, match=r"0\.1"):
            connect(sandbox.url).session.get(f"{sandbox.url}/calls/abc--hang/recording", timeout=0.1)

    def test_a_host_that_does_not_accept_is_given_up_after_the_timeout(self, connect: Connect, target: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            api = connect(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.2)
            with pytest.raises(AmplemarketConnectionError, match="Timeout"):
                download(api, "abc", target)

    def test_the_session_itself_does_not_give_the_key_to_where_it_is_redirected(self, connect: Connect) -> None:
        with Sandbox(calls=[make_call(id="abc--redirect-away", start_date=END)]) as sandbox:
            connect(sandbox.url).session.get(f"{sandbox.url}/calls/abc--redirect-away/recording")
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
            connect(server.url).session.get(f"{server.url}/calls")
        assert (len(server.seen), len(proxy.seen)) == (1, 0)

    def test_a_netrc_file_is_not_asked_for_a_password(
        self, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text("default login someone password other\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with RawServer(page()) as away, RawServer(page()) as server:
            session = connect(server.url).session
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


def dated(date: datetime, body: bytes = b'{"calls": []}', **headers: str | None) -> bytes:
    return raw(body, Date=format_datetime(date, usegmt=True), **headers)


class TestTheClock:
    def read(self, connect: Connect, *responses: bytes) -> float:
        with RawServer(*responses) as server:
            api = connect(server.url)
            for _ in responses:
                list(api.iter_calls())
        return api.clock_skew

    def test_nothing_is_known_before_the_first_response(self, connect: Connect) -> None:
        assert connect("http://127.0.0.1:9").clock_skew == 0.0

    @pytest.mark.parametrize("behind", [60, 3600, -60])
    def test_a_server_with_another_time_is_noticed(self, connect: Connect, behind: int) -> None:
        found = self.read(connect, dated(datetime.now(UTC) - timedelta(seconds=behind)))
        assert found == pytest.approx(behind, abs=5)

    def test_a_server_with_the_same_time_is_not(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(100, end=END)) as sandbox:
            api = connect(sandbox.url)
            list(api.iter_calls())
        assert api.clock_skew == 0.0

    @pytest.mark.parametrize(
        "response",
        [
            raw(b'{"calls": []}'),
            raw(b'{"calls": []}', Date="yesterday"),
            raw(b'{"calls": []}', Date="Sun, 99 Nov 1994 08:49:37 GMT"),
            raw(b'{"calls": []}', Date=""),
            dated(datetime(2026, 1, 1, tzinfo=UTC), Age="7"),
        ],
    )
    def test_what_shows_no_time_is_ignored(self, connect: Connect, response: bytes) -> None:
        assert self.read(connect, response) == 0.0

    def test_errors_and_recordings_tell_it_too(self, connect: Connect, target: Path) -> None:
        date = datetime.now(UTC) - timedelta(hours=1)
        for response in dated(date, b"").replace(b"200", b"404"), dated(date, MP3):
            with RawServer(response) as server:
                api = connect(server.url)
                with suppress(RecordingNotFoundError):
                    download(api, "abc", target)
            assert api.clock_skew == pytest.approx(3600, abs=5)

    def test_another_host_does_not(self, connect: Connect, target: Path) -> None:
        with (
            RawServer(dated(datetime(2026, 1, 1, tzinfo=UTC), MP3)) as away,
            RawServer(raw(b"", 302, Location=f"{away.url}/abc")) as server,
        ):
            api = connect(server.url)
            download(api, "abc", target)
        assert api.clock_skew == 0.0
