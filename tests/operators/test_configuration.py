"""What is set up wrongly fails at once, by name; what may be a mistake is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, ArchiveIncompleteError
from airflow_provider_amplemarket.sandbox.calls import user_fields
from tests.operators.conftest import NOW, Bench, RealAirflow, Row, call, calls


class TestWithoutRetries:
    @pytest.mark.parametrize(
        ("kwargs", "told"),
        [
            ({"path": "recordings"}, "path='recordings' must begin with a scheme"),
            ({"call_ids": ["a b"]}, "call_ids has 'a b'"),
            (
                {"start": "x"},
                "start='x' is not a valid datetime; use ISO 8601, e.g. 2026-11-20T00:00:00Z",
            ),
            ({"end": "x"}, "end='x' is not a valid datetime"),
            ({"start": NOW, "end": NOW - timedelta(hours=1)}, "is after end="),
            ({"start": NOW + timedelta(hours=2)}, "is after end="),
            ({"end": NOW - timedelta(days=2)}, "is after end="),
        ],
    )
    def test_a_wrong_parameter(self, bench: Bench, kwargs: Row, told: str) -> None:
        bench.start(*calls(1))
        error = bench.run(**kwargs).error
        assert isinstance(error, AirflowFailException)
        assert isinstance(error.__cause__, AmplemarketConfigurationError)
        assert told in str(error)
        assert bench.sandbox.log == []

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"password": " "}, "the password is empty"),
            ({"extra": "{"}, "Extra"),
            ({"extra": {"recording_limit": "many"}}, "'recording_limit' must be a whole number"),
            ({"host": "http://api.invalid"}, "must begin with https://"),
        ],
    )
    def test_a_wrong_connection(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, changed: Row, told: str) -> None:
        if told == "Extra" and airflow_version.startswith("3.0."):
            pytest.skip("Airflow 3.0 says that there is no connection, which a retry asks for again")
        bench.start(*calls(1))
        conn = {"conn_type": "amplemarket", "host": bench.sandbox.url, "password": "x", **changed}
        monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(conn))
        error = bench.run().error
        assert isinstance(error, AirflowFailException)
        assert told in str(error)
        assert bench.sandbox.log == []

    def test_in_airflow(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(1))
        run = airflow.test("Archive(task_id='archive', path='recordings', retries=3, retry_delay=timedelta(0))")
        assert (run.state, run.tries) == ("failed", {("archive", -1): 1})


class TestUserId:
    def test_one_that_no_call_has_is_told(self, bench: Bench, told: Callable[[], list[str]]) -> None:
        bench.start(*calls(3), call("too-old", 24 * 30))
        outcome = bench.run(user_id="nobody").ok
        assert outcome.counts() == {}
        (line,) = [line for line in told() if "user_id" in line]
        assert line.startswith("Of the 3 calls of the window that the API lists, none is of user_id='nobody'.")

    @pytest.mark.parametrize("fields", [{"external": True}, {"duration": 0}, {}])
    def test_one_whose_calls_are_not_wanted_is_right(
        self, bench: Bench, told: Callable[[], list[str]], fields: Row
    ) -> None:
        bench.start(call("hers", **user_fields("hedy"), **fields), call("his", **user_fields("grace")))
        bench.run(user_id=user_fields("hedy")["user_id"]).ok  # noqa: B018
        assert not [line for line in told() if "user_id" in line]

    def test_a_window_without_calls_says_nothing_of_it(self, bench: Bench, told: Callable[[], list[str]]) -> None:
        bench.start(call("too-old", 24 * 30))
        bench.run(user_id="nobody").ok  # noqa: B018
        assert not [line for line in told() if "user_id" in line]

    @pytest.mark.parametrize("honour_filters", [True, False])
    def test_a_number_is_read_as_text(self, bench: Bench, honour_filters: bool) -> None:
        bench.start(call("hers", user_id="42"), call("his", user_id="43"), honour_filters=honour_filters)
        assert list(bench.run(user_id=42).ok.statuses) == ["hers"]


class TestNames:
    """Two calls never share a name in the archive."""

    @pytest.fixture
    def colliding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let there be a layout that tells calls no more apart than their ids' last two characters."""
        place = Layout.place

        def careless(layout: Layout, call: Any) -> Any:
            return place(layout, {**call, "id": call["id"][-2:]})

        monkeypatch.setattr(Layout, "place", careless)

    @pytest.mark.usefixtures("colliding")
    def test_calls_of_one_name_fail_and_replace_nothing(self, bench: Bench) -> None:
        bench.start(call("a-one"), call("b-one"), call("two"))
        outcome = bench.run()
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert "2 recordings failed" in str(outcome.error)
        assert "a-one (key='date={start_date:%Y-%m-%d}/{id}.mp3' gives it the name of another call" in str(
            outcome.error
        )
        assert outcome.asked == ["two"]
        assert outcome.counts() == {"stored": 1, "failed": 2}

    @pytest.mark.usefixtures("colliding")
    def test_what_an_earlier_run_archived_is_nobody_else_s(self, bench: Bench) -> None:
        bench.start(call("a-one"))
        bench.run("monday").ok  # noqa: B018
        bench.sandbox.calls[:] = [call("b-one")]
        before = [(name, (bench.root / name).read_bytes()) for name in bench.files()]
        outcome = bench.run("tuesday")
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.asked == []
        assert [(name, (bench.root / name).read_bytes()) for name in bench.files()] == before
