"""One Airflow for the whole session, one account at Amplemarket, and what is true of every archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.checkout import CHECKOUT
from dev.observed import ObservedAirflow
from dev.postgres import Postgres
from tests.e2e.clockwork import Clockwork

#: The suite's own DAGs, and the example that the provider comes with.
DAGS = {"e2e": Path(__file__).parent / "dags", "example": CHECKOUT / "dags"}
#: Stands out in any text.
API_KEY = "sk_live_e2e_Zq7-never-to-be-seen"
CONN_ID = "amplemarket_default"
POOL = "amplemarket_recordings"
LIMIT, PERIOD, TIMEOUT = 10, 15, 3


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Give the account whose key all DAGs but those of the windows use."""
    with Sandbox(api_key=API_KEY, limit=LIMIT, period=PERIOD) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder in which each group of tests has its archive."""
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder that Airflow's processes take for the system's temporary one."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox, archives: Path, scratch: Path
) -> Iterator[ObservedAirflow]:
    """Give an Airflow that runs, with the connection in its database."""
    with Postgres() as postgres:
        environment = {"E2E_ARCHIVES": archives.as_uri(), "TMPDIR": str(scratch)}
        with ObservedAirflow(tmp_path_factory.mktemp("airflow"), postgres, DAGS, environment) as airflow:
            connect(airflow, CONN_ID, sandbox, LIMIT, PERIOD)
            yield airflow


@pytest.fixture(scope="session")
def clock_sandbox() -> Iterator[Sandbox]:
    """Give the account that has new calls all the time, and more quota than it needs."""
    with Sandbox(api_key=API_KEY, limit=1000, period=PERIOD) as sandbox:
        yield sandbox


@pytest.fixture(scope="session", autouse=True)
def clockwork(airflow: ObservedAirflow, clock_sandbox: Sandbox) -> Iterator[Clockwork]:
    """Let the DAGs with windows run beside all other tests: they need minutes, but little else."""
    connect(airflow, "amplemarket_windows", clock_sandbox, 1000, PERIOD)
    airflow.rest("POST", "/pools", {"name": "amplemarket_windows", "slots": 1, "include_deferred": True})
    clockwork = Clockwork(airflow, clock_sandbox)
    clockwork.start()
    yield clockwork
    clockwork.stop()


def connect(airflow: ObservedAirflow, conn_id: str, sandbox: Sandbox, limit: int, period: int) -> None:
    """Enter a connection into Airflow's database, as its UI does."""
    extra = json.dumps({"recording_limit": limit, "recording_period": period, "timeout": TIMEOUT})
    body = {"connection_id": conn_id, "conn_type": "amplemarket", "host": sandbox.url, "password": API_KEY}
    airflow.rest("POST", "/connections", body | {"extra": extra})
