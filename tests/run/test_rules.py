"""What a run has to do follows from the archive alone, so that a resume, a retry and a backfill agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest

from airflow_provider_amplemarket.archive.layout import Place
from airflow_provider_amplemarket.archive.sidecar import Attempt, Entry, Item, Sidecar, Status
from airflow_provider_amplemarket.run.recorder import first_failed_in
from airflow_provider_amplemarket.run.rules import Rules, attempt_of

NOW = pendulum.datetime(2026, 11, 23, 12)
LATER = NOW.add(days=1)
PLACE = Place("a.mp3", "a.json", "")
FIRST_TRY = Attempt("dag", "task", "run-1", -1, max_tries=2, try_number=1)
RETRY = replace(FIRST_TRY, try_number=2)
CLEARED = replace(FIRST_TRY, max_tries=3, try_number=2)
OTHERS = {
    "another DAG": replace(FIRST_TRY, dag_id="other"),
    "another task": replace(FIRST_TRY, task_id="other"),
    "another run": replace(FIRST_TRY, run_id="run-0"),
    "another map index": replace(FIRST_TRY, map_index=0),
    "before it was cleared": replace(FIRST_TRY, max_tries=1),
}
others = pytest.mark.parametrize("writer", OTHERS.values(), ids=OTHERS.keys())


def record(status: str, writer: Attempt = FIRST_TRY, **fields: Any) -> dict[str, Any]:
    """Make a sidecar as an attempt writes it."""
    return {"status": status, **asdict(writer), **({"size": 9} if status == Status.STORED else {}), **fields}


def item(
    sidecar: Mapping[str, Any] | None, size: int | None = None, start: str | None = "2026-11-20T00:00:00Z"
) -> Item:
    if sidecar is not None and sidecar["status"] == Status.STORED and size is None:
        size = 9
    return Item({"id": "a", "start_date": start}, Entry(PLACE, size, Sidecar.load(sidecar or {})))


def written_by(attempt: Attempt, sidecar: Mapping[str, Any], *, this_try: bool = False) -> bool:
    return Sidecar.load(sidecar).was_written_by(attempt, this_try=this_try)


def decided(
    of: Item,
    attempt: Attempt = FIRST_TRY,
    *,
    overwrite: bool = False,
    days: float = 2,
    now: pendulum.DateTime = LATER,
    insists: bool = False,
) -> str:
    rules = Rules(
        attempt=attempt,
        overwrite=overwrite,
        not_found_for=timedelta(days=days),
        give_up_after=timedelta(days=3),
        insists=insists,
    )
    return rules.status_of(of, now)


# --- Who asks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("map_index", "known"), [(None, -1), (-1, -1), (3, 3)])
def test_an_attempt_is_read_from_the_context(map_index: int | None, known: int) -> None:
    ti = SimpleNamespace(
        dag_id="dag", task_id="task", run_id="run-1", map_index=map_index, max_tries=2, try_number=1, hostname="h"
    )
    assert attempt_of({"ti": ti}) == replace(FIRST_TRY, map_index=known)


def test_a_retry_made_what_an_earlier_try_made_but_not_in_this_try() -> None:
    assert written_by(RETRY, record(Status.STORED))
    assert not written_by(RETRY, record(Status.STORED), this_try=True)
    assert written_by(RETRY, record(Status.STORED, RETRY), this_try=True)


@others
def test_an_attempt_did_not_make_what_others_made(writer: Attempt) -> None:
    assert not written_by(FIRST_TRY, record(Status.STORED, writer))
    assert not written_by(FIRST_TRY, {})


# --- What is with a call --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [None, 0, 9])
def test_without_sidecar_a_recording_is_missing(size: int | None, overwrite: bool) -> None:
    assert decided(item(None, size), overwrite=overwrite) == Status.PENDING


@pytest.mark.parametrize("attempt", [FIRST_TRY, RETRY])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_this_run_stored_is_stored_also_after_a_retry(attempt: Attempt, overwrite: bool) -> None:
    assert decided(item(record(Status.STORED)), attempt, overwrite=overwrite) == Status.STORED


@others
def test_what_others_stored_is_stored_already_and_asked_for_only_to_overwrite_it(writer: Attempt) -> None:
    assert decided(item(record(Status.STORED, writer))) == Status.ALREADY_STORED
    assert decided(item(record(Status.STORED, writer)), overwrite=True) == Status.PENDING


@pytest.mark.parametrize("writer", [FIRST_TRY, OTHERS["another run"]])
@pytest.mark.parametrize("size", [0, 8, 10])
def test_audio_that_is_not_what_the_sidecar_says_is_missing(size: int, writer: Attempt) -> None:
    assert decided(item(record(Status.STORED, writer), size)) == Status.PENDING


@pytest.mark.parametrize("writer", [FIRST_TRY, OTHERS["another run"]])
def test_a_sidecar_whose_audio_is_gone_is_missing(writer: Attempt) -> None:
    gone = Item({"id": "a"}, Entry(PLACE, None, Sidecar.load(record(Status.STORED, writer))))
    assert decided(gone) == Status.PENDING


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [None, 9])
def test_what_was_deleted_for_good_is_never_asked_for(size: int | None, overwrite: bool) -> None:
    assert decided(item(record(Status.DELETED), size), overwrite=overwrite) == Status.DELETED
    assert decided(item({"status": Status.DELETED}, size), overwrite=overwrite) == Status.DELETED


@pytest.mark.parametrize("attempt", [FIRST_TRY, RETRY])
@pytest.mark.parametrize("status", [Status.NOT_FOUND, Status.TOO_LARGE])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_this_run_did_not_get_is_not_asked_for_twice(attempt: Attempt, status: str, overwrite: bool) -> None:
    assert decided(item(record(status)), attempt, overwrite=overwrite) == status


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_failed_in_this_try_is_left_for_the_next_one(overwrite: bool) -> None:
    assert decided(item(record(Status.FAILED)), overwrite=overwrite) == Status.FAILED
    assert decided(item(record(Status.FAILED)), RETRY, overwrite=overwrite) == Status.PENDING
    assert decided(item(record(Status.FAILED)), CLEARED, overwrite=overwrite) == Status.PENDING


@others
def test_what_failed_for_others_is_asked_for(writer: Attempt) -> None:
    assert decided(item(record(Status.FAILED, writer))) == Status.PENDING


@others
def test_too_large_is_final_but_for_overwriting(writer: Attempt) -> None:
    assert decided(item(record(Status.TOO_LARGE, writer))) == Status.TOO_LARGE
    assert decided(item(record(Status.TOO_LARGE, writer)), overwrite=True) == Status.PENDING


@others
def test_not_found_is_asked_for_again_until_the_call_is_old(writer: Attempt) -> None:
    call = item(record(Status.NOT_FOUND, writer, answered_at="2026-11-23T12:00:00+00:00"), start="2026-11-20T12:00:00Z")
    assert decided(call, days=3) == Status.PENDING
    assert decided(call, days=2.999) == Status.NOT_FOUND
    assert decided(call, days=0) == Status.NOT_FOUND
    assert decided(call, days=0, overwrite=True) == Status.PENDING


@pytest.mark.parametrize("answered_at", ["2026-11-20T13:00:00+00:00", None])
def test_not_found_is_not_final_by_waiting_alone(answered_at: str | None) -> None:
    call = item(record(Status.NOT_FOUND, OTHERS["another run"], answered_at=answered_at), start="2026-11-20T12:00:00Z")
    assert decided(call, days=0.5) == Status.PENDING


@pytest.mark.parametrize(
    ("first_requested_at", "status"),
    [
        ("2026-11-20T12:00:00+00:00", Status.NOT_FOUND),
        ("2026-11-22T12:00:00+00:00", Status.PENDING),
        (None, Status.PENDING),
        ("x", Status.PENDING),
    ],
)
def test_an_undated_call_is_old_after_its_first_request(first_requested_at: str | None, status: str) -> None:
    times = {"first_requested_at": first_requested_at, "answered_at": "2026-11-23T12:00:00+00:00"}
    sidecar = record(Status.NOT_FOUND, OTHERS["another run"], **times)
    assert decided(item(sidecar, start=None)) == status


def test_the_sidecar_knows_the_start_that_the_list_does_not() -> None:
    times = {"start_date": "2026-11-20T12:00:00+00:00", "answered_at": "2026-11-23T12:00:00+00:00"}
    sidecar = record(Status.NOT_FOUND, OTHERS["another run"], **times)
    undated = Item({"id": "a"}, Entry(PLACE, None, Sidecar.load(sidecar)))
    assert undated.start == pendulum.datetime(2026, 11, 20, 12)
    assert decided(undated) == Status.NOT_FOUND


def not_found(requests: Any, hours: float, start: str = "2026-11-23T00:00:00Z", **fields: Any) -> Item:
    """A call of this morning that was not found so many times, the last time so many hours before NOW."""
    answered_at = NOW.subtract(seconds=3600 * hours).isoformat()
    sidecar = record(Status.NOT_FOUND, OTHERS["another run"], answered_at=answered_at, requests=requests, **fields)
    return item(sidecar, start=start)


@pytest.mark.parametrize(("requests", "hours"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32)])
def test_not_found_is_asked_again_after_a_pause_that_doubles(requests: int, hours: float) -> None:
    assert decided(not_found(requests, hours - 0.01), now=NOW) == Status.NOT_FOUND
    assert decided(not_found(requests, hours), now=NOW) == Status.PENDING


@pytest.mark.parametrize("requests", [None, 0, -3, True, "2", 1.5, [2]])
def test_a_sidecar_that_does_not_tell_the_number_of_requests_has_had_one(requests: Any) -> None:
    assert decided(not_found(requests, 0.99), now=NOW) == Status.NOT_FOUND
    assert decided(not_found(requests, 1), now=NOW) == Status.PENDING


def test_any_number_of_requests_has_a_pause() -> None:
    assert decided(not_found(10**9, 24 * 365 * 7), now=NOW) == Status.NOT_FOUND


def test_the_last_time_does_not_wait_for_its_turn() -> None:
    """Once more when the call is old enough; that answer is final."""
    call = not_found(5, 1, start="2026-11-21T12:00:00Z")
    assert decided(call, now=NOW) == Status.NOT_FOUND
    assert decided(call, now=NOW.add(seconds=1)) == Status.PENDING
    asked = not_found(6, -0.01, start="2026-11-21T12:00:00Z")
    assert decided(asked, now=NOW.add(years=1)) == Status.NOT_FOUND


def test_who_insists_does_not_wait_but_for_what_is_final() -> None:
    assert decided(not_found(5, 1), now=NOW, insists=True) == Status.PENDING
    assert decided(not_found(5, 1), now=NOW, overwrite=True) == Status.PENDING
    assert decided(not_found(5, 1, start="2026-11-20T12:00:00Z"), now=NOW, insists=True) == Status.NOT_FOUND


def test_who_insists_asks_once() -> None:
    assert (
        decided(item(record(Status.NOT_FOUND, answered_at=NOW.isoformat())), now=NOW, insists=True) == Status.NOT_FOUND
    )
    assert decided(item(record(Status.GIVEN_UP)), RETRY, insists=True) == Status.GIVEN_UP


@others
def test_what_was_given_up_is_final_unless_somebody_insists(writer: Attempt) -> None:
    assert decided(item(record(Status.GIVEN_UP, writer)), now=NOW.add(years=1)) == Status.GIVEN_UP
    assert decided(item(record(Status.GIVEN_UP, writer)), insists=True) == Status.PENDING
    assert decided(item(record(Status.GIVEN_UP, writer)), overwrite=True) == Status.PENDING


@pytest.mark.parametrize("status", [Status.NOT_FOUND, Status.GIVEN_UP])
def test_audio_that_came_without_its_sidecar_is_not_left_alone(status: str) -> None:
    sidecar = record(status, OTHERS["another run"], answered_at=NOW.isoformat())
    assert decided(item(sidecar, 9), now=NOW) == Status.PENDING
    assert decided(item({**sidecar, "audio_size": 9}, 9), now=NOW) == status


# --- Giving up ------------------------------------------------------------------------------------------------------

FIRST_RUN = {"dag_id": "dag", "run_id": "run-0"}


def gives(last: Mapping[str, Any] | None, days: float = 3, attempt: Attempt = FIRST_TRY) -> bool:
    rules = Rules(
        attempt=attempt,
        overwrite=False,
        not_found_for=timedelta(days=2),
        give_up_after=timedelta(days=days),
        insists=False,
    )
    return rules.gives_up(item(last), NOW)


def failed(
    days: float, writer: Attempt = FIRST_TRY, first: Any = FIRST_RUN, status: str = Status.FAILED
) -> dict[str, Any]:
    """A sidecar of a call that was first asked for so many days before NOW."""
    return record(status, writer, first_requested_at=NOW.subtract(days=days).isoformat(), first_failed_in=first)


def test_a_failure_is_given_up_when_it_has_lasted() -> None:
    assert gives(failed(3))
    assert not gives(failed(2.99))
    assert gives(failed(2.99), days=2.99)


@pytest.mark.parametrize(
    "last", [None, record(Status.NOT_FOUND), record(Status.TOO_LARGE), {**failed(9), "status": Status.NOT_FOUND}]
)
def test_a_first_failure_is_never_given_up(last: Mapping[str, Any] | None) -> None:
    assert not gives(last, days=0)


@pytest.mark.parametrize("attempt", [FIRST_TRY, RETRY, CLEARED, replace(FIRST_TRY, task_id="other", map_index=3)])
def test_one_run_gives_nothing_up_however_often_it_asks(attempt: Attempt) -> None:
    assert not gives(failed(9, first=attempt.run), days=0, attempt=attempt)


@pytest.mark.parametrize("writer", [OTHERS["another run"], OTHERS["another DAG"]])
def test_with_nothing_to_wait_for_the_second_run_gives_up(writer: Attempt) -> None:
    assert gives(failed(0, writer, first=writer.run), days=0)


def test_older_sidecars_name_no_first_run_but_their_own() -> None:
    last = failed(3, OTHERS["another run"])
    del last["first_failed_in"]
    assert gives(last)
    assert not gives({**last, **asdict(FIRST_TRY)})


def test_what_was_given_up_is_given_up_again() -> None:
    assert gives(failed(0, status=Status.GIVEN_UP, first=FIRST_TRY.run))


@pytest.mark.parametrize("timestamp", [None, "x", 7])
def test_without_a_timestamp_nothing_is_given_up(timestamp: Any) -> None:
    assert not gives({**failed(9), "first_requested_at": timestamp}, days=0)


def test_attempts_to_overwrite_are_given_up_too() -> None:
    assert gives(record(Status.STORED, overwrite=failed(3)))
    assert not gives(record(Status.STORED, overwrite=failed(2)))


@pytest.mark.parametrize(
    ("last", "first"),
    [
        (None, FIRST_TRY.run),
        (record(Status.NOT_FOUND, OTHERS["another run"]), FIRST_TRY.run),
        (failed(1), FIRST_RUN),
        (failed(1, status=Status.GIVEN_UP), FIRST_RUN),
        (record(Status.FAILED, OTHERS["another DAG"]), {"dag_id": "other", "run_id": "run-1", "max_tries": 2}),
    ],
)
def test_the_first_run_that_failed_is_kept(last: Mapping[str, Any] | None, first: Any) -> None:
    assert first_failed_in(item(last), FIRST_TRY) == first


@pytest.mark.parametrize("status", ["", "else", None, 7, ["stored"]])
def test_a_status_that_is_not_known_is_missing(status: Any) -> None:
    assert decided(item({"status": status})) == Status.PENDING
    assert decided(item(record(status))) == Status.PENDING


@pytest.mark.parametrize(
    ("status", "then"),
    [(Status.FAILED, Status.PENDING), (Status.NOT_FOUND, Status.NOT_FOUND), (Status.TOO_LARGE, Status.TOO_LARGE)],
)
def test_overwriting_that_did_not_succeed_is_not_tried_again_by_this_try(status: str, then: str) -> None:
    stored = item(record(Status.STORED, OTHERS["another run"], overwrite=record(status)))
    assert stored.last == Sidecar.load(record(status))
    assert decided(stored, overwrite=True) == status
    assert decided(stored, RETRY, overwrite=True) == then
    assert decided(stored) == Status.ALREADY_STORED


@others
def test_overwriting_that_did_not_succeed_for_others_is_tried(writer: Attempt) -> None:
    stored = item(record(Status.STORED, FIRST_TRY, overwrite=record(Status.NOT_FOUND, writer)))
    assert decided(stored, overwrite=True) == Status.PENDING
    assert decided(stored) == Status.STORED


@pytest.mark.parametrize("odd", [None, "not_found", 7, [1]])
def test_an_odd_overwrite_field_is_ignored(odd: Any) -> None:
    sidecar = record(Status.STORED, overwrite=odd)
    found = item(sidecar)
    assert found.last is found.sidecar


def test_without_sidecar_there_was_no_last_request() -> None:
    assert item(None).last == Sidecar()
