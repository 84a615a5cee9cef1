"""Killed at the worst time, part by part: what was promised holds after the recovery."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow
from dev.watch import Watch
from tests.e2e import truth
from tests.e2e.conftest import LIMIT, PERIOD

pytestmark = pytest.mark.e2e

OUTAGE = 30.0


@dataclass
class Killed:
    """What the task was to archive, and what was seen of its archive meanwhile."""

    wanted: list[str]
    in_flight: Counter[str]
    truncated: list[list[str]]


@pytest.fixture(scope="module")
def killed(airflow: ObservedAirflow, sandbox: Sandbox, archives: Path) -> Killed:
    """Kill the task, the scheduler, the triggerer and the API server, while one run goes on."""
    archive = archives / "killed"
    wanted = truth.add_calls(sandbox, "killed", 24, datetime.now(UTC) - timedelta(days=40), fault="drip")
    at_kill: Counter[str] = Counter()

    def task() -> dict[str, Any]:
        [row] = airflow.tasks("killed")
        return row

    def wait_for_downloads() -> None:
        """Wait until two recordings are half on their way."""
        since = time.time()

        def are_young() -> bool:
            young = [entry for entry in truth.requests_of(sandbox, wanted) if entry.time > since]
            return len(young) >= 2 and len(truth.in_flight(sandbox, wanted)) == 2

        airflow.wait("downloads", are_young)
        time.sleep(1)
        at_kill.update(truth.in_flight(sandbox, wanted))

    airflow.wait("an idle quota", lambda: truth.is_idle(sandbox, PERIOD + 1))
    with Watch(lambda: truth.truncated(sandbox, archive), pause=0.05) as watch:
        airflow.unpause("killed")
        airflow.trigger("killed", call_ids=wanted)
        wait_for_downloads()
        os.kill(task()["pid"], signal.SIGKILL)
        wait_for_downloads()
        airflow.kill_part("scheduler")
        airflow.start_part("scheduler")
        airflow.wait("a deferred task", lambda: task()["state"] == "deferred")
        airflow.kill_part("triggerer")
        airflow.start_part("triggerer")
        wait_for_downloads()
        airflow.kill_part("api-server")
        time.sleep(OUTAGE)
        airflow.start_part("api-server")
        airflow.wait_for_health()
        airflow.wait_for_runs("killed", count=1)
    return Killed(wanted, at_kill, watch.seen)


def test_after_every_kill_all_recordings_are_archived_and_only_what_was_in_flight_is_asked_for_again(
    killed: Killed, sandbox: Sandbox, archives: Path, airflow: ObservedAirflow
) -> None:
    truth.check_archive(sandbox, archives / "killed", killed.wanted)
    asked = truth.times_asked(sandbox, killed.wanted)
    again = asked - Counter(killed.wanted)
    [row] = airflow.tasks("killed")
    count = f"{again.total()} of {killed.in_flight.total()}"
    print(f"\n{count} requests in flight at a kill were sent again; done in try {row['try_number']}")
    assert again <= killed.in_flight
    assert not truth.refused(truth.requests_of(sandbox, killed.wanted))
    assert truth.most_in_any_period(sandbox, killed.wanted, PERIOD) <= LIMIT


def test_no_part_of_a_recording_is_ever_visible(killed: Killed) -> None:
    print(f"\nlooked {len(killed.truncated)} times")
    assert not any(killed.truncated)


def test_no_temporary_file_is_left(killed: Killed, archives: Path, scratch: Path) -> None:
    archive = archives / "killed"  # others are written to meanwhile
    assert not list(archive.rglob(".staging"))
    assert not list(archive.rglob("*.part"))
    assert not list(scratch.glob("airflow-provider-amplemarket-*"))
