"""A whole Airflow on PostgreSQL, for tests and benchmarks, which ask its REST API and its database."""

from __future__ import annotations

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from dev.airflow import PATIENCE, Airflow
from dev.postgres import Postgres

Row = dict[str, Any]

SETTINGS = {
    "CORE__PARALLELISM": "6",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    # What died is to be noticed within seconds, not minutes.
    "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}


class ObservedAirflow(Airflow):
    """Airflow with a new database, whose DAGs are known when it has started.

    :param home: an empty folder for everything that Airflow writes.
    :param postgres: the server of the metadata database.
    :param dags: the folders of the DAGs, by the name of their bundle.
    :param environment: further variables of its processes.
    :param port: the API server's; any that is free by default.
    """

    def __init__(
        self,
        home: Path,
        postgres: Postgres,
        dags: Mapping[str, Path],
        environment: Mapping[str, str],
        port: int = 0,
    ) -> None:
        key = {"CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode()}
        super().__init__(home, postgres.url, dags, settings=SETTINGS | key, environment=environment, port=port)
        self.db = postgres
        self.dags = dags
        self._token: str | None = None

    def start(self) -> None:
        """Create the database, start all parts, and wait until they are healthy and know the DAGs."""
        self.cli("db", "migrate")
        super().start()
        known = "SELECT count(*) FROM dag WHERE NOT is_stale"
        self.wait("the DAGs", lambda: self.db.rows(known)[0]["count"] >= self._wanted_dags())

    def _wanted_dags(self) -> int:
        files = [path for folder in self.dags.values() for path in folder.glob("*.py")]
        return sum(path.read_text().count("with DAG(") for path in files)

    def describe(self) -> str:
        """Return the states of all tasks, and the end of the scheduler's log."""
        query = "SELECT dag_id, run_id, map_index, state, try_number FROM task_instance ORDER BY start_date"
        return "\n".join([*map(str, self.db.rows(query)), self.tail("scheduler")])

    # REST

    def rest(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to the API server, and return the JSON of its response.

        :param method: the HTTP method.
        :param path: what follows ``/api/v2``.
        :param body: what is sent as JSON.
        """
        [response] = self.wait("the API server", lambda: self._responses(method, path, body))
        assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def _responses(self, method: str, path: str, body: Any) -> list[requests.Response]:
        """Return the response, or nothing while there is no API server, because a test has killed it."""
        # No session: several threads send requests.
        with suppress(requests.ConnectionError):
            if self._token is None:
                self._token = str(requests.get(f"{self.url}/auth/token", timeout=60).json()["access_token"])
            headers = {"Authorization": f"Bearer {self._token}"}
            return [requests.request(method, f"{self.url}/api/v2{path}", json=body, headers=headers, timeout=60)]
        return []

    def unpause(self, *dag_ids: str, paused: bool = False) -> None:
        """Let DAGs run, or let them rest."""
        for dag_id in dag_ids:
            self.rest("PATCH", f"/dags/{dag_id}", {"is_paused": paused})

    def pause(self, *dag_ids: str) -> None:
        """Let DAGs rest."""
        self.unpause(*dag_ids, paused=True)

    def trigger(self, dag_id: str, logical_date: datetime | None = None, **conf: Any) -> str:
        """Trigger a run, and return its id."""
        date = logical_date.isoformat() if logical_date else None
        return str(self.rest("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": date, "conf": conf})["dag_run_id"])

    def variable(self, key: str) -> str | None:
        """Return the text of an Airflow Variable, None where there is none."""
        found = self.rest("GET", f"/variables?variable_key_pattern={key}")["variables"]
        return next((str(entry["value"]) for entry in found if entry["key"] == key), None)

    # The database

    def runs(self, *dag_ids: str) -> list[Row]:
        """Return the runs of DAGs, the oldest first."""
        return self.db.rows("SELECT * FROM dag_run WHERE dag_id = ANY(%s) ORDER BY id", list(dag_ids))

    def tasks(self, *dag_ids: str) -> list[Row]:
        """Return the task instances of DAGs as they are now."""
        return self.db.rows("SELECT * FROM task_instance WHERE dag_id = ANY(%s) ORDER BY queued_dttm", list(dag_ids))

    def wait_for_runs(self, *dag_ids: str, count: int, patience: float = PATIENCE) -> None:
        """Wait until so many runs of DAGs have come to an end, and check that all tasks have succeeded."""

        def have_ended() -> bool:
            states = [row["state"] for row in self.runs(*dag_ids)]
            return len(states) >= count and all(state in ("success", "failed") for state in states)

        self.wait(f"{count} runs of {dag_ids}", have_ended, patience)
        failed = [row for row in self.tasks(*dag_ids) if row["state"] != "success"]
        assert not failed, "\n".join(f"{row['run_id']} {row['state']}\n{self.task_log(row)}" for row in failed)

    def xcoms(self, key: str, *dag_ids: str) -> list[Any]:
        """Return the XComs of that key that tasks of DAGs have pushed."""
        rows = self.db.rows("SELECT value FROM xcom WHERE key = %s AND dag_id = ANY(%s)", key, list(dag_ids))
        values = [row["value"] for row in rows]
        return [json.loads(value) if isinstance(value, str) else value for value in values]

    def task_log(self, row: Row) -> str:
        """Return the errors in a task's log."""
        folder = f"dag_id={row['dag_id']}/run_id={row['run_id']}/task_id={row['task_id']}"
        logs = (self.home / "logs").glob(f"{folder}/**/*.log")
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines(keepends=True)]
        return "".join(line for line in lines if '"level":"error"' in line)
