"""A whole Airflow on this machine: its environment, its commands, and its parts, each a process of its own."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import requests

from dev.checkout import CHECKOUT, airflow_environment
from dev.processes import StepError, free_port, run_command, signal_group, tail
from dev.processes import Watch as WatchLine

#: Not ``airflow standalone``, whose parts serve their logs to the whole network.
PARTS = {
    "api-server": ["--workers", "1"],
    "dag-processor": [],
    "triggerer": ["--skip-serve-logs"],
    "scheduler": ["--skip-serve-logs"],
}
#: What has to be healthy, by the names that the API server has for it.
HEALTHY = ("metadatabase", "scheduler", "triggerer", "dag_processor")
BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"
#: Nothing is measured by this: it is how long something may take on a busy machine before it is wrong.
PATIENCE = 240.0
#: Seconds that the parts have to end after each of the two signals that ask them to.
GRACE = 15.0


class Airflow:
    """Airflow's four parts and its commands; the parts run for as long as the ``with`` block lasts.

    Everything listens on the loopback interface only.

    :param home: a folder for everything that Airflow writes.
    :param database: the URL of the metadata database, as SQLAlchemy takes it: of PostgreSQL, or of a file of SQLite.
    :param dags: the folders of the DAGs, by the name of their bundle.
    :param settings: further settings of Airflow, by section and name: ``CORE__PARALLELISM``.
    :param environment: further variables of its processes.
    :param port: the API server's; another one where that is taken, and any that is free by default.
    """

    def __init__(
        self,
        home: Path,
        database: str,
        dags: Mapping[str, Path],
        *,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{free_port(port)}"
        self.environment = {
            **airflow_environment(home, database, {**self._settings(dags), **(settings or {})}),
            "PYTHONPATH": str(CHECKOUT),
            **(environment or {}),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _settings(self, dags: Mapping[str, Path]) -> dict[str, str]:
        bundles = [{"name": name, "classpath": BUNDLE, "kwargs": {"path": str(path)}} for name, path in dags.items()]
        return {
            "API__BASE_URL": self.url,
            "API__HOST": "127.0.0.1",
            "API__PORT": self.url.rpartition(":")[2],
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "CORE__DAGS_FOLDER": str(next(iter(dags.values()))),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__TEST_CONNECTION": "Enabled",
            "DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            # On a small machine the first responses of a fresh API server take longer than the default allows.
            "WORKERS__EXECUTION_API_TIMEOUT": "30",
        }

    # Commands

    def cli(self, *arguments: str, watch: WatchLine | None = None) -> str:
        """Run a command of Airflow, with its output in a log of its name, and return the output.

        :param watch: is called with every line of the output.
        :raises StepError: when it fails.
        """
        command = [sys.executable, "-m", "airflow", *arguments]
        return run_command(command, self.log(arguments[0]), env=self.environment, cwd=self.home, watch=watch)

    def log(self, name: str) -> Path:
        """Return the log of a part or of a command."""
        return self.home / f"{name}.log"

    def tail(self, part: str, lines: int = 40) -> str:
        """Return the end of a part's log."""
        return tail(self.log(part).read_text(errors="replace"), lines)

    # Life

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all parts, and wait until they are healthy; the database has to be there."""
        for part in PARTS:
            self.log(part).unlink(missing_ok=True)
        for part in PARTS:
            if part == "scheduler":
                # A task that finds no API server within seconds fails.
                self.wait("the API server", lambda: self._are_healthy("metadatabase"))
            self.start_part(part)
        self.wait_for_health()

    def stop(self) -> None:
        """Stop all parts, and what they have started."""
        families = [self._family(part) for part in self._processes]
        try:
            self._ask_to_end(signal.SIGINT)
            self._ask_to_end(signal.SIGTERM)
        finally:
            for family in families:
                _kill(family)
            for process in self._processes.values():
                signal_group(process, signal.SIGKILL)
                process.wait()

    def _ask_to_end(self, number: int) -> None:
        alive = [process for process in self._processes.values() if process.poll() is None]
        for process in alive:
            signal_group(process, number)
        deadline = time.monotonic() + GRACE
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, deadline - time.monotonic()))

    def start_part(self, part: str) -> None:
        """Start one part in a process group of its own."""
        with self.log(part).open("ab") as log:
            self._processes[part] = subprocess.Popen(
                [sys.executable, "-m", "airflow", part, *PARTS[part]],
                env=self.environment,
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

    def task_processes(self) -> set[int]:
        """Return the ids of the processes in which tasks run now; the LocalExecutor's workers start them."""
        parents = {}
        scheduler, *descendants = self._family("scheduler")
        for process in descendants:
            with suppress(psutil.NoSuchProcess):
                parents[process.pid] = process.ppid()
        return {pid for pid, parent in parents.items() if parents.get(parent) == scheduler.pid}

    # Health

    def check(self) -> None:
        """Check that no part has ended.

        :raises StepError: when one has; with the end of its log.
        """
        for part, process in self._processes.items():
            if process.poll() is not None:
                raise StepError(f"Airflow's {part} has ended; the end of {self.log(part)}:\n\n{self.tail(part)}")

    def wait_for_health(self) -> None:
        """Wait until every part is healthy."""
        self.wait("health", lambda: self._are_healthy(*HEALTHY))

    def _are_healthy(self, *names: str) -> bool:
        self.check()
        with suppress(requests.RequestException, ValueError):
            health = requests.get(f"{self.url}/api/v2/monitor/health", timeout=30).json()
            return all(health[name]["status"] == "healthy" for name in names)
        return False

    def wait(self, what: str, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Wait until a condition returns something, and return that.

        :param what: what is waited for, in a few words.
        :param condition: is called again and again.
        :param patience: seconds after which it is wrong.
        :raises StepError: when it was in vain.
        """
        deadline = time.monotonic() + patience
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise StepError(f"Airflow was waited for in vain: {what}\n\n{self.describe()}")
            time.sleep(0.2)
        return found

    def describe(self) -> str:
        """Return what helps to find out why something was waited for in vain."""
        return "\n".join(f"The end of {self.log(part)}:\n\n{self.tail(part)}\n" for part in self._processes)


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
