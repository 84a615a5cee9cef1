"""Recordings that do not come: no call stops the others, none keeps a DAG red for ever, and none eats the quota."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_amplemarket.api import download as download_module
from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import AmplemarketError, ArchiveIncompleteError
from tests.operators.conftest import Bench, RealAirflow, Row, call, calls

LEDGER = "amplemarket_quota__amplemarket_default"
#: Ways in which a recording may never come whole.
NEVER_WHOLE = ("cut", "empty", "error-500", "html", "forbidden", "refuse")


class TestGivingUp:
    @pytest.mark.parametrize("fault", NEVER_WHOLE)
    def test_a_recording_that_never_comes_whole_is_given_up(
        self, bench: Bench, fault: str, logs: pytest.LogCaptureFixture
    ) -> None:
        bad, good = call(f"bad--{fault}"), call("good", 9)
        bench.start(bad, good)
        first = bench.run("monday")
        assert isinstance(first.error, ArchiveIncompleteError)
        for day in ("tuesday", "wednesday"):
            bench.age(bad, days=1)
            assert isinstance(bench.run(day).error, ArchiveIncompleteError)
        bench.age(bad, days=1)
        reason = bench.record(bad)["error"]
        last = bench.run("thursday").ok
        assert last.asked == [bad["id"]] or fault == "refuse"
        assert last.counts() == {"already_stored": 1, "given_up": 1}
        assert list(last.statuses) == ["good"]
        warnings = [record.getMessage() for record in logs.records if record.levelname == "WARNING"]
        assert any("is given up" in text and bad["id"] in text and reason in text for text in warnings)
        record = bench.record(bad)
        assert (record["status"], record["requests"], record["error"]) == ("given_up", 4, reason)
        assert record["first_failed_in"] == {"dag_id": "calls", "run_id": "monday", "max_tries": 2}
        # That is final.
        later = bench.run("friday").ok
        assert (later.asked, later.counts()) == ([], {"already_stored": 1, "given_up": 1})

    def test_tries_of_one_run_give_nothing_up(self, bench: Bench) -> None:
        bad = call("bad--cut")
        bench.start(bad)
        for try_number in (1, 2, 3):
            outcome = bench.run("monday", try_number=try_number, give_up_after=timedelta(0))
            assert isinstance(outcome.error, ArchiveIncompleteError)
        assert bench.record(bad)["status"] == "failed"

    def test_without_a_wait_the_second_run_gives_a_recording_up(self, bench: Bench) -> None:
        bad = call("bad--cut")
        bench.start(bad)
        assert isinstance(bench.run("monday", give_up_after=timedelta(0)).error, ArchiveIncompleteError)
        assert bench.run("tuesday", give_up_after=timedelta(0)).ok.counts() == {"given_up": 1}
        assert bench.run("wednesday", give_up_after=timedelta(0)).ok.asked == []
        assert len(bench.sandbox.recording_requests()) == 2

    @pytest.fixture
    def given_up(self, bench: Bench) -> Row:
        bad = call("bad--cut")
        bench.start(bad)
        bench.run("monday", give_up_after=timedelta(0))
        bench.run("tuesday", give_up_after=timedelta(0)).ok  # noqa: B018
        assert bench.record(bad)["status"] == "given_up"
        return bad

    ASKING = pytest.mark.parametrize(
        "again",
        [
            {"run_id": "tuesday", "try_number": 2, "max_tries": 3},
            {"run_id": "wednesday", "call_ids": ["bad--cut"]},
            {"run_id": "wednesday", "overwrite": True},
        ],
        ids=["cleared", "named", "overwritten"],
    )

    @ASKING
    def test_a_recording_asked_for_again_may_have_become_whole(self, bench: Bench, given_up: Row, again: Row) -> None:
        bench.sandbox.set_fault(given_up["id"], None)
        assert bench.run(**again).ok.counts() == {"stored": 1}
        assert bench.holds(given_up)

    @ASKING
    def test_a_recording_asked_for_again_is_given_up_again(self, bench: Bench, given_up: Row, again: Row) -> None:
        outcome = bench.run(**again).ok
        assert (outcome.asked, outcome.counts()) == ([given_up["id"]], {"given_up": 1})
        # And asked for once, by whatever tries.
        retry = bench.run(**{**again, "try_number": 3}).ok
        assert (retry.asked, retry.counts()) == ([], {"given_up": 1})

    def test_a_retry_is_not_taken_for_a_cleared_task(self, bench: Bench, given_up: Row) -> None:
        assert bench.run("wednesday", try_number=3, max_tries=2).ok.asked == []

    def test_a_call_that_was_not_there_for_days_is_not_given_up_by_its_first_failure(self, bench: Bench) -> None:
        row = call("x--not-found", 20)
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        bench.age(row, days=5)
        bench.sandbox.set_fault(row["id"], "error-500")
        assert isinstance(bench.run("tuesday").error, ArchiveIncompleteError)

    @pytest.mark.parametrize("fault", ["error-503", "html", "cut"])
    @pytest.mark.parametrize("count", [4, 12])
    def test_an_outage_gives_nothing_up(self, bench: Bench, fault: str, count: int) -> None:
        rows = calls(count)
        sandbox = bench.start(*rows, limit=1000)
        for row in rows:
            sandbox.set_fault(row["id"], fault)
        for day in ("monday", "tuesday", "wednesday", "thursday"):
            assert isinstance(bench.run(day, give_up_after=timedelta(0)).error, AmplemarketError)
        for row in rows:
            sandbox.set_fault(row["id"], None)
        assert bench.run("friday", give_up_after=timedelta(0)).ok.counts() == {"stored": count}

    def test_many_calls_are_given_up_once_another_shows_that_the_api_serves(self, bench: Bench) -> None:
        rows = calls(6)
        sandbox = bench.start(*rows)
        for row in rows:
            sandbox.set_fault(row["id"], "cut")
        assert bench.run("monday", give_up_after=timedelta(0)).counts() == {"failed": 6}
        sandbox.add_calls(call("good"))
        outcome = bench.run("tuesday", give_up_after=timedelta(0)).ok
        assert outcome.counts() == {"stored": 1, "given_up": 6}
        assert bench.run("wednesday").ok.counts() == {"already_stored": 1, "given_up": 6}

    def test_a_recording_that_a_working_store_never_takes_is_given_up(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad, good = call("bad", 20), call("good", 10)
        bench.start(bad, good)
        publish = Archive.publish

        def refuse(self: Archive, local: Path, key: str, content_type: str) -> None:
            if key.endswith("bad.mp3"):
                raise OSError(36, "File name too long")
            publish(self, local, key, content_type)

        monkeypatch.setattr(Archive, "publish", refuse)
        zero = timedelta(0)
        assert bench.run("monday", give_up_after=zero).counts() == {"stored": 1, "failed": 1}
        # As long as nothing is archived beside it, it may be the store.
        assert bench.run("tuesday", give_up_after=zero).counts() == {"already_stored": 1, "failed": 1}
        bench.sandbox.add_calls(call("new", 2))
        outcome = bench.run("wednesday", give_up_after=zero).ok
        assert outcome.counts() == {"stored": 1, "already_stored": 1, "given_up": 1}
        assert bench.run("thursday", give_up_after=zero).ok.asked == []

    def test_what_cannot_be_asked_for_fails_for_so_long_and_no_longer(
        self, bench: Bench, told: Callable[[], list[str]]
    ) -> None:
        rows = [call("../x", 20), call("y", 21, duration="odd"), call("good", 10)]
        bench.start(*rows)

        def select(row: Row) -> bool:
            return int(row["duration"]) >= 0

        outcome = bench.run("monday", select=select)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.counts() == {"stored": 1, "failed": 2}
        outcome = bench.run("tuesday", select=select, give_up_after=timedelta(hours=19)).ok
        assert outcome.counts() == {"already_stored": 1, "given_up": 2}
        line = "Call #2: 'y' cannot be archived, and is given up: select failed with ValueError"
        assert any(line in found for found in told())

    def test_two_dag_runs_of_airflow_give_a_recording_up(self, bench: Bench, airflow: RealAirflow) -> None:
        """Two DAG runs give it up; and a task that is cleared is known by its tries."""
        from airflow.models.taskinstance import TaskInstance, clear_task_instances
        from airflow.utils.session import create_session

        bad = call("bad--cut")
        bench.start(bad)
        body = (
            f"Archive(task_id='archive', path={bench.path!r}, give_up_after=timedelta(0), "
            "retries=1, retry_delay=timedelta(0))"
        )
        first = airflow.test(body)
        assert (first.state, first.tries) == ("failed", {("archive", -1): 2})
        second = airflow.test(body)
        assert (second.state, second.xcom("summary")["given_up"], second.xcom("summary")["failed"]) == ("success", 1, 0)
        assert len(bench.sandbox.recording_requests()) == 3
        with create_session() as session:
            ti = session.query(TaskInstance).filter_by(dag_id=first.dag_id, run_id=first.run_id).one()
            assert ti.max_tries == 1
            clear_task_instances([ti], session)
            assert ti.max_tries > 1


class TestForbidden:
    def test_one_recording_that_is_refused_is_its_own_failure(self, bench: Bench) -> None:
        bad, good = call("bad--forbidden", 20), calls(8)
        bench.start(bad, *good)
        first = bench.run("monday")
        assert isinstance(first.error, ArchiveIncompleteError)
        assert "bad--forbidden" in str(first.error)
        assert all(bench.has(row) for row in good)
        assert bench.record(bad)["status"] == "failed"
        assert "403" in bench.record(bad)["error"]
        # New calls come first.
        late = call("late", 1)
        bench.sandbox.add_calls(late)
        second = bench.run("tuesday", max_concurrency=1)
        assert second.asked == ["late", "bad--forbidden"]
        assert bench.has(late)

    @pytest.mark.parametrize("concurrency", [1, 4, 16, 32])
    def test_a_refused_key_costs_three_requests(self, bench: Bench, concurrency: int) -> None:
        rows = [call(f"x{number:02}--forbidden", 9 - number / 60) for number in range(40)]
        bench.start(*rows, limit=100)
        outcome = bench.run(max_concurrency=concurrency)
        assert isinstance(outcome.error, AirflowFailException)
        assert "password of connection 'amplemarket_default'" in str(outcome.error)
        assert len(outcome.asked) == 3
        assert outcome.counts() == {"failed": 3}
        assert outcome.summary["left"] == 37
        assert bench.ledger.spent == 3

    def test_refusals_with_a_success_between_them_are_not_the_keys(self, bench: Bench) -> None:
        rows = calls(12)
        sandbox = bench.start(*rows)
        for row in rows[::3]:
            sandbox.set_fault(row["id"], "forbidden")
        outcome = bench.run(max_concurrency=1)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.counts() == {"stored": 8, "failed": 4}

    def test_a_key_that_is_refused_later_costs_hardly_more(self, bench: Bench) -> None:
        rows = calls(40)
        sandbox = bench.start(*rows, limit=100)
        for row in rows[1:]:
            sandbox.set_fault(row["id"], "forbidden")
        outcome = bench.run(max_concurrency=16)
        assert isinstance(outcome.error, AirflowFailException)
        # Two may be refused before the only one that is served, and ten be under way after it.
        assert len(outcome.asked) <= 1 + 2 + 10


class TestOutage:
    @pytest.mark.parametrize("concurrency", [1, 4, 16, 32])
    @pytest.mark.parametrize("fault", ["error-503", "refuse"])
    def test_an_outage_costs_ten_requests(self, bench: Bench, concurrency: int, fault: str) -> None:
        rows = [call(f"x{number:02}--{fault}", 9 - number / 60) for number in range(60)]
        bench.start(*rows, limit=100)
        outcome = bench.run(max_concurrency=concurrency)
        assert type(outcome.error) is AmplemarketError
        assert "10 requests in a row failed" in str(outcome.error)
        assert len(bench.sandbox.recording_requests()) == 10
        assert outcome.counts() == {"failed": 10}
        assert outcome.summary["permits_spent"] == bench.ledger.spent == 10

    @pytest.mark.parametrize("concurrency", [1, 4, 32])
    @pytest.mark.parametrize("fault", ["cut", "html", "empty"])
    def test_recordings_that_do_not_come_whole_cost_ten_requests(
        self, bench: Bench, concurrency: int, fault: str
    ) -> None:
        bench.start(*(call(f"x{number:02}--{fault}", 9 - number / 60) for number in range(40)), limit=100)
        outcome = bench.run(max_concurrency=concurrency)
        assert type(outcome.error) is AmplemarketError
        assert "10 requests in a row failed" in str(outcome.error)
        assert len(outcome.asked) == 10
        assert outcome.counts() == {"failed": 10}

    @pytest.mark.parametrize("concurrency", [1, 4, 32])
    def test_failures_of_many_kinds_cost_ten_requests(self, bench: Bench, concurrency: int) -> None:
        kinds = ["error-503", "cut", "redirect-http", "refuse", "html", "partial"]
        rows = [call(f"x{number:02}--{kinds[number % len(kinds)]}", 9 - number / 60) for number in range(40)]
        bench.start(*rows, limit=100)
        outcome = bench.run(max_concurrency=concurrency)
        assert "10 requests in a row failed" in str(outcome.error)
        assert len(bench.sandbox.recording_requests()) == 10

    def test_a_stream_that_ends_meanwhile_ends_no_row(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three bodies begin before the outage, and end one after another in the midst of it."""
        good = [call(f"a{number}", 20 - number) for number in range(3)]
        bad = [call(f"x{number:02}--error-503", 9 - number / 60) for number in range(40)]
        sandbox = bench.start(*good, *bad, limit=100)
        hook = type(bench.operator().hook)
        save, download = download_module.save_body, hook.download_recording
        streams: list[str] = []

        def wait(is_over: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 60
            while not is_over() and time.monotonic() < deadline:
                time.sleep(0.01)

        def save_late(response: Any, *arguments: Any) -> Any:
            streams.append(response.url)
            failures = 3 * len(streams)
            wait(lambda: len(sandbox.recording_requests()) >= 3 + failures)
            return save(response, *arguments)

        def fail_later(self: Any, call_id: str, *arguments: Any, **options: Any) -> Any:
            if call_id.startswith("x"):
                wait(lambda: len(streams) == 3)
            return download(self, call_id, *arguments, **options)

        monkeypatch.setattr(download_module, "save_body", save_late)
        monkeypatch.setattr(hook, "download_recording", fail_later)
        outcome = bench.run(max_concurrency=4)
        assert outcome.counts() == {"stored": 3, "failed": 10}

    def test_in_good_times_as_many_bodies_stream_as_are_wanted(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first body passes, whichever it is; then each one waits for all the others to have begun."""
        rows = [call(f"x{number:02}--drip", 9 - number / 60) for number in range(33)]
        bench.start(*rows, limit=100)
        together = threading.Barrier(32, timeout=60)
        save = download_module.save_body

        bodies = itertools.count()

        def meet(*arguments: Any) -> Any:
            is_first = next(bodies) == 0
            if not is_first:
                together.wait()
            return save(*arguments)

        monkeypatch.setattr(download_module, "save_body", meet)
        assert bench.run(max_concurrency=32).ok.counts() == {"stored": 33}

    @pytest.mark.parametrize("concurrency", [1, 4, 32])
    def test_an_archive_that_takes_no_recording_costs_ten_requests(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, concurrency: int
    ) -> None:
        bench.start(*calls(40), limit=100)
        publish = Archive.publish

        def refuse(self: Archive, local: Path, key: str, content_type: str) -> None:
            if key.endswith(".mp3"):
                raise OSError("quota of the bucket")
            publish(self, local, key, content_type)

        monkeypatch.setattr(Archive, "publish", refuse)
        outcome = bench.run(max_concurrency=concurrency)
        assert type(outcome.error) is AmplemarketError
        assert "quota of the bucket" in str(outcome.error)
        assert len(outcome.asked) == 10
        assert outcome.counts() == {"failed": 10}


class TestOrder:
    def test_those_at_which_a_run_stops_do_not_keep_it_from_the_rest(self, bench: Bench) -> None:
        """Ten that fail for ever, and younger ones that have failed once."""
        bad = [call(f"x{number:02}--empty", 30 - number / 60) for number in range(10)]
        others = calls(3)
        sandbox = bench.start(*bad, *others, limit=1000)
        for row in others:
            sandbox.set_fault(row["id"], "error-503", times=1)
        bench.run("monday", max_concurrency=1)
        bench.run("tuesday", max_concurrency=1)
        outcome = bench.run("wednesday", max_concurrency=1)
        assert outcome.counts() == {"stored": 3, "failed": 10}

    def test_calls_never_asked_for_come_before_not_found_and_failed_ones(self, bench: Bench) -> None:
        bad, absent, new = call("bad--cut", 30), call("absent--not-found", 29), call("new", 2)
        bench.start(bad, absent)
        bench.run("monday")
        bench.age(absent, hours=1)
        bench.sandbox.add_calls(new)
        assert bench.run("tuesday", max_concurrency=1).asked == ["new", "absent--not-found", "bad--cut"]

    def test_calls_without_recording_do_not_eat_the_quota(self, bench: Bench) -> None:
        """An hourly DAG whose whole quota they would be."""
        absent = [call(f"absent{number}--not-found", 12 - number / 60) for number in range(5)]
        bench.start(*absent, limit=5, period=2.0)
        bench.run("hour-0").ok  # noqa: B018
        asked = []
        for hour in range(1, 9):
            new = call(f"new-{hour}", 1)
            bench.sandbox.add_calls(new)
            for row in absent:
                bench.age(row, hours=1)
            outcome = bench.run(f"hour-{hour}", max_concurrency=1).ok
            assert outcome.asked[0] == new["id"]
            assert outcome.statuses[new["id"]] == "stored"
            asked.append(len(outcome.asked) - 1)
        assert asked == [5, 0, 5, 0, 0, 0, 5, 0]
        assert bench.record(absent[0])["requests"] == 4

    def test_who_names_a_call_does_not_wait(self, bench: Bench) -> None:
        bench.start(call("x--not-found"))
        assert bench.run("monday").ok.asked == ["x--not-found"]
        assert bench.run("tuesday").ok.asked == []
        assert bench.run("wednesday", call_ids=["x--not-found"]).ok.asked == ["x--not-found"]
        assert bench.run("thursday", overwrite=True).ok.asked == ["x--not-found"]


class TestNothingWithoutARecord:
    @pytest.mark.parametrize("fault", ["not-found", "too-large", "cut"])
    def test_what_cannot_be_put_on_record_fails_the_run(
        self, bench: Bench, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.start(call(f"x--{fault}"), *calls(3))
        write = Archive.write_sidecar

        def refuse(self: Archive, place: Any, record: Any, directory: Path) -> None:
            if place.audio.endswith(f"x--{fault}.mp3"):
                raise OSError(36, "File name too long")
            write(self, place, record, directory)

        monkeypatch.setattr(Archive, "write_sidecar", refuse)
        outcome = bench.run()
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert re.search(rf"1 recordings failed: x--{fault} \(.*File name too long", str(outcome.error))
        assert outcome.counts() == {"stored": 3, "failed": 1}


class TestEvidence:
    """What the archive knows of requests counts, whatever the ledger says."""

    @pytest.mark.parametrize("lost", ["deleted", "older"])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_ledger_that_lost_its_entries_is_made_up_from_the_sidecars(
        self, bench: Bench, lost: str, overwrite: bool
    ) -> None:
        rows = [call("a--not-found", 20), call("b--cut", 19), *calls(8)]
        sandbox = bench.start(*rows, limit=6, period=600.0)
        older = bench.ledger.texts[LEDGER]
        bench.run("monday", call_ids=[row["id"] for row in rows[:4]])
        if lost == "deleted":
            bench.ledger.texts.clear()
        else:
            bench.ledger.texts[LEDGER] = older
        outcome = bench.run("tuesday", max_wait=timedelta(0), overwrite=overwrite)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert len(outcome.asked) == 2
        assert sandbox.most_in_any_period() == 6
        assert bench.ledger.spent == 6

    def test_no_request_counts_twice(self, bench: Bench) -> None:
        rows = calls(6)
        bench.start(*rows, limit=6, period=600.0)
        bench.run("monday", call_ids=[row["id"] for row in rows[:3]]).ok  # noqa: B018
        assert bench.run("tuesday").ok.counts() == {"stored": 3, "already_stored": 3}
        assert bench.ledger.spent == 6

    def test_attempts_to_overwrite_count_too(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(row, limit=3, period=600.0)
        bench.run("monday").ok  # noqa: B018
        sandbox.set_fault("one", "cut")
        bench.run("tuesday", overwrite=True)
        record = bench.record(row)
        permits = {record["permit"], record["overwrite"]["permit"]}
        assert set(json.loads(bench.ledger.texts[LEDGER])["spent"]) == permits
        bench.ledger.texts.clear()
        sandbox.add_calls(*calls(3))
        outcome = bench.run("wednesday", max_wait=timedelta(0))
        assert len(outcome.asked) == 1
        assert sandbox.most_in_any_period() == 3

    @pytest.mark.parametrize("fault", ["cut", "not-found"])
    def test_every_request_for_a_call_is_known(self, bench: Bench, fault: str) -> None:
        rows = [call(f"x{number}--{fault}", 20 - number) for number in range(2)]
        sandbox = bench.start(*rows, *calls(4), limit=8, period=600.0)
        ids = [row["id"] for row in rows]
        for run_id in ("one", "two", "three"):
            bench.run(run_id, call_ids=ids)
        for row in rows:
            sandbox.set_fault(row["id"], None)
        bench.run("four", call_ids=ids[:1])
        assert bench.ledger.spent == 7
        bench.ledger.texts.clear()
        assert len(bench.run("five", max_wait=timedelta(0)).asked) == 1
        assert sandbox.most_in_any_period() == 8
        assert len(bench.record(rows[0])["earlier_permits"]) == 3

    def test_adoption_forgets_no_request(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(row, *calls(3), limit=3, period=600.0)
        sandbox.set_fault("one", "cut", times=2)
        for run_id in ("one", "two"):
            bench.run(run_id, call_ids=["one"])
        place = Layout().place(row)
        audio = bench.root / place.audio
        audio.write_bytes(sandbox.recording("one"))
        assert bench.run("three", call_ids=["one"]).ok.asked == []
        assert len(bench.record(row)["earlier_permits"]) == 2
        bench.ledger.texts.clear()
        assert len(bench.run("four", max_wait=timedelta(0)).asked) == 1

    def test_what_lies_in_the_future_is_not_carried_on(self, bench: Bench) -> None:
        row = call("one--cut")
        bench.start(row)
        bench.run("monday")
        record = bench.record(row)
        record["earlier_permits"] = {"odd": "2999-01-01T00:00:00Z", "none": None, "old": "2020-01-01T00:00:00Z"}
        bench.sidecar(row).write_text(json.dumps(record))
        bench.run("tuesday")
        assert set(bench.record(row)["earlier_permits"]) == {record["permit"]}

    def test_sidecars_without_permits_count_where_there_is_no_ledger(self, bench: Bench) -> None:
        rows = calls(6)
        sandbox = bench.start(*rows, limit=4, period=600.0)
        bench.run("monday", call_ids=[row["id"] for row in rows[:3]]).ok  # noqa: B018
        for row in rows[:3]:
            record = bench.record(row)
            del record["permit"]
            bench.sidecar(row).write_text(json.dumps(record))
        bench.ledger.texts.clear()
        assert len(bench.run("tuesday", max_wait=timedelta(0)).asked) == 1
        assert sandbox.most_in_any_period() == 4


def test_two_tasks_at_once_ask_for_nothing_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool has two slots by mistake: one task plans, and its permits come when the other is done."""
    rows = calls(20)
    bench.start(*rows)
    check = Archive.check_writable
    others: list[Any] = []

    def late(self: Archive) -> None:
        check(self)
        if not others:
            others.append(None)
            others.append(bench.run("other").ok)

    monkeypatch.setattr(Archive, "check_writable", late)
    monkeypatch.setattr("airflow_provider_amplemarket.run.backlog.FRESH_FOR", 0.0)
    outcome = bench.run("slow").ok
    assert outcome.counts() == {"already_stored": 20}
    assert len(bench.sandbox.recording_requests()) == 20
