"""The sandbox as a program of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.processes import free_port
from tests.sandbox.client import get

ROOT = Path(__file__).parents[2]


class TestProgram:
    def run(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_amplemarket.sandbox", *arguments],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_program_serves_until_it_is_told_to_stop(self, tmp_path: Path, number: signal.Signals) -> None:
        log = tmp_path / "log"
        options = f"--calls 5 --api-key k --limit 2 --log {log} --page-size 9 --faults"
        with self.run(*options.split()) as process:
            assert process.stdout
            assert process.stderr
            printed = ""
            while "export" not in printed:
                printed += process.stdout.readline()
            exported = re.search(r"AIRFLOW_CONN_AMPLEMARKET_DEFAULT='(.+)'", printed)
            assert exported
            connection = json.loads(exported[1])
            assert (connection["conn_type"], connection["password"]) == ("amplemarket", "k")
            assert connection["extra"] == {"recording_limit": 2, "recording_period": 3600.0}
            first = get(connection["host"], "/calls", key="k").json()
            assert len(first["calls"]) == 9
            assert first["calls"][0]["id"] == "sandbox--chunked"
            paths = [f"/calls/sandbox--{fault}/recording" for fault in ("chunked", "too-large", "late")]
            assert [get(connection["host"], path, key="k").status for path in paths] == [200, 413, 429]
            assert get(connection["host"], "/sandbox/log").json()["most_in_any_period"] == 3
            process.send_signal(number)
            assert process.wait(5) == 0
            assert process.stderr.read() == ""
        assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [200, 200, 413, 429]

    def beginning(self, **env: str) -> str:
        """Start it with this environment, and return what it prints before it is stopped again."""
        with self.run(**env) as process:
            assert process.stdout
            printed = "".join(iter(process.stdout.readline, "For Airflow:\n"))
            process.terminate()
        return printed

    def test_the_program_takes_a_free_port_where_none_is_chosen(self) -> None:
        ports = {re.findall(r"URL +http://127\.0\.0\.1:(\d+)", self.beginning())[0] for _ in range(2)}
        assert ports.isdisjoint({"0", "8080"})

    def test_port_limit_and_period_are_read_from_the_environment(self) -> None:
        port = str(free_port())
        printed = self.beginning(PORT=port, LIMIT="7", PERIOD="90")
        assert f"127.0.0.1:{port}\n" in printed
        assert "7 recordings in 90 s" in printed

    def test_what_is_empty_in_the_environment_counts_as_unset(self) -> None:
        assert "50 recordings in 3600 s" in self.beginning(PORT="", LIMIT="", PERIOD="")

    def test_an_unknown_fault_is_refused(self) -> None:
        with self.run("--port", "0", "--faults", "nofault") as process:
            _, problems = process.communicate(timeout=10)
            assert process.returncode == 2
            assert "'nofault' is not a fault" in problems

    def test_a_wrong_datetime_is_refused(self) -> None:
        with self.run("--port", "0", "--end", "yesterday") as process:
            _, problems = process.communicate(timeout=10)
            assert process.returncode == 2
            assert "'yesterday' is not a valid datetime; use ISO 8601, e.g. 2026-11-20T00:00:00Z" in problems

    def test_the_program_says_that_its_port_is_taken(self, sandbox: Sandbox) -> None:
        with self.run("--port", sandbox.url.rpartition(":")[2]) as process:
            _, problems = process.communicate(timeout=10)
            assert process.returncode == 1
            assert "cannot start" in problems
