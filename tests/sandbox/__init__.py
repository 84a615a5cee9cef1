"""The Amplemarket API on this machine: calls, recordings, the hourly limit and everything that can go wrong.

A local HTTP server of the standard library that answers as the API does, so that tests, a demonstration and
anyone's own DAG can be run without an account and without spending real quota::

    with Sandbox(calls=make_calls(24, end=datetime.now(UTC))) as sandbox:
        requests.get(f"{sandbox.url}/calls", headers={"Authorization": "Bearer sandbox-key"})

``python -m tests.sandbox --help`` runs it as a program.
"""

from __future__ import annotations

from tests.sandbox.calls import make_call, make_calls
from tests.sandbox.faults import LIST_FAULTS, RECORDING_FAULTS
from tests.sandbox.recordings import Recording
from tests.sandbox.requestlog import LogEntry
from tests.sandbox.server import Sandbox

__all__ = [
    "LIST_FAULTS",
    "RECORDING_FAULTS",
    "LogEntry",
    "Recording",
    "Sandbox",
    "make_call",
    "make_calls",
]
