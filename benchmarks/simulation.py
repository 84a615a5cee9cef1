"""
The provider's own operator against the sandbox, on a clock that jumps over every wait.

The clock passes as it does elsewhere while something is done, and at once where a task waits: until its trigger
fires, until its worker has slept, until the next run is due. What is done between the waits is what is done in
production, but for the ledger, which is kept in memory instead of an Airflow Variable, and for a worker's start,
which takes as long as the case has it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from unittest import mock

import time_machine
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
from airflow_provider_amplemarket.quota import ledger as quota
from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from airflow_provider_amplemarket.sandbox.listener import Request
from airflow_provider_amplemarket.sandbox.requestlog import LogEntry
from airflow_provider_amplemarket.sandbox.responses import Response
from benchmarks.real import KEY, http_connection
from dev.memory import MemoryStore
from dev.task import TaskInstance, make_context

#: Any time will do.
START = datetime(2026, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
CONN_ID = "amplemarket_default"


@dataclass(frozen=True)
class Case:
    """
    What is simulated.

    :param calls: when the calls begin; they are in the list from then on.
    :param runs: when the runs of the DAG are due; each looks at the calls before that, and no two work at once.
    :param limit: requests for recordings per period.
    :param period: the period in seconds.
    :param start: seconds that it takes a task to start or, after its trigger has fired, to come back.
    :param download: seconds that a recording takes.
    :param concurrency: how many are under way at once.
    """

    calls: Sequence[datetime]
    runs: Sequence[datetime]
    limit: int = 50
    period: float = 3600.0
    start: float = 0.0
    download: float = 0.0
    concurrency: int = 4

    @property
    def optimum(self) -> list[float]:
        """
        When the recordings can be asked for at the earliest (seconds since the epoch).

        That is when the first run after the call is due, and not more than the limit in any period.
        """
        times: list[float] = []
        for call in sorted(self.calls):
            due = next(run for run in self.runs if run > call).timestamp()
            times.append(max(due, times[-self.limit] + self.period) if len(times) >= self.limit else due)
        return times


@dataclass(frozen=True)
class Simulated:
    """
    What came of it.

    :param log: the requests to the API.
    :param resumes: how often a task came back from the triggerer.
    :param worker_seconds: the time for which tasks held a worker.
    :param ledger: how often the ledger was read or written.
    """

    log: list[LogEntry]
    resumes: int
    worker_seconds: float
    ledger: int


class Clock:
    """The time of everything in this process, for as long as the ``with`` block lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._traveller = self._stack.enter_context(time_machine.travel(START, tick=True))
        self._stack.enter_context(mock.patch("time.sleep", self.skip))
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def skip(self, seconds: float) -> None:
        """Let so much time be over."""
        with self._lock:
            self._traveller.shift(seconds)

    def skip_to(self, due: datetime) -> None:
        """Let it be that time, if it is not later already."""
        self.skip(max(0.0, due.timestamp() - time.time()))


class Account(Sandbox):
    """An account whose calls come in as the time passes, and whose recordings take a while."""

    def __init__(self, clock: Clock, case: Case) -> None:
        super().__init__(api_key=KEY, limit=case.limit, period=case.period, clock=time.time)
        self._passing = clock
        self._pause = case.download / case.concurrency
        self._coming = [
            make_call(id=f"call-{number:05}", start_date=begins) | {"begins": begins}
            for number, begins in enumerate(sorted(case.calls))
        ]

    def catch_up(self) -> None:
        """Let the calls appear that have begun meanwhile."""
        now = datetime.now(UTC)
        while self._coming and self._coming[0]["begins"] <= now:
            call = self._coming.pop(0)
            del call["begins"]
            self.add_calls(call)

    def respond(self, request: Request) -> Response | None:
        """Let each recording take its part of the time for which several are under way at once."""
        if request.listener == "api" and request.is_for_recording:
            self._passing.skip(self._pause)
        return super().respond(request)


def simulate(case: Case) -> Simulated:
    """Let the runs archive the calls, one after the other, as the pool would."""
    store = MemoryStore.empty(CONN_ID)
    resumes, worker_seconds = 0, 0.0
    with _surroundings(case, store) as (clock, account, path):
        for number, due in enumerate(case.runs):
            clock.skip_to(due)
            ti = TaskInstance(f"run-{number}", try_number=1, max_tries=0)
            previous = case.runs[number - 1] if number else None
            context = make_context(ti, start=previous or due - HOUR, end=due, prev_data_interval_end_success=previous)
            method, arguments = "execute", dict[str, Any]()
            while method:
                clock.skip(case.start)
                account.catch_up()
                operator = AmplemarketRecordingOperator(task_id="archive", path=path, max_concurrency=case.concurrency)
                began, bound, method = time.time(), getattr(operator, method), ""
                try:
                    bound(context, **arguments)
                except TaskDeferred as deferral:
                    resumes += 1
                    method, arguments = deferral.method_name, {"event": deferral.trigger.fires_at}
                worker_seconds += time.time() - began
                if method:
                    clock.skip_to(arguments["event"])
        return Simulated(account.log, resumes, worker_seconds, len(store.accesses))


def simulate_sleeping(case: Case, connection: str) -> Simulated:
    """
    Let the task that sleeps archive the calls.

    :param connection: the Airflow connection of the S3 server that takes the recordings.
    """
    from benchmarks.dags.sleeping import archive  # Airflow must know its home first

    with _surroundings(replace(case, concurrency=1), MemoryStore.empty(CONN_ID)) as (clock, account, _):
        clock.skip(case.start)
        account.catch_up()
        connections = {"AIRFLOW_CONN_SLEEPING": http_connection(account), "AIRFLOW_CONN_AWS_DEFAULT": connection}
        with mock.patch.dict(os.environ, connections):
            began = time.time()
            archive.function()
            return Simulated(account.log, resumes=0, worker_seconds=time.time() - began, ledger=0)


@contextmanager
def _surroundings(case: Case, store: MemoryStore) -> Iterator[tuple[Clock, Account, str]]:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="amplemarket-benchmark-"))
        clock = stack.enter_context(Clock())
        account = stack.enter_context(Account(clock, case))
        extra = {"recording_limit": case.limit, "recording_period": case.period}
        conn = {"conn_type": "amplemarket", "host": account.url, "password": KEY, "extra": extra}
        stack.enter_context(mock.patch.dict(os.environ, AIRFLOW_CONN_AMPLEMARKET_DEFAULT=json.dumps(conn)))
        stack.enter_context(mock.patch.object(quota, "VariableStore", return_value=store))
        # The task's log has two ways out.
        stack.enter_context(redirect_stdout(io.StringIO()))
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        yield clock, account, f"file://{directory}/archive"
