"""Calls that are named: what was rendered to nothing is no window, and nobody is asked twice for what is known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.archive.sidecar import Item
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.run.named import NamedCalls
from airflow_provider_amplemarket.run.parameters import read_call_ids
from tests.operators.conftest import Bench, RealAirflow, Row, call, calls


class Questions:
    """Counts what the API's list and the archive are asked for."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bench = bench
        self._folders: list[str] = []
        list_folder = Archive.list_sizes

        def counted(archive: Archive, folder: str) -> dict[str, int]:
            self._folders.append(folder)
            return list_folder(archive, folder)

        monkeypatch.setattr(Archive, "list_sizes", counted)

    @property
    def pages(self) -> int:
        """Return how many pages of calls were read."""
        return len([entry for entry in self._bench.sandbox.log if entry.path == "/calls"])

    @property
    def searches(self) -> int:
        """Return how often the whole archive was listed."""
        return self._folders.count("")


@pytest.fixture
def questions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Questions]:
    return Questions(bench, monkeypatch)


class TestNothing:
    @pytest.mark.parametrize("nothing", ["", "  ", "None", " None\n", "{{ none }}", ["None"]])
    def test_what_is_rendered_to_nothing_is_an_error(self, bench: Bench, nothing: Any) -> None:
        bench.start(*calls(2))
        operator = bench.operator(call_ids=nothing)
        if nothing == "{{ none }}":
            operator.call_ids = None  # as it is set when the template is rendered to a native object
        with pytest.raises(AirflowFailException, match=r"^call_ids\b") as caught:
            operator.execute(bench.context(bench.task_instance()))
        assert len(str(caught.value)) < 300
        assert bench.sandbox.log == []

    def test_call_ids_left_at_their_default_mean_the_window(self, bench: Bench) -> None:
        bench.start(*calls(2))
        assert len(bench.run().ok.statuses) == 2
        assert len(bench.run("none-in-the-dag-file", call_ids=None).ok.statuses) == 2

    def test_a_mapped_task_of_none_is_an_error(self, bench: Bench) -> None:
        bench.start(*calls(2))
        error = bench.run(call_ids=None, map_index=0, _airflow_from_mapped=True).error
        assert isinstance(error, AirflowFailException)
        assert "call_ids=None" in str(error)
        assert bench.sandbox.log == []

    def test_a_mapped_task_that_names_no_calls_has_a_window(self, bench: Bench) -> None:
        bench.start(*calls(2))
        assert len(bench.run(map_index=0, _airflow_from_mapped=True).ok.statuses) == 2
        # None in the DAG file, for a plain task of a mapped task group.
        assert len(bench.run("group", call_ids=None, map_index=0).ok.statuses) == 2

    def test_what_airflow_renders_to_nothing_is_an_error(
        self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]
    ) -> None:
        bench.start(*calls(2))
        run = airflow.test(
            f"""
            @task
            def nothing():
                return None

            @task
            def some():
                return [["call-000"], None]

            @task
            def paths():
                return [{f"{bench.path}/mapped"!r}]

            nothing = nothing()
            Archive(task_id="xcom", path={bench.path!r}, call_ids=nothing, retries=3, pool="default_pool")
            template = "{{{{ ti.xcom_pull(task_ids='nothing') }}}}"
            Archive(task_id="text", path={bench.path!r}, call_ids=template, pool="default_pool") << nothing
            Archive.partial(task_id="mapped", path={bench.path!r}, pool="default_pool").expand(call_ids=some())
            Archive.partial(task_id="window", call_ids=None, pool="default_pool").expand(path=paths())

            @task_group
            def group(path):
                Archive(task_id="plain", call_ids=None, path=path, pool="default_pool")

            group.expand(path=[{f"{bench.path}/group"!r}])
            """
        )
        states = {task: run.states[task, index] for task, index in run.states if index < 1}
        assert states["xcom"] == states["text"] == "failed"
        assert (run.states["mapped", 0], run.states["mapped", 1]) == ("success", "failed")
        assert states["window"] == states["group.plain"] == "success"
        assert len(run.xcom(task_id="window", map_index=0)) == 2
        assert run.tries["xcom", -1] == 1
        if not airflow_version.startswith("3.0."):  # which does not show it here
            assert len(re.findall("AirflowFailException: call_ids=", "".join(capfd.readouterr()))) == 3


class TestLookUp:
    def test_a_resume_neither_pages_through_the_list_nor_searches_the_archive(
        self, bench: Bench, questions: Questions
    ) -> None:
        rows = calls(60)
        bench.start(*rows, page_size=5, limit=3, period=4.0)
        newest = [row["id"] for row in rows[-5:]]
        outcome = bench.run(call_ids=[*newest, "unheard-of"]).ok
        assert outcome.deferrals >= 1
        assert outcome.counts() == {"stored": 5, "not_found": 1}
        assert len(outcome.asked) == 6
        assert bench.files() == sorted(
            [key for row in rows[-5:] for key in (Layout().place(row).audio, Layout().place(row).sidecar)]
            + ["undated/unheard-of.json"]
        )
        # Once to the end, for the unknown one; after each wait only as far as what is missing.
        assert 12 < questions.pages <= 12 + outcome.deferrals
        assert questions.searches == 1
        assert "call" in bench.record(rows[-1])

    def test_waiting_in_the_worker_reads_the_list_no_more_often(self, bench: Bench, questions: Questions) -> None:
        bench.start(*calls(60), page_size=5, limit=2, period=2.0)
        outcome = bench.run(call_ids=["call-059", "call-058", "call-057", "unheard-of"], deferrable=False).ok
        assert outcome.counts() == {"stored": 3, "not_found": 1}
        assert questions.pages == 13
        assert questions.searches == 1

    def test_what_the_rows_date_is_not_looked_for(self, bench: Bench, questions: Questions) -> None:
        rows = calls(3)
        bench.start(*rows)
        first = bench.run("monday").ok
        before = questions.pages
        outcome = bench.run("tuesday", call_ids=first.rows).ok
        assert outcome.statuses == {row["id"]: "already_stored" for row in rows}
        assert outcome.rows == [{**row, "status": "already_stored"} for row in first.rows or ()]
        assert (questions.pages - before, questions.searches) == (0, 0)

    def test_what_is_in_the_archive_is_not_looked_for_in_the_list(self, bench: Bench, questions: Questions) -> None:
        rows = calls(3)
        bench.start(*rows)
        bench.run("monday").ok  # noqa: B018
        before = questions.pages
        outcome = bench.run("tuesday", call_ids=[row["id"] for row in rows]).ok
        assert outcome.statuses == {row["id"]: "already_stored" for row in rows}
        assert (questions.pages - before, questions.searches) == (0, 1)

    def test_a_wrong_date_misleads_nobody(self, bench: Bench) -> None:
        row = call("one", 60)
        bench.start(row)
        bench.run("monday").ok  # noqa: B018
        for date in ("2020-01-01T00:00:00Z", "yesterday", 7, None, ["2020"]):
            outcome = bench.run("tuesday", call_ids=[{"call_id": "one", "start_date": date}]).ok
            assert outcome.statuses == {"one": "already_stored"}
        other = call("two", 50)
        bench.sandbox.add_calls(other)
        bench.run("wednesday", call_ids=[{"call_id": "two", "start_date": "2020-01-01T00:00:00Z"}]).ok  # noqa: B018
        assert bench.holds(row, other)

    def test_external_calls_stay_counted_over_a_wait(self, bench: Bench, questions: Questions) -> None:
        rows = calls(4)
        bench.start(*rows, call("ext", external=True), limit=2, period=4.0)
        outcome = bench.run(call_ids=["ext", *(row["id"] for row in rows)]).ok
        assert outcome.deferrals >= 1
        assert outcome.counts() == {"stored": 4, "external": 1}
        assert questions.pages == 1 + outcome.deferrals

    def test_overwriting_asks_for_each_call_once(self, bench: Bench, questions: Questions) -> None:
        rows = calls(4)
        bench.start(*rows, limit=5, period=4.0)
        bench.run("monday").ok  # noqa: B018
        outcome = bench.run("tuesday", call_ids=[row["id"] for row in rows], overwrite=True).ok
        assert outcome.deferrals >= 1
        assert sorted(filter(None, outcome.asked)) == [row["id"] for row in rows]
        assert bench.holds(*rows)
        assert all("contact" in bench.record(row)["call"] for row in rows)
        assert questions.searches == 1

    def test_a_call_that_leaves_the_list_meanwhile_keeps_its_place(self, bench: Bench) -> None:
        rows = calls(3)
        sandbox = bench.start(*rows, limit=2, period=4.0)
        served = sandbox._respond_with_recording

        def dropped(request: Any, call_id: str) -> Any:
            sandbox.calls[:] = [row for row in sandbox.calls if row["id"] != "call-002"]
            sandbox.set_fault("call-002", "chunked")
            return served(request, call_id)

        sandbox._respond_with_recording = dropped  # type: ignore[method-assign]
        bench.run(call_ids=[row["id"] for row in rows]).ok  # noqa: B018
        assert bench.holds(*rows)


class TestMemory:
    def items(self, bench: Bench, named: NamedCalls, listing: list[Row]) -> dict[str, Item]:
        archive = Archive(bench.path)
        found = named.find(archive, iter(listing), lambda item: not item.entry.is_settled)
        return {item.call_id: item for item in found}

    def test_what_is_kept_over_a_wait_is_for_these_calls_alone(self, bench: Bench) -> None:
        row = call("one")
        first = NamedCalls({"one": None, "two": None})
        self.items(bench, first, [row])
        assert first.unlisted == {"two"}
        second = NamedCalls({"one": None, "two": None})
        second.remember(first.memory)
        assert (second.keys, second.unlisted) == (first.keys, {"two"})
        assert second.keys["one"] == Layout().place(row).audio
        other = NamedCalls({"one": None, "three": None})
        other.remember(first.memory)
        assert (other.keys, other.unlisted) == ({}, set())

    def test_what_is_kept_over_a_wait_is_small(self, bench: Bench) -> None:
        rows = [call(f"0190c5d8-0000-4000-8000-{number:012}") for number in range(500)]
        named = NamedCalls({row["id"]: None for row in rows})
        self.items(bench, named, rows)
        assert len(named.memory) < 500 * 150
        assert json.loads(named.memory)


def test_the_first_date_of_a_call_counts() -> None:
    given = [{"id": "a"}, {"call_id": "a", "start_date": "2026-11-20"}, {"id": "a", "start_date": "2026-11-21"}, "b"]
    assert read_call_ids(given) == {"a": "2026-11-20", "b": None}


class TestNamedCalls:
    @pytest.mark.parametrize(
        "call_ids",
        [
            ["one", "two"],
            ("two", "one", "two"),
            [{"call_id": "one"}, {"id": "two", "start_date": None}],
            '["one", "two"]',
            "[{'call_id': 'one', 'size': None}, {'call_id': 'two'}]",
            '[{"call_id": "one", "size": null}, {"call_id": "two", "ok": true}]',
            " ['one', 'two'] ",
        ],
    )
    def test_ids_are_taken_in_every_shape(self, bench: Bench, call_ids: Any) -> None:
        rows = {row["id"]: row for row in (call("one", 24 * 90), call("two", duration=0), call("three"))}
        bench.start(*rows.values())
        outcome = bench.run(call_ids=call_ids).ok
        assert outcome.statuses == {"one": "stored", "two": "stored"}
        assert bench.holds(rows["one"], rows["two"])
        assert outcome.summary["window"] is None

    @pytest.mark.parametrize("call_ids", ["one", {"call_id": "one"}])
    def test_a_single_id_is_taken(self, bench: Bench, call_ids: Any) -> None:
        row = call("one")
        bench.start(row)
        assert bench.run(call_ids=call_ids).ok.asked == ["one"]
        assert bench.holds(row)

    def test_an_empty_list_of_ids_asks_for_nothing(self, bench: Bench) -> None:
        bench.start(*calls(2))
        for call_ids in ([], "[]"):
            outcome = bench.run(call_ids=call_ids).ok
            assert (outcome.rows, outcome.counts()) == ([], {})
        assert bench.sandbox.log == []

    def test_an_external_call_is_not_asked_for(self, bench: Bench) -> None:
        bench.start(call("ext", external=True), call("one"))
        outcome = bench.run(call_ids=["ext", "one"]).ok
        assert (outcome.asked, outcome.counts()) == (["one"], {"stored": 1, "external": 1})

    def test_a_call_that_the_list_does_not_have_is_archived_as_undated(self, bench: Bench) -> None:
        sandbox = bench.start(call("known"))
        sandbox.set_fault("gone", "chunked")
        outcome = bench.run(call_ids=["gone"]).ok
        assert bench.files() == ["undated/gone.json", "undated/gone.mp3"]
        assert (outcome.rows or [])[0]["start_date"] is None
        again = bench.run("later", call_ids=["gone"]).ok
        assert (again.asked, again.statuses) == ([], {"gone": "already_stored"})

    def test_an_undated_recording_is_not_asked_for_again_when_the_list_has_it_later(self, bench: Bench) -> None:
        sandbox = bench.start(call("other"))
        sandbox.set_fault("late", "chunked")
        bench.run("by-id", call_ids=["late"]).ok  # noqa: B018
        sandbox.add_calls(call("late"))
        for kwargs in ({}, {"call_ids": ["late"]}):
            outcome = bench.run("by-window", **kwargs).ok
            assert "late" not in outcome.asked
            assert outcome.statuses["late"] == "already_stored"
        assert "undated/late.mp3" in bench.files()

    def test_a_dated_recording_is_found_when_the_list_has_dropped_it(self, bench: Bench) -> None:
        row = call("old", 24 * 2)
        sandbox = bench.start(row, call("other"))
        bench.run("monday").ok  # noqa: B018
        sandbox.calls.remove(row)
        outcome = bench.run("later", call_ids=["old"]).ok
        assert (outcome.asked, outcome.statuses) == ([], {"old": "already_stored"})
        assert (outcome.rows or [])[0]["uri"] == f"file://{bench.audio(row)}"

    def test_the_list_is_read_no_further_than_needed(self, bench: Bench) -> None:
        rows = calls(40)
        bench.start(*rows, page_size=5)
        bench.run(call_ids=[rows[-1]["id"]]).ok  # noqa: B018
        assert len([entry for entry in bench.sandbox.log if entry.path == "/calls"]) == 1

    @pytest.mark.parametrize("other", [["x"], {"id": 1}, 7, None])
    def test_rows_of_the_list_without_a_proper_id_do_not_matter(self, bench: Bench, other: Any) -> None:
        bench.start(call("new"), {**call("odd", 6), "id": other}, call("one", 7))
        assert bench.run(call_ids=["one"]).ok.statuses == {"one": "stored"}

    @pytest.mark.parametrize(
        "call_ids",
        [
            ["../../etc/passwd"],
            ["one", "/etc/passwd"],
            ["a b"],
            [""],
            [None],
            [7],
            [{"uri": "x"}],
            "one,two",
            "[1, 2",
            "[one]",
            7,
            b"one",
            ["x" * 129],
        ],
    )
    def test_what_is_not_an_id_is_refused_before_anything_is_asked(self, bench: Bench, call_ids: Any) -> None:
        bench.start(call("one"))
        error = bench.run(call_ids=call_ids).error
        assert isinstance(error, AirflowFailException)
        assert "call_ids" in str(error)
        assert bench.sandbox.log == []
