"""What is set up wrongly fails at once, by name; what may be a mistake is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_amplemarket.archive import store as archive_module
from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, ArchiveIncompleteError
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
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
    def test_a_wrong_parameter_fails_without_retries(self, bench: Bench, kwargs: Row, told: str) -> None:
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
    def test_a_wrong_connection_fails_without_retries(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, changed: Row, told: str
    ) -> None:
        if told == "Extra" and airflow_version.startswith("3.0."):
            pytest.skip("Airflow 3.0 says that there is no connection, which a retry asks for again")
        bench.start(*calls(1))
        conn = {"conn_type": "amplemarket", "host": bench.sandbox.url, "password": "x", **changed}
        monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(conn))
        error = bench.run().error
        assert isinstance(error, AirflowFailException)
        assert told in str(error)
        assert bench.sandbox.log == []

    def test_airflow_does_not_retry_a_wrong_parameter(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(1))
        run = airflow.test("Archive(task_id='archive', path='recordings', retries=3, retry_delay=timedelta(0))")
        assert (run.state, run.tries) == ("failed", {("archive", -1): 1})


class TestUserId:
    def test_a_user_id_that_no_call_has_is_logged(self, bench: Bench, told: Callable[[], list[str]]) -> None:
        bench.start(*calls(3), call("too-old", 24 * 30))
        outcome = bench.run(user_id="nobody").ok
        assert outcome.counts() == {}
        (line,) = [line for line in told() if "user_id=" in line]
        assert line.startswith("Of the 3 calls of the window that the API lists, none is of user_id='nobody'.")

    @pytest.mark.parametrize("fields", [{"external": True}, {"duration": 0}, {}])
    def test_a_user_id_whose_calls_are_not_wanted_is_not_logged(
        self, bench: Bench, told: Callable[[], list[str]], fields: Row
    ) -> None:
        bench.start(call("hers", **user_fields("hedy"), **fields), call("his", **user_fields("grace")))
        bench.run(user_id=user_fields("hedy")["user_id"]).ok  # noqa: B018
        assert not [line for line in told() if "user_id=" in line]

    def test_a_user_id_is_not_logged_for_a_window_without_calls(
        self, bench: Bench, told: Callable[[], list[str]]
    ) -> None:
        bench.start(call("too-old", 24 * 30))
        bench.run(user_id="nobody").ok  # noqa: B018
        assert not [line for line in told() if "user_id=" in line]

    @pytest.mark.parametrize("honour_filters", [True, False])
    def test_a_user_id_that_is_a_number_is_read_as_text(self, bench: Bench, honour_filters: bool) -> None:
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
    def test_what_an_earlier_run_archived_is_not_replaced(self, bench: Bench) -> None:
        bench.start(call("a-one"))
        bench.run("monday").ok  # noqa: B018
        bench.sandbox.calls[:] = [call("b-one")]
        before = [(name, (bench.root / name).read_bytes()) for name in bench.files()]
        outcome = bench.run("tuesday")
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert outcome.asked == []
        assert [(name, (bench.root / name).read_bytes()) for name in bench.files()] == before


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"lookback": 3}, "lookback must be a timedelta of 0 or more, not 3"),
        ({"lookback": timedelta(-1)}, "lookback must be"),
        ({"lookback": None}, "lookback must be"),
        ({"not_found_for": "2 days"}, "not_found_for must be"),
        ({"not_found_for": None}, "not_found_for must be"),
        ({"give_up_after": 3}, "give_up_after must be a timedelta of 0 or more, not 3"),
        ({"give_up_after": timedelta(-1)}, "give_up_after must be"),
        ({"give_up_after": None}, "give_up_after must be"),
        ({"max_wait": timedelta(seconds=-1)}, "max_wait must be"),
        ({"max_wait": 60}, "max_wait must be"),
        ({"max_concurrency": 0}, "max_concurrency must be a whole number from 1 to 32, not 0"),
        ({"max_concurrency": 33}, "max_concurrency must be"),
        ({"max_concurrency": 2.5}, "max_concurrency must be"),
        ({"max_concurrency": "4"}, "max_concurrency must be"),
        ({"sidecar": "none"}, "sidecar must be 'full' or 'minimal', not 'none'"),
        ({"sidecar": None}, "sidecar must be"),
        ({"select": "has_duration"}, "select must be callable"),
        ({"select": None}, "select must be callable"),
        ({"key": ""}, "key='' cannot be used"),
        ({"key": "{start_date}.mp3"}, "must contain {id}"),
        ({"key": "{nme}/{id}.mp3"}, "{nme} is not a field"),
        ({"key": "../{id}.mp3"}, "not a relative path"),
        ({"key": "/{id}.mp3"}, "not a relative path"),
        ({"key": "{id}.json"}, "sidecars"),
        ({"key": "{id!r}"}, "only start_date takes a format"),
        ({"key": "{id.__class__}"}, "is not a field"),
        ({"key": "{id"}, "cannot be used"),
        ({"key": None}, "cannot be used"),
    ],
)
def test_wrong_parameters_are_refused_while_the_dag_is_parsed(kwargs: Row, told: str) -> None:
    with pytest.raises(AmplemarketConfigurationError, match=re.escape(told)) as caught:
        AmplemarketRecordingOperator(**{"task_id": "archive", "path": "file:///nowhere", **kwargs})
    assert next(iter(kwargs)) in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"path": ""}, "path='' must begin with a scheme"),
        ({"path": "None"}, "path='None' must begin with a scheme"),
        ({"path": "recordings"}, "path='recordings' must begin with a scheme"),
        ({"path": "nowhere://x"}, "path='nowhere://x'"),
        ({"start": "last week"}, "start='last week' is not a valid datetime; use ISO 8601"),
        ({"end": "2026-13-01"}, "end='2026-13-01' is not a valid datetime; use ISO 8601"),
        ({"start": "2026-11-20", "end": "2026-11-20", "lookback": timedelta(0)}, "change start, end or lookback"),
    ],
)
def test_wrong_templated_parameters_are_named_before_anything_is_asked(bench: Bench, kwargs: Row, told: str) -> None:
    bench.start(*calls(1))
    error = bench.run(**kwargs).error
    assert isinstance(error, AirflowFailException)
    assert told in str(error)
    assert bench.sandbox.log == []


def test_constructing_an_operator_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("touched")

    monkeypatch.setattr("socket.socket", touched)
    monkeypatch.setattr(archive_module, "open_storage", touched)
    monkeypatch.setattr(AmplemarketHook, "get_connection", touched)
    operator = AmplemarketRecordingOperator(task_id="archive", path="s3://no_such_connection@bucket/x")
    assert operator.pool == "amplemarket_recordings"
    operator.on_kill()
