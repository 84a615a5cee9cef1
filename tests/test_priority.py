"""The weight rule: what it makes of run ids, and what Airflow makes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_amplemarket.priority import LOWEST_WEIGHT, RecentFirst, hours_late

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)

DAG_ID = "weighed"
DAG = f"""
from datetime import datetime, timezone
from airflow.sdk import DAG
from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator as Archive

common = {{
    "path": "file:///nowhere",
    "priority_weight": 7,
    "weight_rule": "airflow_provider_amplemarket.priority.RecentFirst",
}}
with DAG("{DAG_ID}", schedule="@daily", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), catchup=False) as dag:
    Archive(task_id="archive", call_ids=[], **common)
    Archive.partial(task_id="mapped", **common).expand(call_ids=[[], []])
"""


@pytest.mark.parametrize(
    ("run_id", "hours"),
    [
        ("scheduled__2026-11-24T12:30:00+00:00", 0),
        ("scheduled__2026-11-24T11:30:00.000001+00:00", 0),
        ("scheduled__2026-11-24T11:30:00+00:00", 1),
        ("scheduled__2026-11-24T00:00:00+00:00", 12),
        ("backfill__2026-11-14T12:30:00+00:00", 240),
        ("backfill__2026-11-14T14:30:00+02:00", 240),
        ("backfill__2026-11-14T12:30:00Z", 240),
        ("backfill__2026-11-14T12:30:00", 240),
        ("asset_triggered__2026-11-24T10:29:01.123456+00:00_aB3dE6gH", 2),
        ("scheduled__2026-11-23T12:30:00+00:00__emea", 24),
        ("manual__2026-11-24T12:31:00+00:00", 0),
        ("scheduled__1970-01-01T00:00:00+00:00", 498756),
        ("scheduled__2026-13-44T99:00:00+00:00", 0),
        ("the_one_for_the_board", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_a_run_is_as_late_as_its_id_says(run_id: str | None, hours: int) -> None:
    assert hours_late(run_id, NOW) == hours


def weight(run_id: str, priority_weight: int = 1) -> int:
    ti: Any = SimpleNamespace(run_id=run_id, task=SimpleNamespace(priority_weight=priority_weight))
    return RecentFirst().get_weight(ti)


def ago(prefix: str, **time: float) -> str:
    return f"{prefix}__{(datetime.now(UTC) - timedelta(**time)).isoformat()}"


def test_a_run_that_is_due_now_goes_before_a_backfill_and_that_goes_recent_first() -> None:
    weights = [
        weight(run_id) for run_id in (ago("scheduled", minutes=1), *(ago("backfill", days=n) for n in range(1, 90)))
    ]
    assert weights == sorted(set(weights), reverse=True)
    assert weights[0] == 1


def test_a_weight_fits_into_the_column() -> None:
    assert weight("backfill__1970-01-01T00:00:00+00:00", LOWEST_WEIGHT + 1) == LOWEST_WEIGHT
    assert weight(ago("scheduled", minutes=1), 2**31 - 1) == 2**31 - 1


def test_airflow_keeps_the_rule_and_gives_each_run_its_weight(airflow_db: Path) -> None:
    """Through serialization, and in the rows of the task instances, mapped ones too."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    file = airflow_db / "dags" / f"{DAG_ID}.py"
    file.write_text(DAG)
    names: dict[str, Any] = {}
    exec(compile(DAG, file, "exec"), names)
    long_ago = datetime.now(UTC) - timedelta(hours=100, minutes=30)
    try:
        names["dag"].test(run_after=long_ago, logical_date=long_ago)
    finally:
        file.unlink()
    with create_session() as session:
        columns = (TaskInstance.task_id, TaskInstance.map_index, TaskInstance.priority_weight)
        found = session.execute(select(*columns).where(TaskInstance.dag_id == DAG_ID)).all()
    assert {tuple(row) for row in found} == {("archive", -1, -93), ("mapped", 0, -93), ("mapped", 1, -93)}
