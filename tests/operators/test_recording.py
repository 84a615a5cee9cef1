"""The operator: every recording of the window ends in the archive, is finally unavailable, or the task fails."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_amplemarket.archive import staging as staging_module
from airflow_provider_amplemarket.archive import store as archive_module
from airflow_provider_amplemarket.archive import upload
from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.archive.objects import Digest
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConfigurationError,
    AmplemarketError,
    ArchiveError,
    ArchiveIncompleteError,
    LedgerError,
)
from airflow_provider_amplemarket.hooks import amplemarket as hook_module
from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
from airflow_provider_amplemarket.quota.rate import RateLimit
from airflow_provider_amplemarket.sandbox import make_calls
from airflow_provider_amplemarket.sandbox.calls import USERS, contact_fields, user_fields
from dev.stores import Store
from tests.operators.conftest import API_KEY, NOW, Bench, RealAirflow, Row, TaskInstance, call, calls

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
#: Peculiarities of answers that are all right.
ODD = ("ok", "chunked", "redirect", "redirect-away", "slow", "large-3")

Hook = hook_module.AmplemarketHook


def ids(*rows: Row) -> list[str]:
    return sorted(row["id"] for row in rows)


class TestHappyPath:
    def test_every_wanted_recording_is_archived_byte_for_byte(self, bench: Bench) -> None:
        rows = make_calls(36, end=NOW, days=2)
        bench.start(*rows, page_size=10)
        outcome = bench.run().ok
        wanted = [row for row in rows if row["duration"] and not row["external"]]
        assert bench.holds(*wanted)
        assert outcome.counts() == {"stored": 30, "external": 3, "not_selected": 3}
        assert sorted(outcome.asked) == ids(*wanted)
        assert outcome.summary["permits_spent"] == 30
        assert outcome.summary["left"] == 0
        assert outcome.summary["bytes"] == sum(len(bench.sandbox.recording(row["id"])) for row in wanted)
        assert outcome.summary["window"] == [
            (NOW - timedelta(days=4)).isoformat(),
            (NOW + timedelta(hours=1)).isoformat(),
        ]

    def test_result_has_a_row_for_each_recording_oldest_first(self, bench: Bench) -> None:
        rows = calls(7)
        bench.start(*rows)
        outcome = bench.run().ok
        assert outcome.rows == [
            {
                "call_id": row["id"],
                "uri": f"file://{bench.audio(row)}",
                "status": "stored",
                "size": len(bench.sandbox.recording(row["id"])),
                "sha256": bench.sandbox.recording_sha256(row["id"]),
                "start_date": datetime.fromisoformat(row["start_date"]).isoformat(),
            }
            for row in rows
        ]

    def test_oldest_are_asked_for_first(self, bench: Bench) -> None:
        rows = calls(9)
        bench.start(*rows[::2], *rows[1::2])
        assert bench.run(max_concurrency=1).ok.asked == [row["id"] for row in rows]

    def test_second_run_asks_for_nothing(self, bench: Bench) -> None:
        rows = calls(5)
        bench.start(*rows)
        first = bench.run("monday").ok
        before = {name: (bench.root / name).stat().st_mtime_ns for name in bench.files()}
        second = bench.run("tuesday").ok
        assert second.asked == []
        assert second.counts() == {"already_stored": 5}
        assert second.summary["permits_spent"] == 0
        assert second.rows == [{**row, "status": "already_stored"} for row in first.rows or ()]
        assert {name: (bench.root / name).stat().st_mtime_ns for name in bench.files()} == before

    def test_same_run_once_more_says_what_it_archived(self, bench: Bench) -> None:
        bench.start(*calls(2))
        bench.run("monday", try_number=1)
        assert bench.run("monday", try_number=2).ok.counts() == {"stored": 2}

    def test_only_what_is_new_is_asked_for(self, bench: Bench) -> None:
        sandbox = bench.start(*calls(3))
        bench.run("monday").ok.asked  # noqa: B018
        late = call("late", 40)
        sandbox.add_calls(late)
        outcome = bench.run("tuesday").ok
        assert outcome.asked == ["late"]
        assert outcome.counts() == {"stored": 1, "already_stored": 3}
        assert bench.has(late)

    def test_window_with_nothing_in_it(self, bench: Bench) -> None:
        bench.start(call("too-old", 24 * 30))
        outcome = bench.run().ok
        assert (outcome.rows, outcome.counts(), outcome.asked) == ([], {}, [])
        assert not bench.root.exists()

    def test_window_by_parameters(self, bench: Bench) -> None:
        bench.start(call("before", 10), call("first", 8), call("last", 6.01), call("end", 6))
        start, end = NOW - timedelta(hours=8), NOW - timedelta(hours=6)
        outcome = bench.run(start=start, end=end.isoformat(), lookback=timedelta(0)).ok
        assert sorted(outcome.statuses) == ["first", "last"]
        assert outcome.summary["window"] == [start.isoformat(), end.isoformat()]

    @pytest.mark.parametrize("fault", ODD)
    def test_odd_answers_that_are_all_right(self, bench: Bench, fault: str) -> None:
        row = call(f"x--{fault}")
        bench.start(row)
        bench.run().ok  # noqa: B018
        assert bench.record(row)["sha256"] == bench.sandbox.recording_sha256(row["id"])
        assert (
            archive_module.Archive(bench.path).digest(Layout().place(row).audio).sha256 == bench.record(row)["sha256"]
        )
        assert bench.record(row)["is_mpeg"] is True
        assert bench.files() == [Layout().place(row).sidecar, Layout().place(row).audio]

    def test_what_is_no_mpeg_is_kept_as_served_and_told(self, bench: Bench, logs: pytest.LogCaptureFixture) -> None:
        row = call("x--not-mpeg")
        bench.start(row)
        bench.run().ok  # noqa: B018
        assert bench.record(row)["is_mpeg"] is False
        assert "does not begin like MPEG audio" in logs.text

    def test_sidecar_says_all(self, bench: Bench) -> None:
        row = call("one", contact=contact_fields("Robin Field"), transcript=[{"text": "Hello — “you”"}], new_field=[1])
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        record = bench.record(row)
        assert record.pop("call") == row
        assert record.pop("permit") in bench.ledger.texts["amplemarket_quota__amplemarket_default"]
        moments = [datetime.fromisoformat(record.pop(name)) for name in ("requested_at", "answered_at", "archived_at")]
        assert moments == sorted(moments)
        assert moments[0] > datetime.now(UTC) - timedelta(minutes=1)
        assert record == {
            "version": 1,
            "call_id": "one",
            "status": "stored",
            "start_date": datetime.fromisoformat(row["start_date"]).isoformat(),
            "key": Layout().place(row).audio,
            "size": len(bench.sandbox.recording("one")),
            "sha256": bench.sandbox.recording_sha256("one"),
            "content_type": "audio/mpeg",
            "is_mpeg": True,
            "amplemarket_conn_id": "amplemarket_default",
            "dag_id": "calls",
            "task_id": "archive",
            "run_id": "monday",
            "map_index": -1,
            "max_tries": 2,
            "try_number": 1,
        }

    @pytest.mark.parametrize("fault", ["ok", "not-found", "too-large", "error-500"])
    def test_minimal_sidecar_has_nothing_personal(self, bench: Bench, fault: str) -> None:
        row = call(
            "one",
            contact=contact_fields("Robin Field"),
            transcript=[{"speaker": "user", "text": "Hello Robin"}],
            transcription="Hello Robin",
            notes="Robin is nice",
        )
        bench.start(row).set_fault("one", fault)
        bench.run(sidecar="minimal")
        text = bench.sidecar(row).read_text()
        for personal in ("+1202", "Robin", "robin", "Hello", "example.com", "ada@", "nice", row["user_id"]):
            assert personal not in text
        assert "call" not in json.loads(text)

    def test_sidecar_comes_last(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.start(*calls(4))
        keys: list[str] = []
        publish = archive_module.Archive.publish

        def noted(self: Any, local: Path, key: str, content_type: str) -> None:
            publish(self, local, key, content_type)
            keys.append(key)

        monkeypatch.setattr(archive_module.Archive, "publish", noted)
        bench.run().ok  # noqa: B018
        assert len(keys) == 8
        for key in keys:
            if key.endswith(".json"):
                assert key.replace(".json", ".mp3") in keys[: keys.index(key)]


class TestWanted:
    """Which calls are wanted."""

    def test_external_and_unselected_calls_are_counted_and_left_out(self, bench: Bench) -> None:
        bench.start(
            call("a"),
            call("ext", external=True),
            call("null", external=None),
            call("mute", duration=0),
            call("unknown", duration=None),
        )
        outcome = bench.run().ok
        assert sorted(outcome.statuses) == ["a", "null", "unknown"]
        assert outcome.summary["external"] == 1
        assert outcome.summary["not_selected"] == 1

    def test_select(self, bench: Bench) -> None:
        bench.start(call("short", duration=5), call("long", duration=500), call("mute", duration=0))
        outcome = bench.run(select=lambda row: row["duration"] < 100).ok
        assert sorted(outcome.statuses) == ["mute", "short"]
        assert outcome.counts() == {"stored": 2, "not_selected": 1}

    @pytest.mark.parametrize("honour_filters", [True, False])
    def test_user_id(self, bench: Bench, honour_filters: bool) -> None:
        rows = [call(name, **user_fields(name)) for name in USERS]
        bench.start(*rows, honour_filters=honour_filters)
        outcome = bench.run(user_id=f" {user_fields('grace')['user_id']} ").ok
        assert list(outcome.statuses) == ["grace"]
        assert outcome.asked == ["grace"]

    @pytest.mark.parametrize("user_id", ["", "None", "  "])
    def test_template_of_nothing_is_no_user(self, bench: Bench, user_id: str) -> None:
        bench.start(*calls(2))
        assert len(bench.run(user_id=user_id).ok.statuses) == 2


class TestCallIds:
    @pytest.mark.parametrize(
        "call_ids",
        [
            ["one", "two"],
            ("two", "one", "two"),
            [{"call_id": "one"}, {"id": "two", "start_date": None}],
            '["one", "two"]',
            "[{'call_id': 'one', 'size': None}, {'call_id': 'two'}]",
            '[{"call_id": "one", "size": null}, {"call_id": "two", "ok": true}]',
            " ['one', 'two'] ",
        ],
    )
    def test_ids_in_every_shape(self, bench: Bench, call_ids: Any) -> None:
        rows = {row["id"]: row for row in (call("one", 24 * 90), call("two", duration=0), call("three"))}
        bench.start(*rows.values())
        outcome = bench.run(call_ids=call_ids).ok
        assert outcome.statuses == {"one": "stored", "two": "stored"}
        assert bench.holds(rows["one"], rows["two"])
        assert outcome.summary["window"] is None

    @pytest.mark.parametrize("call_ids", ["one", {"call_id": "one"}])
    def test_single_id(self, bench: Bench, call_ids: Any) -> None:
        row = call("one")
        bench.start(row)
        assert bench.run(call_ids=call_ids).ok.asked == ["one"]
        assert bench.holds(row)

    def test_no_ids_are_nothing_to_do(self, bench: Bench) -> None:
        bench.start(*calls(2))
        for call_ids in ([], "[]"):
            outcome = bench.run(call_ids=call_ids).ok
            assert (outcome.rows, outcome.counts()) == ([], {})
        assert bench.sandbox.log == []

    def test_external_call_is_not_asked_for(self, bench: Bench) -> None:
        bench.start(call("ext", external=True), call("one"))
        outcome = bench.run(call_ids=["ext", "one"]).ok
        assert (outcome.asked, outcome.counts()) == (["one"], {"stored": 1, "external": 1})

    def test_id_that_the_list_does_not_know_goes_under_undated(self, bench: Bench) -> None:
        sandbox = bench.start(call("known"))
        sandbox.set_fault("gone", "chunked")
        outcome = bench.run(call_ids=["gone"]).ok
        assert bench.files() == ["undated/gone.json", "undated/gone.mp3"]
        assert (outcome.rows or [])[0]["start_date"] is None
        again = bench.run("later", call_ids=["gone"]).ok
        assert (again.asked, again.statuses) == ([], {"gone": "already_stored"})

    def test_undated_recording_is_not_asked_for_again_when_the_list_has_it_later(self, bench: Bench) -> None:
        sandbox = bench.start(call("other"))
        sandbox.set_fault("late", "chunked")
        bench.run("by-id", call_ids=["late"]).ok  # noqa: B018
        sandbox.add_calls(call("late"))
        for kwargs in ({}, {"call_ids": ["late"]}):
            outcome = bench.run("by-window", **kwargs).ok
            assert "late" not in outcome.asked
            assert outcome.statuses["late"] == "already_stored"
        assert "undated/late.mp3" in bench.files()

    def test_dated_recording_is_found_when_the_list_has_dropped_it(self, bench: Bench) -> None:
        row = call("old", 24 * 2)
        sandbox = bench.start(row, call("other"))
        bench.run("monday").ok  # noqa: B018
        sandbox.calls.remove(row)
        outcome = bench.run("later", call_ids=["old"]).ok
        assert (outcome.asked, outcome.statuses) == ([], {"old": "already_stored"})
        assert (outcome.rows or [])[0]["uri"] == f"file://{bench.audio(row)}"

    def test_list_is_read_no_further_than_needed(self, bench: Bench) -> None:
        rows = calls(40)
        bench.start(*rows, page_size=5)
        bench.run(call_ids=[rows[-1]["id"]]).ok  # noqa: B018
        assert len([entry for entry in bench.sandbox.log if entry.path == "/calls"]) == 1

    @pytest.mark.parametrize("other", [["x"], {"id": 1}, 7, None])
    def test_rows_of_the_list_without_a_proper_id_are_no_hindrance(self, bench: Bench, other: Any) -> None:
        bench.start(call("new"), {**call("odd", 6), "id": other}, call("one", 7))
        assert bench.run(call_ids=["one"]).ok.statuses == {"one": "stored"}

    @pytest.mark.parametrize(
        "call_ids",
        [
            ["../../etc/passwd"],
            ["one", "/etc/passwd"],
            ["a b"],
            [""],
            [None],
            [7],
            [{"uri": "x"}],
            "one,two",
            "[1, 2",
            "[one]",
            7,
            b"one",
            ["x" * 129],
        ],
    )
    def test_what_is_no_id_is_refused_before_anything_is_asked(self, bench: Bench, call_ids: Any) -> None:
        bench.start(call("one"))
        error = bench.run(call_ids=call_ids).error
        assert isinstance(error, AirflowFailException)
        assert "call_ids" in str(error)
        assert bench.sandbox.log == []


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "audio"),
        [
            ("{id}.mp3", "one.mp3"),
            ("{id}", "one"),
            ("{user_email}/{start_date:%Y/%m}/{id}.mp3", "ada@example.com/2026/03/one.mp3"),
            ("{direction}/{from}-{id}-{duration}.audio", "outgoing/+12025550100-one-60.audio"),
            ("{disposition_name}/{id}.mp3", "Call_back___.._.._x/one.mp3"),
            ("{task_id}/{answered}/{id}/{id}.mp3", "unknown/true/one/one.mp3"),
        ],
    )
    def test_key_over_the_fields(self, bench: Bench, key: str, audio: str) -> None:
        row = {**call("one", disposition_name="Call back\n /../../x"), "start_date": "2026-03-05T23:30:00Z"}
        bench.start(row)
        window: Row = {"start": "2026-03-05", "end": "2026-03-07", "key": key}
        assert (bench.run("monday", **window).ok.rows or [])[0]["uri"] == f"file://{bench.root}/{audio}"
        sidecar = audio.removesuffix(Path(audio).suffix) + ".json"
        assert bench.files() == sorted([audio, sidecar])
        again = bench.run("tuesday", **window).ok
        assert (again.asked, again.counts()) == ([], {"already_stored": 1})
        found = bench.run("wednesday", call_ids=["one"], key=key).ok
        assert (found.asked, found.counts()) == ([], {"already_stored": 1})

    def test_call_without_a_date(self, bench: Bench) -> None:
        rows = [call("none"), call("odd"), call("null")]
        del rows[0]["start_date"]
        rows[1]["start_date"] = "yesterday"
        rows[2]["start_date"] = None
        bench.start(*rows, honour_filters=False)
        assert len(bench.run("monday").ok.statuses) == 3
        assert {name.partition("/")[0] for name in bench.files()} == {"undated"}
        assert bench.run("tuesday").ok.asked == []


class TestQuota:
    def test_never_more_than_the_limit_in_any_period(self, bench: Bench) -> None:
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

    def test_without_the_triggerer(self, bench: Bench) -> None:
        rows = calls(7)
        sandbox = bench.start(*rows, limit=3, period=2.0)
        outcome = bench.run(deferrable=False).ok
        assert outcome.deferrals == 0
        assert sandbox.most_in_any_period() == 3
        assert bench.holds(*rows)
        assert outcome.summary["permits_spent"] == 7

    def test_summary_of_a_waiting_task(self, bench: Bench) -> None:
        bench.start(*calls(5), limit=2, period=600.0)
        ti = TaskInstance("run", 1, 1)
        with pytest.raises(TaskDeferred) as caught:
            bench.operator().execute(bench.context(ti))
        moment = caught.value.trigger.moment
        summary = ti.xcoms["summary"]
        assert (summary["stored"], summary["left"], summary["permits_spent"]) == (2, 3, 2)
        until = datetime.fromisoformat(summary["waiting_until"])
        assert abs((until - moment).total_seconds()) <= 1
        assert 590 < (until - datetime.now(UTC)).total_seconds() < 620
        end = datetime.fromisoformat(summary["estimated_end"])
        assert 590 < (end - until).total_seconds() < 620
        assert caught.value.method_name == "execute_complete"
        assert not caught.value.kwargs

    def test_a_burst_that_takes_a_while_begins_with_the_first_free_permits(self, bench: Bench) -> None:
        sandbox = bench.start(*calls(9), limit=3, period=600.0)
        sandbox.set_fault("call-001", "slow")
        with pytest.raises(TaskDeferred) as caught:
            bench.operator(max_concurrency=1).execute(bench.context(TaskInstance("run", 1, 1)))
        first, *_, last = [entry.answered or 0.0 for entry in sandbox.recording_requests()]
        waited = caught.value.trigger.moment.timestamp() - RateLimit(3, 600).hold
        assert last - first > 1.9
        assert first - 0.1 < waited < last - 0.5

    @pytest.mark.parametrize("retry_after", [True, False])
    def test_another_client_with_the_same_key(
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

    def test_refusal_without_end_waits_instead_of_asking_on(self, bench: Bench) -> None:
        bench.start(*calls(8)).set_fault("call-000", "too-many-600")
        ti = TaskInstance("run", 1, 1)
        with pytest.raises(TaskDeferred) as caught:
            bench.operator(max_concurrency=1).execute(bench.context(ti))
        assert caught.value.trigger.moment - datetime.now(UTC) > timedelta(seconds=590)
        assert len(bench.sandbox.recording_requests()) == 1
        assert ti.xcoms["summary"]["left"] == 8
        assert bench.files() == []

    def test_max_wait(self, bench: Bench) -> None:
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

    def test_ledger_that_cannot_be_read_costs_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.start(*calls(2))
        monkeypatch.setattr("airflow_provider_amplemarket.quota.variables._PAUSES", (0.0,))

        def broken(key: str) -> str:
            raise ConnectionError("API server")

        monkeypatch.setattr(bench.ledger, "get", broken)
        outcome = bench.run()
        assert isinstance(outcome.error, LedgerError)
        assert outcome.asked == []

    def test_lost_ledger_is_made_up_from_the_sidecars(self, bench: Bench) -> None:
        rows = calls(6)
        bench.start(*rows, limit=4, period=600.0)
        bench.run("monday", call_ids=[row["id"] for row in rows[:3]]).ok  # noqa: B018
        bench.ledger.texts.clear()
        outcome = bench.run("tuesday", max_wait=timedelta(0))
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert len(outcome.asked) == 1


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

    def test_all_at_once(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_failure_is_not_asked_for_again_after_a_wait(self, bench: Bench) -> None:
        rows = [call("bad--html", 20), *calls(5)]
        bench.start(*rows, limit=3, period=2.0)
        outcome = bench.run()
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.deferrals >= 1
        assert Counter(outcome.asked) == Counter(row["id"] for row in rows)

    def test_recording_that_is_not_there_yet(self, bench: Bench) -> None:
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

    def test_cleared_task_asks_again_for_what_was_not_there(self, bench: Bench) -> None:
        bench.start(call("x--not-found"))
        assert bench.run("monday", try_number=1, max_tries=2).asked == ["x--not-found"]
        assert bench.run("monday", try_number=2, max_tries=3).asked == ["x--not-found"]

    @pytest.mark.parametrize(("hours", "not_found_for", "asks"), [(72, 48, 0), (40, 48, 1), (40, 24, 0), (2, 0, 0)])
    def test_recording_that_was_not_there_is_given_up_with_age(
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

    def test_undated_call_that_was_not_there_is_given_up_with_the_age_of_the_first_request(self, bench: Bench) -> None:
        bench.start(call("other"))
        kwargs: Row = {"call_ids": ["gone"], "not_found_for": timedelta(seconds=1)}
        assert bench.run("monday", **kwargs).ok.asked == ["gone"]
        assert bench.run("tuesday", **kwargs).ok.asked == ["gone"]
        time.sleep(1.1)
        assert bench.run("wednesday", **kwargs).ok.asked == ["gone"]
        assert bench.run("thursday", **kwargs).ok.asked == []

    def test_recording_that_is_too_large_is_final(self, bench: Bench) -> None:
        row = call("x--too-large")
        bench.start(row, call("one"))
        first = bench.run("monday").ok
        assert first.counts() == {"stored": 1, "too_large": 1}
        assert bench.record(row)["status"] == "too_large"
        assert "413" in bench.record(row)["error"]
        second = bench.run("tuesday").ok
        assert (second.asked, second.counts()) == ([], {"already_stored": 1, "too_large": 1})
        assert bench.run("clear", overwrite=True).ok.counts() == {"stored": 1, "too_large": 1}

    def test_refused_key_ends_the_task_at_once(self, bench: Bench) -> None:
        bench.start(*calls(20)).set_fault("call-001", "unauthorized")
        outcome = bench.run(max_concurrency=1)
        assert isinstance(outcome.error, AirflowFailException)
        assert "password of connection 'amplemarket_default'" in str(outcome.error)
        assert outcome.asked == ["call-000", "call-001"]
        assert bench.holds(*calls(1))
        assert outcome.summary["left"] == 19

    def test_refused_key_for_the_list(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.start(*calls(2))
        text = os.environ["AIRFLOW_CONN_AMPLEMARKET_DEFAULT"].replace(API_KEY, "other-key")
        monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", text)
        outcome = bench.run()
        assert isinstance(outcome.error, AirflowFailException)
        assert "other-key" not in str(outcome.error)
        assert len(bench.sandbox.log) == 1
        assert outcome.asked == []

    @pytest.mark.parametrize("fault", ["error-503", "refuse"])
    def test_outage_does_not_eat_the_quota(self, bench: Bench, fault: str) -> None:
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

    def test_some_failures_are_no_outage(self, bench: Bench) -> None:
        rows = calls(30)
        sandbox = bench.start(*rows)
        for row in rows[::3]:
            sandbox.set_fault(row["id"], "error-500")
        outcome = bench.run(max_concurrency=1)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.counts() == {"stored": 20, "failed": 10}

    def test_list_that_fails_for_a_moment(self, bench: Bench) -> None:
        rows = calls(3)
        bench.start(*rows).list_faults.extend(["too-many-0", "cut"])
        bench.run().ok  # noqa: B018
        assert bench.holds(*rows)

    @pytest.mark.parametrize("fault", ["loop", "next-away", "not-json", "not-a-list", "row-not-object"])
    def test_list_that_makes_no_sense_is_no_empty_one(self, bench: Bench, fault: str) -> None:
        bench.start(*calls(3)).list_faults.append(fault)
        outcome = bench.run()
        assert isinstance(outcome.error, AmplemarketAPIError)
        assert outcome.asked == []
        assert bench.sandbox.away_requests() == []


class TestOverwrite:
    def test_asked_once_in_each_run_also_across_waits(self, bench: Bench) -> None:
        rows = calls(5)
        sandbox = bench.start(*rows, limit=50, period=2.0)
        bench.run("first").ok  # noqa: B018
        time.sleep(2.1)
        bench.connect(recording_limit=3, recording_period=2.0)
        outcome = bench.run("second", overwrite=True).ok
        assert outcome.deferrals >= 1
        assert Counter(outcome.asked) == Counter(ids(*rows))
        assert outcome.counts() == {"stored": 5}
        assert bench.holds(*rows)
        assert bench.run("second", try_number=2, overwrite=True).ok.asked == []
        assert len(sandbox.recording_requests()) == 10

    def test_new_bytes_replace_the_old(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(row)
        bench.run("first").ok  # noqa: B018
        sandbox.set_fault("one", "large-2")
        outcome = bench.run("second", overwrite=True).ok
        assert bench.record(row)["size"] == bench.audio(row).stat().st_size == 2 * 1024**2
        assert bench.record(row)["run_id"] == "second"
        assert outcome.statuses == {"one": "stored"}

    @pytest.mark.parametrize(("fault", "status"), [("cut", "failed"), ("not-found", "not_found"), ("html", "failed")])
    def test_failure_keeps_the_good_recording_and_what_is_known_of_it(
        self, bench: Bench, fault: str, status: str
    ) -> None:
        row = call("one")
        sandbox = bench.start(row, call("two", 9))
        bench.run("first").ok  # noqa: B018
        before = bench.record(row)
        sandbox.set_fault("one", fault)
        outcome = bench.run("second", overwrite=True)
        assert isinstance(outcome.error, ArchiveIncompleteError if status == "failed" else type(None))
        assert bench.has(row)
        record = bench.record(row)
        attempt = record.pop("overwrite")
        assert record == before
        assert (attempt["status"], attempt["run_id"]) == (status, "second")
        assert outcome.counts() == {"stored": 1, status: 1}
        # Without overwriting it is as good as ever.
        later = bench.run("third").ok
        assert (later.asked, later.counts()) == ([], {"already_stored": 2})
        # A retry asks for what failed alone.
        sandbox.set_fault("one", None)
        retry = bench.run("second", try_number=2, overwrite=True).ok
        assert retry.asked == (["one"] if status == "failed" else [])

    def test_tombstone_is_respected(self, bench: Bench) -> None:
        row = call("one")
        bench.start(row)
        bench.sidecar(row).parent.mkdir(parents=True)
        bench.sidecar(row).write_text('{"status": "deleted"}')
        outcome = bench.run(overwrite=True).ok
        assert (outcome.asked, outcome.counts()) == ([], {"deleted": 1})


class TestReconciliation:
    """Whatever lies in the archive, and however it came to."""

    def test_audio_without_its_sidecar_is_adopted_without_a_request(self, bench: Bench) -> None:
        row = call("one")
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        bench.sidecar(row).unlink()
        outcome = bench.run("tuesday").ok
        assert (outcome.asked, outcome.statuses) == ([], {"one": "stored"})
        assert bench.holds(row)
        assert bench.record(row)["adopted"] is True
        assert bench.run("wednesday").ok.statuses == {"one": "already_stored"}

    @pytest.mark.parametrize("text", ["", '{"status": "stored", "size', "[]", "\x00\x00"])
    def test_garbled_sidecar_is_written_anew_without_a_request(self, bench: Bench, text: str) -> None:
        row = call("one")
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        bench.sidecar(row).write_text(text)
        assert bench.run("tuesday").ok.asked == []
        assert bench.holds(row)

    @pytest.mark.parametrize("text", ["", "{", '{"status": "unheard of"}', '{"status": ["stored"]}', '{"size": 1}'])
    def test_garbled_sidecar_without_audio_is_asked_for(self, bench: Bench, text: str) -> None:
        row = call("one")
        bench.start(row)
        bench.sidecar(row).parent.mkdir(parents=True)
        bench.sidecar(row).write_text(text)
        assert bench.run().ok.asked == ["one"]
        assert bench.holds(row)

    @pytest.mark.parametrize("data", [b"", b"ID3", b"x" * 100_000])
    def test_audio_of_another_size_is_asked_for(self, bench: Bench, data: bytes) -> None:
        row = call("one")
        bench.start(row, call("two", 9))
        bench.run("monday").ok  # noqa: B018
        bench.audio(row).write_bytes(data)
        assert bench.run("tuesday").ok.asked == ["one"]
        assert bench.has(row)

    def test_audio_that_is_gone_is_asked_for(self, bench: Bench) -> None:
        row = call("one")
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        bench.audio(row).unlink()
        assert bench.run("tuesday").ok.asked == ["one"]
        assert bench.holds(row)

    @pytest.mark.parametrize("with_audio", [True, False])
    def test_tombstone(self, bench: Bench, with_audio: bool) -> None:
        row = call("one")
        bench.start(row, call("two", 9))
        bench.run("monday").ok  # noqa: B018
        bench.sidecar(row).write_text('{"status": "deleted"}')
        if not with_audio:
            bench.audio(row).unlink()
        outcome = bench.run("tuesday").ok
        assert (outcome.asked, outcome.counts()) == ([], {"already_stored": 1, "deleted": 1})
        assert list(outcome.statuses) == ["two"]
        assert bench.sidecar(row).read_text() == '{"status": "deleted"}'

    def test_tombstone_holds_when_the_list_has_dropped_the_call(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(row, call("two", 9))
        bench.run("monday").ok  # noqa: B018
        bench.audio(row).unlink()
        bench.sidecar(row).write_text('{"status": "deleted"}')
        sandbox.calls.remove(row)
        sandbox.set_fault("one", "chunked")
        outcome = bench.run("tuesday", call_ids=["one"]).ok
        assert (outcome.asked, outcome.counts()) == ([], {"deleted": 1})

    def test_tombstone_of_an_undated_call_holds_when_the_list_has_it(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(call("two", 9))
        sandbox.set_fault("one", "chunked")
        bench.run("monday", call_ids=["one"]).ok  # noqa: B018
        (bench.root / "undated/one.mp3").unlink()
        (bench.root / "undated/one.json").write_text('{"status": "deleted"}')
        sandbox.add_calls(row)
        outcome = bench.run("tuesday", call_ids=["one"]).ok
        assert (outcome.asked, outcome.counts()) == ([], {"deleted": 1})

    def test_writer_that_dies_between_audio_and_sidecar(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = calls(6)
        bench.start(*rows)

        def die(self: Any, *args: Any) -> None:
            raise SystemExit("killed")

        with monkeypatch.context() as patch:
            patch.setattr(archive_module.Archive, "write_sidecar", die)
            with pytest.raises(SystemExit):
                bench.run("monday", max_concurrency=1)
        published = [name for name in bench.files() if name.endswith(".mp3")]
        assert published
        assert published == bench.files()
        outcome = bench.run("monday", try_number=2).ok
        assert len(outcome.asked) == 6 - len(published)
        assert bench.holds(*rows)

    def test_half_a_character_in_a_call_is_no_hindrance(self, bench: Bench) -> None:
        row = call("one", notes="Great call \ud83d")
        bench.start(row, call("two"))
        assert bench.run().ok.counts() == {"stored": 2}
        assert bench.record(row)["call"]["notes"] == "Great call \ud83d"

    def test_audio_that_was_cut_in_the_archive_is_never_adopted(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(row)
        assert bench.run("monday").ok.counts() == {"stored": 1}
        path = bench.audio(row)
        path.write_bytes(path.read_bytes()[:100])
        sandbox.set_fault("one", "error-500", times=1)
        assert isinstance(bench.run("tuesday").error, ArchiveIncompleteError)
        assert bench.run("wednesday").ok.asked == ["one"]
        assert bench.holds(row)

    @pytest.mark.parametrize("record", [None, {"status": "failed"}], ids=["no-sidecar", "failed"])
    def test_audio_that_is_not_whole_is_asked_for_again(
        self, bench: Bench, record: Row | None, logs: pytest.LogCaptureFixture
    ) -> None:
        row = call("one")
        sandbox = bench.start(row)
        bench.audio(row).parent.mkdir(parents=True)
        bench.audio(row).write_bytes(sandbox.recording("one")[:-1])
        if record:
            bench.sidecar(row).write_text(json.dumps(record))
        assert bench.run("monday").ok.asked == ["one"]
        assert bench.holds(row)
        assert "is not adopted: its" in logs.text

    @pytest.mark.parametrize(("difference", "asked"), [(0, []), (72, ["one"]), (-72, ["one"])])
    def test_audio_whose_length_on_record_is_another_is_asked_for_again(
        self, bench: Bench, difference: int, asked: list[str]
    ) -> None:
        row = call("one")
        sandbox = bench.start(row)
        data = sandbox.recording("one")
        bench.audio(row).parent.mkdir(parents=True)
        bench.audio(row).write_bytes(data)
        record = {"status": "failed", "content_length": len(data) + difference}
        bench.sidecar(row).write_text(json.dumps(record))
        assert bench.run("monday").ok.asked == asked
        assert bench.holds(row)

    def test_length_that_a_cut_recording_promised_is_on_record(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(row)
        sandbox.set_fault("one", "cut")
        assert bench.run("monday").counts() == {"failed": 1}
        assert bench.record(row)["content_length"] == sandbox.recording_size("one")
        sandbox.set_fault("one", "error-500")
        bench.run("tuesday")
        assert bench.record(row)["content_length"] == sandbox.recording_size("one")

    def test_audio_that_cannot_be_read_is_asked_for_again_and_stops_no_other(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row, other = call("one"), call("two")
        sandbox = bench.start(row, other)
        bench.audio(row).parent.mkdir(parents=True)
        bench.audio(row).write_bytes(sandbox.recording("one"))

        def refuse(self: archive_module.Archive, key: str) -> Digest:
            raise OSError("InvalidObjectState")

        monkeypatch.setattr(archive_module.Archive, "_read_digest", refuse)
        outcome = bench.run("monday").ok
        assert sorted(outcome.asked) == ["one", "two"]
        assert outcome.counts() == {"stored": 2}

    def test_overwriting_that_fails_leaves_no_sidecar_that_vouches_for_the_new_audio(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = call("one")
        bench.start(row)
        assert bench.run("monday").ok.counts() == {"stored": 1}
        write = archive_module.Archive.write_sidecar

        def refuse(self: archive_module.Archive, place: Any, sidecar: Any, directory: Path) -> None:
            if sidecar.status == "stored" and sidecar.run_id == "tuesday":
                raise OSError("no")
            write(self, place, sidecar, directory)

        monkeypatch.setattr(archive_module.Archive, "write_sidecar", refuse)
        assert isinstance(bench.run("tuesday", overwrite=True).error, ArchiveIncompleteError)
        assert bench.record(row)["status"] == "overwriting"
        outcome = bench.run("wednesday").ok
        assert (outcome.asked, outcome.counts()) == ([], {"stored": 1})
        assert bench.holds(row)

    def test_audio_whose_sidecar_cannot_be_written_does_not_stop_the_others(self, bench: Bench) -> None:
        row, other = call("one"), call("two")
        sandbox = bench.start(row, other)
        bench.audio(row).parent.mkdir(parents=True)
        bench.audio(row).write_bytes(sandbox.recording("one"))
        (bench.sidecar(row) / "in the way").mkdir(parents=True)
        outcome = bench.run("monday")
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert "one (its sidecar cannot be written" in str(outcome.error)
        assert (outcome.asked, outcome.counts()) == (["two"], {"stored": 1, "failed": 1})

    def test_overwriting_that_dies_before_the_sidecar_is_hashed_anew(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = call("one")
        bench.start(row)
        assert bench.run("monday").ok.counts() == {"stored": 1}
        sidecar = bench.record(row)
        bench.sidecar(row).write_text(json.dumps({**sidecar, "status": "overwriting", "sha256": "of the old one"}))
        outcome = bench.run("tuesday").ok
        assert outcome.asked == []
        assert bench.record(row)["sha256"] == sidecar["sha256"]
        assert bench.holds(row)

    def test_select_that_fails_for_one_call_does_not_stop_the_others(self, bench: Bench) -> None:
        odd = call("odd")
        del odd["duration"]
        bench.start(odd, call("one"), call("two"))
        outcome = bench.run(select=lambda row: row["duration"] > 0)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert "select failed with KeyError" in str(outcome.error)
        assert outcome.counts() == {"stored": 2, "failed": 1}

    def test_calls_that_always_fail_do_not_keep_the_others_waiting(self, bench: Bench) -> None:
        rows = calls(30)
        sandbox = bench.start(*rows, limit=100)
        for row in rows[:25]:
            sandbox.set_fault(row["id"], "error-500")
        for run in ("monday", "tuesday", "wednesday"):
            bench.run(run)
        assert all(bench.has(row) for row in rows[25:])

    def test_upload_that_fails_is_made_again_without_another_request(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = calls(3)
        bench.start(*rows)
        replace, tries = os.replace, Counter[str]()

        def flaky(source: Any, target: Any) -> None:
            tries[str(target)] += 1
            if str(target).endswith((".mp3", ".json")) and tries[str(target)] == 1:
                raise OSError("no room, for a moment")
            replace(source, target)

        monkeypatch.setattr(os, "replace", flaky)
        outcome = bench.run().ok
        assert sorted(filter(None, outcome.asked)) == ids(*rows)
        assert bench.holds(*rows)

    def test_archive_that_takes_no_more_ends_the_task(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.start(*calls(30))
        monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
        replace = os.replace
        fills = threading.Event()

        def full(source: Any, target: Any) -> None:
            if str(target).endswith(".mp3"):
                fills.set()
            if fills.is_set():
                raise OSError(28, "No space left on device")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            outcome = bench.run(max_concurrency=2)
        assert isinstance(outcome.error, ArchiveError)
        assert "No space left" in str(outcome.error)
        # What is published, and what is downloaded meanwhile.
        assert len(outcome.asked) <= 2 + 2
        assert bench.files() == []
        assert bench.run(try_number=2).ok.counts() == {"stored": 30}

    def test_destination_is_tried_before_a_permit_is_spent(self, bench: Bench, tmp_path: Path) -> None:
        bench.start(*calls(3))
        (tmp_path / "file").touch()
        outcome = bench.run(path=f"file://{tmp_path}/file/archive")
        assert isinstance(outcome.error, ArchiveError)
        assert "cannot be written" in str(outcome.error)
        assert outcome.asked == []
        assert bench.ledger.spent == 0

    def test_staging_is_gone_whatever_happens(self, bench: Bench) -> None:
        bench.start(*calls(3), call("x--cut"), call("y--unauthorized", 1))
        bench.run()
        assert not (bench.root / staging_module.STAGING).exists()

    def test_staging_of_a_killed_task_is_swept(self, bench: Bench) -> None:
        bench.start(*calls(1))
        dead = bench.root / staging_module.STAGING / "tmpdead"
        dead.mkdir(parents=True)
        (dead / staging_module._LOCK).touch()
        (dead / "call-000.part").write_bytes(b"half of it")
        bench.run().ok  # noqa: B018
        assert bench.holds(*calls(1))

    def test_staging_files_are_not_taken_for_recordings(self, bench: Bench) -> None:
        bench.start(call("one"))
        staging = bench.root / staging_module.STAGING / "tmplive"
        staging.mkdir(parents=True)
        (staging / "gone.part").write_bytes(b"ID3 half of it")
        outcome = bench.run(call_ids=["gone"], key="{user_id}/{direction}/{id}.part").ok
        assert (outcome.asked, outcome.counts()) == (["gone"], {"not_found": 1})


HOSTILE = (
    "../../outside",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "nul\x00byte",
    "line\nbreak",
    "x" * 129,
    "y" * 5000,
    "ünïcode",
    "{}",
    "{id}",
    "%2e%2e%2f",
    "one?two",
    "one#two",
    " one",
    None,
    7,
    ["one"],
    {"id": "one"},
)


class TestUntrusted:
    @pytest.mark.parametrize("hostile", HOSTILE, ids=lambda value: repr(value)[:20])
    def test_hostile_id_fails_alone_and_touches_nothing(self, bench: Bench, tmp_path: Path, hostile: Any) -> None:
        rows = calls(2)
        bench.start(*rows, {**call("x", 9), "id": hostile})
        outcome = bench.run()
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert "1 recordings failed" in str(outcome.error)
        assert "its id is not a plain token" in str(outcome.error)
        assert repr(hostile)[:100] in str(outcome.error)
        assert len(str(outcome.error)) < 300
        assert sorted(filter(None, outcome.asked)) == ids(*rows)
        assert outcome.counts() == {"stored": 2, "failed": 1}
        assert bench.holds(*rows)
        assert [path.name for path in tmp_path.iterdir()] == ["archive"]

    def test_every_hostile_id_is_counted(self, bench: Bench) -> None:
        bench.start(*({**call("x"), "id": "../" + "x" * 200 + str(number)} for number in range(3)))
        assert bench.run().counts() == {"failed": 3}

    def test_hostile_fields_stay_below_the_archive(self, bench: Bench, tmp_path: Path) -> None:
        row = call("one", user_email="../../../x", disposition_name="/abs\x00\n", **{"from": {"a": "../b"}, "to": ".."})
        bench.start(row)
        bench.run(key="{user_email}/{disposition_name}/{from}/{to}/{id}.mp3").ok  # noqa: B018
        assert len(bench.files()) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["archive"]
        assert all(part.strip(".") for name in bench.files() for part in name.split("/"))

    @pytest.mark.parametrize(
        "value", [float("inf"), float("nan"), 10**400, "9999-99-99", "0001-01-01T00:00:00+23:59", []]
    )
    def test_nonsense_in_other_fields_is_no_hindrance(self, bench: Bench, value: Any) -> None:
        row = call("one", duration=value, transcript=value, surprise={"deep": [value]})
        row["start_date"] = value
        bench.start(row, honour_filters=False)
        assert bench.run().ok.statuses == {"one": "stored"}
        assert bench.run("again").ok.asked == []


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"lookback": 3}, "lookback must be a timedelta of 0 or more, not 3"),
        ({"lookback": timedelta(-1)}, "lookback must be"),
        ({"lookback": None}, "lookback must be"),
        ({"not_found_for": "2 days"}, "not_found_for must be"),
        ({"not_found_for": None}, "not_found_for must be"),
        ({"give_up_after": 3}, "give_up_after must be a timedelta of 0 or more, not 3"),
        ({"give_up_after": timedelta(-1)}, "give_up_after must be"),
        ({"give_up_after": None}, "give_up_after must be"),
        ({"max_wait": timedelta(seconds=-1)}, "max_wait must be"),
        ({"max_wait": 60}, "max_wait must be"),
        ({"max_concurrency": 0}, "max_concurrency must be a whole number from 1 to 32, not 0"),
        ({"max_concurrency": 33}, "max_concurrency must be"),
        ({"max_concurrency": 2.5}, "max_concurrency must be"),
        ({"max_concurrency": "4"}, "max_concurrency must be"),
        ({"sidecar": "none"}, "sidecar must be 'full' or 'minimal', not 'none'"),
        ({"sidecar": None}, "sidecar must be"),
        ({"select": "has_duration"}, "select must be callable"),
        ({"select": None}, "select must be callable"),
        ({"key": ""}, "key='' cannot be used"),
        ({"key": "{start_date}.mp3"}, "must contain {id}"),
        ({"key": "{nme}/{id}.mp3"}, "{nme} is not a field"),
        ({"key": "../{id}.mp3"}, "not a relative path"),
        ({"key": "/{id}.mp3"}, "not a relative path"),
        ({"key": "{id}.json"}, "sidecars"),
        ({"key": "{id!r}"}, "only start_date takes a format"),
        ({"key": "{id.__class__}"}, "is not a field"),
        ({"key": "{id"}, "cannot be used"),
        ({"key": None}, "cannot be used"),
    ],
)
def test_wrong_parameters_are_refused_while_the_dag_is_parsed(kwargs: Row, told: str) -> None:
    with pytest.raises(AmplemarketConfigurationError, match=re.escape(told)) as caught:
        AmplemarketRecordingOperator(**{"task_id": "archive", "path": "file:///nowhere", **kwargs})
    assert next(iter(kwargs)) in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"path": ""}, "path='' must begin with a scheme"),
        ({"path": "None"}, "path='None' must begin with a scheme"),
        ({"path": "recordings"}, "path='recordings' must begin with a scheme"),
        ({"path": "nowhere://x"}, "path='nowhere://x'"),
        ({"start": "last week"}, "start='last week' is not a valid datetime; use ISO 8601"),
        ({"end": "2026-13-01"}, "end='2026-13-01' is not a valid datetime; use ISO 8601"),
        ({"start": "2026-11-20", "end": "2026-11-20", "lookback": timedelta(0)}, "change start, end or lookback"),
    ],
)
def test_wrong_templated_parameters_are_named_before_anything_is_asked(bench: Bench, kwargs: Row, told: str) -> None:
    bench.start(*calls(1))
    error = bench.run(**kwargs).error
    assert isinstance(error, AirflowFailException)
    assert told in str(error)
    assert bench.sandbox.log == []


def test_constructing_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("touched")

    monkeypatch.setattr("socket.socket", touched)
    monkeypatch.setattr(archive_module, "open_storage", touched)
    monkeypatch.setattr(Hook, "get_connection", touched)
    operator = AmplemarketRecordingOperator(task_id="archive", path="s3://no_such_connection@bucket/x")
    assert operator.pool == "amplemarket_recordings"
    operator.on_kill()


class TestKill:
    @contextmanager
    def running(self, bench: Bench, ti: TaskInstance, **kwargs: Any) -> Iterator[Callable[[], BaseException | None]]:
        """Run a task that is killed at the beginning of the block; give what answers its end."""
        operator = bench.operator(**kwargs)
        ends: list[BaseException | None] = []

        def execute() -> None:
            try:
                operator.execute(bench.context(ti))
                ends.append(None)
            except BaseException as error:
                ends.append(error)

        task = threading.Thread(target=execute, daemon=True)
        task.start()
        deadline = time.monotonic() + 10
        while not bench.sandbox.recording_requests() or (
            kwargs.get("deferrable") is False and "waiting_until" not in ti.xcoms.get("summary", {})
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        operator.on_kill()

        def end() -> BaseException | None:
            task.join(3)
            assert not task.is_alive(), "the task goes on after it was killed"
            return ends[0]

        try:
            yield end
        finally:
            # Where it does not end by itself, its next look at the list ends it.
            bench.sandbox.stop()
            operator.hook = None  # type: ignore[assignment]
            task.join(15)
            assert not task.is_alive()

    def test_kill_ends_the_downloads(self, bench: Bench) -> None:
        rows = [call(f"x{number}--endless", 9 - number / 10) for number in range(12)]
        bench.start(*rows)
        with self.running(bench, TaskInstance("run", 1, 1), max_concurrency=2) as end:
            assert isinstance(end(), Exception)
            assert len(bench.sandbox.recording_requests()) <= 3
            assert [name for name in bench.files() if name.endswith(".mp3")] == []
            assert not (bench.root / staging_module.STAGING).exists()

    def test_kill_ends_the_sleep_for_the_quota(self, bench: Bench) -> None:
        bench.start(*calls(5), limit=2, period=8.0)
        with self.running(bench, TaskInstance("run", 1, 1), deferrable=False) as end:
            assert isinstance(end(), Exception)
            assert len(bench.sandbox.recording_requests()) == 2


@pytest.mark.parametrize(
    ("default_args", "given", "pool"),
    [
        ({}, {}, "amplemarket_recordings"),
        ({}, {"pool": "emea"}, "emea"),
        ({"pool": "of_the_dag"}, {}, "of_the_dag"),
    ],
)
def test_mapped_tasks_take_their_turn_in_the_pool_too(default_args: Row, given: Row, pool: str) -> None:
    from airflow.sdk import DAG

    with DAG("mapped", schedule=None, default_args=default_args):
        mapped = AmplemarketRecordingOperator.partial(task_id="archive", path="file:///archive", **given)
        assert mapped.expand(call_ids=[["a"], ["b"]]).pool == pool
        assert AmplemarketRecordingOperator(task_id="one", path="file:///archive", **given).pool == pool


class TestInAirflow:
    """Tasks that Airflow runs itself."""

    def test_happy_path(self, bench: Bench, airflow: RealAirflow) -> None:
        rows = make_calls(12, end=NOW)
        bench.start(*rows)
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.state == "success"
        wanted = [row for row in rows if row["duration"] and not row["external"]]
        assert bench.holds(*wanted)
        result = run.xcom()
        assert [row["call_id"] for row in result] == [row["id"] for row in wanted[::-1]]
        assert run.xcom("summary")["stored"] == 10
        assert len(json.loads(airflow.variables()["amplemarket_quota__amplemarket_default"])["spent"]) == 10
        again = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert [row["status"] for row in again.xcom()] == ["already_stored"] * 10
        assert len(bench.sandbox.recording_requests()) == 10

    def test_first_run_ever_finds_no_ledger(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(2))
        airflow.set_ledger(None)
        assert airflow.test(f"Archive(task_id='archive', path={bench.path!r})").state == "success"
        assert "amplemarket_quota__amplemarket_default" in airflow.variables()

    def test_deferral(self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]) -> None:
        rows = calls(10)
        sandbox = bench.start(*rows, limit=4, period=4.0)
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.state == "success"
        assert "waiting in the triggerer" in "".join(capfd.readouterr())
        assert sandbox.most_in_any_period() == 4
        assert bench.holds(*rows)
        summary = run.xcom("summary")
        assert (summary["stored"], summary["permits_spent"], summary["left"]) == (10, 10, 0)
        assert "waiting_until" not in summary
        assert {row["status"] for row in run.xcom()} == {"stored"}

    def test_without_the_triggerer(self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]) -> None:
        rows = calls(5)
        sandbox = bench.start(*rows, limit=3, period=2.0)
        assert airflow.test(f"Archive(task_id='archive', path={bench.path!r}, deferrable=False)").state == "success"
        assert "sleeping in the worker" in "".join(capfd.readouterr())
        assert sandbox.most_in_any_period() == 3
        assert bench.holds(*rows)

    def test_retry_asks_for_the_bad_one_alone(self, bench: Bench, airflow: RealAirflow) -> None:
        rows = [*calls(3), call("x--flaky")]
        bench.start(*rows)
        run = airflow.test(
            f"Archive(task_id='archive', path={bench.path!r}, retries=2, retry_delay=timedelta(seconds=0))"
        )
        assert (run.state, run.tries) == ("success", {("archive", -1): 2})
        asked = Counter(entry.call_id for entry in bench.sandbox.recording_requests())
        assert asked == {"call-000": 1, "call-001": 1, "call-002": 1, "x--flaky": 2}
        assert bench.holds(*rows)

    def test_failure_names_the_bad_one(
        self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]
    ) -> None:
        bench.start(*calls(2), call("x--cut"))
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.states == {("archive", -1): "failed"}
        assert re.search(r"ArchiveIncompleteError.*1 recordings failed: x--cut", "".join(capfd.readouterr()), re.DOTALL)
        assert run.xcom("summary")["failed"] == 1

    def test_refused_key_is_not_retried(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(2)).set_fault("call-000", "unauthorized")
        run = airflow.test(
            f"Archive(task_id='archive', path={bench.path!r}, max_concurrency=1, retries=3, retry_delay=timedelta(0))"
        )
        assert (run.state, run.tries) == ("failed", {("archive", -1): 1})
        assert len(bench.sandbox.recording_requests()) == 1

    def test_mapped_over_ids(self, bench: Bench, airflow: RealAirflow) -> None:
        rows = calls(5)
        bench.start(*rows, limit=3, period=4.0)
        some = [[rows[0]["id"], rows[1]["id"]], rows[2]["id"], [rows[3]["id"], rows[4]["id"]]]
        run = airflow.test(
            f"Archive.partial(task_id='archive', path={bench.path!r}, max_concurrency=2).expand(call_ids={some!r})"
        )
        assert run.states == {("archive", index): "success" for index in range(3)}
        assert bench.holds(*rows)
        assert bench.sandbox.most_in_any_period() <= 3
        assert [row["call_id"] for row in run.xcom(map_index=2)] == ["call-003", "call-004"]
        assert [run.xcom("summary", map_index=index)["stored"] for index in range(3)] == [2, 1, 2]
        assert [bench.record(row)["map_index"] for row in rows] == [0, 0, 1, 2, 2]

    def test_chained_by_xcom(self, bench: Bench, airflow: RealAirflow, tmp_path: Path) -> None:
        rows = calls(3)
        bench.start(*rows)
        run = airflow.test(
            f"""
            first = Archive(task_id="archive", path={bench.path!r})
            second = Archive(task_id="copy", path="file://{tmp_path}/copy", call_ids=first.output)
            third = Archive(
                task_id="text", path="file://{tmp_path}/text", call_ids="{{{{ ti.xcom_pull(task_ids='archive') }}}}"
            )
            second >> third
            """
        )
        assert set(run.states.values()) == {"success"}
        for task in ("archive", "copy", "text"):
            assert [row["call_id"] for row in run.xcom(task_id=task)] == [row["id"] for row in rows]

    def test_templates(self, bench: Bench, airflow: RealAirflow) -> None:
        row = call("one", **user_fields("hedy"))
        bench.start(row, call("two"))
        run = airflow.test(
            f"""
            Archive(
                task_id="archive",
                path="{bench.path}/{{{{ dag.dag_id }}}}",
                start="{{{{ dag_run.run_after - macros.timedelta(hours=8) }}}}",
                end="{{{{ dag_run.run_after }}}}",
                user_id="{{{{ params.user }}}}",
                storage_conn_id="{{{{ none }}}}",
                params={{"user": {row["user_id"]!r}}},
            )
            """
        )
        assert run.state == "success"
        assert [found["call_id"] for found in run.xcom()] == ["one"]
        assert all(name.startswith(f"{run.dag_id}/date=") for name in bench.files())

    @pytest.mark.parametrize("schedule", ["'@daily'", "'0 6 * * *'", "timedelta(days=1)", "None"])
    def test_every_schedule_has_a_window(self, bench: Bench, airflow: RealAirflow, schedule: str) -> None:
        bench.start(*make_calls(12, end=NOW - timedelta(days=2), days=0.5))
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})", schedule=schedule)
        assert run.state == "success"
        assert run.xcom("summary")["stored"] == 10

    def test_run_without_a_logical_date(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(2))
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})", logical_date=None)
        assert run.xcom("summary")["stored"] == 2

    def test_time_out_ends_the_downloads(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*(call(f"x{number}--endless") for number in range(6)))
        started = time.monotonic()
        run = airflow.test(
            f"Archive(task_id='archive', path={bench.path!r}, execution_timeout=timedelta(seconds=6), "
            "max_concurrency=2)"
        )
        assert time.monotonic() - started < 60  # and not an hour; Airflow itself needs most of it on a busy machine
        assert run.state == "failed"
        assert len(bench.sandbox.recording_requests()) == 2
        assert not (bench.root / staging_module.STAGING).exists()

    def test_archive_in_a_cloud(
        self, bench: Bench, airflow: RealAirflow, cloud: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = calls(8)
        bench.start(*rows, call("x--too-large"), limit=6, period=4.0)
        folder = f"run-{time.time_ns()}"
        root, conn_id = cloud.apart
        root += f"/{folder}"
        put, failures = upload.put, ["first", "second"]

        def fail_twice(archive: archive_module.Archive, local: Path, key: str, *options: Any) -> None:
            if key.endswith(".mp3") and failures:
                raise OSError(failures.pop())
            put(archive, local, key, *options)

        monkeypatch.setattr(upload, "put", fail_twice)
        body = f"Archive(task_id='archive', path={root!r}, storage_conn_id={conn_id!r})"
        run = airflow.test(body)
        assert run.state == "success"
        for row in rows:
            place = Layout().place(row)
            assert cloud.head(f"{folder}/{place.audio}") == (len(bench.sandbox.recording(row["id"])), "audio/mpeg")
            assert cloud.head(f"{folder}/{place.sidecar}")[1] == "application/json"
            digest = archive_module.Archive(root, conn_id=conn_id).digest(place.audio)
            assert digest.sha256 == bench.sandbox.recording_sha256(row["id"])
            assert digest.is_whole
        assert bench.sandbox.most_in_any_period() <= 6
        assert failures == []
        again = airflow.test(body)
        assert {row["status"] for row in again.xcom()} == {"already_stored"}
        assert again.xcom("summary")["too_large"] == 1
        assert len(bench.sandbox.recording_requests()) == 9

    def test_missing_bucket_costs_no_request(self, bench: Bench, airflow: RealAirflow, cloud: Store) -> None:
        bench.start(*calls(2))
        run = airflow.test(f"Archive(task_id='archive', path={cloud.missing!r})")
        assert run.state == "failed"
        assert bench.sandbox.recording_requests() == []

    def test_key_is_nowhere_to_be_seen(
        self,
        bench: Bench,
        airflow: RealAirflow,
        logs: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        bench.start(*calls(2), call("x--echo-key"), call("y--redirect-away"), limit=3, period=4.0)
        bench.sandbox.list_faults.append("echo-key")
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.state == "failed"
        with create_session() as session:
            xcoms = [str(row.value) for row in session.query(XComModel).filter_by(dag_id=run.dag_id)]
            fields = [
                str(row.rendered_fields)
                for row in session.query(RenderedTaskInstanceFields).filter_by(dag_id=run.dag_id)
            ]
        assert xcoms
        assert fields
        seen = {
            "log": logs.text + "".join(str(record.__dict__) for record in logs.records),
            # Airflow 3.0 itself writes, at the debug level, what it is told to mask.
            "output": "\n".join(line for line in "".join(capfd.readouterr()).splitlines() if "MaskSecret(" not in line),
            "XComs": "".join(xcoms),
            "templates": "".join(fields),
            "Variables": str(airflow.variables()),
            "archive": "".join((bench.root / name).read_text("latin-1") for name in bench.files()),
        }
        assert "Done: " in seen["output"]
        assert [name for name, text in seen.items() if API_KEY in text] == []
        assert [entry.has_authorization for entry in bench.sandbox.away_requests()] == [False]


def test_key_is_in_no_exception(bench: Bench, logs: pytest.LogCaptureFixture) -> None:
    """Without Airflow, which would mask it."""
    bench.start(*calls(2), call("x--echo-key"), call("y--refuse", 1), timeout=1.0)
    error = bench.run().error
    chain: list[BaseException] = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    assert chain
    logging.getLogger(__name__).error("raised", exc_info=chain[0])
    texts = [repr(problem) + str(vars(problem)) for problem in chain]
    assert API_KEY not in "".join(texts) + logs.text
    assert API_KEY not in "".join(bench.sidecar(row).read_text() for row in [call("x--echo-key")])
    assert API_KEY not in repr(bench.operator().hook.settings)
