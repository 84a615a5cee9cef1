"""The pool is there when a core component of Airflow starts, in a real database of Airflow."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.utils.net import get_hostname
from sqlalchemy import delete, event, insert, select, update

from airflow_provider_amplemarket import plugin
from airflow_provider_amplemarket.plugin import PoolListener
from airflow_provider_amplemarket.pool import POOL_DESCRIPTION, POOL_NAME, ensure_pool, warn_of_dead_tasks
from airflow_provider_amplemarket.priority import RecentFirst

pytestmark = pytest.mark.usefixtures("no_pool")


@pytest.fixture
def no_pool(airflow_db: Path) -> Iterator[None]:
    """Take the pool away before and after."""
    remove()
    yield
    remove()


def remove() -> None:
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(delete(Pool).where(Pool.pool == POOL_NAME))


def add(slots: int, include_deferred: bool, description: str = "mine") -> None:
    from airflow.models.pool import Pool

    Pool.create_or_update_pool(POOL_NAME, slots, description, include_deferred)


def pool() -> tuple[int, bool, str | None] | None:
    """Return slots, whether deferred tasks count, and description."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalars(select(Pool).where(Pool.pool == POOL_NAME)).all()
        assert len(found) <= 1
        return (found[0].slots, found[0].include_deferred, found[0].description) if found else None


class TestThePool:
    def test_it_is_made_with_one_slot_that_deferred_tasks_keep(self) -> None:
        ensure_pool()
        assert pool() == (1, True, POOL_DESCRIPTION)

    def test_it_is_made_once(self, caplog: pytest.LogCaptureFixture) -> None:
        ensure_pool()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            ensure_pool()
        assert pool() == (1, True, POOL_DESCRIPTION)
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("slots", "include_deferred", "words"),
        [
            (1, False, "1 slots and does not count deferred tasks"),
            (5, True, "5 slots and counts deferred tasks"),
            (0, True, "0 slots and counts deferred tasks"),
            (-1, False, "-1 slots and does not count deferred tasks"),
        ],
    )
    def test_one_that_does_not_fit_is_warned_of_and_left_as_it_is(
        self, caplog: pytest.LogCaptureFixture, slots: int, include_deferred: bool, words: str
    ) -> None:
        add(slots, include_deferred)
        ensure_pool()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert words in record.getMessage()
        assert f"airflow pools set {POOL_NAME} 1 'One at a time' --include-deferred" in record.getMessage()
        assert pool() == (slots, include_deferred, "mine")

    def test_one_that_fits_is_left_as_it_is_without_a_word(self, caplog: pytest.LogCaptureFixture) -> None:
        add(1, True)
        with caplog.at_level(logging.INFO):
            ensure_pool()
        assert caplog.messages == []
        assert pool() == (1, True, "mine")

    def test_two_components_may_start_at_once(self, caplog: pytest.LogCaptureFixture) -> None:
        from airflow.models.pool import Pool
        from sqlalchemy.orm import Session

        rows = [{"pool": POOL_NAME, "slots": 1, "description": "other", "include_deferred": True}]

        def other_component_is_faster(session: Session, *_: object) -> None:
            """Put the same row before the one that is about to be written."""
            if rows:
                session.execute(insert(Pool).values(**rows.pop()))

        event.listen(Session, "before_flush", other_component_is_faster)
        try:
            with caplog.at_level(logging.INFO):
                ensure_pool()
        finally:
            event.remove(Session, "before_flush", other_component_is_faster)
        assert rows == []
        assert "created by another component meanwhile" in caplog.text


DAG_ID = "holder"
DAG = f"""
from datetime import datetime, timezone
from airflow.providers.common.compat.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator

with DAG("{DAG_ID}", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)) as dag:
    EmptyOperator(task_id="hold", pool="{POOL_NAME}")
"""


@pytest.fixture(scope="module")
def run_id(airflow_db: Path) -> Iterator[str]:
    """Run a task of that pool to its end, and give the id of its run."""
    add(1, True)
    file = airflow_db / "dags" / f"{DAG_ID}.py"
    file.write_text(DAG)
    names: dict[str, Any] = {}
    exec(compile(DAG, file, "exec"), names)
    yield names["dag"].test().run_id
    file.unlink()


class TestTheWarningOfDeadTasks:
    @pytest.fixture(autouse=True)
    def _undo(self, run_id: str) -> Iterator[None]:
        yield
        self.let_it_be(run_id, state="success")

    def let_it_be(self, run_id: str, **values: object) -> None:
        """Let the task instance be like that in Airflow's database."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        as_queued = {"pool": POOL_NAME, "operator": "EmptyOperator", "queued_by_job_id": None, "pid": None}
        with create_session() as session:
            session.execute(
                update(TaskInstance)
                .where(TaskInstance.dag_id == DAG_ID, TaskInstance.run_id == run_id)
                .values({**as_queued, **values})
            )

    @pytest.mark.parametrize(
        "values",
        [
            {"state": "queued"},
            {"state": "running"},
            {"state": "queued", "pool": "another", "operator": "AmplemarketRecordingOperator"},
            {"state": "running", "pid": 4_000_000},  # more than there are
            {"state": "running", "pid": 1, "hostname": "another"},
        ],
        ids=str,
    )
    def test_names_who_holds_the_slot_and_what_to_do(
        self, run_id: str, caplog: pytest.LogCaptureFixture, values: dict[str, object]
    ) -> None:
        self.let_it_be(run_id, **{"hostname": get_hostname(), **values})
        warn_of_dead_tasks()
        [message] = caplog.messages
        for word in (
            "hold ",
            run_id,
            DAG_ID,
            values["state"],
            values.get("pool", POOL_NAME),
            "mark that run as failed",
        ):
            assert str(word) in message

    @pytest.mark.parametrize(
        "values",
        [
            *({"state": state} for state in (None, "scheduled", "deferred", "up_for_retry", "success", "failed")),
            {"state": "queued", "queued_by_job_id": 1},
            {"state": "running", "queued_by_job_id": 1},
            {"state": "queued", "pool": "another"},
            # A test's name must not depend on the process, or two workers would not have the same tests.
            pytest.param({"state": "queued", "pid": os.getpid()}, id="a queued one that is alive"),
            {"state": "running", "pid": 1},
        ],
        ids=str,
    )
    def test_says_nothing_of_a_healthy_task(
        self, run_id: str, caplog: pytest.LogCaptureFixture, values: dict[str, object]
    ) -> None:
        self.let_it_be(run_id, **{"hostname": get_hostname(), **values})
        warn_of_dead_tasks()
        assert caplog.messages == []

    def test_comes_when_a_core_component_starts(self, run_id: str, caplog: pytest.LogCaptureFixture) -> None:
        from airflow.jobs.job import Job

        self.let_it_be(run_id, state="queued")
        Job()
        assert [message for message in caplog.messages if DAG_ID in message]


class TestTheListener:
    def test_a_starting_core_component_of_airflow_makes_the_pool(self) -> None:
        from airflow.jobs.job import Job
        from airflow.listeners.listener import get_listener_manager

        assert any(isinstance(listener, PoolListener) for listener in get_listener_manager().pm.get_plugins())
        Job()
        assert pool() == (1, True, POOL_DESCRIPTION)

    def test_it_is_told_of_a_starting_core_component(self) -> None:
        from airflow.jobs.job import Job

        job = Job()
        remove()
        PoolListener().on_starting(component=job)
        assert pool() == (1, True, POOL_DESCRIPTION)

    @pytest.mark.parametrize(("setting", "made"), [("False", False), ("false", False), ("True", True)])
    def test_it_can_be_switched_off(self, monkeypatch: pytest.MonkeyPatch, setting: str, made: bool) -> None:
        from airflow.jobs.job import Job

        monkeypatch.setenv("AIRFLOW__AMPLEMARKET__CREATE_POOL", setting)
        Job()
        assert (pool() is not None) == made

    def test_a_task_does_not_make_the_pool(self) -> None:
        task_runner = pytest.importorskip("airflow.sdk.execution_time.task_runner")
        from airflow.listeners.listener import get_listener_manager

        get_listener_manager().hook.on_starting(component=task_runner.TaskRunnerMarker())
        assert pool() is None

    def test_a_process_without_airflows_jobs_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow.jobs.job import Job

        job = Job()
        remove()
        monkeypatch.delitem(sys.modules, "airflow.jobs.job")
        PoolListener().on_starting(component=job)
        assert pool() is None
        assert "airflow.jobs.job" not in sys.modules


def test_the_plugin_brings_nothing_but_the_listener_and_the_weight_rule() -> None:
    own = {name for name in vars(plugin.AmplemarketPlugin) if not name.startswith("__")}
    assert own == {"name", "listeners", "priority_weight_strategies"}
    assert plugin.AmplemarketPlugin.priority_weight_strategies == [RecentFirst]
    assert plugin.AmplemarketPlugin.name == "amplemarket"
    assert [type(listener) for listener in plugin.AmplemarketPlugin.listeners] == [PoolListener]
