"""The sandbox's log has every request and response, and never the key."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

from airflow_provider_amplemarket.sandbox import Sandbox
from tests.sandbox.client import fetch, get, good_call


class TestLog:
    def test_the_log_has_requests_and_responses(self, sandbox: Sandbox) -> None:
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

    def test_the_log_is_complete_as_soon_as_the_response_is(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        for _ in range(40):
            fetch(sandbox, call_id)
            assert sandbox.log[-1].answered is not None

    def test_the_log_is_a_copy(self, sandbox: Sandbox) -> None:
        get(sandbox.url, "/calls")
        sandbox.log[0].status = 999
        sandbox.log.clear()
        assert [entry.status for entry in sandbox.log] == [200]

    def test_the_log_never_has_the_key(self, tmp_path: Path) -> None:
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

    def test_the_log_file_is_appended_to_line_by_line(self, tmp_path: Path) -> None:
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

    def test_the_log_is_served_to_other_processes(self, sandbox: Sandbox) -> None:
        fetch(sandbox, "x")
        fetch(sandbox, "y")
        document = get(sandbox.url, "/sandbox/log", key=None).json()
        assert (document["recording_requests"], document["most_in_any_period"]) == (2, 2)
        assert (document["limit"], document["period"]) == (50, 3600)
        assert [entry["call_id"] for entry in document["requests"]] == ["x", "y"]
        # Asking for the log does not change it.
        assert get(sandbox.url, "/sandbox/log", key=None).json() == document
