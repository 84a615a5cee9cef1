"""An archive of the first edition is read without a request, and what is final in it stays as it is.

How it was made is told in ``tests/archive/first_edition/README.md``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import make_call
from tests.operators.conftest import Bench, Row

OBJECTS = Path(__file__).parents[1] / "archive" / "first_edition" / "objects"
WINDOW: Row = {"start": "2026-11-19", "end": "2026-11-21", "lookback": timedelta(0)}

OLDEST = ("full", "minimal", "not-found", "too-large", "failed", "orphaned", "undated")
NEWEST = ("full", "minimal", "not-found", "failed", "given-up", "overwritten")


def hourly(writer: str, kinds: tuple[str, ...], date: str) -> list[Row]:
    """Return the calls of a day that one of the writers has archived."""
    return [
        make_call(id=f"{writer}-{kind}", start_date=f"{date}T{hour:02}:00:00Z")
        for hour, kind in enumerate(kinds, start=8)
    ]


CALLS = [
    *hourly("oldest", OLDEST, "2026-11-19"),
    *hourly("newest", NEWEST, "2026-11-20"),
    make_call(id="deleted", start_date="2026-11-20T20:00:00Z"),
]
#: Archived, each with its object.
STORED = {
    "oldest-full": "date=2026-11-19/oldest-full.mp3",
    "oldest-minimal": "date=2026-11-19/oldest-minimal.mp3",
    "oldest-undated": "undated/oldest-undated.mp3",
    "newest-full": "date=2026-11-20/newest-full.mp3",
    "newest-minimal": "date=2026-11-20/newest-minimal.mp3",
    "newest-overwritten": "date=2026-11-20/newest-overwritten.mp3",
}
FAILED = ["newest-failed", "oldest-failed"]


@pytest.fixture
def archive(bench: Bench) -> Path:
    """Let the archive be the first edition's."""
    shutil.copytree(OBJECTS, bench.root)
    return bench.root


def objects(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return when each object was written, and its bytes."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


def test_only_what_has_failed_is_asked_for_again(bench: Bench, archive: Path) -> None:
    bench.start(*CALLS)
    outcome = bench.run("first-of-the-new-edition", **WINDOW).ok
    assert sorted(filter(None, outcome.asked)) == FAILED
    assert len(bench.sandbox.recording_requests()) == outcome.summary["permits_spent"] == 2
    assert outcome.counts() == {
        "stored": 3,
        "already_stored": 6,
        "not_found": 2,
        "too_large": 1,
        "given_up": 1,
        "deleted": 1,
    }
    assert outcome.summary["left"] == 0
    assert outcome.statuses == {
        **dict.fromkeys(STORED, "already_stored"),
        **dict.fromkeys([*FAILED, "oldest-orphaned"], "stored"),
    }


def test_the_result_has_the_rows_of_what_is_archived(bench: Bench, archive: Path) -> None:
    bench.start(*CALLS)
    rows = {row["call_id"]: row for row in bench.run("first-of-the-new-edition", **WINDOW).ok.rows or ()}
    starts = {call["id"]: call["start_date"].replace("Z", "+00:00") for call in CALLS}
    for call_id, key in STORED.items():
        audio = (OBJECTS / key).read_bytes()
        assert rows[call_id] == {
            "call_id": call_id,
            "uri": f"{bench.path}/{key}",
            "status": "already_stored",
            "size": len(audio),
            "sha256": hashlib.sha256(audio).hexdigest(),
            "start_date": starts[call_id],
        }


def test_nothing_that_is_final_is_written_anew(bench: Bench, archive: Path) -> None:
    bench.start(*CALLS)
    before = objects(archive)
    bench.run("first-of-the-new-edition", **WINDOW).ok  # noqa: B018
    after = objects(archive)
    failed = {f"date=2026-11-19/{FAILED[1]}.json", f"date=2026-11-20/{FAILED[0]}.json"}
    assert {name for name in before if after[name] != before[name]} == failed
    assert after.keys() - before.keys() == {
        "date=2026-11-19/oldest-failed.mp3",
        "date=2026-11-19/oldest-orphaned.json",
        "date=2026-11-20/newest-failed.mp3",
    }


def test_audio_without_its_sidecar_is_adopted(bench: Bench, archive: Path) -> None:
    bench.start(*CALLS)
    assert "oldest-orphaned" not in bench.run("first-of-the-new-edition", **WINDOW).ok.asked
    audio = (OBJECTS / "date=2026-11-19/oldest-orphaned.mp3").read_bytes()
    sidecar = json.loads((archive / "date=2026-11-19/oldest-orphaned.json").read_text())
    assert (sidecar["status"], sidecar["adopted"]) == ("stored", True)
    assert (sidecar["size"], sidecar["sha256"]) == (len(audio), hashlib.sha256(audio).hexdigest())


def test_a_later_run_asks_for_nothing_and_writes_nothing(bench: Bench, archive: Path) -> None:
    bench.start(*CALLS)
    bench.run("first-of-the-new-edition", **WINDOW).ok  # noqa: B018
    before = objects(archive)
    outcome = bench.run("second-of-the-new-edition", **WINDOW).ok
    assert outcome.asked == []
    assert outcome.counts() == {"already_stored": 9, "not_found": 2, "too_large": 1, "given_up": 1, "deleted": 1}
    assert objects(archive) == before


def test_calls_that_the_list_has_dropped_are_found_by_their_ids(bench: Bench, archive: Path) -> None:
    bench.start()
    before = objects(archive)
    final = [*STORED, "oldest-not-found", "newest-not-found", "oldest-too-large", "deleted"]
    outcome = bench.run("first-of-the-new-edition", call_ids=final).ok
    assert outcome.asked == []
    assert outcome.counts() == {"already_stored": 6, "not_found": 2, "too_large": 1, "deleted": 1}
    assert outcome.statuses == dict.fromkeys(STORED, "already_stored")
    assert objects(archive) == before
