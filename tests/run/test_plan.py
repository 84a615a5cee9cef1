"""What a run has to do follows from the archive alone, so that a resume, a retry and a backfill agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest

from airflow_provider_amplemarket.archive.layout import Place
from airflow_provider_amplemarket.archive.store import Entry
from airflow_provider_amplemarket.run.plan import (
    ALREADY_STORED,
    DELETED,
    EXTERNAL,
    FAILED,
    GIVEN_UP,
    MISSING,
    NOT_FOUND,
    NOT_SELECTED,
    STATUSES,
    STORED,
    TOO_LARGE,
    Attempt,
    Item,
    Plan,
    decide,
    first_failed_in,
    gives_up,
)

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
    return {"status": status, **asdict(writer), **({"size": 9} if status == STORED else {}), **fields}


def item(
    sidecar: Mapping[str, Any] | None, size: int | None = None, start: str | None = "2026-11-20T00:00:00Z"
) -> Item:
    if sidecar is not None and sidecar["status"] == STORED and size is None:
        size = 9
    return Item({"id": "a", "start_date": start}, Entry(PLACE, size, sidecar))


def decided(
    of: Item,
    attempt: Attempt = FIRST_TRY,
    *,
    overwrite: bool = False,
    days: float = 2,
    now: pendulum.DateTime = LATER,
    insists: bool = False,
) -> str:
    return decide(of, attempt, overwrite=overwrite, not_found_for=timedelta(days=days), now=now, insists=insists)


# --- Who asks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("map_index", "known"), [(None, -1), (-1, -1), (3, 3)])
def test_an_attempt_is_read_from_the_context(map_index: int | None, known: int) -> None:
    ti = SimpleNamespace(
        dag_id="dag", task_id="task", run_id="run-1", map_index=map_index, max_tries=2, try_number=1, hostname="h"
    )
    assert Attempt.of({"ti": ti}) == replace(FIRST_TRY, map_index=known)


def test_a_retry_made_what_an_earlier_try_made_but_not_in_this_try() -> None:
    assert RETRY.made(record(STORED))
    assert not RETRY.made(record(STORED), this_try=True)
    assert RETRY.made(record(STORED, RETRY), this_try=True)


@others
def test_an_attempt_did_not_make_what_others_made(writer: Attempt) -> None:
    assert not FIRST_TRY.made(record(STORED, writer))
    assert not FIRST_TRY.made({})


# --- What is with a call --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [None, 0, 9])
def test_without_sidecar_a_recording_is_missing(size: int | None, overwrite: bool) -> None:
    assert decided(item(None, size), overwrite=overwrite) == MISSING


@pytest.mark.parametrize("attempt", [FIRST_TRY, RETRY])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_this_run_stored_is_stored_also_after_a_retry(attempt: Attempt, overwrite: bool) -> None:
    assert decided(item(record(STORED)), attempt, overwrite=overwrite) == STORED


@others
def test_what_others_stored_is_stored_already_and_asked_for_only_to_overwrite_it(writer: Attempt) -> None:
    assert decided(item(record(STORED, writer))) == ALREADY_STORED
    assert decided(item(record(STORED, writer)), overwrite=True) == MISSING


@pytest.mark.parametrize("writer", [FIRST_TRY, OTHERS["another run"]])
@pytest.mark.parametrize("size", [0, 8, 10])
def test_audio_that_is_not_what_the_sidecar_says_is_missing(size: int, writer: Attempt) -> None:
    assert decided(item(record(STORED, writer), size)) == MISSING


@pytest.mark.parametrize("writer", [FIRST_TRY, OTHERS["another run"]])
def test_a_sidecar_whose_audio_is_gone_is_missing(writer: Attempt) -> None:
    gone = Item({"id": "a"}, Entry(PLACE, None, record(STORED, writer)))
    assert decided(gone) == MISSING


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [None, 9])
def test_what_was_deleted_for_good_is_never_asked_for(size: int | None, overwrite: bool) -> None:
    assert decided(item(record(DELETED), size), overwrite=overwrite) == DELETED
    assert decided(item({"status": DELETED}, size), overwrite=overwrite) == DELETED


@pytest.mark.parametrize("attempt", [FIRST_TRY, RETRY])
@pytest.mark.parametrize("status", [NOT_FOUND, TOO_LARGE])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_this_run_did_not_get_is_not_asked_for_twice(attempt: Attempt, status: str, overwrite: bool) -> None:
    assert decided(item(record(status)), attempt, overwrite=overwrite) == status


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_failed_in_this_try_is_left_for_the_next_one(overwrite: bool) -> None:
    assert decided(item(record(FAILED)), overwrite=overwrite) == FAILED
    assert decided(item(record(FAILED)), RETRY, overwrite=overwrite) == MISSING
    assert decided(item(record(FAILED)), CLEARED, overwrite=overwrite) == MISSING


@others
def test_what_failed_for_others_is_asked_for(writer: Attempt) -> None:
    assert decided(item(record(FAILED, writer))) == MISSING


@others
def test_too_large_is_final_but_for_overwriting(writer: Attempt) -> None:
    assert decided(item(record(TOO_LARGE, writer))) == TOO_LARGE
    assert decided(item(record(TOO_LARGE, writer)), overwrite=True) == MISSING


@others
def test_not_found_is_asked_for_again_until_the_call_is_old(writer: Attempt) -> None:
    call = item(record(NOT_FOUND, writer, answered_at="2026-11-23T12:00:00+00:00"), start="2026-11-20T12:00:00Z")
    assert decided(call, days=3) == MISSING
    assert decided(call, days=2.999) == NOT_FOUND
    assert decided(call, days=0) == NOT_FOUND
    assert decided(call, days=0, overwrite=True) == MISSING


@pytest.mark.parametrize("answered_at", ["2026-11-20T13:00:00+00:00", None])
def test_not_found_is_not_final_by_waiting_alone(answered_at: str | None) -> None:
    call = item(record(NOT_FOUND, OTHERS["another run"], answered_at=answered_at), start="2026-11-20T12:00:00Z")
    assert decided(call, days=0.5) == MISSING


@pytest.mark.parametrize(
    ("first_requested_at", "status"),
    [("2026-11-20T12:00:00+00:00", NOT_FOUND), ("2026-11-22T12:00:00+00:00", MISSING), (None, MISSING), ("x", MISSING)],
)
def test_an_undated_call_is_old_after_its_first_request(first_requested_at: str | None, status: str) -> None:
    times = {"first_requested_at": first_requested_at, "answered_at": "2026-11-23T12:00:00+00:00"}
    sidecar = record(NOT_FOUND, OTHERS["another run"], **times)
    assert decided(item(sidecar, start=None)) == status


def test_the_sidecar_knows_the_start_that_the_list_does_not() -> None:
    times = {"start_date": "2026-11-20T12:00:00+00:00", "answered_at": "2026-11-23T12:00:00+00:00"}
    sidecar = record(NOT_FOUND, OTHERS["another run"], **times)
    undated = Item({"id": "a"}, Entry(PLACE, None, sidecar))
    assert undated.start == pendulum.datetime(2026, 11, 20, 12)
    assert decided(undated) == NOT_FOUND


def not_found(requests: Any, hours: float, start: str = "2026-11-23T00:00:00Z", **fields: Any) -> Item:
    """A call of this morning that was not found so many times, the last time so many hours before NOW."""
    answered_at = NOW.subtract(seconds=3600 * hours).isoformat()
    sidecar = record(NOT_FOUND, OTHERS["another run"], answered_at=answered_at, requests=requests, **fields)
    return item(sidecar, start=start)


@pytest.mark.parametrize(("requests", "hours"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32)])
def test_not_found_is_asked_again_after_a_pause_that_doubles(requests: int, hours: float) -> None:
    assert decided(not_found(requests, hours - 0.01), now=NOW) == NOT_FOUND
    assert decided(not_found(requests, hours), now=NOW) == MISSING


@pytest.mark.parametrize("requests", [None, 0, -3, True, "2", 1.5, [2]])
def test_a_sidecar_that_does_not_tell_the_number_of_requests_has_had_one(requests: Any) -> None:
    assert decided(not_found(requests, 0.99), now=NOW) == NOT_FOUND
    assert decided(not_found(requests, 1), now=NOW) == MISSING


def test_any_number_of_requests_has_a_pause() -> None:
    assert decided(not_found(10**9, 24 * 365 * 7), now=NOW) == NOT_FOUND


def test_the_last_time_does_not_wait_for_its_turn() -> None:
    """Once more when the call is old enough; that answer is final."""
    call = not_found(5, 1, start="2026-11-21T12:00:00Z")
    assert decided(call, now=NOW) == NOT_FOUND
    assert decided(call, now=NOW.add(seconds=1)) == MISSING
    asked = not_found(6, -0.01, start="2026-11-21T12:00:00Z")
    assert decided(asked, now=NOW.add(years=1)) == NOT_FOUND


def test_who_insists_does_not_wait_but_for_what_is_final() -> None:
    assert decided(not_found(5, 1), now=NOW, insists=True) == MISSING
    assert decided(not_found(5, 1), now=NOW, overwrite=True) == MISSING
    assert decided(not_found(5, 1, start="2026-11-20T12:00:00Z"), now=NOW, insists=True) == NOT_FOUND


def test_who_insists_asks_once() -> None:
    assert decided(item(record(NOT_FOUND, answered_at=NOW.isoformat())), now=NOW, insists=True) == NOT_FOUND
    assert decided(item(record(GIVEN_UP)), RETRY, insists=True) == GIVEN_UP


@others
def test_what_was_given_up_is_final_unless_somebody_insists(writer: Attempt) -> None:
    assert decided(item(record(GIVEN_UP, writer)), now=NOW.add(years=1)) == GIVEN_UP
    assert decided(item(record(GIVEN_UP, writer)), insists=True) == MISSING
    assert decided(item(record(GIVEN_UP, writer)), overwrite=True) == MISSING


@pytest.mark.parametrize("status", [NOT_FOUND, GIVEN_UP])
def test_audio_that_came_without_its_sidecar_is_not_left_alone(status: str) -> None:
    sidecar = record(status, OTHERS["another run"], answered_at=NOW.isoformat())
    assert decided(item(sidecar, 9), now=NOW) == MISSING
    assert decided(item({**sidecar, "audio_size": 9}, 9), now=NOW) == status


# --- Giving up ------------------------------------------------------------------------------------------------------

FIRST_RUN = {"dag_id": "dag", "run_id": "run-0"}


def gives(last: Mapping[str, Any] | None, days: float = 3, attempt: Attempt = FIRST_TRY) -> bool:
    return gives_up(item(last), attempt, after=timedelta(days=days), now=NOW)


def failed(days: float, writer: Attempt = FIRST_TRY, first: Any = FIRST_RUN, status: str = FAILED) -> dict[str, Any]:
    """A sidecar of a call that was first asked for so many days before NOW."""
    return record(status, writer, first_requested_at=NOW.subtract(days=days).isoformat(), first_failed_in=first)


def test_a_failure_is_given_up_when_it_has_lasted() -> None:
    assert gives(failed(3))
    assert not gives(failed(2.99))
    assert gives(failed(2.99), days=2.99)


@pytest.mark.parametrize("last", [None, record(NOT_FOUND), record(TOO_LARGE), {**failed(9), "status": NOT_FOUND}])
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
    assert gives(failed(0, status=GIVEN_UP, first=FIRST_TRY.run))


@pytest.mark.parametrize("moment", [None, "x", 7])
def test_without_a_moment_nothing_is_given_up(moment: Any) -> None:
    assert not gives({**failed(9), "first_requested_at": moment}, days=0)


def test_attempts_to_overwrite_are_given_up_too() -> None:
    assert gives(record(STORED, overwrite=failed(3)))
    assert not gives(record(STORED, overwrite=failed(2)))


@pytest.mark.parametrize(
    ("last", "first"),
    [
        (None, FIRST_TRY.run),
        (record(NOT_FOUND, OTHERS["another run"]), FIRST_TRY.run),
        (failed(1), FIRST_RUN),
        (failed(1, status=GIVEN_UP), FIRST_RUN),
        (record(FAILED, OTHERS["another DAG"]), {"dag_id": "other", "run_id": "run-1", "max_tries": 2}),
    ],
)
def test_the_first_run_that_failed_is_kept(last: Mapping[str, Any] | None, first: Any) -> None:
    assert first_failed_in(item(last), FIRST_TRY) == first


@pytest.mark.parametrize("status", ["", "else", None, 7, ["stored"]])
def test_a_status_that_is_not_known_is_missing(status: Any) -> None:
    assert decided(item({"status": status})) == MISSING
    assert decided(item(record(status))) == MISSING


@pytest.mark.parametrize(("status", "then"), [(FAILED, MISSING), (NOT_FOUND, NOT_FOUND), (TOO_LARGE, TOO_LARGE)])
def test_overwriting_that_did_not_succeed_is_not_tried_again_by_this_try(status: str, then: str) -> None:
    stored = item(record(STORED, OTHERS["another run"], overwrite=record(status)))
    assert stored.last_record == record(status)
    assert decided(stored, overwrite=True) == status
    assert decided(stored, RETRY, overwrite=True) == then
    assert decided(stored) == ALREADY_STORED


@others
def test_overwriting_that_did_not_succeed_for_others_is_tried(writer: Attempt) -> None:
    stored = item(record(STORED, FIRST_TRY, overwrite=record(NOT_FOUND, writer)))
    assert decided(stored, overwrite=True) == MISSING
    assert decided(stored) == STORED


@pytest.mark.parametrize("odd", [None, "not_found", 7, [1]])
def test_an_odd_overwrite_field_is_ignored(odd: Any) -> None:
    sidecar = record(STORED, overwrite=odd)
    assert item(sidecar).last_record is sidecar


def test_without_sidecar_there_is_no_last_record() -> None:
    assert item(None).last_record is None


# --- The plan -------------------------------------------------------------------------------------------------------


def call(call_id: str, start: str | None, **fields: Any) -> Item:
    return Item({"id": call_id, "start_date": start}, Entry(PLACE, None, fields or None))


def test_what_is_to_be_done_comes_oldest_first_and_undated_last() -> None:
    plan = Plan()
    rows = {
        "late": "2026-11-20T10:00:00Z",
        "undated-b": None,
        "early": "2026-11-20T10:30:00+02:00",
        "b": "2026-11-19T00:00:00Z",
        "undated-a": "soon",
        "a": "2026-11-19T00:00:00Z",
    }
    for call_id, start in rows.items():
        plan.set(call(call_id, start), MISSING)
    plan.set(call("done", "2026-11-18T00:00:00Z"), STORED)
    undated = ["undated-a", "undated-b"]
    assert [found.call_id for found in plan.having(MISSING)] == ["a", "b", "early", "late", *undated]
    assert [found.call_id for found in plan.having(MISSING, STORED)] == ["done", "a", "b", "early", "late", *undated]
    assert plan.having(FAILED) == []
    assert plan.having() == []


def test_what_was_never_asked_for_comes_first_and_what_failed_last() -> None:
    plan = Plan()
    statuses = {"a": FAILED, "b": NOT_FOUND, "c": None, "d": GIVEN_UP, "e": NOT_FOUND, "f": None, "g": FAILED}
    for number, (call_id, status) in enumerate(statuses.items()):
        fields = {"status": status} if status else {}
        plan.set(call(call_id, f"2026-11-{10 + number}T00:00:00Z", **fields), MISSING)
    overwritten = call("h", "2026-11-01T00:00:00Z", status=STORED, overwrite={"status": FAILED})
    plan.set(overwritten, MISSING)
    plan.set(call("done", "2026-11-01T00:00:00Z", status=STORED), ALREADY_STORED)
    assert [found.call_id for found in plan.queue()] == ["c", "f", "b", "e", "h", "a", "d", "g"]


def test_fractions_of_a_second_do_not_disturb_the_order() -> None:
    plan = Plan()
    for call_id, start in {"c": "10:00:01Z", "b": "10:00:00.5Z", "a": "10:00:00Z"}.items():
        plan.set(call(call_id, f"2026-11-20T{start}"), MISSING)
    assert [found.call_id for found in plan.having(MISSING)] == ["a", "b", "c"]


def test_the_last_status_of_a_call_counts() -> None:
    plan = Plan()
    plan.set(call("a", None), MISSING)
    done = call("a", None, status=STORED)
    plan.set(done, STORED)
    assert plan.having(MISSING) == []
    assert plan.having(STORED) == [done]


def test_every_call_is_counted_once_and_every_status_is_named() -> None:
    plan = Plan(others=Counter({EXTERNAL: 3, NOT_SELECTED: 2}), hopeless={"../x": "its id is not a plain token"})
    wanted = [STORED, STORED, ALREADY_STORED, NOT_FOUND, TOO_LARGE, GIVEN_UP, DELETED, FAILED, MISSING]
    for number, status in enumerate(wanted):
        plan.set(call(str(number), None), status)
    assert plan.counts() == {
        STORED: 2,
        ALREADY_STORED: 1,
        NOT_FOUND: 1,
        TOO_LARGE: 1,
        GIVEN_UP: 1,
        EXTERNAL: 3,
        NOT_SELECTED: 2,
        DELETED: 1,
        FAILED: 2,
    }
    assert Plan().counts() == dict.fromkeys(STATUSES, 0)


def test_failures_come_with_their_reasons() -> None:
    plan = Plan(hopeless={"../x": "its id is not a plain token"})
    plan.set(call("new", None, status=FAILED, error="the body is empty"), FAILED)
    plan.set(call("old", None, status=STORED, overwrite={"status": FAILED, "error": "answered 500"}), FAILED)
    plan.set(call("gone", None, status=NOT_FOUND, error="answered 404"), NOT_FOUND)
    plan.set(call("bare", None), FAILED)
    assert plan.failures() == {
        "../x": "its id is not a plain token",
        "new": "the body is empty",
        "old": "answered 500",
        "bare": "None",
    }
