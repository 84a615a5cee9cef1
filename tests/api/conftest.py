"""A client for a URL, and a file to download to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.servers import Api, Connect


@pytest.fixture
def connect() -> Connect:
    """Give what makes a client."""
    return Api


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Give the file to download to, alone in its directory."""
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads" / "recording.part"
