"""The Airflow plugin: the pool of the recordings is there when a core component of Airflow starts."""

from __future__ import annotations

import logging
import sys

from airflow.providers.common.compat.sdk import AirflowPlugin, conf, hookimpl

log = logging.getLogger(__name__)

POOL_NAME = "amplemarket_recordings"
POOL_DESCRIPTION = (
    "One slot, deferred tasks included, so that one task at a time spends the hourly quota of the Amplemarket "
    "API key. More slots do not make it faster."
)


def ensure_pool() -> None:
    """Create the pool where it does not exist; never change one that does, but warn where it does not fit."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import IntegrityError

    try:
        with create_session() as session:
            pool = session.scalar(select(Pool).where(Pool.pool == POOL_NAME))
            if pool is None:
                pool = Pool(pool=POOL_NAME, slots=1, description=POOL_DESCRIPTION, include_deferred=True)
                session.add(pool)
                log.info("Creating the pool %s: 1 slot, deferred tasks included", POOL_NAME)
            elif pool.slots != 1 or not pool.include_deferred:
                log.warning(
                    "The pool %s has %s slots and %s deferred tasks, so several tasks may spend Amplemarket's "
                    "quota at once. To mend it: airflow pools set %s 1 'One at a time' --include-deferred",
                    POOL_NAME,
                    pool.slots,
                    "counts" if pool.include_deferred else "does not count",
                    POOL_NAME,
                )
    except IntegrityError:
        log.info("The pool %s was created by another component meanwhile", POOL_NAME)


class PoolListener:
    """See to the pool when a core component starts."""

    @hookimpl
    def on_starting(self, component: object) -> None:
        """Act where Airflow's database is at hand: in the core's jobs, not in the processes of tasks."""
        # Workers must not, and need not, load Airflow's models.
        job = getattr(sys.modules.get("airflow.jobs.job"), "Job", None)
        is_core = job is not None and isinstance(component, job)
        if is_core and conf.getboolean("amplemarket", "create_pool", fallback=True):
            ensure_pool()


class AmplemarketPlugin(AirflowPlugin):
    """What the provider adds to Airflow's own processes."""

    name = "amplemarket"
    listeners = [PoolListener()]  # noqa: RUF012
