"""A task that is told to stop is gone within seconds, whatever the other side does, and leaves nothing untrue.

Real processes, because both ways to stop are signals: ``execution_timeout`` raises out of an alarm, wherever the main
thread is, and a kill only calls ``on_kill`` while the main thread goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.sandbox.faults import LIST_FAULTS, RECORDING_FAULTS, Exchange
from airflow_provider_amplemarket.sandbox.responses import Response, error
from tests.operators.conftest import API_KEY, Bench, calls

ROOT = Path(__file__).parents[2]
#: Seconds after a signal in which a task is gone: ten, and what a busy machine takes to end a process.
GONE = 15.0

#: Runs a task as Airflow's task runner does; the parent's alarm is the execution_timeout.
TASK = """
import json, os, signal, sys

from airflow.providers.common.compat.sdk import AirflowTaskTimeout
from airflow_provider_amplemarket.quota import ledger as quota
from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
from dev.memory import MemoryStore
from dev.task import TaskInstance
from tests.operators.conftest import CONN_ID, Bench

options = json.loads(sys.argv[1])
ledger = MemoryStore.empty(CONN_ID)
ledger.texts.update(options.pop("ledger", {}))
quota.VariableStore = lambda *_: ledger
operator = AmplemarketRecordingOperator(task_id="archive", **options)

def time_out(number, frame):
    raise AirflowTaskTimeout("Timeout")

signal.signal(signal.SIGALRM, time_out)
signal.signal(signal.SIGTERM, lambda number, frame: operator.on_kill())
print("begins", flush=True)
try:
    operator.execute(Bench.context(None, TaskInstance("run", 1, 1)))
except AirflowTaskTimeout:
    operator.on_kill()
    print("ended by AirflowTaskTimeout", flush=True)
except BaseException as error:
    print(f"ended by {type(error).__name__}: {error}", flush=True)
else:
    print("ended well", flush=True)
"""


def trickle(exchange: Exchange) -> Response:
    """Send a byte every half a second, so that no time-out of a socket is ever over."""

    def drops() -> Iterator[bytes]:
        for number in range(len(exchange.payload)):
            exchange.sandbox.pause(0.5)
            yield exchange.payload[number : number + 1]

    return replace(exchange.healthy, body=drops())


def trickled_error(exchange: Exchange) -> Response:
    """Do so with the body of an error."""
    exchange.healthy = error(500, "internal_server_error", "Something went wrong " * 100)
    return trickle(exchange)


class SilentStore(BaseHTTPRequestHandler):
    """Responds like an empty S3 bucket, but never to the requests for which it is to be silent."""

    protocol_version = "HTTP/1.1"
    server: SilentServer

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.is_silent(self.command, self.path):
            self.server.reached.set()
            self.server.stopping.wait(120)
            self.close_connection = True
            return
        body = b""
        if self.command == "GET":
            body = b"<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
        if self.command == "POST":
            body = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        self.send_response(404 if self.command == "HEAD" else 204 if self.command == "DELETE" else 200)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


class SilentServer(ThreadingHTTPServer):
    """The server of such a bucket.

    :param is_silent: Which requests, by method and path, are never answered.
    """

    daemon_threads = True

    def __init__(self, is_silent: Callable[[str, str], bool]) -> None:
        super().__init__(("127.0.0.1", 0), SilentStore)
        self.is_silent = is_silent
        self.reached = threading.Event()
        self.stopping = threading.Event()


@dataclass
class Situation:
    """Where a task is when it is told to stop.

    :param options: The operator's.
    :param is_reached: Whether the task is there.
    """

    options: dict[str, Any]
    is_reached: Callable[[str], bool]
    close: list[Callable[[], None]] = field(default_factory=list)


def dripping_recording(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    bench.start(*calls(4))
    bench.sandbox.set_fault("call-002", "trickle")
    return Situation({}, lambda _: len(bench.sandbox.recording_requests()) == 4)


def dripping_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    bench.start(*calls(4))
    bench.sandbox.set_fault("call-002", "trickled-error")
    return Situation({}, lambda _: len(bench.sandbox.recording_requests()) == 4)


def silent_recording(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    bench.start(*calls(4), timeout=60.0)
    bench.sandbox.set_fault("call-002", "hang")
    return Situation({}, lambda _: len(bench.sandbox.recording_requests()) == 4)


def dripping_list(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    bench.start(*calls(4))
    bench.sandbox.list_faults.append("trickle")
    return Situation({}, lambda _: len(bench.sandbox.log) == 1)


def failing_list(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    """The list is asked for again after a while."""
    bench.start(*calls(4))
    bench.sandbox.list_faults.extend(["too-many-60"] * 5)
    return Situation({}, lambda _: len(bench.sandbox.log) == 1)


def store(bench: Bench, monkeypatch: pytest.MonkeyPatch, is_silent: Callable[[str, str], bool]) -> Situation:
    bench.start(*calls(4))
    server = SilentServer(is_silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    conn = {
        "conn_type": "aws",
        "login": "key",
        "password": "secret",
        "extra": {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "region_name": "us-east-1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_SILENT_S3", json.dumps(conn))
    return Situation(
        {"path": "s3://silent_s3@bucket/recordings"},
        lambda _: server.reached.is_set(),
        [server.stopping.set, server.shutdown, server.server_close],
    )


def silent_upload(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    return store(bench, monkeypatch, lambda method, path: method == "PUT" and ".mp3" in path)


def silent_listing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    return store(bench, monkeypatch, lambda method, path: method == "GET")


def waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    bench.start(*calls(4), limit=2)
    return Situation({"deferrable": False}, lambda output: "sleeping in the worker" in output)


def waiting_for_the_ledger(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Situation:
    """Another task has the lock, or was killed with it."""
    bench.start(*calls(4))
    options = {"ledger": {"amplemarket_quota__amplemarket_default__lock": "somebody"}, "deferrable": False}
    return Situation(options, lambda output: "uses the quota ledger" in output)


SITUATIONS = [
    dripping_recording,
    dripping_error,
    silent_recording,
    dripping_list,
    failing_list,
    silent_upload,
    silent_listing,
    waiting,
    waiting_for_the_ledger,
]


@pytest.fixture(params=SITUATIONS, ids=lambda make: make.__name__)
def situation(request: pytest.FixtureRequest, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Situation]:
    monkeypatch.setitem(RECORDING_FAULTS, "trickle", trickle)
    monkeypatch.setitem(RECORDING_FAULTS, "trickled-error", trickled_error)
    monkeypatch.setitem(LIST_FAULTS, "trickle", trickle)
    made = request.param(bench, monkeypatch)
    yield made
    for close in made.close:
        close()


class Task:
    """A task in a process of its own, with its output in a file."""

    def __init__(self, options: dict[str, Any], output: Path) -> None:
        self._output = output
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", TASK, json.dumps(options)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=output.parent,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_until(self, is_reached: Callable[[str], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_reached(self.output):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        time.sleep(0.5)

    def stop(self, how: signal.Signals) -> float:
        """Send a signal, and return the seconds until the process is gone."""
        began = time.monotonic()
        self.process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GONE)
        assert self.process.poll() is not None, f"it goes on {GONE:.0f} s after {how.name}:\n{self.output}"
        return time.monotonic() - began


@pytest.fixture
def task(situation: Situation, bench: Bench, tmp_path: Path) -> Iterator[Task]:
    made = Task({"path": bench.path, **situation.options}, tmp_path / "output")
    yield made
    made.process.kill()
    made.process.wait()


@pytest.mark.parametrize("how", [signal.SIGALRM, signal.SIGTERM], ids=["time-out", "kill"])
def test_a_task_that_is_told_to_stop_is_gone(
    bench: Bench, situation: Situation, task: Task, how: signal.Signals
) -> None:
    task.wait_until(situation.is_reached)
    seconds = task.stop(how)
    print(f"{how.name}: gone after {seconds:.1f} s")
    end = task.output.splitlines()[-1]
    assert end.startswith("ended by AirflowTaskTimeout" if how is signal.SIGALRM else "ended by "), task.output
    assert API_KEY not in task.output
    for name in bench.files() if bench.root.exists() else ():
        assert ".staging" not in name
        if name.endswith(".json"):
            record = json.loads((bench.root / name).read_text())
            # What was broken off was not the recording's failure.
            assert record["status"] == "stored"
            audio = (bench.root / record["key"]).read_bytes()
            assert (record["size"], record["sha256"]) == (len(audio), hashlib.sha256(audio).hexdigest())
