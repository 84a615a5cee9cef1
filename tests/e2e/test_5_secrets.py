"""After everything that the other tests have done, the API key stands nowhere."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow
from tests.e2e import truth
from tests.e2e.conftest import API_KEY, CONN_ID

pytestmark = pytest.mark.e2e

#: As it is, as the password of basic authentication (three ways to fall into base64), and as PostgreSQL writes bytes.
SECRETS = [
    API_KEY,
    *(b64encode(f"{'x' * n}{API_KEY}".encode()).decode()[4:-4] for n in range(3)),
    API_KEY.encode().hex(),
]
CALL_ID = "failing-00"


@pytest.fixture(scope="module", autouse=True)
def failed(airflow: ObservedAirflow, sandbox: Sandbox) -> None:
    """Let a task fail because the API repeats the key in an error."""
    calls = truth.add_calls(sandbox, "failing", 3, datetime.now(UTC) - timedelta(days=50))
    for call_id, fault in zip(calls, ("echo-key", "redirect-away", "html-as-audio"), strict=True):
        sandbox.set_fault(call_id, fault)
    airflow.unpause("failing")
    airflow.trigger("failing", call_ids=calls)
    airflow.wait("the run", lambda: [row["state"] for row in airflow.runs("failing")] in (["failed"], ["success"]))
    assert truth.times_asked(sandbox, calls).keys() == set(calls)


def files_with(folders: list[Path], *texts: str) -> list[Path]:
    """Return the files that have one of the texts."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(text.encode() in path.read_bytes() for text in texts)]


def tables_with(airflow: ObservedAirflow, *texts: str) -> list[str]:
    """Return the tables of Airflow's database that have one of the texts in any column."""
    names = airflow.db.rows("SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'")
    patterns = [f"%{text}%" for text in texts]
    return [
        row["name"]
        for row in names
        if airflow.db.rows(f'SELECT 1 FROM "{row["name"]}" AS r WHERE r::text LIKE ANY(%s) LIMIT 1', patterns)
    ]


def test_the_key_stands_in_no_log_no_sidecar_and_no_other_file(
    airflow: ObservedAirflow, archives: Path, scratch: Path
) -> None:
    folders = [airflow.home, archives, scratch]
    # The search finds what is there.
    assert any(path.suffix == ".log" for path in files_with(folders, CALL_ID))
    assert any(path.suffix == ".json" for path in files_with(folders, CALL_ID))
    assert not files_with(folders, *SECRETS)


def test_the_key_stands_in_no_table_of_airflow(airflow: ObservedAirflow) -> None:
    # The search finds what is there: a run's conf, its rendered fields, the XComs, the connection.
    assert {"dag_run", "rendered_task_instance_fields"} <= set(tables_with(airflow, CALL_ID))
    assert "xcom" in tables_with(airflow, "permits_spent")
    assert "connection" in tables_with(airflow, CONN_ID)
    assert not tables_with(airflow, *SECRETS)


def test_the_key_is_sent_to_no_other_host(sandbox: Sandbox) -> None:
    assert sandbox.away_requests()
    assert not any(entry.has_authorization for entry in sandbox.away_requests())
