"""Rows of calls are untrusted: what is not plain, or no datetime, is nothing."""

from __future__ import annotations

from typing import Any

import pendulum
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_amplemarket.calls import is_plain_id, parse_datetime, start_of


@pytest.mark.parametrize("value", ["a", "0190c5d8-0000-4000-8000-000000000000", "A_b-9", "-", "x" * 128])
def test_a_token_is_a_plain_id(value: str) -> None:
    assert is_plain_id(value)


@pytest.mark.parametrize(
    "value",
    ["", "x" * 129, "a b", "a/b", "..", "a.b", "a\n", "\na", "a\x00", "é", "\u0661", "a%2F", "a?b", "a#b", "a\\b"],
    ids=ascii,
)
def test_any_other_text_is_not(value: str) -> None:
    assert not is_plain_id(value)


@pytest.mark.parametrize("value", [None, 7, True, b"a", ["a"], {"id": "a"}])
def test_what_is_no_text_is_no_plain_id(value: object) -> None:
    assert not is_plain_id(value)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("2026-11-20T16:30:08Z", "2026-11-20T16:30:08+00:00"),
        ("2026-11-20T16:30:08.123456Z", "2026-11-20T16:30:08.123456+00:00"),
        ("2026-11-20T16:30:08+02:00", "2026-11-20T14:30:08+00:00"),
        ("2026-11-20T16:30:08-0500", "2026-11-20T21:30:08+00:00"),
        ("2026-11-20T16:30:08", "2026-11-20T16:30:08+00:00"),
        ("2026-11-20 16:30:08", "2026-11-20T16:30:08+00:00"),
        ("2026-11-20", "2026-11-20T00:00:00+00:00"),
    ],
)
def test_the_start_is_read_in_utc(text: str, start: str) -> None:
    found = start_of({"start_date": text})
    assert found == parse_datetime(text) == pendulum.parse(start)
    assert found.timezone_name == "UTC"


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        1_800_000_000,
        True,
        b"2026-11-20T16:30:08Z",
        ["2026-11-20T16:30:08Z"],
        "",
        "None",
        "soon",
        "2026-11-31T00:00:00Z",
        "2026-11-20T25:00:00Z",
        "P1D",
        "2026-11-20/2026-11-21",
        "2026-11-20T16:30:08Z" + " " * 64,
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2026-11-20T16:30:08+99:00",
        "2:",
    ],
    ids=ascii,
)
def test_what_is_no_datetime_is_no_start(value: Any) -> None:
    assert start_of({"start_date": value}) is None
    assert parse_datetime(value) is None


@pytest.mark.parametrize("text", ["now", "12:30", "T12"])
def test_what_changes_with_the_present_time_is_no_start(text: str) -> None:
    assert start_of({"start_date": text}) is None


def test_a_call_without_start_has_none() -> None:
    assert start_of({}) is None


@settings(deadline=None)
@given(st.one_of(st.text(), st.text("0123456789TWZPDMHS:+-./, ", max_size=30)))
@example("2:")
@example("0000/")
def test_no_text_makes_it_fail(text: str) -> None:
    start = start_of({"start_date": text})
    assert start is None or start.timezone_name == "UTC"
