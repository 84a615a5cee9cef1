"""A task that does nothing, so that none of the others is the first one."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

with DAG("warm_up", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:

    @dag.task
    def nothing() -> None:
        """Do nothing."""

    nothing()
