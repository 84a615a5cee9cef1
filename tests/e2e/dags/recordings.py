"""The DAGs of the end-to-end tests that spend one key's quota."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator

ARCHIVES = os.environ["E2E_ARCHIVES"]
ALWAYS = datetime(2026, 1, 1, tzinfo=UTC)
PATIENT: dict[str, Any] = {"retries": 10, "retry_delay": timedelta(seconds=1)}

with DAG(
    "history",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=ALWAYS,
    catchup=False,
    max_active_runs=16,
):
    AmplemarketRecordingOperator(task_id="archive", path=f"{ARCHIVES}/sharing", lookback=timedelta(0))

with DAG("overlapping", schedule=None, start_date=ALWAYS, max_active_runs=16):
    AmplemarketRecordingOperator(
        task_id="archive",
        path=f"{ARCHIVES}/sharing",
        start="{{ dag_run.conf['start'] }}",
        end="{{ dag_run.conf['end'] }}",
        lookback=timedelta(days=1),
    )

with DAG("picked", schedule=None, start_date=ALWAYS, max_active_runs=16) as picked:

    @picked.task
    def choose(**context: Any) -> list[list[str]]:
        lists: list[list[str]] = context["dag_run"].conf["lists"]
        return lists

    AmplemarketRecordingOperator.partial(task_id="archive", path=f"{ARCHIVES}/sharing").expand(call_ids=choose())

with DAG("urgent", schedule=None, start_date=ALWAYS):
    AmplemarketRecordingOperator(
        task_id="archive",
        path=f"{ARCHIVES}/sharing",
        start="{{ dag_run.conf['start'] }}",
        end="{{ dag_run.conf['end'] }}",
        lookback=timedelta(0),
        priority_weight=100,
    )

# Each run of these archives the calls that its conf names.
with DAG("mishap", schedule=None, start_date=ALWAYS, max_active_runs=16):
    AmplemarketRecordingOperator(
        task_id="archive", path=f"{ARCHIVES}/mishap", call_ids="{{ dag_run.conf['call_ids'] }}", max_concurrency=2
    )

with DAG("garbled", schedule=None, start_date=ALWAYS):
    AmplemarketRecordingOperator(
        task_id="archive",
        path=f"{ARCHIVES}/garbled",
        call_ids="{{ dag_run.conf['call_ids'] }}",
        amplemarket_conn_id="amplemarket_garbled",
        pool="default_pool",
    )

with DAG("killed", schedule=None, start_date=ALWAYS):
    AmplemarketRecordingOperator(
        task_id="archive",
        path=f"{ARCHIVES}/killed",
        call_ids="{{ dag_run.conf['call_ids'] }}",
        max_concurrency=2,
        **PATIENT,
    )

with DAG("failing", schedule=None, start_date=ALWAYS):
    AmplemarketRecordingOperator(
        task_id="archive", path=f"{ARCHIVES}/failing", call_ids="{{ dag_run.conf['call_ids'] }}"
    )
