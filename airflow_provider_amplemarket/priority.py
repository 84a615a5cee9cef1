"""A rule for the weight of tasks, by which a run that is due now goes before the runs of a backfill.

Airflow takes the task of the greatest weight first, and of equal ones that of the oldest run. All runs of a DAG have
the same ``priority_weight``, so a daily run waits behind the whole backfill of its own DAG.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow.task.priority_strategy import PriorityWeightStrategy

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: Airflow keeps weights in a column of 32 bits.
LOWEST_WEIGHT = -(2**31)

# As in scheduled__2026-11-20T00:00:00+00:00, from which the run was due; what may follow tells runs apart.
_DUE_IN_RUN_ID = re.compile(r"__(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?)")


class RecentFirst(PriorityWeightStrategy):
    """The task's ``priority_weight``, less one for every hour that its run comes late.

    A run that is made when it is due has its whole weight, as the tasks of other DAGs have; the runs of a backfill
    have less, the older the less. It is reckoned when Airflow makes the task instance, and again when it is cleared.

    At that time Airflow hands over a task instance whose DAG run cannot be read yet, so the run's date comes from its
    id; a run whose id has none, because somebody named it, has its whole weight, too.
    """

    def get_weight(self, ti: TaskInstance) -> int:
        """Return the weight of a task instance."""
        late = hours_late(ti.run_id, datetime.now(UTC))
        return max(ti.task.priority_weight - late, LOWEST_WEIGHT)  # type: ignore[union-attr]


def hours_late(run_id: str | None, now: datetime) -> int:
    """Return how many whole hours ago the run was due, by its id; 0 where that does not say."""
    found = _DUE_IN_RUN_ID.search(run_id or "")
    if not found:
        return 0
    try:
        due = datetime.fromisoformat(found[1])
    except ValueError:
        return 0
    due = due if due.tzinfo else due.replace(tzinfo=UTC)
    return max(0, int((now - due).total_seconds() // 3600))
