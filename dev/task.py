"""What the operator uses of Airflow while it runs: a task instance and a context, without Airflow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any


@dataclass
class TaskInstance:
    """One try of a task.

    :param xcoms: what it has pushed, by key.
    """

    run_id: str
    try_number: int
    max_tries: int
    map_index: int | None = -1
    dag_id: str = "calls"
    task_id: str = "archive"
    start_date: datetime = field(default_factory=lambda: datetime.now(UTC))
    xcoms: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        """Push an XCom. It is JSON: whatever else is pushed fails here, as it does in Airflow."""
        self.xcoms[key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int | None) -> Any:
        """Return what it has pushed itself."""
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.xcoms.get(key)


def make_context(ti: TaskInstance, *, start: datetime, end: datetime, **changes: Any) -> Any:
    """Return the context of a scheduled run, which is due at the end of its data interval.

    :param start: the beginning of the data interval.
    :param end: its end.
    :param changes: what else is in the context, or something else.
    """
    return {
        "ti": ti,
        "dag_run": SimpleNamespace(run_type="scheduled", run_after=end),
        "data_interval_start": start,
        "data_interval_end": end,
        **changes,
    }
