"""The DAGs of the end-to-end tests that run by the clock, by hand and by an asset; a second key has its own pool."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Asset, CronDataIntervalTimetable, DeltaDataIntervalTimetable

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator

NOTHING, MOMENT, LONG = timedelta(0), timedelta(seconds=1), timedelta(minutes=20)


def archive(name: str, lookback: timedelta) -> AmplemarketRecordingOperator:
    """Make the task of a DAG; each has an archive of its own, so that none is helped by another."""
    return AmplemarketRecordingOperator(
        task_id="archive",
        path=f"{os.environ['E2E_ARCHIVES']}/{name}",
        lookback=lookback,
        amplemarket_conn_id="amplemarket_windows",
        pool="amplemarket_windows",
        retries=10,
        retry_delay=timedelta(seconds=1),
    )


common: dict[str, Any] = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "catchup": False}

# Airflow's default: the data interval is empty.
with DAG("cron", schedule="* * * * *", **common):
    archive("cron", MOMENT)

with DAG("cron_interval", schedule=CronDataIntervalTimetable("* * * * *", timezone="UTC"), **common):
    archive("cron_interval", NOTHING)

with DAG("delta_interval", schedule=DeltaDataIntervalTimetable(timedelta(minutes=1)), **common):
    archive("delta_interval", NOTHING)

with DAG("by_hand", schedule=None, **common):
    archive("by_hand", MOMENT)

# Such a run knows no earlier one: its lookback must reach back to it.
with DAG("by_asset", schedule=[Asset("new_calls")], **common):
    archive("by_asset", LONG)
