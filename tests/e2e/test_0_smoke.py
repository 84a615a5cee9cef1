"""In short what the long suite tests: a whole Airflow, a wait for the quota, and a killed task; nothing is lost."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow, Row
from tests.e2e import truth
from tests.e2e.conftest import API_KEY, LIMIT, PERIOD, connect

pytestmark = pytest.mark.e2e

DAG_ID = "smoke"
CONN_ID = "amplemarket_smoke"
#: More than a period's quota by so many calls, whose recordings come slowly enough for a kill.
SLOW = 4


@pytest.fixture(scope="session", autouse=True)
def clockwork() -> None:
    """Leave out the DAGs that run by the clock, which the rest of the suite has: they take minutes."""


@pytest.fixture(scope="module")
def account(airflow: ObservedAirflow) -> Iterator[Sandbox]:
    """Give an account that only this module uses."""
    with Sandbox(api_key=API_KEY, limit=LIMIT, period=PERIOD) as sandbox:
        connect(airflow, CONN_ID, sandbox, LIMIT, PERIOD)
        yield sandbox


@dataclass
class Smoke:
    """What the run was to archive, what was under way when its process was killed, and its task in the end."""

    wanted: list[str]
    in_flight: Counter[str]
    task: Row


@pytest.fixture(scope="module")
def smoke(airflow: ObservedAirflow, account: Sandbox) -> Smoke:
    """Let one run spend its quota and defer, and kill its process when it has come back."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    quick = truth.add_calls(account, "quick", LIMIT, start)
    slow = truth.add_calls(account, "slow", SLOW, start + timedelta(days=1), fault="drip")

    def task() -> Row:
        [row] = airflow.tasks(DAG_ID)
        return row

    airflow.unpause(DAG_ID)
    airflow.trigger(DAG_ID, start=start.isoformat(), end=(start + timedelta(days=2)).isoformat())
    airflow.wait("a deferred task", lambda: any(row["state"] == "deferred" for row in airflow.tasks(DAG_ID)))
    assert truth.served(account, [*quick, *slow]) == Counter(quick)
    airflow.wait("two downloads", lambda: len(truth.in_flight(account, slow)) == 2)
    in_flight = Counter(truth.in_flight(account, slow))
    os.kill(task()["pid"], signal.SIGKILL)
    airflow.wait_for_runs(DAG_ID, count=1)
    return Smoke([*quick, *slow], in_flight, task())


def test_every_recording_is_archived_as_it_was_served(smoke: Smoke, account: Sandbox, archives: Path) -> None:
    truth.check_archive(account, archives / "smoke", smoke.wanted)


def test_only_what_was_under_way_at_the_kill_is_requested_again(smoke: Smoke, account: Sandbox) -> None:
    again = truth.times_asked(account, smoke.wanted) - Counter(smoke.wanted)
    assert again == smoke.in_flight
    assert smoke.task["try_number"] == 2


def test_the_api_never_sees_more_requests_than_the_limit(smoke: Smoke, account: Sandbox) -> None:
    assert not truth.refused(account.recording_requests())
    assert account.most_in_any_period() <= LIMIT
