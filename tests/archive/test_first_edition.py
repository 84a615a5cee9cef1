"""Sidecars of the first edition are read to the last field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_amplemarket.archive.sidecar import VERSION, Sidecar, Status

OBJECTS = Path(__file__).with_name("first_edition") / "objects"
SIDECARS = sorted(OBJECTS.rglob("*.json"))

#: The status that each file's name stands for, where it is not the name itself.
STATUSES = {"full": "stored", "minimal": "stored", "overwritten": "stored", "undated": "stored"}


def test_the_archive_has_sidecars_of_every_kind() -> None:
    statuses = {json.loads(path.read_text())["status"] for path in SIDECARS}
    assert statuses == {"stored", "not_found", "too_large", "failed", "given_up", "deleted"}


@pytest.mark.parametrize("path", SIDECARS, ids=lambda path: path.stem)
def test_a_sidecar_is_read_and_written_without_loss(path: Path) -> None:
    data = json.loads(path.read_text())
    sidecar = Sidecar.load(data)
    assert sidecar.unknown == {}
    assert sidecar.dump() == {"version": VERSION, "start_date": None, **data}


@pytest.mark.parametrize("path", SIDECARS, ids=lambda path: path.stem)
def test_a_sidecar_has_its_status(path: Path) -> None:
    kind = path.stem.partition("-")[2].replace("-", "_") or path.stem
    assert Sidecar.load(json.loads(path.read_text())).status == Status(STATUSES.get(kind, kind))
