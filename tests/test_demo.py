"""The demo, as a new user runs it: twice, and against an API that is not the sandbox's own."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.sandbox import Sandbox, make_calls

CHECKOUT = Path(__file__).parent.parent


def demo(home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=CHECKOUT,
        env={**os.environ, "DEMO_HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_archives_a_day_of_calls_and_asks_for_nothing_the_second_time(tmp_path: Path) -> None:
    first = demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Archived   20 now, 0 before" in first.stdout
    assert "20 of 50 spent in the last 3600 s, 30 left" in first.stdout
    assert len(list(tmp_path.glob("sandbox/archive/date=*/*.mp3"))) == 20

    second = demo(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Archived   0 now, 20 before" in second.stdout
    assert "Nothing new was asked for" in second.stdout


@pytest.mark.parametrize(("key", "code"), [("live-key-4711", 0), ("wrong-key-4711", 1)])
def test_uses_the_real_api_with_a_key_and_never_shows_it(tmp_path: Path, key: str, code: int) -> None:
    calls = make_calls(6, end=datetime.now(UTC), seed=1)
    with Sandbox(calls=calls, api_key="live-key-4711") as api:
        done = demo(tmp_path, AMPLEMARKET_API_KEY=key, AMPLEMARKET_BASE_URL=api.url)
        asked = len(api.recording_requests())
    assert done.returncode == code, done.stdout + done.stderr
    assert "the real one" in done.stdout
    assert asked == (5 if code == 0 else 0)
    if code:
        assert "answered 401" in done.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    shown = [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in files)]
    assert not any(key.encode() in text for text in shown)
