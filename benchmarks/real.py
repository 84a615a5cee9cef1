"""A whole Airflow, in which the provider and what a user would write otherwise archive the same recordings."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from airflow_provider_amplemarket.sandbox.requestlog import LogEntry
from benchmarks.log import ended
from dev.observed import ObservedAirflow
from dev.postgres import Postgres
from dev.processes import free_port, run_server
from dev.stores.s3 import aws_connection, s3_client
from dev.watch import Watch

RECORDINGS, LIMIT, PERIOD = 30, 10, 15.0
OURS, HTTP_TO_S3, SLEEPING = "ours", "http_to_s3", "sleeping"
#: Whoever comes first would pay for the API server's first responses, which take seconds.
WARM_UP = "warm_up"
BUCKET = "recordings"
KEY = "benchmark-key"


@dataclass(frozen=True)
class Measured:
    """
    What one DAG took to archive all recordings.

    :param triggered: when its run was triggered (seconds since the epoch).
    :param worker_seconds: the time for which it held workers' processes, added up.
    :param starts: how often a task took a worker's process.
    :param at_once: the most processes that it held at once.
    :param log: the requests that it sent to the API.
    """

    triggered: float
    worker_seconds: float
    starts: int
    at_once: int
    log: list[LogEntry]

    @property
    def makespan(self) -> float:
        """Seconds from the trigger to the end of the last recording."""
        return ended(self.log) - self.triggered


@functools.cache
def measure() -> dict[str, Measured]:
    """Start everything, let one DAG after the other archive the recordings, and stop everything."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amplemarket-benchmark-")))
        sandboxes = {name: stack.enter_context(account()) for name in (OURS, HTTP_TO_S3, SLEEPING)}
        store = stack.enter_context(s3(home))
        environment = {
            "AIRFLOW_CONN_AWS_DEFAULT": aws_connection(store),
            "AIRFLOW_CONN_AMPLEMARKET_DEFAULT": our_connection(sandboxes[OURS]),
            **{f"AIRFLOW_CONN_{name.upper()}": http_connection(sandboxes[name]) for name in (HTTP_TO_S3, SLEEPING)},
            "BENCHMARK_PERIOD": str(PERIOD),
            "TMPDIR": str(home),
        }
        dags = {"benchmarks": Path(__file__).parent / "dags"}
        postgres = stack.enter_context(Postgres())
        airflow = stack.enter_context(ObservedAirflow(home, postgres, dags, environment))
        airflow.unpause(WARM_UP)
        airflow.trigger(WARM_UP, datetime.now(UTC))
        airflow.wait_for_runs(WARM_UP, count=1)
        airflow.wait("the end of its process", lambda: not airflow.task_processes())
        return {name: archive(airflow, name, sandbox, store) for name, sandbox in sandboxes.items()}


def archive(airflow: ObservedAirflow, dag_id: str, sandbox: Sandbox, store: str) -> Measured:
    """Let one DAG archive its account's recordings, and check that it has them all, whole."""

    def look() -> tuple[float, set[int]]:
        return time.monotonic(), airflow.task_processes()

    with Watch(look, pause=0.2) as watch:
        airflow.unpause(dag_id)
        triggered = time.time()
        airflow.trigger(dag_id, datetime.now(UTC))
        airflow.wait_for_runs(dag_id, count=1)
        # The run is over shortly before the process of its last task is.
        airflow.wait("the end of the last process", lambda: not airflow.task_processes())
    client = s3_client(store)
    for call in sandbox.calls:
        body = client.get_object(Bucket=BUCKET, Key=key_of(dag_id, call["id"], call["start_date"]))["Body"].read()
        assert body == sandbox.recording(call["id"])
    samples = [(0.0, set[int]()), *watch.seen]
    return Measured(
        triggered=triggered,
        worker_seconds=sum(len(held) * (later - seen) for (seen, held), (later, _) in pairwise(watch.seen)),
        starts=sum(len(held - before) for (_, before), (_, held) in pairwise(samples)),
        at_once=max(len(held) for _, held in watch.seen),
        log=sandbox.log,
    )


def key_of(dag_id: str, call_id: str, start_date: str) -> str:
    """Return where a DAG puts a recording."""
    return f"{dag_id}/date={start_date[:10]}/{call_id}.mp3" if dag_id == OURS else f"{dag_id}/{call_id}.mp3"


@contextmanager
def account() -> Iterator[Sandbox]:
    """Serve an account with calls of the last day, and with a quota of its own."""
    now = datetime.now(UTC)
    calls = [
        make_call(id=f"call-{number:03}", start_date=now - timedelta(minutes=20 * (RECORDINGS - number)))
        for number in range(RECORDINGS)
    ]
    with Sandbox(calls=calls, api_key=KEY, limit=LIMIT, period=PERIOD) as sandbox:
        yield sandbox


@contextmanager
def s3(directory: Path) -> Iterator[str]:
    """Serve S3 with an empty bucket, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with run_server(command, directory / "moto.log", port):
        url = f"http://127.0.0.1:{port}"
        s3_client(url).create_bucket(Bucket=BUCKET)
        yield url


def our_connection(sandbox: Sandbox) -> str:
    """Return the provider's connection."""
    extra = {"recording_limit": LIMIT, "recording_period": PERIOD, "timeout": 5}
    return json.dumps({"conn_type": "amplemarket", "host": sandbox.url, "password": KEY, "extra": extra})


def http_connection(sandbox: Sandbox) -> str:
    """Return a connection of the type that Airflow has for any HTTP API."""
    url = urlsplit(sandbox.url)
    headers = {"Authorization": f"Bearer {KEY}"}
    return json.dumps({"conn_type": "http", "host": url.hostname, "port": url.port, "extra": headers})
