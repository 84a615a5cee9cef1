"""Tasks that Airflow runs itself: XComs, templates, retries, mapping, schedules, the triggerer."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import staging as staging_module
from airflow_provider_amplemarket.archive import store as archive_module
from airflow_provider_amplemarket.archive import upload
from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
from airflow_provider_amplemarket.sandbox import make_calls
from airflow_provider_amplemarket.sandbox.calls import user_fields
from dev.stores import Store
from tests.operators.conftest import NOW, Bench, RealAirflow, Row, call, calls


@pytest.mark.parametrize(
    ("default_args", "given", "pool"),
    [
        ({}, {}, "amplemarket_recordings"),
        ({}, {"pool": "emea"}, "emea"),
        ({"pool": "of_the_dag"}, {}, "of_the_dag"),
    ],
)
def test_mapped_tasks_take_their_turn_in_the_pool_too(default_args: Row, given: Row, pool: str) -> None:
    from airflow.sdk import DAG

    with DAG("mapped", schedule=None, default_args=default_args):
        mapped = AmplemarketRecordingOperator.partial(task_id="archive", path="file:///archive", **given)
        assert mapped.expand(call_ids=[["a"], ["b"]]).pool == pool
        assert AmplemarketRecordingOperator(task_id="one", path="file:///archive", **given).pool == pool


class TestInAirflow:
    def test_a_dag_run_archives_every_wanted_recording_once(self, bench: Bench, airflow: RealAirflow) -> None:
        rows = make_calls(12, end=NOW)
        bench.start(*rows)
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.state == "success"
        wanted = [row for row in rows if row["duration"] and not row["external"]]
        assert bench.holds(*wanted)
        result = run.xcom()
        assert [row["call_id"] for row in result] == [row["id"] for row in wanted[::-1]]
        assert run.xcom("summary")["stored"] == 10
        assert len(json.loads(airflow.variables()["amplemarket_quota__amplemarket_default"])["spent"]) == 10
        again = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert [row["status"] for row in again.xcom()] == ["already_stored"] * 10
        assert len(bench.sandbox.recording_requests()) == 10

    def test_the_first_run_ever_finds_no_ledger(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(2))
        airflow.set_ledger(None)
        assert airflow.test(f"Archive(task_id='archive', path={bench.path!r})").state == "success"
        assert "amplemarket_quota__amplemarket_default" in airflow.variables()

    def test_a_task_that_waits_in_the_triggerer_archives_everything(
        self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]
    ) -> None:
        rows = calls(10)
        sandbox = bench.start(*rows, limit=4, period=4.0)
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.state == "success"
        assert "waiting in the triggerer" in "".join(capfd.readouterr())
        assert sandbox.most_in_any_period() == 4
        assert bench.holds(*rows)
        summary = run.xcom("summary")
        assert (summary["stored"], summary["permits_spent"], summary["left"]) == (10, 10, 0)
        assert "waiting_until" not in summary
        assert {row["status"] for row in run.xcom()} == {"stored"}

    def test_a_task_that_sleeps_in_the_worker_archives_everything(
        self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]
    ) -> None:
        rows = calls(5)
        sandbox = bench.start(*rows, limit=3, period=2.0)
        assert airflow.test(f"Archive(task_id='archive', path={bench.path!r}, deferrable=False)").state == "success"
        assert "sleeping in the worker" in "".join(capfd.readouterr())
        assert sandbox.most_in_any_period() == 3
        assert bench.holds(*rows)

    def test_a_retry_asks_for_the_bad_one_alone(self, bench: Bench, airflow: RealAirflow) -> None:
        rows = [*calls(3), call("x--flaky")]
        bench.start(*rows)
        run = airflow.test(
            f"Archive(task_id='archive', path={bench.path!r}, retries=2, retry_delay=timedelta(seconds=0))"
        )
        assert (run.state, run.tries) == ("success", {("archive", -1): 2})
        asked = Counter(entry.call_id for entry in bench.sandbox.recording_requests())
        assert asked == {"call-000": 1, "call-001": 1, "call-002": 1, "x--flaky": 2}
        assert bench.holds(*rows)

    def test_a_failed_task_names_the_bad_one(
        self, bench: Bench, airflow: RealAirflow, capfd: pytest.CaptureFixture[str]
    ) -> None:
        bench.start(*calls(2), call("x--cut"))
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.states == {("archive", -1): "failed"}
        assert re.search(r"ArchiveIncompleteError.*1 recordings failed: x--cut", "".join(capfd.readouterr()), re.DOTALL)
        assert run.xcom("summary")["failed"] == 1

    def test_a_refused_key_is_not_retried(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(2)).set_fault("call-000", "unauthorized")
        run = airflow.test(
            f"Archive(task_id='archive', path={bench.path!r}, max_concurrency=1, retries=3, retry_delay=timedelta(0))"
        )
        assert (run.state, run.tries) == ("failed", {("archive", -1): 1})
        assert len(bench.sandbox.recording_requests()) == 1

    def test_a_task_is_mapped_over_call_ids(self, bench: Bench, airflow: RealAirflow) -> None:
        rows = calls(5)
        bench.start(*rows, limit=3, period=4.0)
        some = [[rows[0]["id"], rows[1]["id"]], rows[2]["id"], [rows[3]["id"], rows[4]["id"]]]
        run = airflow.test(
            f"Archive.partial(task_id='archive', path={bench.path!r}, max_concurrency=2).expand(call_ids={some!r})"
        )
        assert run.states == {("archive", index): "success" for index in range(3)}
        assert bench.holds(*rows)
        assert bench.sandbox.most_in_any_period() <= 3
        assert [row["call_id"] for row in run.xcom(map_index=2)] == ["call-003", "call-004"]
        assert [run.xcom("summary", map_index=index)["stored"] for index in range(3)] == [2, 1, 2]
        assert [bench.record(row)["map_index"] for row in rows] == [0, 0, 1, 2, 2]

    def test_a_task_takes_the_result_of_another_as_call_ids(
        self, bench: Bench, airflow: RealAirflow, tmp_path: Path
    ) -> None:
        rows = calls(3)
        bench.start(*rows)
        run = airflow.test(
            f"""
            first = Archive(task_id="archive", path={bench.path!r})
            second = Archive(task_id="copy", path="file://{tmp_path}/copy", call_ids=first.output)
            third = Archive(
                task_id="text", path="file://{tmp_path}/text", call_ids="{{{{ ti.xcom_pull(task_ids='archive') }}}}"
            )
            second >> third
            """
        )
        assert set(run.states.values()) == {"success"}
        for task in ("archive", "copy", "text"):
            assert [row["call_id"] for row in run.xcom(task_id=task)] == [row["id"] for row in rows]

    def test_parameters_are_rendered_as_templates(self, bench: Bench, airflow: RealAirflow) -> None:
        row = call("one", **user_fields("hedy"))
        bench.start(row, call("two"))
        run = airflow.test(
            f"""
            Archive(
                task_id="archive",
                path="{bench.path}/{{{{ dag.dag_id }}}}",
                start="{{{{ dag_run.run_after - macros.timedelta(hours=8) }}}}",
                end="{{{{ dag_run.run_after }}}}",
                user_id="{{{{ params.user }}}}",
                storage_conn_id="{{{{ none }}}}",
                params={{"user": {row["user_id"]!r}}},
            )
            """
        )
        assert run.state == "success"
        assert [found["call_id"] for found in run.xcom()] == ["one"]
        assert all(name.startswith(f"{run.dag_id}/date=") for name in bench.files())

    @pytest.mark.parametrize("schedule", ["'@daily'", "'0 6 * * *'", "timedelta(days=1)", "None"])
    def test_every_schedule_has_a_window(self, bench: Bench, airflow: RealAirflow, schedule: str) -> None:
        bench.start(*make_calls(12, end=NOW - timedelta(days=2), days=0.5))
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})", schedule=schedule)
        assert run.state == "success"
        assert run.xcom("summary")["stored"] == 10

    def test_a_run_without_a_logical_date_has_a_window(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*calls(2))
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})", logical_date=None)
        assert run.xcom("summary")["stored"] == 2

    def test_a_time_out_ends_the_downloads(self, bench: Bench, airflow: RealAirflow) -> None:
        bench.start(*(call(f"x{number}--endless") for number in range(6)))
        started = time.monotonic()
        run = airflow.test(
            f"Archive(task_id='archive', path={bench.path!r}, execution_timeout=timedelta(seconds=6), "
            "max_concurrency=2)"
        )
        assert time.monotonic() - started < 60  # and not an hour; Airflow itself needs most of it on a busy machine
        assert run.state == "failed"
        assert len(bench.sandbox.recording_requests()) == 2
        assert not (bench.root / staging_module.STAGING).exists()

    def test_recordings_are_archived_in_a_cloud(
        self, bench: Bench, airflow: RealAirflow, cloud: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = calls(8)
        bench.start(*rows, call("x--too-large"), limit=6, period=4.0)
        folder = f"run-{time.time_ns()}"
        root, conn_id = cloud.apart
        root += f"/{folder}"
        put, failures = upload.put, ["first", "second"]

        def fail_twice(archive: archive_module.Archive, local: Path, key: str, *options: Any) -> None:
            if key.endswith(".mp3") and failures:
                raise OSError(failures.pop())
            put(archive, local, key, *options)

        monkeypatch.setattr(upload, "put", fail_twice)
        body = f"Archive(task_id='archive', path={root!r}, storage_conn_id={conn_id!r})"
        run = airflow.test(body)
        assert run.state == "success"
        for row in rows:
            place = Layout().place(row)
            assert cloud.head(f"{folder}/{place.audio}") == (len(bench.sandbox.recording(row["id"])), "audio/mpeg")
            assert cloud.head(f"{folder}/{place.sidecar}")[1] == "application/json"
            digest = archive_module.Archive(root, conn_id=conn_id).digest(place.audio)
            assert digest.sha256 == bench.sandbox.recording_sha256(row["id"])
            assert digest.is_whole
        assert bench.sandbox.most_in_any_period() <= 6
        assert failures == []
        again = airflow.test(body)
        assert {row["status"] for row in again.xcom()} == {"already_stored"}
        assert again.xcom("summary")["too_large"] == 1
        assert len(bench.sandbox.recording_requests()) == 9

    def test_a_missing_bucket_costs_no_request(self, bench: Bench, airflow: RealAirflow, cloud: Store) -> None:
        bench.start(*calls(2))
        run = airflow.test(f"Archive(task_id='archive', path={cloud.missing!r})")
        assert run.state == "failed"
        assert bench.sandbox.recording_requests() == []
