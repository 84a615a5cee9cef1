"""What lies in the archive already, however it came there, is judged without a request where that is possible."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import store as archive_module
from airflow_provider_amplemarket.archive.objects import Digest
from airflow_provider_amplemarket.exceptions import (
    ArchiveIncompleteError,
)
from tests.operators.conftest import Bench, Row, call, calls


class TestReconciliation:
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
    def test_a_garbled_sidecar_is_written_anew_without_a_request(self, bench: Bench, text: str) -> None:
        row = call("one")
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        bench.sidecar(row).write_text(text)
        assert bench.run("tuesday").ok.asked == []
        assert bench.holds(row)

    @pytest.mark.parametrize("text", ["", "{", '{"status": "unheard of"}', '{"status": ["stored"]}', '{"size": 1}'])
    def test_a_recording_with_a_garbled_sidecar_and_no_audio_is_asked_for(self, bench: Bench, text: str) -> None:
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

    def test_what_a_writer_that_died_has_published_is_adopted(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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

    def test_the_length_that_a_cut_recording_promised_is_on_record(self, bench: Bench) -> None:
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


class TestTombstones:
    @pytest.mark.parametrize("with_audio", [True, False])
    def test_a_call_with_a_tombstone_is_not_asked_for(self, bench: Bench, with_audio: bool) -> None:
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

    def test_a_tombstone_holds_when_the_list_has_dropped_the_call(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(row, call("two", 9))
        bench.run("monday").ok  # noqa: B018
        bench.audio(row).unlink()
        bench.sidecar(row).write_text('{"status": "deleted"}')
        sandbox.calls.remove(row)
        sandbox.set_fault("one", "chunked")
        outcome = bench.run("tuesday", call_ids=["one"]).ok
        assert (outcome.asked, outcome.counts()) == ([], {"deleted": 1})

    def test_a_tombstone_of_an_undated_call_holds_when_the_list_has_it(self, bench: Bench) -> None:
        row = call("one")
        sandbox = bench.start(call("two", 9))
        sandbox.set_fault("one", "chunked")
        bench.run("monday", call_ids=["one"]).ok  # noqa: B018
        (bench.root / "undated/one.mp3").unlink()
        (bench.root / "undated/one.json").write_text('{"status": "deleted"}')
        sandbox.add_calls(row)
        outcome = bench.run("tuesday", call_ids=["one"]).ok
        assert (outcome.asked, outcome.counts()) == ([], {"deleted": 1})
