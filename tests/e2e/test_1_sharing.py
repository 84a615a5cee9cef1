"""Many DAGs, runs and mapped tasks share one key: nothing is asked for twice, and the limit holds."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from dev.observed import ObservedAirflow, Row
from dev.watch import Watch
from tests.e2e import truth
from tests.e2e.conftest import LIMIT, POOL

pytestmark = pytest.mark.e2e

#: The backfill's five, and the one for the day before this, which the schedule makes of its own accord.
HISTORY_RUNS = 5 + 1
DAGS = ("history", "overlapping", "picked", "urgent")
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def day(ago: int) -> datetime:
    """Return the midnight so many days ago."""
    return MIDNIGHT - timedelta(days=ago)


@dataclass
class Sharing:
    """What the DAGs were to archive, and what was seen meanwhile."""

    wanted: list[str]
    urgent: list[str]
    archive: Path
    samples: list[tuple[float, list[Row]]]

    def urgent_since(self) -> float:
        """Return when the urgent task was first seen to be due."""
        due = [seen for seen, rows in self.samples if any(row["dag_id"] == "urgent" and row["state"] for row in rows)]
        return due[0]


@pytest.fixture(scope="module")
def sharing(airflow: ObservedAirflow, sandbox: Sandbox, archives: Path) -> Sharing:
    """Let everything run at once: a backfill, overlapping windows, mapped tasks, and a late urgent run."""
    history = [id for ago in range(9, 4, -1) for id in truth.add_calls(sandbox, f"history-{ago}", 6, day(ago))]
    overlapping = [id for ago in (4, 3) for id in truth.add_calls(sandbox, f"overlapping-{ago}", 6, day(ago))]
    picked = truth.add_calls(sandbox, "picked", 12, day(20))
    urgent = truth.add_calls(sandbox, "urgent", 6, day(2))
    sandbox.add_calls(
        make_call(id="external", start_date=day(5), external=True),
        make_call(id="silent", start_date=day(5), duration=0, answered=False),
    )

    def look() -> tuple[float, list[Row]]:
        query = "SELECT dag_id, state FROM task_instance WHERE task_id = 'archive' AND dag_id = ANY(%s)"
        return time.time(), airflow.db.rows(query, list(DAGS))

    with Watch(look) as watch:
        airflow.unpause(*DAGS)
        period = ["--from-date", day(9).isoformat(), "--to-date", day(5).isoformat()]
        airflow.cli("backfill", "create", "--dag-id", "history", "--max-active-runs", "5", *period)
        for start, end in ((4, 2), (3, 2), (5, 3)):
            airflow.trigger("overlapping", start=day(start).isoformat(), end=day(end).isoformat())
        for _ in range(2):
            airflow.trigger("picked", lists=[picked[:6], picked[4:9] + history[:2], picked[8:]])
        airflow.wait("some recordings", lambda: len(truth.requests_of(sandbox, history)) > LIMIT)
        airflow.trigger("urgent", start=day(2).isoformat(), end=day(1).isoformat())
        airflow.wait_for_runs(*DAGS, count=HISTORY_RUNS + 3 + 2 + 1)
    airflow.pause(*DAGS)
    return Sharing([*history, *overlapping, *picked, *urgent], urgent, archives / "sharing", watch.seen)


def test_every_recording_is_archived_once_with_one_request_and_never_more_than_the_limit(
    sharing: Sharing, sandbox: Sandbox, airflow: ObservedAirflow
) -> None:
    truth.check_archive(sandbox, sharing.archive, sharing.wanted)
    assert truth.times_asked(sandbox, sharing.wanted) == Counter(sharing.wanted)
    assert not truth.refused(sandbox.recording_requests())
    assert sandbox.most_in_any_period() <= LIMIT
    # The summaries of the tasks add up to the same.
    summaries = airflow.xcoms("summary", *DAGS)
    assert len(summaries) == HISTORY_RUNS + 3 + 2 * 3 + 1
    assert sum(summary["stored"] for summary in summaries) == len(sharing.wanted)
    assert sum(summary["permits_spent"] for summary in summaries) == len(sharing.wanted)


def test_nothing_is_asked_for_that_is_not_wanted(sharing: Sharing, sandbox: Sandbox) -> None:
    assert {entry.call_id for entry in sandbox.recording_requests()} == set(sharing.wanted)


def test_the_pool_is_there_from_the_start_and_one_task_at_a_time_holds_it(
    sharing: Sharing, airflow: ObservedAirflow
) -> None:
    [pool] = airflow.db.rows("SELECT slots, include_deferred FROM slot_pool WHERE pool = %s", POOL)
    assert pool == {"slots": 1, "include_deferred": True}
    holding = ("queued", "running", "restarting", "deferred")
    assert max(sum(row["state"] in holding for row in rows) for _, rows in sharing.samples) == 1


def test_a_task_that_waits_for_the_quota_is_deferred(sharing: Sharing) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    for (began, rows), (ended, _) in itertools.pairwise(sharing.samples):
        for state in {row["state"] for row in rows}:
            seconds[state] += ended - began
    print(
        f"\nworker seconds per recording: {seconds['running'] / len(sharing.wanted):.2f}; in all "
        f"{seconds['running']:.0f} s running, {seconds['deferred']:.0f} s deferred, "
        f"{sharing.samples[-1][0] - sharing.samples[0][0]:.0f} s from the first to the last"
    )
    assert seconds["deferred"]


def test_an_urgent_run_that_comes_after_a_long_backfill_gets_the_next_free_permits(
    sharing: Sharing, sandbox: Sandbox, airflow: ObservedAirflow
) -> None:
    since = sharing.urgent_since()
    later = [str(entry.call_id) for entry in truth.requests_of(sandbox, sharing.wanted) if entry.time > since]
    positions = [position for position, call_id in enumerate(later) if call_id in sharing.urgent]
    # Once it has its turn nobody comes between, though it may wait for the quota meanwhile.
    assert positions == list(range(positions[0], positions[0] + len(sharing.urgent)))
    before = {truth.sidecar(sharing.archive, call_id)["run_id"] for call_id in later[: positions[0]]}
    print(f"\n{positions[0]} requests, all of {len(before)} task, before the urgent ones; {len(later)} in all after")
    # Only the task whose turn it was may use the permits that were its own already.
    assert len(before) <= 1
    assert len(later) - positions[-1] > LIMIT
