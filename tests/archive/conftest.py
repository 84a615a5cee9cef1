"""Archives to test: on every kind of store, and on a local disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity

from airflow_provider_amplemarket.archive.store import Archive
from dev.stores import STORES, Kind, Store
from dev.stores.relay import Relay


@pytest.fixture(scope="module", params=STORES, ids=lambda kind: kind.name)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    kind: Kind = request.param
    with kind.running(tmp_path_factory.mktemp(kind.name)) as running:
        yield running


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder of the store for each test alone."""
    return hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


@pytest.fixture
def relay(store: Store) -> Iterator[Relay]:
    if store.relay is None:
        pytest.skip("no network here")
    yield store.relay
    store.relay.release()


@pytest.fixture
def archive(store: Store, folder: str) -> Archive:
    return Archive(f"{store.root}/{folder}")


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return Archive(f"file://{tmp_path}/archive")


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", made.append)
    return made
