"""The pool that gives one task at a time its turn: its making, and who holds its slot without being alive."""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)

POOL_NAME = "amplemarket_recordings"
OPERATOR_NAME = "AmplemarketRecordingOperator"
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


def warn_of_dead_tasks() -> None:
    """Warn of every task instance that holds a slot though no scheduler has ever queued it; change nothing.

    ``airflow dags test`` leaves such a one where it is killed. No scheduler feels responsible for it: none looks for
    its heartbeat, none adopts it, and none resets it.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import or_, select

    columns = ("dag_id", "run_id", "task_id", "map_index", "state", "pool", "hostname", "pid")
    query = select(*(getattr(TaskInstance, column) for column in columns)).where(
        TaskInstance.state.in_([TaskInstanceState.QUEUED, TaskInstanceState.RUNNING]),
        TaskInstance.queued_by_job_id.is_(None),
        or_(TaskInstance.pool == POOL_NAME, TaskInstance.operator == OPERATOR_NAME),
    )
    with create_session() as session:
        found = session.execute(query).all()
    for row in found:
        if not _is_alive(row.hostname, row.pid):
            log.warning(
                "The task %s (map index %s) of the run %s of the DAG %s is %s and holds a slot of the pool %s, but no "
                "scheduler has queued it, so none will free the slot, and other tasks wait for it. `airflow dags test` "
                "leaves that behind where it is killed. If it does not run any more, mark that run as failed.",
                row.task_id,
                row.map_index,
                row.run_id,
                row.dag_id,
                row.state,
                row.pool,
            )


def _is_alive(hostname: str | None, pid: int | None) -> bool:
    """Return whether a process of this machine is alive; of another machine nobody knows."""
    from airflow.utils.net import get_hostname

    if not pid or hostname != get_hostname():  # type: ignore[no-untyped-call]
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True
