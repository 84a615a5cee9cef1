"""The homes of the checkout's own Airflows: each a folder with its database, its archive and its quota."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow_provider_amplemarket.sandbox import Sandbox, make_calls
from airflow_provider_amplemarket.sandbox.settings import LIMIT, PERIOD
from dev.checkout import CHECKOUT, shown
from dev.processes import StepError

BASE = Path(os.environ.get("DEMO_HOME") or CHECKOUT / ".airflow").absolute()
API_KEY = os.environ.get("AMPLEMARKET_API_KEY", "").strip()
CONN_ID = "amplemarket_default"
DAG_ID = "amplemarket_recordings"
SANDBOX_KEY = "sandbox-key"


@dataclass(frozen=True)
class Home:
    """A folder with everything that belongs to one Airflow, its archive and its quota.

    :param name: the folder's name.
    :param limit: requests in a period.
    :param period: that period in seconds.
    """

    name: str
    limit: int
    period: float

    def as_set(self) -> Home:
        """Return it with the quota that ``LIMIT`` and ``PERIOD`` set.

        :raises SettingError: when they set none.
        """
        return replace(self, limit=LIMIT.read(self.limit), period=PERIOD.read(self.period))

    @property
    def path(self) -> Path:
        """The folder."""
        return BASE / self.name

    @property
    def archive(self) -> Path:
        """The folder of the recordings."""
        return self.path / "archive"

    @property
    def database(self) -> Path:
        """Airflow's database."""
        return self.path / "airflow.db"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Have the home alone until the end of the block.

        :raises StepError: when another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"Something else runs in {shown(self.path)}; stop it first, or choose another DEMO_HOME"
                raise StepError(message) from None
            yield

    def make_sandbox(self) -> Sandbox:
        """Make the sandbox of the API, with yesterday's calls; the same ones for a whole day."""
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        calls = make_calls(24, end=today, days=1.0, seed=today.toordinal())
        log = self.path / "sandbox.jsonl"
        return Sandbox(calls=calls, api_key=SANDBOX_KEY, limit=self.limit, period=self.period, log_path=log)

    def connection(self, url: str, key: str) -> dict[str, object]:
        """Return the connection as Airflow reads it from JSON."""
        extra = {"recording_limit": self.limit, "recording_period": self.period}
        return {"conn_type": "amplemarket", "host": url, "password": key, "extra": extra}

    def has_run(self) -> bool:
        """Return whether the example DAG has had a run here."""
        if not self.database.exists():
            return False
        # In a database that was cut short while it was made there is no such table yet.
        with closing(sqlite3.connect(self.database, timeout=30)) as database, suppress(sqlite3.OperationalError):
            return database.execute("SELECT 1 FROM dag_run WHERE dag_id = ?", (DAG_ID,)).fetchone() is not None
        return False

    def fail_unfinished(self) -> None:
        """Mark the runs as failed that something has cut short; nothing else may run here."""
        if not self.database.exists():
            return
        unfinished = "SELECT run_id FROM dag_run WHERE state IN ('queued', 'running')"
        # Airflow's command line would take ten seconds for it.
        with closing(sqlite3.connect(self.database, timeout=30)) as database, database:
            database.execute(
                "UPDATE task_instance SET state = 'failed' WHERE coalesce(state, '') NOT IN "
                f"('success', 'failed', 'skipped', 'upstream_failed', 'removed') AND run_id IN ({unfinished})"
            )
            database.execute("UPDATE dag_run SET state = 'failed' WHERE state IN ('queued', 'running')")


#: The real API gets a home of its own: neither its recordings nor its quota mix with the sandbox's.
LIVE = Home("live", 50, 3600.0)
DEMO = Home("sandbox", LIVE.limit, LIVE.period)
#: So small a quota that the twenty recordings are archived in three goes, with two waits.
STANDALONE = Home("airflow", 8, 60.0)


def yesterday() -> str:
    """Return the day whose calls the sandbox has."""
    return (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
