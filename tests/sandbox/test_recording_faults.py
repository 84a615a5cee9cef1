"""What may go wrong with a recording goes wrong in exactly that way."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import time
import tracemalloc
from urllib.parse import urlsplit

import pytest

from airflow_provider_amplemarket.sandbox import RECORDING_FAULTS, Sandbox
from airflow_provider_amplemarket.sandbox.faults.contents import bomb
from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE
from tests.sandbox.checks import FAULTS, TESTED_ON_THEIR_OWN, is_healthy
from tests.sandbox.client import HEADERS, fetch, get, good_call


class TestRecordingFaults:
    def test_every_fault_is_tested(self) -> None:
        assert set(FAULTS) | TESTED_ON_THEIR_OWN == set(RECORDING_FAULTS)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_fault_behaves_as_it_is_called(self, sandbox: Sandbox, fault: str) -> None:
        call_id = f"call--{fault.replace('-N', '-17')}"
        for check in (*FAULTS[fault], FAULTS[fault][-1]):
            check(fetch(sandbox, call_id), sandbox.recording(call_id))
        assert {entry.call_id for entry in sandbox.recording_requests()} == {call_id}
        # Whatever the fault did to its own connection, the next is served.
        is_healthy(fetch(sandbox, good_call(sandbox)), sandbox.recording(good_call(sandbox)))

    def test_slow_waits_before_the_response(self, sandbox: Sandbox) -> None:
        began = time.monotonic()
        is_healthy(fetch(sandbox, "call--slow"), sandbox.recording("call--slow"))
        assert 2 <= time.monotonic() - began < 8

    def test_drip_sends_the_body_in_small_pieces(self, sandbox: Sandbox) -> None:
        began = time.monotonic()
        is_healthy(fetch(sandbox, "call--drip"), sandbox.recording("call--drip"))
        assert 2.5 <= time.monotonic() - began < 10
        (entry,) = sandbox.recording_requests()
        assert entry.answered is not None
        assert entry.answered - entry.time > 2.5

    def test_hang_sends_no_response(self, sandbox: Sandbox) -> None:
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

    def test_a_large_recording_costs_no_memory(self, sandbox: Sandbox) -> None:
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

    def test_a_fault_can_be_set_for_any_call(self, sandbox: Sandbox) -> None:
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

    def test_setting_large_changes_the_recording(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        sandbox.set_fault(call_id, "large-2")
        assert hashlib.sha256(fetch(sandbox, call_id).body).hexdigest() == sandbox.recording_sha256(call_id)
        assert sandbox.recording_size(call_id) == 2 * MEBIBYTE

    @pytest.mark.parametrize("name", ["", "nofault", "large-N", "large-", "too-many-x", "loop", "cut-1"])
    def test_a_fault_that_does_not_exist_is_refused(self, sandbox: Sandbox, name: str) -> None:
        if name:
            with pytest.raises(ValueError, match="is not a fault"):
                sandbox.set_fault("call", name)
        assert fetch(sandbox, f"call--{name}").status == 404

    def test_a_bomb_is_sound_gzip(self) -> None:
        assert gzip.decompress(b"".join(bomb(b"opening", 3))) == b"opening" + b" " * 3 * MEBIBYTE
