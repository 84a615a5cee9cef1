"""A task that Airflow kills ends its downloads and its waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow_provider_amplemarket.archive import staging as staging_module
from tests.operators.conftest import Bench, TaskInstance, call, calls


class TestKill:
    @contextmanager
    def running(self, bench: Bench, ti: TaskInstance, **kwargs: Any) -> Iterator[Callable[[], BaseException | None]]:
        """Run a task that is killed at the beginning of the block; yield a function that returns what ended it."""
        operator = bench.operator(**kwargs)
        ends: list[BaseException | None] = []

        def execute() -> None:
            try:
                operator.execute(bench.context(ti))
                ends.append(None)
            except BaseException as error:
                ends.append(error)

        task = threading.Thread(target=execute, daemon=True)
        task.start()
        deadline = time.monotonic() + 10
        while not bench.sandbox.recording_requests() or (
            kwargs.get("deferrable") is False and "waiting_until" not in ti.xcoms.get("summary", {})
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        operator.on_kill()

        def end() -> BaseException | None:
            task.join(3)
            assert not task.is_alive(), "the task goes on after it was killed"
            return ends[0]

        try:
            yield end
        finally:
            # Where it does not end by itself, its next look at the list ends it.
            bench.sandbox.stop()
            operator.hook = None  # type: ignore[assignment]
            task.join(15)
            assert not task.is_alive()

    def test_a_kill_ends_the_downloads(self, bench: Bench) -> None:
        rows = [call(f"x{number}--endless", 9 - number / 10) for number in range(12)]
        bench.start(*rows)
        with self.running(bench, TaskInstance("run", 1, 1), max_concurrency=2) as end:
            assert isinstance(end(), Exception)
            assert len(bench.sandbox.recording_requests()) <= 3
            assert [name for name in bench.files() if name.endswith(".mp3")] == []
            assert not (bench.root / staging_module.STAGING).exists()

    def test_a_kill_ends_the_sleep_for_the_quota(self, bench: Bench) -> None:
        bench.start(*calls(5), limit=2, period=8.0)
        with self.running(bench, TaskInstance("run", 1, 1), deferrable=False) as end:
            assert isinstance(end(), Exception)
            assert len(bench.sandbox.recording_requests()) == 2
