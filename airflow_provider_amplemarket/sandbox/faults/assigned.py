"""Which fault the recording of a call shows."""

from __future__ import annotations

import math
import threading
from collections import Counter

from airflow_provider_amplemarket.sandbox.faults.registry import RECORDING_FAULTS, find, known


class AssignedFaults:
    """Know the fault of each call: the one that was set, or else the one that its id ends in."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[str, float]] = {}
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def set(self, call_id: str, fault: str | None, times: int | None) -> None:
        """Set the fault of a call, whatever its id says, and count its requests anew.

        :param call_id: The call's id.
        :param fault: The fault; None, or ``ok``, for none.
        :param times: How many requests meet it; None for all.
        """
        name = known(fault or "ok", RECORDING_FAULTS)
        with self._lock:
            self._faults[call_id] = (name, math.inf if times is None else times)
            del self._attempts[call_id]

    def of(self, call_id: str) -> str:
        """Return the fault of a call, however many requests have met it; an empty text for none.

        :param call_id: The call's id.
        """
        with self._lock:
            name, _ = self._fault_and_times(call_id)
        return name

    def next(self, call_id: str) -> tuple[str, int]:
        """Count a request for a recording, and return the fault that it meets and its number, from 1.

        :param call_id: The call's id.
        """
        with self._lock:
            self._attempts[call_id] += 1
            attempt = self._attempts[call_id]
            name, times = self._fault_and_times(call_id)
        is_over = name == "ok" or attempt > times
        return "" if is_over else name, attempt

    def _fault_and_times(self, call_id: str) -> tuple[str, float]:
        return self._faults.get(call_id, (_fault_of_id(call_id), math.inf))


def _fault_of_id(call_id: str) -> str:
    _, dashes, name = call_id.rpartition("--")
    is_fault = bool(dashes) and find(name, RECORDING_FAULTS) is not None
    return name if is_fault else ""
