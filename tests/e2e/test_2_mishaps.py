"""The ledger is lost or garbled, the pool is too wide, somebody else spends the quota: no recording is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow
from tests.e2e import truth
from tests.e2e.conftest import API_KEY, CONN_ID, LIMIT, PERIOD, POOL, connect

pytestmark = pytest.mark.e2e

LEDGER = f"amplemarket_quota__{CONN_ID}"
START = datetime.now(UTC) - timedelta(days=30)


@pytest.fixture(scope="module")
def archive(archives: Path) -> Path:
    """Give the archive of all runs of this module."""
    return archives / "mishap"


@pytest.fixture(scope="module")
def wanted() -> list[str]:
    """Give the calls that the archive must have by now."""
    return []


@pytest.fixture(scope="module", autouse=True)
def garbled(airflow: ObservedAirflow) -> Iterator[Sandbox]:
    """Give an account whose ledger is no ledger; its task waits while other tests run."""
    with Sandbox(api_key=API_KEY, limit=LIMIT, period=PERIOD) as sandbox:
        connect(airflow, "amplemarket_garbled", sandbox, LIMIT, PERIOD)
        airflow.rest(
            "POST", "/variables", {"key": "amplemarket_quota__amplemarket_garbled", "value": '{"version": 1, '}
        )
        airflow.unpause("garbled", "mishap")
        airflow.trigger("garbled", call_ids=truth.add_calls(sandbox, "garbled", 4, START))
        yield sandbox


@pytest.fixture
def idle(airflow: ObservedAirflow, sandbox: Sandbox) -> None:
    """Begin with the whole quota."""
    airflow.wait("an idle quota", lambda: truth.is_idle(sandbox, PERIOD + 1))


@contextmanager
def wide_pool(airflow: ObservedAirflow) -> Iterator[None]:
    """Give the pool five slots for a while."""

    def set_slots(slots: int) -> None:
        body = {"pool": POOL, "slots": slots, "include_deferred": True}
        airflow.rest("PATCH", f"/pools/{POOL}?update_mask=slots", body)

    set_slots(5)
    try:
        yield
    finally:
        set_slots(1)


@pytest.mark.usefixtures("idle")
def test_when_the_ledger_is_deleted_the_sidecars_tell_what_was_spent(
    airflow: ObservedAirflow, sandbox: Sandbox, archive: Path, wanted: list[str]
) -> None:
    calls = truth.add_calls(sandbox, "deleted", LIMIT + 4, START)
    wanted += calls
    airflow.trigger("mishap", call_ids=calls)
    airflow.wait("a deferred task", lambda: any(row["state"] == "deferred" for row in airflow.tasks("mishap")))
    airflow.rest("DELETE", f"/variables/{LEDGER}")
    airflow.wait_for_runs("mishap", count=1)
    truth.check_archive(sandbox, archive, wanted)
    assert truth.times_asked(sandbox, calls) == Counter(calls)
    assert not truth.refused(truth.requests_of(sandbox, calls))
    assert truth.most_in_any_period(sandbox, calls, PERIOD) <= LIMIT
    assert airflow.variable(LEDGER)


@pytest.mark.usefixtures("idle")
def test_when_another_client_spends_the_quota_refusals_fail_no_task(
    airflow: ObservedAirflow, sandbox: Sandbox, archive: Path, wanted: list[str]
) -> None:
    calls = truth.add_calls(sandbox, "shared", LIMIT + 2, START + timedelta(days=1))
    wanted += calls
    sandbox.spend(LIMIT)
    airflow.trigger("mishap", call_ids=calls)
    airflow.wait_for_runs("mishap", count=2)
    truth.check_archive(sandbox, archive, wanted)
    refused = truth.refused(truth.requests_of(sandbox, calls))
    print(f"\n{len(refused)} requests refused because of another client")
    assert refused
    assert truth.served(sandbox, calls) == Counter(calls)
    assert truth.most_in_any_period(sandbox, calls, PERIOD) <= LIMIT


@pytest.fixture(scope="module")
def wide(airflow: ObservedAirflow, sandbox: Sandbox, wanted: list[str]) -> list[str]:
    """Let three tasks run at once, because the pool has five slots, and return their calls."""
    airflow.wait("an idle quota", lambda: truth.is_idle(sandbox, PERIOD + 1))
    groups = [truth.add_calls(sandbox, f"wide-{n}", 8, START + timedelta(days=2 + n)) for n in range(3)]
    before = len(airflow.runs("mishap"))
    with wide_pool(airflow):
        for group in groups:
            airflow.trigger("mishap", call_ids=group)
        # Those that come at the same instant wait a minute and a half, and it may happen again.
        airflow.wait_for_runs("mishap", count=before + len(groups), patience=900)
    calls = [call_id for group in groups for call_id in group]
    wanted += calls
    return calls


def test_with_five_slots_in_the_pool_no_recording_is_lost_and_no_task_fails(
    wide: list[str], sandbox: Sandbox, archive: Path, wanted: list[str]
) -> None:
    truth.check_archive(sandbox, archive, wanted)
    assert truth.served(sandbox, wide) == Counter(wide)


def test_with_five_slots_in_the_pool_the_limit_holds(wide: list[str], sandbox: Sandbox) -> None:
    most = truth.most_in_any_period(sandbox, wide, PERIOD)
    print(f"\nfive slots: {len(truth.refused(truth.requests_of(sandbox, wide)))} refused, at most {most} in any period")
    assert most <= LIMIT


def test_when_the_ledger_is_garbled_nothing_is_sent_for_a_period_and_then_everything(
    airflow: ObservedAirflow, garbled: Sandbox, archives: Path
) -> None:
    airflow.wait_for_runs("garbled", count=1)
    calls = [str(call["id"]) for call in garbled.calls]
    truth.check_archive(garbled, archives / "garbled", calls)
    assert truth.times_asked(garbled, calls) == Counter(calls)
    assert not truth.refused(garbled.recording_requests())
    [run] = airflow.runs("garbled")
    assert min(entry.time for entry in garbled.recording_requests()) > run["start_date"].timestamp() + PERIOD
