"""Airflow's Variables: what fails is tried again, and what is missing is not believed at once. See docs/quota.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from airflow.providers.common.compat.sdk import Variable, conf

from airflow_provider_amplemarket.exceptions import AmplemarketError, LedgerError

#: Pauses in seconds between tries.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)

#: So many responses in a row that there is no such Variable are believed. One is not: Airflow 3 gives the same one
#: when its API server has a hiccup.
_NOT_FOUND_BELIEVED = 3

#: A write that returned within so many seconds was sent once, and no copy of it is under way: Airflow's client pauses
#: for a second at least before it sends one again.
QUICK = 1.0

OTHER_TEAM = (
    "In a multi-team Airflow these Variables belong to the team whose task wrote them first. From Airflow 3.3 on, take "
    "the team off the Variables whose names begin with {key}, and all teams share them; before, teams cannot share a "
    "ledger: give each an API key and a connection of its own."
)


class Store(Protocol):
    """Where texts are kept by key."""

    def get(self, key: str) -> str | None:
        """Return the stored text, None when there is none."""

    def set(self, key: str, text: str) -> None:
        """Store the text."""


class VariableStore:
    """Keep texts in Airflow's Variables, which every worker sees."""

    def __init__(self, description: str = "Amplemarket's hourly quota. Do not edit.") -> None:
        self._description = description

    def get(self, key: str) -> str | None:
        """Return the Variable's text, None when Airflow says that there is none."""
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
        Variable.set(key, text, description=self._description)


class Pause:
    """Wait, but no longer than a second after the task is told to stop."""

    def __init__(
        self, sleep: Callable[[float], None] = time.sleep, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._sleep = sleep
        self._cancelled = cancelled

    def __call__(self, seconds: float) -> None:
        """Wait so long; raise an AmplemarketError when the task is told to stop."""
        while seconds > 0:
            if self._cancelled():
                raise AmplemarketError("The task was told to stop")
            self._sleep(min(seconds, 1.0))
            seconds -= 1.0


class RetryingStore:
    """Try again where a store fails, and do not believe at once that something is missing.

    :param proof: key of another text, which must be readable before one is believed to be missing; it is written
        where it is missing itself.
    """

    def __init__(
        self,
        *,
        store: Store,
        proof: str,
        pause: Callable[[float], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._proof = proof
        self._pause = pause
        self._monotonic = monotonic
        self._is_kept_from_us = False
        #: Whether the last access went well, and took less than :data:`QUICK`.
        self.is_quick = True

    def get(self, key: str) -> str | None:
        """Return the stored text, None once it is certain that there is none.

        :raises LedgerError: when the store cannot be read.
        """
        not_found = 0
        problem: Exception | None = None
        for pause in (*_PAUSES, 0.0):
            try:
                text = self._read(key)
                if text is not None:
                    return text
                not_found += 1
                is_missing = not_found >= _NOT_FOUND_BELIEVED and self._has_proof()
                if is_missing:
                    return self._read(key)
            except Exception as error:
                problem, not_found = error, 0
            self._pause(pause)
        message = f"The quota ledger (Airflow Variable {key}) cannot be read"
        if self._is_kept_from_us:
            message += f": Variable {self._proof} is written, and reads as missing. {OTHER_TEAM.format(key=key)}"
        raise LedgerError(message) from problem

    def glance(self, key: str) -> str | None:
        """Return the stored text, None when it is not there or cannot be read just now."""
        try:
            return self._read(key)
        except Exception:
            return None

    def set(self, key: str, text: str, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Store the text, and return whether that was quick: if not, copies of it may arrive later.

        :param unless: whether it is too late to write; called before each try.
        :raises LedgerError: when the store does not take it.
        """
        problem: Exception | None = None
        for pause in (*_PAUSES, 0.0):
            if unless():
                break
            try:
                self._write(key, text)
                return problem is None and self.is_quick
            except Exception as error:
                problem = error
            self._pause(pause)
        raise LedgerError(f"The quota ledger (Airflow Variable {key}) cannot be written") from problem

    def _has_proof(self) -> bool:
        """Return whether the store can be read and written, by another text."""
        self._is_kept_from_us = False
        try:
            if self._read(self._proof) is None:
                self._write(self._proof, "proof")
            is_there = self._read(self._proof) is not None
        except Exception:
            return False
        self._is_kept_from_us = not is_there
        return is_there

    def _read(self, key: str) -> str | None:
        with self._timed():
            return self._store.get(key)

    def _write(self, key: str, text: str) -> None:
        with self._timed():
            self._store.set(key, text)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        self.is_quick = False
        began = self._monotonic()
        yield
        self.is_quick = self._monotonic() - began < QUICK


def is_multi_team() -> bool:
    """Return whether this Airflow's Variables may belong to teams."""
    return bool(conf.getboolean("core", "multi_team", fallback=False))
