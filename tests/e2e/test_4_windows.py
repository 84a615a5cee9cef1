"""Whatever starts a run, and however long the DAG rested: no call of the time span is missed."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow
from tests.e2e import truth
from tests.e2e.clockwork import PAUSE, SCHEDULED, TRIGGERED, Clockwork

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def over(airflow: ObservedAirflow, clockwork: Clockwork) -> None:
    """Wait until the clockwork has done everything, and run what has no schedule for the last time."""
    airflow.wait("the runs after the pause", clockwork.resumed.is_set, patience=600)
    if clockwork.problem is not None:
        raise clockwork.problem
    clockwork.trigger()
    clockwork.stop()
    airflow.wait_for_runs(*TRIGGERED, count=6)
    # A run that was due when its DAG was paused stays where it is; it has looked at nothing.
    busy = ("queued", "running", "deferred")
    airflow.wait("the last runs", lambda: not any(row["state"] in busy for row in airflow.tasks(*SCHEDULED)))


@pytest.mark.parametrize("dag_id", SCHEDULED + TRIGGERED)
def test_no_call_between_the_first_run_and_the_last_is_missed(
    dag_id: str, airflow: ObservedAirflow, clock_sandbox: Sandbox, archives: Path
) -> None:
    windows = [[datetime.fromisoformat(end) for end in run["window"]] for run in airflow.xcoms("summary", dag_id)]
    start, end = min(start for start, _ in windows), max(end for _, end in windows)
    assert (end - start).total_seconds() > PAUSE
    calls = [
        str(call["id"]) for call in clock_sandbox.calls if start <= datetime.fromisoformat(call["start_date"]) < end
    ]
    print(f"\n{dag_id}: {len(windows)} runs, {(end - start).total_seconds():.0f} s, {len(calls)} calls")
    assert len(calls) > PAUSE / 10
    truth.check_archive(clock_sandbox, archives / dag_id, calls)


def test_no_dag_asks_twice_for_a_recording(clock_sandbox: Sandbox, archives: Path) -> None:
    archived = Counter(path.stem for dag_id in SCHEDULED + TRIGGERED for path in (archives / dag_id).rglob("*.mp3"))
    asked = truth.times_asked(clock_sandbox, archived)
    print(f"\n{asked.total()} requests for {archived.total()} recordings")
    # One that was under way when its task was killed may be asked for again.
    assert asked.total() - archived.total() <= 4
    assert archived <= asked
