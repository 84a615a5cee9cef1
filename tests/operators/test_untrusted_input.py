"""What the API lists is not trusted: a hostile id or field neither leaves the archive nor stops another call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.exceptions import (
    ArchiveIncompleteError,
)
from tests.operators.conftest import Bench, call, calls
from tests.operators.tools import ids

HOSTILE = (
    "../../outside",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "nul\x00byte",
    "line\nbreak",
    "x" * 129,
    "y" * 5000,
    "ünïcode",
    "{}",
    "{id}",
    "%2e%2e%2f",
    "one?two",
    "one#two",
    " one",
    None,
    7,
    ["one"],
    {"id": "one"},
)


class TestUntrustedInput:
    @pytest.mark.parametrize("hostile", HOSTILE, ids=lambda value: repr(value)[:20])
    def test_a_hostile_id_fails_alone_and_touches_nothing(self, bench: Bench, tmp_path: Path, hostile: Any) -> None:
        rows = calls(2)
        bench.start(*rows, {**call("x", 9), "id": hostile})
        outcome = bench.run()
        assert isinstance(outcome.error, ArchiveIncompleteError)
        assert "1 recordings failed" in str(outcome.error)
        assert "its id is not a plain token" in str(outcome.error)
        assert repr(hostile)[:100] in str(outcome.error)
        assert len(str(outcome.error)) < 300
        assert sorted(filter(None, outcome.asked)) == ids(*rows)
        assert outcome.counts() == {"stored": 2, "failed": 1}
        assert bench.holds(*rows)
        assert [path.name for path in tmp_path.iterdir()] == ["archive"]

    def test_every_hostile_id_is_counted(self, bench: Bench) -> None:
        bench.start(*({**call("x"), "id": "../" + "x" * 200 + str(number)} for number in range(3)))
        assert bench.run().counts() == {"failed": 3}

    def test_hostile_fields_stay_below_the_archive(self, bench: Bench, tmp_path: Path) -> None:
        row = call("one", user_email="../../../x", disposition_name="/abs\x00\n", **{"from": {"a": "../b"}, "to": ".."})
        bench.start(row)
        bench.run(key="{user_email}/{disposition_name}/{from}/{to}/{id}.mp3").ok  # noqa: B018
        assert len(bench.files()) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["archive"]
        assert all(part.strip(".") for name in bench.files() for part in name.split("/"))

    @pytest.mark.parametrize(
        "value", [float("inf"), float("nan"), 10**400, "9999-99-99", "0001-01-01T00:00:00+23:59", []]
    )
    def test_a_call_with_nonsense_in_other_fields_is_archived(self, bench: Bench, value: Any) -> None:
        row = call("one", duration=value, transcript=value, surprise={"deep": [value]})
        row["start_date"] = value
        bench.start(row, honour_filters=False)
        assert bench.run().ok.statuses == {"one": "stored"}
        assert bench.run("again").ok.asked == []

    def test_a_call_with_half_a_character_is_archived(self, bench: Bench) -> None:
        row = call("one", notes="Great call \ud83d")
        bench.start(row, call("two"))
        assert bench.run().ok.counts() == {"stored": 2}
        assert bench.record(row)["call"]["notes"] == "Great call \ud83d"
