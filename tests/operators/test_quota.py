"""A run keeps the quota: it waits for permits, gives back those it did not use, and waits no longer than it may."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_amplemarket.exceptions import (
    ArchiveIncompleteError,
    LedgerError,
)
from airflow_provider_amplemarket.quota.rate import RateLimit
from tests.operators.conftest import Bench, TaskInstance, calls
from tests.operators.tools import ids


class TestQuota:
    def test_no_period_sees_more_requests_than_the_limit(self, bench: Bench) -> None:
        rows = calls(11)
        sandbox = bench.start(*rows, limit=4, period=3.0)
        outcome = bench.run().ok
        assert outcome.deferrals >= 2
        assert sandbox.most_in_any_period() == 4
        assert {entry.status for entry in sandbox.recording_requests()} == {200}
        assert Counter(outcome.asked) == Counter(ids(*rows))
        assert bench.holds(*rows)
        assert outcome.counts() == {"stored": 11}
        assert outcome.summary["permits_spent"] == 11
        assert set(outcome.statuses.values()) == {"stored"}

    def test_waiting_in_the_worker_keeps_the_limit_too(self, bench: Bench) -> None:
        rows = calls(7)
        sandbox = bench.start(*rows, limit=3, period=2.0)
        outcome = bench.run(deferrable=False).ok
        assert outcome.deferrals == 0
        assert sandbox.most_in_any_period() == 3
        assert bench.holds(*rows)
        assert outcome.summary["permits_spent"] == 7

    def test_a_waiting_task_says_in_its_summary_until_when(self, bench: Bench) -> None:
        bench.start(*calls(5), limit=2, period=600.0)
        ti = TaskInstance("run", 1, 1)
        with pytest.raises(TaskDeferred) as caught:
            bench.operator().execute(bench.context(ti))
        until_trigger = caught.value.trigger.fires_at
        summary = ti.xcoms["summary"]
        assert (summary["stored"], summary["left"], summary["permits_spent"]) == (2, 3, 2)
        until = datetime.fromisoformat(summary["waiting_until"])
        assert abs((until - until_trigger).total_seconds()) <= 1
        assert 590 < (until - datetime.now(UTC)).total_seconds() < 620
        end = datetime.fromisoformat(summary["estimated_end"])
        assert 590 < (end - until).total_seconds() < 620
        assert caught.value.method_name == "execute_complete"
        assert not caught.value.kwargs

    def test_a_wait_ends_with_the_first_free_permit_of_a_long_burst(self, bench: Bench) -> None:
        sandbox = bench.start(*calls(9), limit=3, period=600.0)
        sandbox.set_fault("call-001", "slow")
        with pytest.raises(TaskDeferred) as caught:
            bench.operator(max_concurrency=1).execute(bench.context(TaskInstance("run", 1, 1)))
        first, *_, last = [entry.answered or 0.0 for entry in sandbox.recording_requests()]
        waited = caught.value.trigger.fires_at.timestamp() - RateLimit(3, 600).hold
        assert last - first > 1.9
        assert first - 0.1 < waited < last - 0.5

    @pytest.mark.parametrize("retry_after", [True, False])
    def test_another_client_with_the_same_key_loses_no_recording(
        self, bench: Bench, retry_after: bool, logs: pytest.LogCaptureFixture
    ) -> None:
        rows = calls(6)
        sandbox = bench.start(*rows, limit=4, period=2.0, retry_after=retry_after)
        sandbox.spend(3)
        outcome = bench.run().ok
        assert 429 in {entry.status for entry in sandbox.recording_requests()}
        assert outcome.counts() == {"stored": 6}
        assert bench.holds(*rows)
        assert "Does somebody else use the API key" in logs.text
        served = [entry.call_id for entry in sandbox.recording_requests() if entry.status == 200]
        assert Counter(served) == Counter(ids(*rows))

    def test_a_refusal_without_end_waits_instead_of_asking_on(self, bench: Bench) -> None:
        bench.start(*calls(8)).set_fault("call-000", "too-many-600")
        ti = TaskInstance("run", 1, 1)
        with pytest.raises(TaskDeferred) as caught:
            bench.operator(max_concurrency=1).execute(bench.context(ti))
        assert caught.value.trigger.fires_at - datetime.now(UTC) > timedelta(seconds=590)
        assert len(bench.sandbox.recording_requests()) == 1
        assert ti.xcoms["summary"]["left"] == 8
        assert bench.files() == []

    def test_a_task_that_would_wait_longer_than_max_wait_fails(self, bench: Bench) -> None:
        rows = calls(5)
        bench.start(*rows, limit=2, period=3600.0)
        outcome = bench.run(max_wait=timedelta(minutes=10))
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert "3 recordings are left" in str(outcome.error)
        assert "max_wait=0:10:00" in str(outcome.error)
        assert bench.holds(*rows[:2])
        assert outcome.summary["left"] == 3

    def test_max_wait_counts_the_whole_task(self, bench: Bench) -> None:
        rows = calls(30)
        bench.start(*rows, limit=2, period=2.0)
        started = time.monotonic()
        outcome = bench.run(max_wait=timedelta(seconds=3))
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.deferrals >= 1
        assert 2 < time.monotonic() - started < 6
        assert len(outcome.asked) == 4

    def test_no_max_wait_is_needed_where_the_quota_is_enough(self, bench: Bench) -> None:
        bench.start(*calls(3))
        bench.run(max_wait=timedelta(0)).ok  # noqa: B018

    def test_permits_that_were_not_used_are_given_back(self, bench: Bench) -> None:
        bench.start(*calls(12), timeout=1.0).set_fault("call-000", "unauthorized")
        bench.run(max_concurrency=2)
        assert bench.ledger.spent == len(bench.sandbox.recording_requests())

    def test_a_ledger_that_cannot_be_read_costs_no_request(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.start(*calls(2))
        monkeypatch.setattr("airflow_provider_amplemarket.quota.variables._PAUSES", (0.0,))

        def broken(key: str) -> str:
            raise ConnectionError("API server")

        monkeypatch.setattr(bench.ledger, "get", broken)
        outcome = bench.run()
        assert isinstance(outcome.error, LedgerError)
        assert outcome.asked == []

    def test_a_lost_ledger_is_made_up_from_the_sidecars(self, bench: Bench) -> None:
        rows = calls(6)
        bench.start(*rows, limit=4, period=600.0)
        bench.run("monday", call_ids=[row["id"] for row in rows[:3]]).ok  # noqa: B018
        bench.ledger.texts.clear()
        outcome = bench.run("tuesday", max_wait=timedelta(0))
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert len(outcome.asked) == 1
