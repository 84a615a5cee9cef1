"""What must be true of an account and its archive, read from the request log and from the archive's bytes."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_provider_amplemarket.sandbox import LogEntry, Sandbox, make_call
from airflow_provider_amplemarket.sandbox.limiter import most_in_any


def add_calls(sandbox: Sandbox, name: str, count: int, start: datetime, fault: str | None = None) -> list[str]:
    """Let so many calls appear, an hour apart from the start on, and return their ids."""
    ids = [f"{name}-{number:02}" for number in range(count)]
    for call_id in ids if fault else ():
        sandbox.set_fault(call_id, fault)
    sandbox.add_calls(*(make_call(id=id, start_date=start + timedelta(hours=n)) for n, id in enumerate(ids)))
    return ids


def check_archive(sandbox: Sandbox, archive: Path, wanted: Iterable[str]) -> None:
    """Check that the archive has the wanted recordings, byte for byte as served, each with its sidecar, and no more."""
    files = [path for path in archive.rglob("*") if path.is_file()]
    audio = {path.stem: path for path in files if path.suffix == ".mp3"}
    assert audio.keys() == set(wanted)
    for call_id, path in audio.items():
        assert path.read_bytes() == sandbox.recording(call_id)
        record = json.loads(path.with_suffix(".json").read_text())
        assert (record["status"], record["call_id"]) == ("stored", call_id)
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # No temporary file is left, and no call has two places.
    assert len(files) == 2 * len(audio)
    assert not (archive / ".staging").exists()


def sidecar(archive: Path, call_id: str) -> dict[str, Any]:
    """Read the sidecar of a call."""
    [path] = archive.rglob(f"{call_id}.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def requests_of(sandbox: Sandbox, call_ids: Iterable[str]) -> list[LogEntry]:
    """Return the requests for the recordings of these calls, in order."""
    wanted = set(call_ids)
    return [entry for entry in sandbox.recording_requests() if entry.call_id in wanted]


def times_asked(sandbox: Sandbox, call_ids: Iterable[str]) -> Counter[str]:
    """Count the requests for each call's recording, whatever the response."""
    return Counter(str(entry.call_id) for entry in requests_of(sandbox, call_ids))


def served(sandbox: Sandbox, call_ids: Iterable[str]) -> Counter[str]:
    """Count the requests for each call's recording whose response was the recording."""
    return Counter(str(entry.call_id) for entry in requests_of(sandbox, call_ids) if entry.status == 200)


def in_flight(sandbox: Sandbox, call_ids: Iterable[str]) -> set[str]:
    """Return the calls whose recordings are being sent now."""
    return {str(entry.call_id) for entry in requests_of(sandbox, call_ids) if entry.answered is None}


def is_idle(sandbox: Sandbox, seconds: float) -> bool:
    """Return whether no recording was asked for in so many seconds."""
    return all(entry.time < time.time() - seconds for entry in sandbox.recording_requests())


def refused(entries: Iterable[LogEntry]) -> list[LogEntry]:
    """Return those requests that the limit refused."""
    return [entry for entry in entries if entry.status == 429]


def most_in_any_period(sandbox: Sandbox, call_ids: Iterable[str], period: float) -> int:
    """Return the greatest number of requests for these calls' recordings in any window of one period."""
    return most_in_any([entry.time for entry in requests_of(sandbox, call_ids)], period)


def truncated(sandbox: Sandbox, archive: Path) -> list[str]:
    """Return the recordings in the archive that are not whole."""
    wrong = []
    for path in archive.glob("*=*/*.mp3"):
        if path.stat().st_size != sandbox.recording_size(path.stem):
            wrong.append(path.name)
    return wrong
