"""Overwriting asks for each recording once a run, and a failure costs nothing that was good."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import store as archive_module
from airflow_provider_amplemarket.exceptions import (
    ArchiveIncompleteError,
)
from tests.operators.conftest import Bench, call, calls
from tests.operators.tools import ids


class TestOverwriting:
    def test_overwriting_asks_once_in_each_run_also_across_waits(self, bench: Bench) -> None:
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
    def test_a_failure_keeps_the_good_recording_and_what_is_known_of_it(
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

    def test_a_tombstone_is_not_overwritten(self, bench: Bench) -> None:
        row = call("one")
        bench.start(row)
        bench.sidecar(row).parent.mkdir(parents=True)
        bench.sidecar(row).write_text('{"status": "deleted"}')
        outcome = bench.run(overwrite=True).ok
        assert (outcome.asked, outcome.counts()) == ([], {"deleted": 1})


class TestBrokenOff:
    def test_an_overwriting_that_fails_leaves_no_sidecar_that_vouches_for_the_new_audio(
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

    def test_an_overwriting_that_dies_before_its_sidecar_is_hashed_anew(
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
