"""What the operator's tests stand on: the API on this machine, an archive, and two ways to run a task."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
from airflow_provider_amplemarket.quota import ledger as quota
from airflow_provider_amplemarket.quota.lock import FREE
from airflow_provider_amplemarket.quota.rate import LedgerState
from airflow_provider_amplemarket.quota.variables import VariableStore
from airflow_provider_amplemarket.run.plan import OUTCOMES
from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from dev.memory import MemoryStore
from dev.stores import STORES, Store
from dev.task import TaskInstance, make_context

#: Stands out in any text, as no key of the sandbox's own tests does.
API_KEY = "sk_live_Zq7-never-to-be-seen"
CONN_ID = "amplemarket_default"
NOW = datetime.now(UTC).replace(microsecond=0)

Row = dict[str, Any]


def call(call_id: str, hours: float = 5.0, **fields: Any) -> Row:
    """Return a call that began so many hours ago."""
    return make_call(id=call_id, start_date=NOW - timedelta(hours=hours), **fields)


def calls(count: int, **fields: Any) -> list[Row]:
    """Return calls, the oldest first, a minute apart."""
    return [call(f"call-{number:03}", 10 - number / 60, **fields) for number in range(count)]


@dataclass
class Outcome:
    """What became of one try of a task."""

    rows: list[Row] | None
    error: Exception | None
    summary: Row
    deferrals: int
    #: The ids of the calls whose recordings were asked for, in that order.
    asked: list[str | None]

    @property
    def ok(self) -> Outcome:
        """The same, of a task that has succeeded."""
        if self.error is not None:
            raise self.error
        return self

    @property
    def statuses(self) -> dict[str, str]:
        return {row["call_id"]: row["status"] for row in self.rows or ()}

    def counts(self) -> dict[str, int]:
        """What the summary counts, without the zeros."""
        return {name: self.summary[name] for name in OUTCOMES if self.summary[name]}


class Bench:
    """The API, an archive on the local disk, and tasks that are run by hand.

    :param directory: Where the archive is made.
    :param patch: Undoes at the end of the test what is changed here.
    """

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = directory / "archive"
        self.path = f"file://{self.root}"
        self.ledger = MemoryStore.empty(CONN_ID)
        self._patch = patch
        self._sandbox: Sandbox | None = None
        patch.setattr(quota, "VariableStore", lambda description: self.ledger)

    @property
    def sandbox(self) -> Sandbox:
        assert self._sandbox, "not started"
        return self._sandbox

    def start(
        self, *rows: Row, limit: int = 50, period: float = 3600.0, timeout: float = 5.0, **options: Any
    ) -> Sandbox:
        """Start the API with some calls, and make the connection to it."""
        self._sandbox = Sandbox(calls=rows, api_key=API_KEY, limit=limit, period=period, **options).start()
        self.connect(recording_limit=limit, recording_period=period, timeout=timeout)
        return self._sandbox

    def connect(self, **extra: Any) -> None:
        """Make the connection to the API."""
        conn = {"conn_type": "amplemarket", "host": self.sandbox.url, "password": API_KEY, "extra": extra}
        self._patch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(conn))

    def stop(self) -> None:
        if self._sandbox:
            self._sandbox.stop()

    def operator(self, **kwargs: Any) -> AmplemarketRecordingOperator:
        return AmplemarketRecordingOperator(**{"task_id": "archive", "path": self.path, "retries": 2, **kwargs})

    def context(self, ti: TaskInstance, **changes: Any) -> Any:
        return make_context(ti, start=NOW - timedelta(days=1), end=NOW + timedelta(hours=1), **changes)

    def task_instance(self) -> TaskInstance:
        return TaskInstance("run", 1, 2)

    def run(
        self, run_id: str = "run", try_number: int = 1, max_tries: int = 2, map_index: int = -1, **kwargs: Any
    ) -> Outcome:
        """Run one try of a task, through every deferral, each time with an operator that knows of nothing."""
        ti = TaskInstance(run_id, try_number, max_tries, map_index)
        before, deferrals = len(self.sandbox.recording_requests()), 0
        rows, error, memory = None, None, {}
        method: str | None = "execute"
        arguments: dict[str, Any] = {}
        while method:
            bound = getattr(self.operator(**kwargs), method)
            method = None
            try:
                rows = bound(self.context(ti), **arguments)
            except TaskDeferred as deferral:
                deferrals += 1
                moment = deferral.trigger.fires_at
                method, memory = deferral.method_name, json.loads(json.dumps(deferral.kwargs or {}))
                seconds = moment.timestamp() - time.time()
                assert seconds < 30, f"no test waits for {seconds:.0f} s"
                time.sleep(max(0.0, seconds))
                ti.start_date, arguments = datetime.now(UTC), {**memory, "event": str(moment)}
            except Exception as problem:
                error = problem
        asked = [entry.call_id for entry in self.sandbox.recording_requests()[before:]]
        return Outcome(rows, error, ti.xcoms.get("summary", {}), deferrals, asked)

    # What lies in the archive

    def audio(self, row: Row, **kwargs: Any) -> Path:
        return self.root / Layout(**kwargs).place(row).audio

    def sidecar(self, row: Row, **kwargs: Any) -> Path:
        return self.root / Layout(**kwargs).place(row).sidecar

    def record(self, row: Row, **kwargs: Any) -> Row:
        return dict(json.loads(self.sidecar(row, **kwargs).read_text()))

    def age(self, row: Row, **ago: float) -> None:
        """Let the requests that the sidecar has have been so much earlier."""
        record = self.record(row)
        for name in ("first_requested_at", "requested_at", "answered_at", "archived_at"):
            if name in record:
                record[name] = (datetime.fromisoformat(record[name]) - timedelta(**ago)).isoformat()
        self.sidecar(row).write_text(json.dumps(record))

    def files(self) -> list[str]:
        """The names of all files in the archive, whatever they are."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir())

    def holds(self, *rows: Row) -> bool:
        """Return whether the archive has these recordings whole, with their sidecars, and nothing else."""
        expected = sorted(
            str(path.relative_to(self.root)) for row in rows for path in (self.audio(row), self.sidecar(row))
        )
        return self.files() == expected and all(self.has(row) for row in rows)

    def has(self, row: Row) -> bool:
        """Return whether the archive has a recording byte for byte, and a sidecar that fits."""
        data = self.sandbox.recording(row["id"])
        record = self.record(row)
        found = (record["status"], record["size"], record["sha256"], record["call_id"])
        expected = ("stored", len(data), self.sandbox.recording_sha256(row["id"]), row["id"])
        return found == expected and self.audio(row).read_bytes() == data


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.stop()


@dataclass
class DagTest:
    """What became of a DAG run."""

    dag_id: str
    run_id: str
    state: str
    states: dict[tuple[str, int], str]
    tries: dict[tuple[str, int], int]

    def xcom(self, key: str = "return_value", task_id: str = "archive", map_index: int = -1) -> Any:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            query = session.query(XComModel).filter_by(
                dag_id=self.dag_id, run_id=self.run_id, key=key, task_id=task_id, map_index=map_index
            )
            found = query.one_or_none()
            return None if found is None else json.loads(found.value) if isinstance(found.value, str) else found.value


class RealAirflow:
    """Runs DAGs as ``dag.test()`` does: through templates, XComs, Variables, retries and real triggers.

    :param home: Airflow's home.
    """

    def __init__(self, home: Path) -> None:
        self._dags = home / "dags"
        self.files: list[Path] = []

    def test(self, body: str, *, schedule: str = "None", **kwargs: Any) -> DagTest:
        """Write a DAG with some tasks into the folder of DAGs, and run it.

        :param body: The tasks; ``Archive`` is the operator.
        """
        dag_id = f"dag_{uuid.uuid4().hex[:12]}"
        file = self._dags / f"{dag_id}.py"
        self.files.append(file)
        file.write_text(
            textwrap.dedent(
                f"""
                from datetime import datetime, timedelta, timezone
                from airflow.providers.common.compat.sdk import DAG
                from airflow.sdk import task, task_group
                from airflow_provider_amplemarket.operators.recording import (
                    AmplemarketRecordingOperator as Archive,
                )
                start = datetime(2026, 1, 1, tzinfo=timezone.utc)
                with DAG({dag_id!r}, schedule={schedule}, start_date=start, catchup=False) as dag:
                """
            )
            + textwrap.indent(textwrap.dedent(body), "    ")
        )
        spec = importlib.util.spec_from_file_location(dag_id, file)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        run = module.dag.test(**kwargs)
        tis = run.get_task_instances()
        return DagTest(
            dag_id,
            run.run_id,
            str(run.state),
            {(ti.task_id, ti.map_index): str(ti.state) for ti in tis},
            {(ti.task_id, ti.map_index): ti.try_number for ti in tis},
        )

    def variables(self) -> dict[str, str]:
        from airflow.models.variable import Variable
        from airflow.utils.session import create_session

        with create_session() as session:
            return {variable.key: str(variable.val) for variable in session.query(Variable)}

    def set_ledger(self, text: str | None) -> None:
        """Let there be this ledger; None for no Variable of that name."""
        from airflow.models.variable import Variable
        from airflow.utils.session import create_session

        key = quota.VARIABLE_PREFIX + CONN_ID
        with create_session() as session:
            session.query(Variable).filter(Variable.key.startswith(key)).delete(synchronize_session=False)
            session.add(Variable(key=f"{key}__lock", val=FREE))  # type: ignore[no-untyped-call]
            if text is not None:
                session.add(Variable(key=key, val=text))  # type: ignore[no-untyped-call]


@pytest.fixture
def airflow(bench: Bench, airflow_db: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealAirflow]:
    """Airflow itself, with an empty ledger in its own Variable."""
    monkeypatch.setattr(quota, "VariableStore", VariableStore)
    made = RealAirflow(airflow_db)
    made.set_ledger(LedgerState().dump())
    yield made
    for file in made.files:
        file.unlink()


@pytest.fixture(scope="session", params=[kind for kind in STORES if kind.name != "local"], ids=lambda kind: kind.name)
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each kind of store there is, but for the local disk."""
    with request.param.running(tmp_path_factory.mktemp(request.param.name)) as running:
        yield running


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All log records of the test."""
    caplog.set_level(logging.DEBUG)
    return caplog


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Return the lines that a task has logged since the last time: of the package, and of the operator itself.

    Airflow before 3.2 logs the latter by the standard library, newer ones to the standard output.
    """
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        names = ("airflow_provider_amplemarket", "airflow.task")
        found = [record.getMessage() for record in caplog.records if record.name.startswith(names)]
        printed = re.findall(r"\[\w+ *\] (.*) \[airflow\.task\.[\w.]+\]", capsys.readouterr().out)
        caplog.clear()
        return found + printed

    return lines
