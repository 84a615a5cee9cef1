"""The Amazon provider's operator, mapped over the recordings; a retry waits for the next hour of the quota."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator
from airflow.providers.http.hooks.http import HttpHook
from airflow.sdk import DAG

HOUR = timedelta(seconds=float(os.environ["BENCHMARK_PERIOD"]))

with DAG("http_to_s3", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:

    @dag.task
    def recordings() -> list[dict[str, str]]:
        """List the calls, page after page."""
        hook = HttpHook("GET", http_conn_id="http_to_s3")
        endpoint, calls = "calls", []
        while endpoint:
            page = hook.run(endpoint).json()
            calls += page["calls"]
            endpoint = page["_links"].get("next", {}).get("href")
        return [
            {"endpoint": f"calls/{call['id']}/recording", "s3_key": f"http_to_s3/{call['id']}.mp3"} for call in calls
        ]

    HttpToS3Operator.partial(
        task_id="archive",
        http_conn_id="http_to_s3",
        s3_bucket="recordings",
        replace=True,
        max_active_tis_per_dag=4,
        retries=24,
        retry_delay=HOUR,
    ).expand_kwargs(recordings())
