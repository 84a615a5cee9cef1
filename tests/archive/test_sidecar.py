"""What is read of a sidecar, and what is kept of one that a later edition, or somebody by hand, has written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_amplemarket.archive.layout import Place
from airflow_provider_amplemarket.archive.sidecar import Entry, Sidecar, Status

PLACE = Place("a.mp3", "a.json", "")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"version": 2},
        {"colour": "red", "nothing": None},
        {"requests": "3"},
        {"start_date": "soon"},
        {"error": 5},
        {"call": ["a"]},
        {"overwrite": {}},
        {"overwrite": {"version": 1, "status": "failed", "start_date": None, "error": "503"}},
    ],
    ids=str,
)
def test_what_cannot_be_read_is_kept(fields: dict[str, Any]) -> None:
    data = {"version": 1, "call_id": "a", "status": "stored", "start_date": None, "size": 9} | fields
    assert Sidecar.load(data).dump() == data


def test_an_unknown_status_is_kept_until_there_is_another() -> None:
    sidecar = Sidecar.load({"version": 1, "status": "frozen"})
    assert sidecar.status is None
    assert not sidecar.is_blank
    assert sidecar.dump()["status"] == "frozen"
    assert replace(sidecar, status=Status.STORED).dump()["status"] == "stored"


@pytest.mark.parametrize(("size", "is_stored"), [(9, True), (9.0, True), (9.5, False), ("9", False), (True, False)])
def test_a_size_is_a_whole_number(size: object, is_stored: bool) -> None:
    assert Entry(PLACE, 9, Sidecar.load({"status": "stored", "size": size})).is_stored == is_stored
