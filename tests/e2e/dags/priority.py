"""The DAG of the end-to-end tests whose newer runs go before those of its own backfill."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator

with DAG(
    "recent_first",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=16,
):
    AmplemarketRecordingOperator(
        task_id="archive",
        path=f"{os.environ['E2E_ARCHIVES']}/priority",
        lookback=timedelta(0),
        weight_rule="airflow_provider_amplemarket.priority.RecentFirst",
    )
