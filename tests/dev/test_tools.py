"""What is run by hand refuses wrong numbers before it begins anything, and prints what is true."""

from __future__ import annotations

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
from types import SimpleNamespace

import pytest

from airflow_provider_amplemarket.quota.rate import LedgerState, RateLimit
from dev import example, home, standalone
from dev.processes import StepError
from dev.results import count_spent

CHECKOUT = Path(__file__).parents[2]
SANDBOX = "airflow_provider_amplemarket.sandbox"


def run(module: str, *options: str, base: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=CHECKOUT,
        env={**os.environ, "DEMO_HOME": str(base), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def nowhere(tmp_path: Path) -> Path:
    """Return where no home can be made, so that what begins fails at once and leaves no Airflow running."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "home"


class TestNumbersOfTheEnvironment:
    @pytest.mark.parametrize("module", ["dev.demo", "dev.standalone", "dev.scheduled", SANDBOX])
    @pytest.mark.parametrize(
        ("name", "value"),
        [("LIMIT", "abc"), ("LIMIT", "0"), ("LIMIT", "1.5"), ("PERIOD", "-1"), ("PERIOD", "nan"), ("PERIOD", "inf")],
    )
    def test_are_refused_in_one_line_where_they_are_wrong(
        self, tmp_path: Path, module: str, name: str, value: str
    ) -> None:
        done = run(module, base=nowhere(tmp_path), **{name: value})
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{name} cannot be used: '{value}' is not a ")
        assert (done.returncode, done.stdout) == (2, "")

    @pytest.mark.parametrize("module", ["dev.standalone", "dev.scheduled", SANDBOX])
    @pytest.mark.parametrize("port", ["x", "-1", "65536"])
    def test_include_the_port(self, tmp_path: Path, module: str, port: str) -> None:
        done = run(module, base=nowhere(tmp_path), PORT=port)
        assert done.stderr == (
            f"PORT cannot be used: '{port}' is not a port: a whole number from 0 to 65535, 0 for a free one\n"
        )
        assert (done.returncode, done.stdout) == (2, "")

    def test_are_the_default_where_they_are_empty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIMIT", "")
        monkeypatch.setenv("PERIOD", " ")
        assert home.STANDALONE.as_set() == home.STANDALONE
        monkeypatch.setenv("LIMIT", "3")
        monkeypatch.setenv("PERIOD", "0.5")
        assert home.STANDALONE.as_set() == home.Home("airflow", 3, 0.5)

    def test_are_nothing_to_the_reset(self, tmp_path: Path) -> None:
        (tmp_path / "airflow").mkdir()
        done = run("dev.reset", base=tmp_path, LIMIT="", PERIOD="x", PORT="x")
        assert (done.returncode, done.stderr) == (0, "")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("option", "value"), [("--limit", "0"), ("--period", "nan"), ("--port", "70000")])
    def test_are_the_same_on_the_sandbox_s_command_line(self, tmp_path: Path, option: str, value: str) -> None:
        done = run(SANDBOX, option, value, base=tmp_path)
        assert done.returncode == 2
        assert f"argument {option}: '{value}' is not a" in done.stderr


class TestStandalone:
    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[home.Home]:
        """A home in which an Airflow begins a run at once and then ends."""
        monkeypatch.setattr(home, "BASE", tmp_path)
        monkeypatch.setattr(home, "API_KEY", "")
        for name in ("LIMIT", "PERIOD", "PORT"):
            monkeypatch.delenv(name, raising=False)
        place = home.STANDALONE

        def check() -> None:
            raise StepError("a part has ended")

        @contextmanager
        def running(*_: object) -> Iterator[SimpleNamespace]:
            with closing(sqlite3.connect(place.database)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS dag_run (dag_id TEXT)")
                database.execute("INSERT INTO dag_run VALUES (?)", (home.DAG_ID,))
            (place.path / "simple_auth_manager_passwords.json.generated").write_text(json.dumps({"admin": "a"}))
            yield SimpleNamespace(url="http://127.0.0.1:1", check=check)

        monkeypatch.setattr(example, "running", running)
        handler = signal.getsignal(signal.SIGTERM)
        yield place
        signal.signal(signal.SIGTERM, handler)

    def test_says_that_the_first_run_begins_only_where_there_was_none(
        self, place: home.Home, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert standalone.main() == 1  # the part has ended
        assert "Its first run begins now" in (first := capsys.readouterr().out)
        assert "before" not in first
        assert standalone.main() == 1
        assert "It has run before: what was cut short goes on" in (second := capsys.readouterr().out)
        assert "first run" not in second

    @pytest.mark.parametrize("text", [b"", None])
    def test_takes_a_database_that_was_cut_short_for_a_new_one(self, place: home.Home, text: bytes | None) -> None:
        place.path.mkdir()
        if text is not None:
            place.database.write_bytes(text)
        assert not place.has_run()

    def test_knows_the_runs_of_other_dags_from_its_own(self, place: home.Home) -> None:
        place.path.mkdir()
        with closing(sqlite3.connect(place.database)) as database, database:
            database.execute("CREATE TABLE dag_run (dag_id TEXT)")
            database.execute("INSERT INTO dag_run VALUES ('another')")
        assert not place.has_run()


def test_the_demo_counts_every_request_once_whatever_lies_in_the_archive(tmp_path: Path) -> None:
    now = time.time()
    spent = datetime.fromtimestamp(now - 10, UTC).isoformat()
    over = datetime.fromtimestamp(now - 1000, UTC).isoformat()
    conn = {"amplemarket_conn_id": home.CONN_ID}
    base = conn | {"permit": "a", "answered_at": spent, "earlier_permits": {"b": spent, "c": over}}
    texts = [
        json.dumps(base | {"overwrite": conn | {"permit": "d", "answered_at": spent}}),
        json.dumps(conn | {"permit": ["odd"], "answered_at": spent}),
        json.dumps(conn | {"permit": "odd"}),
        "7",
        '{"permit": "ha',
    ]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.json").write_text(text)
    state = LedgerState({"a": now - 5, "e": now - 5})
    assert count_spent(state, tmp_path, RateLimit(50, 600.0), conn_id=home.CONN_ID, now=now) == 4
