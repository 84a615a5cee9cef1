"""Ctrl-C during a real ``airflow dags test`` leaves nothing behind that holds the pool's slot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_provider_amplemarket.interrupt import INTERRUPTED
from airflow_provider_amplemarket.sandbox import Sandbox, make_calls
from airflow_provider_amplemarket.triggers.quota import QuotaTrigger

CHECKOUT = Path(__file__).parent.parent
#: What such a process may need on a busy machine.
PATIENCE = 180.0

DAG = """
from datetime import datetime, timedelta, timezone
from airflow.sdk import DAG
from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator

with DAG("stopped", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
    AmplemarketRecordingOperator(
        task_id="archive", path={path!r}, deferrable={deferrable!r}, retries=2, retry_delay=timedelta(minutes=5)
    )
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """An account whose quota is used up for an hour after the first request."""
    with Sandbox(calls=make_calls(6, end=datetime.now(UTC), seed=1), limit=1, period=3600) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> dict[str, str]:
    """Settings of an Airflow of its own, whose database is there."""
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    extra = {"recording_limit": 1, "recording_period": 3600}
    connection = {"conn_type": "amplemarket", "host": sandbox.url, "password": "sandbox-key", "extra": extra}
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW_CONN_AMPLEMARKET_DEFAULT": json.dumps(connection),
        "PYTHONPATH": str(CHECKOUT),
    }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)
    return env


@contextmanager
def dags_test(env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``airflow dags test``, as in a terminal of its own."""
    command = [sys.executable, "-m", "airflow", "dags", "test", "stopped"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(text: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("deferrable", "sign"), [(True, "running trigger in line"), (False, "sleeping in the worker")], ids=str
)
def test_ctrl_c_in_the_wait_ends_the_run_and_frees_the_slot(
    env: dict[str, str], tmp_path: Path, deferrable: bool, sign: str
) -> None:
    home, log = Path(env["AIRFLOW_HOME"]), tmp_path / "log"
    (home / "dags" / "stopped.py").write_text(DAG.format(path=f"file://{tmp_path}/archive", deferrable=deferrable))
    with dags_test(env, log) as process:
        wait_for(sign, log)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
    assert "Stopped by Ctrl-C" in log.read_text()
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        assert set(database.execute("SELECT state FROM task_instance")) == {("failed",)}
        assert set(database.execute("SELECT state FROM dag_run")) == {("failed",)}


async def first_event(trigger: QuotaTrigger) -> object:
    """Return what the trigger fires with when it is cancelled in its wait."""
    waiting = asyncio.ensure_future(anext(trigger.run()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    return (await waiting).payload


class TestTheTrigger:
    def trigger(self) -> QuotaTrigger:
        return QuotaTrigger(time.time() + 3600, "the quota is used up")

    def test_it_fires_when_it_is_cancelled_outside_a_triggerer(self) -> None:
        assert asyncio.run(first_event(self.trigger())) == INTERRUPTED

    def test_it_is_cancelled_by_the_triggerer_as_any_other(self) -> None:
        trigger = self.trigger()
        trigger.trigger_id = 1
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(first_event(trigger))

    def test_it_is_made_again_of_what_it_says(self) -> None:
        path, settings = self.trigger().serialize()
        assert path == "airflow_provider_amplemarket.triggers.quota.QuotaTrigger"
        assert QuotaTrigger(**settings).serialize() == (path, settings)
