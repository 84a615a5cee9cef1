"""What a run hands over: its summary, its rows, and the failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_amplemarket.archive.entry import Item
from airflow_provider_amplemarket.archive.sidecar import Status
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.run.plan import Plan

#: So many failures are told of one by one.
_MOST = 20


def summary(plan: Plan) -> dict[str, Any]:
    """Return the figures of a run."""
    window = [plan.window.start.isoformat(), plan.window.end.isoformat()] if plan.window else None
    sizes = [item.entry.size or 0 for item in plan.items_with(Status.STORED)]
    return {**plan.counts(), "left": plan.left, "window": window, "bytes": sum(sizes)}


def rows(plan: Plan, archive: Archive) -> list[dict[str, Any]]:
    """Return a row for every archived recording, oldest call first."""
    items = plan.items_with(Status.STORED, Status.ALREADY_STORED)
    return [_row(item, plan.statuses[item.call_id], archive) for item in items]


def _row(item: Item, status: Status, archive: Archive) -> dict[str, Any]:
    return {
        "call_id": item.call_id,
        "uri": archive.uri(item.entry.place.audio),
        "status": status.value,
        "size": item.entry.size,
        "sha256": item.sidecar.sha256,
        "start_date": item.start.isoformat() if item.start else None,
    }


def list_failures(failures: Mapping[str, str]) -> str:
    """Return the first failures with their reasons, and how many more there are."""
    lines = [f"{call_id} ({reason})" for call_id, reason in list(failures.items())[:_MOST]]
    if len(failures) > _MOST:
        lines.append(f"and {len(failures) - _MOST} more")
    return "; ".join(lines)
