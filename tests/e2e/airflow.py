"""A whole Airflow on PostgreSQL, whose parts can be killed one by one, and what one asks of it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import requests

from dev.stores import free_port
from tests.e2e.postgres import Postgres

CHECKOUT = Path(__file__).parents[2]
#: The suite's own DAGs, and the example that the provider comes with.
DAGS = {"e2e": Path(__file__).parent / "dags", "example": CHECKOUT / "dags"}
LOCAL = "airflow.dag_processing.bundles.local.LocalDagBundle"
PARTS = {
    "api-server": ["api-server", "--workers", "1"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
#: Nothing here is measured by the clock: this is how long something may take on a busy machine before it is wrong.
PATIENCE = 240.0

Row = dict[str, Any]


class Airflow:
    """
    Airflow's four parts, each a process of its own, and their metadata database.

    :param home: an empty folder for everything that Airflow writes.
    :param postgres: the server of the metadata database.
    :param environment: what else the parts are told.
    :param dags: the folders of the DAGs, by the name of their bundle.
    :param port: the API server's; None for any that is free.
    """

    def __init__(
        self,
        home: Path,
        postgres: Postgres,
        environment: Mapping[str, str],
        dags: Mapping[str, Path] = DAGS,
        port: int | None = None,
    ) -> None:
        self.home = home
        self.dags = dags
        self.db = postgres
        self.url = f"http://127.0.0.1:{port or free_port()}"
        self._environment = self._settings() | dict(environment)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._token: str | None = None

    def _settings(self) -> dict[str, str]:
        settings = {
            "API__BASE_URL": self.url,
            "API__HOST": "127.0.0.1",
            "API__PORT": self.url.rpartition(":")[2],
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "CORE__DAGS_FOLDER": str(next(iter(self.dags.values()))),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": "6",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__TEST_CONNECTION": "Enabled",
            "DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
                [{"name": name, "classpath": LOCAL, "kwargs": {"path": str(path)}} for name, path in self.dags.items()]
            ),
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            "DATABASE__SQL_ALCHEMY_CONN": self.db.url,
            # What died is to be noticed within seconds, not minutes.
            "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
            "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
            # On a small machine the first answers of a fresh API server take longer than the default allows.
            "WORKERS__EXECUTION_API_TIMEOUT": "30",
        }
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "AMPLEMARKET_"))},
            "AIRFLOW_HOME": str(self.home),
            "NO_COLOR": "1",
            "PYTHONPATH": str(CHECKOUT),
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        }

    # Life

    def start(self) -> None:
        """Create the database, start all parts, and wait until they are healthy and know the DAGs."""
        self.cli("db", "migrate")
        for part in PARTS:
            self.start_part(part)
        self.wait_for_health()
        known = "SELECT count(*) FROM dag WHERE NOT is_stale"
        self.wait("the DAGs", lambda: self.db.rows(known)[0]["count"] >= self._wanted_dags())

    def _wanted_dags(self) -> int:
        folders = self.dags.values()
        return sum(path.read_text().count("with DAG(") for folder in folders for path in folder.glob("*.py"))

    def stop(self) -> None:
        """Stop all parts, and what they have started."""
        families = {part: self._family(part) for part in self._processes}
        for part, process in self._processes.items():
            if part != "scheduler" and process.poll() is None:
                process.terminate()
        # The scheduler would wait for its tasks.
        deadline = time.monotonic() + 15
        for part, process in self._processes.items():
            if part != "scheduler":
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.1, deadline - time.monotonic()))
        for family in families.values():
            _kill(family)
        for process in self._processes.values():
            process.wait()

    def start_part(self, part: str) -> None:
        """Start one part in a process group of its own."""
        with (self.home / f"{part}.log").open("ab") as log:
            self._processes[part] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *PARTS[part]],
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_part(self, part: str) -> None:
        """Kill one part with all that it has started, as the end of a container does."""
        _kill(self._family(part))
        self._processes[part].wait()

    def _family(self, part: str) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._processes[part].pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def wait_for_health(self) -> None:
        """Wait until every part says that it is well."""
        self.wait("health", self._is_healthy)

    def _is_healthy(self) -> bool:
        for part, process in self._processes.items():
            assert process.poll() is None, f"{part} has ended:\n{self.tail(part)}"
        with suppress(requests.RequestException, ValueError):
            health = requests.get(f"{self.url}/api/v2/monitor/health", timeout=30).json()
            parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
            return all(health[part]["status"] == "healthy" for part in parts)
        return False

    def tail(self, part: str, lines: int = 40) -> str:
        """Answer the end of a part's log."""
        return "\n".join((self.home / f"{part}.log").read_text(errors="replace").splitlines()[-lines:])

    def wait(self, what: str, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """
        Wait until a condition gives something, and answer that.

        :param what: what is waited for, in a few words.
        :param condition: is asked again and again.
        :param patience: seconds after which it is wrong.
        """
        deadline = time.monotonic() + patience
        while not (found := condition()):
            if time.monotonic() > deadline:
                states = self.db.rows(
                    "SELECT dag_id, run_id, map_index, state, try_number FROM task_instance ORDER BY start_date"
                )
                raise AssertionError(
                    "\n".join([f"waited in vain for {what}", *map(str, states), self.tail("scheduler")])
                )
            time.sleep(0.2)
        return found

    # Questions and orders

    def cli(self, *arguments: str) -> str:
        """Run a command of Airflow and answer its output."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self._environment,
            cwd=self.home,
            capture_output=True,
            text=True,
        )
        with (self.home / "cli.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        assert not done.returncode, f"airflow {arguments[0]}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
        return done.stdout

    def rest(self, method: str, path: str, body: Any = None) -> Any:
        """
        Ask the API server.

        :param method: the HTTP method.
        :param path: what follows ``/api/v2``.
        :param body: what is sent as JSON.
        """
        [answer] = self.wait("the API server", lambda: self._ask(method, path, body))
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def _ask(self, method: str, path: str, body: Any) -> list[requests.Response]:
        """Answer nothing while there is no API server, because a test has killed it."""
        # No session: several threads ask.
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
        """Trigger a run, and answer its id."""
        date = logical_date.isoformat() if logical_date else None
        return str(self.rest("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": date, "conf": conf})["dag_run_id"])

    def runs(self, *dag_ids: str) -> list[Row]:
        """Answer the runs of DAGs, the oldest first."""
        return self.db.rows("SELECT * FROM dag_run WHERE dag_id = ANY(%s) ORDER BY id", list(dag_ids))

    def tasks(self, *dag_ids: str) -> list[Row]:
        """Answer the task instances of DAGs as they are now."""
        return self.db.rows("SELECT * FROM task_instance WHERE dag_id = ANY(%s) ORDER BY queued_dttm", list(dag_ids))

    def wait_for_runs(self, *dag_ids: str, count: int, patience: float = PATIENCE) -> None:
        """Wait until so many runs of DAGs have come to an end, and see that it is a good one."""

        def ended() -> bool:
            states = [row["state"] for row in self.runs(*dag_ids)]
            return len(states) >= count and all(state in ("success", "failed") for state in states)

        self.wait(f"{count} runs of {dag_ids}", ended, patience)
        failed = [row for row in self.tasks(*dag_ids) if row["state"] != "success"]
        assert not failed, "\n".join(f"{row['run_id']} {row['state']}\n{self.task_log(row)}" for row in failed)

    def xcoms(self, key: str, *dag_ids: str) -> list[Any]:
        """Answer the XComs of that key that tasks of DAGs have pushed."""
        rows = self.db.rows("SELECT value FROM xcom WHERE key = %s AND dag_id = ANY(%s)", key, list(dag_ids))
        values = [row["value"] for row in rows]
        return [json.loads(value) if isinstance(value, str) else value for value in values]

    def variable(self, key: str) -> str | None:
        """Answer the text of an Airflow Variable, None where there is none."""
        found = self.rest("GET", f"/variables?variable_key_pattern={key}")["variables"]
        return next((str(entry["value"]) for entry in found if entry["key"] == key), None)

    def task_processes(self) -> set[int]:
        """Answer the ids of the processes in which tasks run at this moment; the LocalExecutor's workers start them."""
        parents = {}
        scheduler, *descendants = self._family("scheduler")
        for process in descendants:
            with suppress(psutil.NoSuchProcess):
                parents[process.pid] = process.ppid()
        return {pid for pid, parent in parents.items() if parents.get(parent) == scheduler.pid}

    def task_log(self, row: Row) -> str:
        """Answer the errors in a task's log."""
        folder = f"dag_id={row['dag_id']}/run_id={row['run_id']}/task_id={row['task_id']}"
        lines = [line for log in (self.home / "logs").glob(f"{folder}/**/*.log") for line in log.open(errors="replace")]
        return "".join(line for line in lines if '"level":"error"' in line)


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
