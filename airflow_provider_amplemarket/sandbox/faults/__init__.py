"""Everything that can go wrong, by name.

A fault is a function from the exchange, which knows the healthy response, to the response that is sent instead, or to
None: the connection is then closed without any. Most faults can befall a recording and a page of calls alike.
"""

from __future__ import annotations

# Each of these enters its faults into the tables.
from airflow_provider_amplemarket.sandbox.faults import connections, contents, errors, lists, redirects
from airflow_provider_amplemarket.sandbox.faults.assigned import AssignedFaults
from airflow_provider_amplemarket.sandbox.faults.registry import (
    AUDIO,
    LIST_FAULTS,
    RECORDING_FAULTS,
    Exchange,
    find,
    go_wrong,
    known,
)

__all__ = [
    "AUDIO",
    "LIST_FAULTS",
    "RECORDING_FAULTS",
    "AssignedFaults",
    "Exchange",
    "connections",
    "contents",
    "errors",
    "find",
    "go_wrong",
    "known",
    "lists",
    "redirects",
]
