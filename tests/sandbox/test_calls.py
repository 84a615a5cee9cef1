"""The sandbox's calls look like those of the API, and are the same for the same seed."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest

from airflow_provider_amplemarket.sandbox import make_call, make_calls
from tests.sandbox.client import END


class TestCalls:
    def test_calls_are_the_same_for_the_same_seed(self) -> None:
        assert make_calls(30, end=END, seed=1) == make_calls(30, end=END, seed=1)
        assert make_calls(30, end=END, seed=1) != make_calls(30, end=END, seed=2)

    def test_calls_lie_in_their_span_newest_first(self) -> None:
        calls = make_calls(120, end=END, days=3)
        starts = [datetime.fromisoformat(call["start_date"]) for call in calls]
        assert starts == sorted(starts, reverse=True)
        assert all(END - timedelta(days=3) <= start < END for start in starts)
        assert all(re.fullmatch(r"2026-11-\d\dT\d\d:\d\d:\d\dZ", call["start_date"]) for call in calls)

    def test_calls_look_like_those_of_the_api(self) -> None:
        calls = make_calls(120, end=END)
        assert len({call["id"] for call in calls}) == 120
        assert sum(call["external"] for call in calls) == 10
        assert sum(call["duration"] == 0 for call in calls) == 10
        assert all(re.fullmatch(r"\+120255501\d\d", call[end]) for call in calls for end in ("from", "to"))
        assert all(call["user_email"].endswith("@example.com") for call in calls)
        urls = [call.get("recording_url", "absent") for call in calls]
        assert None in urls
        assert "absent" in urls
        assert 1 < len({call["user_id"] for call in calls}) < 10
        assert {call["contact"] is None for call in calls} == {True, False}
        assert {call["task_id"] is None for call in calls} == {True, False}

    def test_a_call_can_be_made_by_hand(self) -> None:
        call = make_call(id="one", start_date=END, duration=7, novel=True, **{"from": "+12025550199"})
        assert call["start_date"] == "2026-11-20T12:00:00Z"
        assert (call["duration"], call["novel"], call["from"]) == (7, True, "+12025550199")
        assert make_call(id="two", start_date="yesterday")["start_date"] == "yesterday"
        with pytest.raises(ValueError, match="time zone"):
            make_call(id="three", start_date=END.replace(tzinfo=None))
