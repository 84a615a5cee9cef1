"""Archive the recordings of each day's calls. Say where with: airflow variables set amplemarket_archive s3://…"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator

with DAG(
    "amplemarket_recordings",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
):
    AmplemarketRecordingOperator(task_id="archive", path="{{ var.value.amplemarket_archive }}")
