"""What several of the operator's tests use."""

from __future__ import annotations

from tests.operators.conftest import Row


def ids(*rows: Row) -> list[str]:
    """Return the ids of calls, sorted."""
    return sorted(row["id"] for row in rows)
