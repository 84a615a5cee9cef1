"""The Airflow plugin: it sees to the pool when a core component of Airflow starts, and brings the weight rule."""

from __future__ import annotations

import sys

from airflow.providers.common.compat.sdk import AirflowPlugin, conf, hookimpl

from airflow_provider_amplemarket.pool import ensure_pool, warn_of_dead_tasks
from airflow_provider_amplemarket.priority import RecentFirst


class PoolListener:
    """See to the pool when a core component starts."""

    @hookimpl
    def on_starting(self, component: object) -> None:
        """Act where Airflow's database is at hand: in the core's jobs, not in the processes of tasks."""
        # Workers must not, and need not, load Airflow's models.
        job = getattr(sys.modules.get("airflow.jobs.job"), "Job", None)
        is_core = job is not None and isinstance(component, job)
        if not is_core:
            return
        if conf.getboolean("amplemarket", "create_pool", fallback=True):
            ensure_pool()
        warn_of_dead_tasks()


class AmplemarketPlugin(AirflowPlugin):
    """What the provider adds to Airflow's own processes."""

    name = "amplemarket"
    listeners = [PoolListener()]  # noqa: RUF012
    priority_weight_strategies = [RecentFirst]  # noqa: RUF012
