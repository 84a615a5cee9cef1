"""The DAG of the smoke test; it has an account of its own."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator

with DAG("smoke", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
    AmplemarketRecordingOperator(
        task_id="archive",
        path=f"{os.environ['E2E_ARCHIVES']}/smoke",
        start="{{ dag_run.conf['start'] }}",
        end="{{ dag_run.conf['end'] }}",
        lookback=timedelta(0),
        max_concurrency=2,
        amplemarket_conn_id="amplemarket_smoke",
        retries=10,
        retry_delay=timedelta(seconds=1),
    )
