"""The pool is there when a core component of Airflow starts, in a real database of Airflow."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, event, insert, select

from airflow_provider_amplemarket import plugin
from airflow_provider_amplemarket.plugin import POOL_DESCRIPTION, POOL_NAME, PoolListener, ensure_pool

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
    """Answer slots, whether deferred tasks count, and description."""
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


def test_the_plugin_brings_nothing_but_the_listener() -> None:
    own = {name for name in vars(plugin.AmplemarketPlugin) if not name.startswith("__")}
    assert own == {"name", "listeners"}
    assert plugin.AmplemarketPlugin.name == "amplemarket"
    assert [type(listener) for listener in plugin.AmplemarketPlugin.listeners] == [PoolListener]
