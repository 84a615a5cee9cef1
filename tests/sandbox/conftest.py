"""A running sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox, make_calls
from tests.sandbox.client import END


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(calls=make_calls(50, end=END)) as running:
        yield running
