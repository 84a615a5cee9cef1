"""What a run has to do, and in which order."""

from __future__ import annotations

from collections import Counter
from typing import Any

from airflow_provider_amplemarket.archive.layout import Place
from airflow_provider_amplemarket.archive.sidecar import Entry, Item, Sidecar, Status
from airflow_provider_amplemarket.run.plan import OUTCOMES, Plan

PLACE = Place("a.mp3", "a.json", "")


def call(call_id: str, start: str | None, **fields: Any) -> Item:
    return Item({"id": call_id, "start_date": start}, Entry(PLACE, None, Sidecar.load(fields)))


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
        plan = plan.with_results([(call(call_id, start), Status.PENDING)])
    plan = plan.with_results([(call("done", "2026-11-18T00:00:00Z"), Status.STORED)])
    undated = ["undated-a", "undated-b"]
    assert [found.call_id for found in plan.items_with(Status.PENDING)] == ["a", "b", "early", "late", *undated]
    assert [found.call_id for found in plan.items_with(Status.PENDING, Status.STORED)] == [
        "done",
        "a",
        "b",
        "early",
        "late",
        *undated,
    ]
    assert plan.items_with(Status.FAILED) == []
    assert plan.items_with() == []


def test_what_was_never_asked_for_comes_first_and_what_failed_last() -> None:
    plan = Plan()
    statuses = {
        "a": Status.FAILED,
        "b": Status.NOT_FOUND,
        "c": None,
        "d": Status.GIVEN_UP,
        "e": Status.NOT_FOUND,
        "f": None,
        "g": Status.FAILED,
    }
    for number, (call_id, status) in enumerate(statuses.items()):
        fields = {"status": status} if status else {}
        plan = plan.with_results([(call(call_id, f"2026-11-{10 + number}T00:00:00Z", **fields), Status.PENDING)])
    overwritten = call("h", "2026-11-01T00:00:00Z", status=Status.STORED, overwrite={"status": Status.FAILED})
    plan = plan.with_results([(overwritten, Status.PENDING)])
    plan = plan.with_results([(call("done", "2026-11-01T00:00:00Z", status=Status.STORED), Status.ALREADY_STORED)])
    assert [found.call_id for found in plan.pending] == ["c", "f", "b", "e", "h", "a", "d", "g"]


def test_fractions_of_a_second_do_not_disturb_the_order() -> None:
    plan = Plan()
    for call_id, start in {"c": "10:00:01Z", "b": "10:00:00.5Z", "a": "10:00:00Z"}.items():
        plan = plan.with_results([(call(call_id, f"2026-11-20T{start}"), Status.PENDING)])
    assert [found.call_id for found in plan.items_with(Status.PENDING)] == ["a", "b", "c"]


def test_the_last_status_of_a_call_counts() -> None:
    plan = Plan()
    plan = plan.with_results([(call("a", None), Status.PENDING)])
    done = call("a", None, status=Status.STORED)
    plan = plan.with_results([(done, Status.STORED)])
    assert plan.items_with(Status.PENDING) == []
    assert plan.items_with(Status.STORED) == [done]


def test_every_call_is_counted_once_and_every_status_is_named() -> None:
    plan = Plan(
        skipped=Counter({Status.EXTERNAL: 3, Status.NOT_SELECTED: 2}), invalid={"../x": "its id is not a plain token"}
    )
    wanted = [
        Status.STORED,
        Status.STORED,
        Status.ALREADY_STORED,
        Status.NOT_FOUND,
        Status.TOO_LARGE,
        Status.GIVEN_UP,
        Status.DELETED,
        Status.FAILED,
        Status.PENDING,
    ]
    for number, status in enumerate(wanted):
        plan = plan.with_results([(call(str(number), None), status)])
    assert plan.counts() == {
        Status.STORED: 2,
        Status.ALREADY_STORED: 1,
        Status.NOT_FOUND: 1,
        Status.TOO_LARGE: 1,
        Status.GIVEN_UP: 1,
        Status.EXTERNAL: 3,
        Status.NOT_SELECTED: 2,
        Status.DELETED: 1,
        Status.FAILED: 2,
    }
    assert Plan().counts() == dict.fromkeys(OUTCOMES, 0)


def test_failures_come_with_their_reasons() -> None:
    plan = Plan(invalid={"../x": "its id is not a plain token"})
    plan = plan.with_results([(call("new", None, status=Status.FAILED, error="the body is empty"), Status.FAILED)])
    plan = plan.with_results(
        [
            (
                call("old", None, status=Status.STORED, overwrite={"status": Status.FAILED, "error": "answered 500"}),
                Status.FAILED,
            )
        ]
    )
    plan = plan.with_results([(call("gone", None, status=Status.NOT_FOUND, error="answered 404"), Status.NOT_FOUND)])
    plan = plan.with_results([(call("bare", None), Status.FAILED)])
    assert plan.failures() == {
        "../x": "its id is not a plain token",
        "new": "the body is empty",
        "old": "answered 500",
        "bare": "None",
    }
