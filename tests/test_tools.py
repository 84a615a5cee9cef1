"""What is run by hand takes its numbers from the environment, and refuses wrong ones before it begins anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import home

CHECKOUT = Path(__file__).parent.parent


def run(module: str, *options: str, base: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=CHECKOUT,
        env={**os.environ, "DEMO_HOME": str(base), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


class TestNumbersOfTheEnvironment:
    @pytest.mark.parametrize("module", ["tools.demo", "tools.standalone", "tools.scheduled", "tests.sandbox"])
    @pytest.mark.parametrize(
        ("name", "value"),
        [("LIMIT", "abc"), ("LIMIT", "0"), ("LIMIT", "1.5"), ("PERIOD", "-1"), ("PERIOD", "nan"), ("PERIOD", "inf")],
    )
    def test_are_refused_in_one_line_where_they_are_wrong(
        self, tmp_path: Path, module: str, name: str, value: str
    ) -> None:
        base = tmp_path / "home"
        done = run(module, base=base, **{name: value})
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{name} cannot be used: '{value}' is not a ")
        assert (done.returncode, done.stdout) == (2, "")
        assert not base.exists()

    @pytest.mark.parametrize("module", ["tools.standalone", "tools.scheduled", "tests.sandbox"])
    @pytest.mark.parametrize("port", ["x", "-1", "65536"])
    def test_include_the_port(self, tmp_path: Path, module: str, port: str) -> None:
        base = tmp_path / "home"
        done = run(module, base=base, PORT=port)
        assert done.stderr == (
            f"PORT cannot be used: '{port}' is not a port: a whole number from 0 to 65535, 0 for a free one\n"
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert not base.exists()

    def test_are_the_default_where_they_are_empty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIMIT", "")
        monkeypatch.setenv("PERIOD", " ")
        assert home.STANDALONE.as_set() == home.STANDALONE
        monkeypatch.setenv("LIMIT", "3")
        monkeypatch.setenv("PERIOD", "0.5")
        assert home.STANDALONE.as_set() == home.Home("airflow", 3, 0.5)

    def test_are_nothing_to_the_reset(self, tmp_path: Path) -> None:
        (tmp_path / "airflow").mkdir()
        done = run("tools.reset", base=tmp_path, LIMIT="", PERIOD="x", PORT="x")
        assert (done.returncode, done.stderr) == (0, "")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("option", "value"), [("--limit", "0"), ("--period", "nan"), ("--port", "70000")])
    def test_are_the_same_on_the_sandbox_s_command_line(self, tmp_path: Path, option: str, value: str) -> None:
        done = run("tests.sandbox", option, value, base=tmp_path)
        assert done.returncode == 2
        assert f"argument {option}: '{value}' is not a" in done.stderr
