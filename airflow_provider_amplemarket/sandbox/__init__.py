"""The Amplemarket API on this machine: calls, recordings, the hourly limit and everything that can go wrong.

A local HTTP server, made of the standard library alone, that responds as the API does. With it, tests, a demonstration
and your own DAGs run without an account and without spending real quota::

    with Sandbox(calls=make_calls(24, end=datetime.now(UTC))) as sandbox:
        requests.get(f"{sandbox.url}/calls", headers={"Authorization": "Bearer sandbox-key"})

``python -m airflow_provider_amplemarket.sandbox --help`` runs it as a program.
"""

from __future__ import annotations

from airflow_provider_amplemarket.sandbox.calls import make_call, make_calls
from airflow_provider_amplemarket.sandbox.faults import LIST_FAULTS, RECORDING_FAULTS
from airflow_provider_amplemarket.sandbox.recordings import Recording
from airflow_provider_amplemarket.sandbox.requestlog import LogEntry
from airflow_provider_amplemarket.sandbox.server import Sandbox

__all__ = [
    "LIST_FAULTS",
    "RECORDING_FAULTS",
    "LogEntry",
    "Recording",
    "Sandbox",
    "make_call",
    "make_calls",
]
