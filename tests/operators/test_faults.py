"""What the API may do wrong: a bad recording stops no other, and what fails for good is told from what may come."""

from __future__ import annotations

import os
import time
from collections import Counter
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketError,
    ArchiveIncompleteError,
)
from tests.operators.conftest import API_KEY, Bench, Row, call, calls
from tests.operators.tools import ids

#: Faults after which the recording is not there, and nothing says that it never will be.
BAD = (
    "error-500",
    "error-503",
    "error-503-html",
    "refuse",
    "hang",
    "reset",
    "cut",
    "cut-chunked",
    "unsized",
    "unsized-cut",
    "partial",
    "endless",
    "empty",
    "html",
    "json",
    "html-as-audio",
    "json-as-audio",
    "octet-stream",
    "no-type",
    "gzip",
    "gzip-bomb",
    "redirect-loop",
    "redirect-http",
    "echo-key",
)


class TestFaults:
    @pytest.mark.parametrize("fault", BAD)
    def test_one_bad_recording_never_stops_the_others(
        self, bench: Bench, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_provider_amplemarket.api.download.MAX_RECORDING_SIZE", 4 * 1024**2)
        bad, good = call(f"bad--{fault}", 9), calls(4)
        sandbox = bench.start(bad, *good, timeout=0.5)
        first = bench.run("monday", try_number=1)
        assert isinstance(first.error, ArchiveIncompleteError)
        assert str(first.error).startswith(f"1 recordings failed: {bad['id']} (")
        assert first.counts() == {"stored": 4, "failed": 1}
        assert sorted(filter(None, first.asked)) == ids(bad, *good)
        assert first.summary["permits_spent"] == 5
        assert all(bench.has(row) for row in good)
        assert not bench.audio(bad).exists()
        assert bench.record(bad)["status"] == "failed"
        assert bench.record(bad)["error"] in str(first.error)
        # A retry asks for that one alone.
        second = bench.run("monday", try_number=2)
        assert isinstance(second.error, ArchiveIncompleteError)
        assert second.asked == [bad["id"]]
        # So does the next run, and then it is well.
        sandbox.set_fault(bad["id"], None)
        third = bench.run("tuesday").ok
        assert third.asked == [bad["id"]]
        assert third.statuses[bad["id"]] == "stored"
        assert bench.holds(bad, *good)
        assert sandbox.away_requests() == []

    def test_many_bad_recordings_at_once_stop_no_good_one(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("airflow_provider_amplemarket.api.download.MAX_RECORDING_SIZE", 4 * 1024**2)
        # Not all in a row, or it would be an outage.
        bad = [call(f"bad--{fault}", 9 - number / 10) for number, fault in enumerate(BAD)]
        good = [call(f"good-{number}", 9.05 - number / 10) for number in range(len(BAD))]
        bench.start(*bad, *good, limit=100, timeout=0.5)
        outcome = bench.run(max_concurrency=2)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.counts() == {"stored": len(good), "failed": len(bad)}
        assert all(bench.has(row) for row in good)
        told = [row["id"] for row in bad if row["id"] in str(outcome.error)]
        assert len(told) == 20
        assert f"and {len(bad) - 20} more" in str(outcome.error)

    def test_a_failure_is_not_asked_for_again_after_a_wait(self, bench: Bench) -> None:
        rows = [call("bad--html", 20), *calls(5)]
        bench.start(*rows, limit=3, period=2.0)
        outcome = bench.run()
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.deferrals >= 1
        assert Counter(outcome.asked) == Counter(row["id"] for row in rows)

    def test_a_recording_that_is_not_there_yet_is_asked_for_by_a_later_run(self, bench: Bench) -> None:
        late, rows = call("x--late", 20), calls(4)
        bench.start(late, *rows, limit=3, period=2.0)
        first = bench.run("monday").ok
        # Not by the same run, whatever happens to it: its resume, its retry.
        assert first.deferrals >= 1
        assert Counter(first.asked) == Counter(ids(late, *rows))
        assert first.counts() == {"stored": 4, "not_found": 1}
        assert late["id"] not in first.statuses
        assert bench.record(late)["status"] == "not_found"
        requested = bench.record(late)["first_requested_at"]
        assert bench.run("monday", try_number=2).ok.asked == []
        # But by the next run after an hour, or when the task is cleared.
        assert bench.run("tuesday").ok.asked == []
        bench.age(late, hours=1)
        second = bench.run("tuesday").ok
        assert (second.asked, second.statuses[late["id"]]) == ([late["id"]], "stored")
        assert bench.holds(late, *rows)
        assert "first_requested_at" not in bench.record(late)
        assert requested

    def test_a_cleared_task_asks_again_for_what_was_not_there(self, bench: Bench) -> None:
        bench.start(call("x--not-found"))
        assert bench.run("monday", try_number=1, max_tries=2).asked == ["x--not-found"]
        assert bench.run("monday", try_number=2, max_tries=3).asked == ["x--not-found"]

    @pytest.mark.parametrize(("hours", "not_found_for", "asks"), [(72, 48, 0), (40, 48, 1), (40, 24, 0), (2, 0, 0)])
    def test_a_recording_that_was_not_there_is_given_up_with_age(
        self, bench: Bench, hours: int, not_found_for: int, asks: int
    ) -> None:
        row = call("x--not-found", hours)
        bench.start(row)
        kwargs: Row = {"not_found_for": timedelta(hours=not_found_for)}
        assert bench.run("monday", **kwargs).ok.asked == [row["id"]]
        bench.age(row, hours=1)
        first = bench.record(row)["first_requested_at"]
        outcome = bench.run("tuesday", **kwargs).ok
        assert len(outcome.asked) == asks
        assert outcome.counts() == {"not_found": 1}
        assert bench.record(row)["first_requested_at"] == first

    def test_an_undated_call_that_was_not_there_is_given_up_with_the_age_of_the_first_request(
        self, bench: Bench
    ) -> None:
        bench.start(call("other"))
        kwargs: Row = {"call_ids": ["gone"], "not_found_for": timedelta(seconds=1)}
        assert bench.run("monday", **kwargs).ok.asked == ["gone"]
        assert bench.run("tuesday", **kwargs).ok.asked == ["gone"]
        time.sleep(1.1)
        assert bench.run("wednesday", **kwargs).ok.asked == ["gone"]
        assert bench.run("thursday", **kwargs).ok.asked == []

    def test_a_recording_that_is_too_large_is_not_asked_for_again(self, bench: Bench) -> None:
        row = call("x--too-large")
        bench.start(row, call("one"))
        first = bench.run("monday").ok
        assert first.counts() == {"stored": 1, "too_large": 1}
        assert bench.record(row)["status"] == "too_large"
        assert "413" in bench.record(row)["error"]
        second = bench.run("tuesday").ok
        assert (second.asked, second.counts()) == ([], {"already_stored": 1, "too_large": 1})
        assert bench.run("clear", overwrite=True).ok.counts() == {"stored": 1, "too_large": 1}

    def test_a_refused_key_ends_the_task_at_once(self, bench: Bench) -> None:
        bench.start(*calls(20)).set_fault("call-001", "unauthorized")
        outcome = bench.run(max_concurrency=1)
        assert isinstance(outcome.error, AirflowFailException)
        assert "password of connection 'amplemarket_default'" in str(outcome.error)
        assert outcome.asked == ["call-000", "call-001"]
        assert bench.holds(*calls(1))
        assert outcome.summary["left"] == 19

    def test_a_key_that_is_refused_for_the_list_ends_the_task_at_once(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.start(*calls(2))
        text = os.environ["AIRFLOW_CONN_AMPLEMARKET_DEFAULT"].replace(API_KEY, "other-key")
        monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", text)
        outcome = bench.run()
        assert isinstance(outcome.error, AirflowFailException)
        assert "other-key" not in str(outcome.error)
        assert len(bench.sandbox.log) == 1
        assert outcome.asked == []

    @pytest.mark.parametrize("fault", ["error-503", "refuse"])
    def test_an_outage_does_not_eat_the_quota(self, bench: Bench, fault: str) -> None:
        rows = calls(40)
        sandbox = bench.start(*rows, limit=100)
        for row in rows[3:]:
            sandbox.set_fault(row["id"], fault)
        outcome = bench.run(max_concurrency=4)
        assert type(outcome.error) is AmplemarketError
        assert "10 requests in a row failed" in str(outcome.error)
        # The good answers may come after those that fail meanwhile.
        assert 13 <= len(outcome.asked) <= 3 + 10 + 3
        assert outcome.counts() == {"stored": 3, "failed": len(outcome.asked) - 3}
        assert outcome.summary["left"] == 40 - len(outcome.asked)
        for row in rows:
            sandbox.set_fault(row["id"], None)
        healed = bench.run(try_number=2).ok
        assert len(healed.asked) == 37
        assert bench.holds(*rows)

    def test_failures_among_successes_are_no_outage(self, bench: Bench) -> None:
        rows = calls(30)
        sandbox = bench.start(*rows)
        for row in rows[::3]:
            sandbox.set_fault(row["id"], "error-500")
        outcome = bench.run(max_concurrency=1)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.counts() == {"stored": 20, "failed": 10}

    def test_a_list_that_fails_for_a_moment_is_read_again(self, bench: Bench) -> None:
        rows = calls(3)
        bench.start(*rows).list_faults.extend(["too-many-0", "cut"])
        bench.run().ok  # noqa: B018
        assert bench.holds(*rows)

    @pytest.mark.parametrize("fault", ["loop", "next-away", "not-json", "not-a-list", "row-not-object"])
    def test_a_list_that_makes_no_sense_fails_the_task(self, bench: Bench, fault: str) -> None:
        bench.start(*calls(3)).list_faults.append(fault)
        outcome = bench.run()
        assert isinstance(outcome.error, AmplemarketAPIError)
        assert outcome.asked == []
        assert bench.sandbox.away_requests() == []

    def test_calls_that_always_fail_do_not_keep_the_others_waiting(self, bench: Bench) -> None:
        rows = calls(30)
        sandbox = bench.start(*rows, limit=100)
        for row in rows[:25]:
            sandbox.set_fault(row["id"], "error-500")
        for run in ("monday", "tuesday", "wednesday"):
            bench.run(run)
        assert all(bench.has(row) for row in rows[25:])
