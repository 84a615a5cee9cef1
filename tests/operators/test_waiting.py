"""Waiting: once in the log until when and why; for the quota, and for whoever else has the ledger."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_amplemarket.exceptions import ArchiveIncompleteError, LedgerBusyError
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.rate import Permit, Report
from airflow_provider_amplemarket.sandbox.listener import Handler
from airflow_provider_amplemarket.triggers.quota import QuotaTrigger
from tests.operators.conftest import Bench, RealAirflow, call, calls

CLOCK = r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d UTC"


class TestTheLog:
    def test_a_wait_tells_the_progress_once(self, bench: Bench, told: Callable[[], list[str]]) -> None:
        bench.start(*calls(20), limit=12, period=3600.0)
        with pytest.raises(TaskDeferred) as caught:
            bench.operator().execute(bench.context(bench.task_instance()))
        (line,) = [line for line in told() if " left, " in line]
        assert re.fullmatch(
            rf"12 of 20 archived, 8 left, quota free again at {CLOCK}. The quota of 12 in 3600 s is used up: "
            rf"waiting in the triggerer until then, done at about {CLOCK}",
            line,
        )
        trigger = caught.value.trigger
        assert isinstance(trigger, QuotaTrigger)
        assert trigger.reason == "12 of 20 archived, 8 left. The quota of 12 in 3600 s is used up"

    def test_where_there_are_many_the_log_has_a_line_for_ten(
        self, bench: Bench, logs: pytest.LogCaptureFixture
    ) -> None:
        bench.start(*calls(24), call("x--cut"))
        bench.run()
        told = [record for record in logs.records if record.name == "airflow_provider_amplemarket.run.report"]
        lines = [record.getMessage() for record in told if record.levelname == "INFO"]
        assert len(lines) == 2
        assert re.fullmatch(r"10 of 25 archived, 1[45] left(, 1 failed)?", lines[0])
        assert re.fullmatch(r"20 of 25 archived, [45] left(, 1 failed)?", lines[1])
        assert sum("Archived file://" in record.getMessage() for record in told if record.levelname == "DEBUG") == 24

    def test_where_there_are_few_the_log_has_a_line_for_each(
        self, bench: Bench, logs: pytest.LogCaptureFixture
    ) -> None:
        bench.start(*calls(15))
        bench.run("monday").ok  # noqa: B018
        bench.sandbox.add_calls(*(call(f"new-{number}") for number in range(3)))
        logs.clear()
        bench.run("tuesday").ok  # noqa: B018
        lines = [record.getMessage() for record in logs.records if record.levelname == "INFO"]
        assert sum("Archived file://" in line for line in lines) == 3

    def test_a_wait_in_airflow_is_logged_once(
        self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]
    ) -> None:
        bench.start(*calls(6), limit=4, period=8.0)
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.state == "success"
        seen = "".join(capfd.readouterr())
        assert len(re.findall(r"Waiting until \S+: 4 of 6 archived, 2 left\.", seen)) == 1
        assert "sleeping" not in seen
        assert "remaining" not in seen


class Busy:
    """Lets the ledger be another's for a while, as far as tasks are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, times: int, seconds: float) -> None:
        self.told = 0
        report_and_acquire = Ledger.report_and_acquire

        def busy(ledger: Ledger, report: Report, wanted: int) -> list[Permit]:
            if wanted and self.told < times:
                self.told += 1
                raise LedgerBusyError("Another task uses the quota ledger.", until=time.time() + seconds)
            return report_and_acquire(ledger, report, wanted)

        monkeypatch.setattr(Ledger, "report_and_acquire", busy)


class TestTheLedgerIsBusy:
    def test_a_long_wait_is_deferred(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
    ) -> None:
        bench.start(*calls(3))
        Busy(monkeypatch, times=1, seconds=180)
        ti = bench.task_instance()
        with pytest.raises(TaskDeferred) as caught:
            bench.operator().execute(bench.context(ti))
        trigger = caught.value.trigger
        assert isinstance(trigger, QuotaTrigger)
        assert 170 < trigger.until - time.time() < 181
        assert trigger.reason == "0 of 3 archived, 3 left. Another task uses the quota ledger"
        summary = ti.xcoms["summary"]
        assert summary["waiting_for"] == "Another task uses the quota ledger"
        assert datetime.fromisoformat(summary["waiting_until"]) - datetime.now(UTC) > timedelta(seconds=170)
        assert "estimated_end" not in summary
        assert [line for line in told() if "0 of 3 archived, 3 left, ledger free again at" in line]

    @pytest.mark.parametrize("deferrable", [True, False])
    def test_a_short_wait_is_slept_and_no_failure(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, deferrable: bool
    ) -> None:
        rows = calls(3)
        bench.start(*rows)
        busy = Busy(monkeypatch, times=2, seconds=1)
        outcome = bench.run(deferrable=deferrable).ok
        assert (busy.told, outcome.deferrals) == (2, 0)
        assert bench.holds(*rows)
        assert outcome.counts() == {"stored": 3}

    def test_after_the_wait_the_task_goes_on(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = calls(3)
        bench.start(*rows, period=8.0)
        Busy(monkeypatch, times=1, seconds=3)
        outcome = bench.run().ok
        assert outcome.deferrals == 1
        assert bench.holds(*rows)

    def test_max_wait_holds_for_the_ledger_too(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.start(*calls(3))
        Busy(monkeypatch, times=1, seconds=180)
        error = bench.run(max_wait=timedelta(minutes=1)).error
        assert isinstance(error, ArchiveIncompleteError)
        assert "Another task uses the quota ledger for longer than max_wait=0:01:00 allows; 3 recordings" in str(error)


class TestTheClock:
    @pytest.fixture
    def lies(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
        """Let the API's ``Date`` be so many seconds ahead of this machine's clock."""
        ahead = {"seconds": 0.0}

        def date(handler: http.server.BaseHTTPRequestHandler, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + timedelta(seconds=ahead["seconds"]), usegmt=True)

        monkeypatch.setattr(Handler, "date_time_string", date)
        return ahead

    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [
            (-30, r"The clock of this machine is (29|30|31) s ahead of the API's.*too early.*429.*NTP"),
            (30, r"The clock of this machine is (29|30|31) s behind the API's.*too long.*NTP"),
        ],
    )
    def test_a_wrong_clock_is_logged_once_a_run(
        self, bench: Bench, lies: dict[str, float], told: Callable[[], list[str]], seconds: float, expected: str
    ) -> None:
        lies["seconds"] = seconds
        bench.start(*calls(5), limit=2, period=3.0)
        outcome = bench.run().ok
        assert outcome.deferrals >= 2
        lines = [line for line in told() if "The clock of this machine" in line]
        assert len(lines) == 1
        assert re.fullmatch(expected + r"\.", lines[0])

    def test_a_right_clock_is_not_logged(
        self, bench: Bench, lies: dict[str, float], told: Callable[[], list[str]]
    ) -> None:
        bench.start(*calls(2))
        bench.run().ok  # noqa: B018
        assert not [line for line in told() if "The clock of this machine" in line]


def test_no_thread_is_left_by_a_wait(bench: Bench) -> None:
    bench.start(*calls(4), limit=2)
    before = set(threading.enumerate())
    with pytest.raises(TaskDeferred):
        bench.operator().execute(bench.context(bench.task_instance()))
    left = {thread.name for thread in set(threading.enumerate()) - before if "ThreadPool" in thread.name}
    assert left == set()
