"""A new run of a DAG goes before the rest of the DAG's own backfill, and that goes from the newest to the oldest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow
from tests.e2e import truth
from tests.e2e.conftest import LIMIT

pytestmark = pytest.mark.e2e

DAG = "recent_first"
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
#: Days before today's midnight at which the windows of the backfill begin; no other test has calls there.
BACKFILL = range(140, 133, -1)
EACH = LIMIT // 2


def test_a_new_run_gets_the_next_turn_though_a_backfill_of_its_dag_is_pending(
    airflow: ObservedAirflow, sandbox: Sandbox, archives: Path
) -> None:
    # Unpausing makes the run for yesterday, which is to be over before its calls appear.
    airflow.unpause(DAG)
    airflow.wait_for_runs(DAG, count=1)
    old = [id for ago in BACKFILL for id in add(sandbox, ago)]
    first, last = (MIDNIGHT - timedelta(days=ago) for ago in (BACKFILL[0], BACKFILL[-1]))
    period = ["--from-date", first.isoformat(), "--to-date", last.isoformat()]
    airflow.cli("backfill", "create", "--dag-id", DAG, "--max-active-runs", str(len(BACKFILL)), *period)
    airflow.wait("the backfill's tasks", lambda: len(scheduled(airflow)) >= len(BACKFILL) - 2)
    new = add(sandbox, 1)
    run_id = airflow.trigger(DAG, MIDNIGHT)
    airflow.wait("the new task", lambda: run_id in scheduled(airflow) or truth.requests_of(sandbox, new))
    before = {truth.sidecar(archives / "priority", str(e.call_id))["run_id"] for e in truth.requests_of(sandbox, old)}
    airflow.wait_for_runs(DAG, count=1 + len(BACKFILL) + 1)
    airflow.pause(DAG)

    asked = [str(entry.call_id) for entry in truth.requests_of(sandbox, [*old, *new])]
    turns = [truth.sidecar(archives / "priority", call_id)["run_id"] for call_id in asked]
    order = [key for key, _ in groupby(turns)]
    print(f"\n{len(before)} tasks had had the slot before the new one was due; the order of turns: {order}")
    assert len(order) == len(set(order)) == len(BACKFILL) + 1
    # At most the one that has the slot when it comes, and one that is queued at that very time, go before it.
    assert order.index(run_id) <= len(before) + 1
    assert len(order) - order.index(run_id) > len(BACKFILL) // 2
    # Those that were waiting together go from the newest to the oldest.
    rest = order[order.index(run_id) + 1 :]
    assert rest == sorted(rest, reverse=True)
    truth.check_archive(sandbox, archives / "priority", [*old, *new])


def add(sandbox: Sandbox, ago: int) -> list[str]:
    """Let a few calls of that day appear, and return their ids."""
    return truth.add_calls(sandbox, f"priority-{ago}", EACH, MIDNIGHT - timedelta(days=ago))


def scheduled(airflow: ObservedAirflow) -> set[str]:
    """Return the runs whose task only waits for the slot."""
    return {row["run_id"] for row in airflow.tasks(DAG) if row["state"] == "scheduled"}
