"""Which calls a run wants: those of the window that are selected, and of one user where one is named."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_provider_amplemarket.exceptions import (
    ArchiveIncompleteError,
)
from airflow_provider_amplemarket.sandbox.calls import USERS, user_fields
from tests.operators.conftest import NOW, Bench, call, calls


class TestWindow:
    def test_a_window_without_calls_leaves_no_archive(self, bench: Bench) -> None:
        bench.start(call("too-old", 24 * 30))
        outcome = bench.run().ok
        assert (outcome.rows, outcome.counts(), outcome.asked) == ([], {}, [])
        assert not bench.root.exists()

    def test_start_and_end_limit_the_window(self, bench: Bench) -> None:
        bench.start(call("before", 10), call("first", 8), call("last", 6.01), call("end", 6))
        start, end = NOW - timedelta(hours=8), NOW - timedelta(hours=6)
        outcome = bench.run(start=start, end=end.isoformat(), lookback=timedelta(0)).ok
        assert sorted(outcome.statuses) == ["first", "last"]
        assert outcome.summary["window"] == [start.isoformat(), end.isoformat()]


class TestSelection:
    def test_external_and_unselected_calls_are_counted_and_left_out(self, bench: Bench) -> None:
        bench.start(
            call("a"),
            call("ext", external=True),
            call("null", external=None),
            call("mute", duration=0),
            call("unknown", duration=None),
        )
        outcome = bench.run().ok
        assert sorted(outcome.statuses) == ["a", "null", "unknown"]
        assert outcome.summary["external"] == 1
        assert outcome.summary["not_selected"] == 1

    def test_select_decides_which_calls_are_wanted(self, bench: Bench) -> None:
        bench.start(call("short", duration=5), call("long", duration=500), call("mute", duration=0))
        outcome = bench.run(select=lambda row: row["duration"] < 100).ok
        assert sorted(outcome.statuses) == ["mute", "short"]
        assert outcome.counts() == {"stored": 2, "not_selected": 1}

    @pytest.mark.parametrize("honour_filters", [True, False])
    def test_user_id_leaves_the_calls_of_one_user(self, bench: Bench, honour_filters: bool) -> None:
        rows = [call(name, **user_fields(name)) for name in USERS]
        bench.start(*rows, honour_filters=honour_filters)
        outcome = bench.run(user_id=f" {user_fields('grace')['user_id']} ").ok
        assert list(outcome.statuses) == ["grace"]
        assert outcome.asked == ["grace"]

    @pytest.mark.parametrize("user_id", ["", "None", "  "])
    def test_a_user_id_rendered_to_nothing_leaves_all_calls(self, bench: Bench, user_id: str) -> None:
        bench.start(*calls(2))
        assert len(bench.run(user_id=user_id).ok.statuses) == 2

    def test_a_select_that_fails_for_one_call_does_not_stop_the_others(self, bench: Bench) -> None:
        odd = call("odd")
        del odd["duration"]
        bench.start(odd, call("one"), call("two"))
        outcome = bench.run(select=lambda row: row["duration"] > 0)
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert "select failed with KeyError" in str(outcome.error)
        assert outcome.counts() == {"stored": 2, "failed": 1}
