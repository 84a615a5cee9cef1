"""The demo, as a new user runs it: twice, cut short, against an API that is not the sandbox's own, and begun anew."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox, make_calls

pytestmark = pytest.mark.e2e

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def clockwork() -> None:
    """Leave out what the rest of the suite runs beside all tests: the demo has an Airflow of its own."""


def demo(home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dev.demo"],
        cwd=CHECKOUT,
        env={**os.environ, "DEMO_HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_archives_a_day_of_calls_and_asks_for_nothing_the_second_time(tmp_path: Path) -> None:
    first = demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Archived   20 now, 0 before" in first.stdout
    assert "20 of 50 spent in the last 3600 s, 30 left" in first.stdout
    assert len(list(tmp_path.glob("sandbox/archive/date=*/*.mp3"))) == 20

    second = demo(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Archived   0 now, 20 before" in second.stdout
    assert "Nothing new was asked for" in second.stdout


def runs(home: Path) -> list[tuple[str, str]]:
    """Return the states of the runs, the oldest first, each with that of its task."""
    query = "SELECT r.state, t.state FROM dag_run r JOIN task_instance t USING (dag_id, run_id) ORDER BY r.id"
    with closing(sqlite3.connect(home / "sandbox" / "airflow.db")) as database:
        return list(database.execute(query))


def test_shows_its_progress_ends_on_ctrl_c_and_goes_on_the_next_time(tmp_path: Path) -> None:
    env = {**os.environ, "DEMO_HOME": str(tmp_path), "LIMIT": "12", "PERIOD": "30"}
    with subprocess.Popen(
        [sys.executable, "-m", "dev.demo"],
        cwd=CHECKOUT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        progress = "Archive    12 of 20 archived, 8 left, quota free again at "
        assert any(line.startswith(progress) for line in process.stdout)
        assert demo(tmp_path).stdout.startswith("Something else runs in")
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
        assert rest.strip().startswith("Stopped. The next `make demo` goes on from here")
        assert process.stderr.read() == ""
    assert runs(tmp_path) == [("failed", "failed")]

    # As if it had been killed.
    with closing(sqlite3.connect(tmp_path / "sandbox" / "airflow.db")) as database, database:
        database.execute("UPDATE dag_run SET state = 'running'")
        database.execute("UPDATE task_instance SET state = 'queued'")
    again = demo(tmp_path, LIMIT="12", PERIOD="30")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Archived   8 now, 12 before" in again.stdout
    assert runs(tmp_path) == [("failed", "failed"), ("success", "success")]

    # The ledger has forgotten the twelve, which are more than a period ago; of an hour they count.
    third = demo(tmp_path)
    assert "0 requests by this run; 20 of 50 spent in the last 3600 s, 30 left" in third.stdout


def test_reset_removes_what_the_sandbox_gave_and_keeps_what_the_real_api_gave(tmp_path: Path) -> None:
    for name in ("sandbox", "airflow", "live", "mine"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-m", "dev.reset"]
    env = {**os.environ, "DEMO_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live", "mine"]
    assert "Kept " in done.stdout


@pytest.mark.parametrize(("key", "code"), [("live-key-4711", 0), ("wrong-key-4711", 1)])
def test_uses_the_real_api_with_a_key_and_never_shows_it(tmp_path: Path, key: str, code: int) -> None:
    calls = make_calls(6, end=datetime.now(UTC), seed=1)
    with Sandbox(calls=calls, api_key="live-key-4711") as api:
        done = demo(tmp_path, AMPLEMARKET_API_KEY=key, AMPLEMARKET_BASE_URL=api.url)
        asked = len(api.recording_requests())
    assert done.returncode == code, done.stdout + done.stderr
    assert "the real one" in done.stdout
    assert asked == (5 if code == 0 else 0)
    if code:
        assert "returned 401" in done.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    shown = [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in files)]
    assert not any(key.encode() in text for text in shown)
