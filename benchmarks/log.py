"""What the sandbox's log of requests has of a run."""

from __future__ import annotations

from collections.abc import Iterable

from airflow_provider_amplemarket.sandbox.requestlog import LogEntry


def recordings(log: Iterable[LogEntry]) -> list[LogEntry]:
    """Return the requests for recordings."""
    return [entry for entry in log if entry.recording]


def refused(log: Iterable[LogEntry]) -> int:
    """Count those of them that the limit refused."""
    return sum(entry.status == 429 for entry in recordings(log))


def plans(log: Iterable[LogEntry]) -> list[float]:
    """Return when the first page of calls was asked for: each time that a task began or came back."""
    return [entry.time for entry in log if entry.path == "/calls" and "page" not in entry.query]


def ended(log: Iterable[LogEntry]) -> float:
    """Return when the last recording had come."""
    return max(entry.answered or 0.0 for entry in recordings(log))


def last_burst(log: Iterable[LogEntry]) -> float:
    """Return how long the requests for recordings took that follow the last look at the list of calls."""
    log = list(log)
    return ended(log) - min(entry.time for entry in recordings(log) if entry.time >= plans(log)[-1])
