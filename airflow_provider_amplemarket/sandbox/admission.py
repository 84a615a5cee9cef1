"""Which requests are let in: each is logged, and those for recordings count against the limit."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from airflow_provider_amplemarket.sandbox.limiter import SlidingWindow, most_in_any, retry_after
from airflow_provider_amplemarket.sandbox.listener import Request
from airflow_provider_amplemarket.sandbox.requestlog import LogEntry, RequestLog
from airflow_provider_amplemarket.sandbox.responses import Response, error, too_many


class Admission:
    """Log requests, check their key, and keep the limit.

    :param api_key: The only key that is accepted.
    :param limiter: The limit of the recording endpoint.
    :param log: The log.
    :param sends_retry_after: Whether a 429 of the limit carries ``Retry-After``.
    :param clock: The time in seconds, from any beginning; it is never set back.
    """

    def __init__(
        self,
        *,
        api_key: str,
        limiter: SlidingWindow,
        log: RequestLog,
        sends_retry_after: bool,
        clock: Callable[[], float],
    ) -> None:
        self._api_key = api_key
        self._limiter = limiter
        self._log = log
        self._sends_retry_after = sends_retry_after
        # One clock for the limit and the log, so that the two cannot disagree.
        self._clock = clock
        self._epoch = time.time() - clock()
        self._lock = threading.Lock()

    def accept(self, request: Request) -> tuple[LogEntry, Response | None]:
        """Log a request, and count it if it is for a recording.

        :param request: The request.
        :return: Its log entry, and the refusal if it is refused.
        """
        is_to_api = request.listener == "api"
        entry = self._entry_of(request)
        with self._lock:
            now = self._clock()
            entry.time = now + self._epoch
            self._log.add(entry)
            wait = self._limiter.admit(now) if entry.recording and entry.authorized else None
        if is_to_api and not entry.authorized and not request.is_for_file:
            return entry, error(401, "unauthorized", "Invalid API key", {"header": "Authorization"})
        if wait is not None:
            return entry, too_many(retry_after(wait) if self._sends_retry_after else None)
        return entry, None

    def finish(self, entry: LogEntry) -> None:
        """Note in the log that a request is over.

        :param entry: Its log entry.
        """
        self._log.finish(entry, self._clock() + self._epoch)

    def spend(self, n: int) -> None:
        """Count requests of another client with the same key.

        :param n: How many.
        """
        with self._lock:
            for _ in range(n):
                self._limiter.admit(self._clock())

    @property
    def log(self) -> list[LogEntry]:
        """A copy of the log."""
        return self._log.snapshot()

    def recording_requests(self) -> list[LogEntry]:
        """Return the log entries of requests to the recording endpoint."""
        return [entry for entry in self.log if entry.recording]

    def most_in_any_period(self) -> int:
        """Return the greatest number of these requests in any window of one period."""
        return most_in_any([entry.time for entry in self.recording_requests()], self._limiter.period)

    def report(self) -> dict[str, Any]:
        """Return the log and its figures as they are served to other processes."""
        return {
            "limit": self._limiter.limit,
            "period": self._limiter.period,
            "recording_requests": len(self.recording_requests()),
            "most_in_any_period": self.most_in_any_period(),
            "requests": [asdict(entry) for entry in self.log],
        }

    def _entry_of(self, request: Request) -> LogEntry:
        is_recording = request.listener == "api" and request.is_for_recording
        return LogEntry(
            time=0.0,
            listener=request.listener,
            method=request.method,
            path=self._redacted(request.path),
            query=self._redacted(request.raw_query),
            call_id=self._redacted(request.parts[1]) if is_recording else None,
            authorized=self._knows(request.authorization),
            has_authorization=request.authorization is not None,
            host=self._redacted(request.host),
            user_agent=self._redacted(request.user_agent),
            recording=is_recording,
        )

    def _knows(self, authorization: str | None) -> bool:
        expected = f"Bearer {self._api_key}"
        return hmac.compare_digest((authorization or "").encode(), expected.encode())

    def _redacted(self, text: str) -> str:
        for key in (self._api_key, quote(self._api_key, safe="")):
            text = text.replace(key, "***")
        return text
