"""What a run archives: every wanted recording once, byte for byte, under its key, with its sidecar."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import store as archive_module
from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.sandbox import make_calls
from airflow_provider_amplemarket.sandbox.calls import contact_fields
from tests.operators.conftest import NOW, Bench, Row, call, calls
from tests.operators.tools import ids

#: Peculiarities of responses that are all right.
ODD = ("ok", "chunked", "redirect", "redirect-away", "slow", "large-3")


class TestArchiving:
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

    def test_the_result_has_a_row_for_each_recording_oldest_first(self, bench: Bench) -> None:
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

    def test_the_oldest_recordings_are_asked_for_first(self, bench: Bench) -> None:
        rows = calls(9)
        bench.start(*rows[::2], *rows[1::2])
        assert bench.run(max_concurrency=1).ok.asked == [row["id"] for row in rows]

    def test_a_second_run_asks_for_nothing(self, bench: Bench) -> None:
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

    def test_a_retry_returns_what_its_run_has_archived(self, bench: Bench) -> None:
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

    @pytest.mark.parametrize("fault", ODD)
    def test_an_odd_but_whole_recording_is_archived(self, bench: Bench, fault: str) -> None:
        row = call(f"x--{fault}")
        bench.start(row)
        bench.run().ok  # noqa: B018
        assert bench.record(row)["sha256"] == bench.sandbox.recording_sha256(row["id"])
        assert (
            archive_module.Archive(bench.path).digest(Layout().place(row).audio).sha256 == bench.record(row)["sha256"]
        )
        assert bench.record(row)["is_mpeg"] is True
        assert bench.files() == [Layout().place(row).sidecar, Layout().place(row).audio]

    def test_what_is_not_mpeg_is_kept_as_served_and_logged(self, bench: Bench, logs: pytest.LogCaptureFixture) -> None:
        row = call("x--not-mpeg")
        bench.start(row)
        bench.run().ok  # noqa: B018
        assert bench.record(row)["is_mpeg"] is False
        assert "does not begin like MPEG audio" in logs.text


class TestSidecars:
    def test_a_sidecar_says_everything_about_a_recording(self, bench: Bench) -> None:
        row = call("one", contact=contact_fields("Robin Field"), transcript=[{"text": "Hello — “you”"}], new_field=[1])
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        record = bench.record(row)
        assert record.pop("call") == row
        assert record.pop("permit") in bench.ledger.texts["amplemarket_quota__amplemarket_default"]
        times = [datetime.fromisoformat(record.pop(name)) for name in ("requested_at", "answered_at", "archived_at")]
        assert times == sorted(times)
        assert times[0] > datetime.now(UTC) - timedelta(minutes=1)
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
    def test_a_minimal_sidecar_has_nothing_personal(self, bench: Bench, fault: str) -> None:
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

    def test_a_sidecar_is_written_after_its_audio(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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
    def test_a_key_is_made_of_the_fields_of_the_call(self, bench: Bench, key: str, audio: str) -> None:
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

    def test_a_call_without_a_date_is_archived_as_undated(self, bench: Bench) -> None:
        rows = [call("none"), call("odd"), call("null")]
        del rows[0]["start_date"]
        rows[1]["start_date"] = "yesterday"
        rows[2]["start_date"] = None
        bench.start(*rows, honour_filters=False)
        assert len(bench.run("monday").ok.statuses) == 3
        assert {name.partition("/")[0] for name in bench.files()} == {"undated"}
        assert bench.run("tuesday").ok.asked == []
