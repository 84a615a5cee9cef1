"""The log of requests and responses. The API key is never part of it."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO


@dataclass
class LogEntry:
    """One request.

    ``time`` is when it was accepted and, if it counts, counted; ``answered`` is when its response was sent to the
    end, or None before that. Both are seconds since the epoch, on a clock that is never set back. ``status`` is 0 if
    there is no response; ``bytes_sent`` are those of the body. ``listener`` is ``api``, or ``away`` for the other
    host, to which redirects lead. ``recording`` marks requests to the API's recording endpoint.
    """

    time: float
    listener: str
    method: str
    path: str
    query: str
    call_id: str | None
    authorized: bool
    has_authorization: bool
    host: str
    user_agent: str
    recording: bool = False
    status: int = 0
    bytes_sent: int = 0
    answered: float | None = None


class RequestLog:
    """Keep the entries in memory and append each finished one, as a line of JSON, to a file.

    :param path: The file, or None for none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._entries: list[LogEntry] = []
        self._lock = threading.Lock()

    def open_file(self) -> None:
        """Open the file, if one is wanted."""
        if self._path:
            self._file = self._path.open("a", encoding="utf-8")

    def close_file(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

    def add(self, entry: LogEntry) -> None:
        """Add a request that was accepted.

        :param entry: Its entry, not yet finished.
        """
        with self._lock:
            self._entries.append(entry)

    def finish(self, entry: LogEntry, now: float) -> None:
        """Note that a request is over; a second time changes nothing.

        :param entry: Its entry.
        :param now: The time, in seconds since the epoch.
        """
        with self._lock:
            if entry.answered is not None:
                return
            entry.answered = now
            if self._file:
                self._file.write(json.dumps(asdict(entry)) + "\n")
                self._file.flush()

    def snapshot(self) -> list[LogEntry]:
        """Return copies of the entries, in the order in which the requests were accepted."""
        with self._lock:
            return [replace(entry) for entry in self._entries]
