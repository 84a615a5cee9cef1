"""The sandbox's limit is a sliding window over the requests for recordings."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from airflow_provider_amplemarket.sandbox.limiter import SlidingWindow, most_in_any
from tests.sandbox.client import END, fetch, get


class TestSlidingWindow:
    def test_the_window_slides(self) -> None:
        window = SlidingWindow(2, 10)
        assert [window.admit(now) for now in (0, 6)] == [None, None]
        # A window that is reset every ten seconds would admit two at 10, and with those three in 4 seconds.
        assert [window.admit(now) for now in (9.5, 10, 11)] == [0.5, None, 5]
        assert window.admit(16) is None

    def test_the_window_may_count_what_it_refuses(self) -> None:
        window = SlidingWindow(1, 10, count_refused=True)
        # Who comes back too early has to wait for a whole period again.
        assert [window.admit(now) for now in (0, 4, 13.5)] == [None, 10, 10]
        assert window.admit(23.5) is None

    def test_the_window_may_admit_nothing(self) -> None:
        window = SlidingWindow(0, 10)
        assert [window.admit(now) for now in (0, 100)] == [10, 10]

    @pytest.mark.parametrize(
        ("times", "most"),
        [([], 0), ([5], 1), ([0, 10], 1), ([0, 9.9], 2), ([20, 0, 19, 11, 5], 3), ([1, 1, 1], 3)],
    )
    def test_the_fullest_window_is_found(self, times: list[float], most: int) -> None:
        assert most_in_any(times, 10) == most


class TestLimit:
    def test_requests_are_admitted_again_as_places_get_free(self) -> None:
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

    def test_a_refusal_says_when_to_come_back(self) -> None:
        with Sandbox(limit=0, period=1234.5) as sandbox:
            got = fetch(sandbox, "a")
            assert (got.status, got.headers["retry-after"]) == (429, "1235")
            assert got.error()["title"] == "Too Many Requests"

    def test_a_refusal_may_leave_out_when_to_come_back(self) -> None:
        with Sandbox(limit=0, retry_after=False) as sandbox:
            got = fetch(sandbox, "a")
            assert got.status == 429
            assert "retry-after" not in got.headers

    def test_a_request_is_admitted_after_the_time_a_refusal_names(self) -> None:
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
    def test_a_request_counts_whatever_the_response(self, call_id: str, status: int) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=1) as sandbox:
            assert fetch(sandbox, call_id).status == status
            assert fetch(sandbox, "a").headers["retry-after"] == "3600"

    def test_only_requests_for_recordings_count(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END)], limit=1) as sandbox:
            for path in ("/calls", "/account-info", "/sandbox/files/a", "/nowhere", "/sandbox/log"):
                get(sandbox.url, path)
            get(sandbox.away_url, "/calls/a/recording")
            assert fetch(sandbox, "a").status == 200
            assert len(sandbox.recording_requests()) == 1

    def test_what_other_clients_spend_counts(self) -> None:
        with Sandbox(limit=5) as sandbox:
            sandbox.spend(3)
            assert [fetch(sandbox, "x").status for _ in range(3)] == [404, 404, 429]
            assert sandbox.most_in_any_period() == 3

    def test_what_other_clients_spend_in_vain_takes_no_place(self) -> None:
        with Sandbox(limit=2, period=0.3) as sandbox:
            sandbox.spend(99)
            assert fetch(sandbox, "x").status == 429
            time.sleep(0.35)
            assert fetch(sandbox, "x").status == 404

    def test_the_limit_holds_for_requests_at_once(self) -> None:
        with Sandbox(limit=7) as sandbox, ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(lambda _: fetch(sandbox, "x").status, range(60)))
            assert (statuses.count(404), statuses.count(429)) == (7, 53)
            entries = sandbox.recording_requests()
            assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
            assert all(entry.answered and entry.answered >= entry.time for entry in entries)
