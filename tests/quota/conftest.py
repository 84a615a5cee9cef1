"""What the tests of the ledger begin with: a clock, and an empty ledger in memory."""

from __future__ import annotations

import pytest

from airflow_provider_amplemarket.quota.rate import LedgerState
from dev.memory import MemoryStore
from tests.quota.tools import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(LedgerState().dump())
