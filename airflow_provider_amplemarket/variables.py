"""Airflow's Variables, read and written with patience and with suspicion."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from airflow.providers.common.compat.sdk import Variable

from airflow_provider_amplemarket.exceptions import LedgerError

#: Pauses in seconds between tries.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)

#: So many answers "there is no such Variable" in a row are believed. One is not: Airflow 3 gives the same
#: answer when its API server merely had a hiccup.
_NOT_FOUND_BELIEVED = 3


class Store(Protocol):
    """Where texts are kept by key."""

    def get(self, key: str) -> str | None:
        """Answer the stored text, None when there is none."""

    def set(self, key: str, text: str) -> None:
        """Store the text."""


class VariableStore:
    """Keep texts in Airflow's Variables, which every worker sees."""

    def get(self, key: str) -> str | None:
        """Answer the Variable's text, None when Airflow says that there is none."""
        try:
            text = Variable.get(key)  # no default: with one, an outage would look like a missing Variable
        except KeyError:  # outside of a task
            return None
        except Exception as error:
            kind = getattr(getattr(error, "error", None), "error", None)
            if getattr(kind, "name", None) == "VARIABLE_NOT_FOUND":  # Airflow 3
                return None
            raise
        return str(text)

    def set(self, key: str, text: str) -> None:
        """Store the text in the Variable."""
        Variable.set(key, text, description="Amplemarket's hourly quota. Do not edit.")


class PatientStore:
    """
    Try again where a store fails for a moment, and do not believe at once that something is missing.

    :param store: where the texts are kept.
    :param proof: key of another text, which must be readable before one is believed to be missing; it is written
        where it is missing itself.
    :param sleep: how to pause between tries.
    """

    def __init__(self, store: Store, proof: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._proof = proof
        self._sleep = sleep

    def get(self, key: str) -> str | None:
        """
        Answer the stored text, None once it is certain that there is none.

        :raises LedgerError: when the store cannot be read.
        """
        not_found = 0
        problem: Exception | None = None
        for pause in (*_PAUSES, 0.0):
            try:
                text = self._store.get(key)
                not_found += 1
                if text is not None:
                    return text
                if not_found >= _NOT_FOUND_BELIEVED and self._answers():
                    return self._store.get(key)
            except Exception as error:
                problem, not_found = error, 0
            self._sleep(pause)
        raise LedgerError(f"The quota ledger (Airflow Variable {key}) cannot be read") from problem

    def set(self, key: str, text: str, *, unless: Callable[[], bool] = lambda: False) -> None:
        """
        Store the text.

        :param unless: asked before each try; once it says so, it is too late to write.
        :raises LedgerError: when the store does not take it.
        """
        problem: Exception | None = None
        for pause in (*_PAUSES, 0.0):
            if unless():
                break
            try:
                self._store.set(key, text)
                return
            except Exception as error:
                problem = error
            self._sleep(pause)
        raise LedgerError(f"The quota ledger (Airflow Variable {key}) cannot be written") from problem

    def _answers(self) -> bool:
        try:
            if self._store.get(self._proof) is None:
                self._store.set(self._proof, "proof")
            return self._store.get(self._proof) is not None
        except Exception:
            return False
