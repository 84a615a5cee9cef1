"""The requests that the archive knows of: they count against the quota, whatever the ledger says."""

from __future__ import annotations

import time
from collections.abc import Iterable

from airflow_provider_amplemarket.archive.entry import Item
from airflow_provider_amplemarket.archive.recorder import MOST_SKEW


def known_requests(items: Iterable[Item], conn_id: str, *, hold: float) -> tuple[dict[str, float], list[float]]:
    """
    Return the timestamps of the last requests that sidecars tell of: those with a permit by its id, and the others.

    :param conn_id: only requests of this connection.
    :param hold: seconds for which a request counts.
    """
    now = time.time()
    # Of an answer that lies further ahead, a clock was wrong, and nobody knows by how much.
    since, until = now - hold, now + MOST_SKEW.total_seconds()
    by_permit: dict[str, float] = {}
    anonymous: list[float] = []
    for item in items:
        for permit, answered_at in item.sidecar.known_requests(conn_id):
            timestamp = answered_at.timestamp()
            if not since < timestamp <= until:
                continue
            if permit is None:
                anonymous.append(timestamp)
            else:
                by_permit[permit] = timestamp
    return by_permit, anonymous
