"""The provider's operator."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator

with DAG("ours", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
    AmplemarketRecordingOperator(task_id="archive", path="s3://aws_default@recordings/ours")
