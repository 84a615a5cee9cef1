"""The store may fail, and what is staged is no part of the archive."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import staging as staging_module
from airflow_provider_amplemarket.exceptions import (
    ArchiveError,
)
from tests.operators.conftest import Bench, call, calls
from tests.operators.tools import ids


class TestStore:
    def test_an_upload_that_fails_is_made_again_without_another_request(
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

    def test_an_archive_that_takes_no_more_ends_the_task(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_the_destination_is_tried_before_a_permit_is_spent(self, bench: Bench, tmp_path: Path) -> None:
        bench.start(*calls(3))
        (tmp_path / "file").touch()
        outcome = bench.run(path=f"file://{tmp_path}/file/archive")
        assert isinstance(outcome.error, ArchiveError)
        assert "cannot be written" in str(outcome.error)
        assert outcome.asked == []
        assert bench.ledger.spent == 0


class TestStaging:
    """What is staged is no part of the archive and does not stay in it."""

    def test_the_staging_folder_is_gone_whatever_happens(self, bench: Bench) -> None:
        bench.start(*calls(3), call("x--cut"), call("y--unauthorized", 1))
        bench.run()
        assert not (bench.root / staging_module.STAGING).exists()

    def test_the_staging_folder_of_a_killed_task_is_swept(self, bench: Bench) -> None:
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
