"""The sandbox itself: it counts, looks up what was asked for, and lets go wrong what is to go wrong."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from airflow_provider_amplemarket.sandbox.answers import Answer, error, json_answer, not_found, too_many
from airflow_provider_amplemarket.sandbox.calls import Call
from airflow_provider_amplemarket.sandbox.faults import (
    AUDIO,
    LIST_FAULTS,
    RECORDING_FAULTS,
    Exchange,
    find,
    go_wrong,
    known,
)
from airflow_provider_amplemarket.sandbox.limiter import SlidingWindow, most_in_any, retry_after
from airflow_provider_amplemarket.sandbox.listener import Listener, Request, StoppedError
from airflow_provider_amplemarket.sandbox.pages import DEFAULT_SIZE, BadQueryError, Order, Pages, Query
from airflow_provider_amplemarket.sandbox.recordings import Recording, recording_of
from airflow_provider_amplemarket.sandbox.requestlog import LogEntry, RequestLog


class Sandbox:
    """The Amplemarket API on the loopback interface, for as long as the ``with`` block lasts.

    StoppedError and started again it has the same port, calls, log and count: an outage, not another server.

    :param calls: The rows of ``GET /calls``.
    :param api_key: The only key that is accepted.
    :param limit: How many requests the recording endpoint admits in any period.
    :param period: The length of that period, in seconds.
    :param retry_after: Whether a 429 of the limit carries ``Retry-After``.
    :param count_refused: Whether a request that the limit refuses counts as well.
    :param honour_filters: Whether the filters of ``GET /calls`` do anything.
    :param order: ``newest`` or ``oldest`` first, or ``shuffled``: newest first with rows a few places off.
    :param page_size: The most rows a page has, whatever is asked for.
    :param log_path: A file to which every finished request is appended, as a line of JSON.
    :param port: The port, or 0 for any that is free.
    :param clock: The time in seconds, from any beginning, that the limit goes by; it is never set back.
    """

    def __init__(
        self,
        *,
        calls: Iterable[Call] = (),
        api_key: str = "sandbox-key",
        limit: int = 50,
        period: float = 3600.0,
        retry_after: bool = True,
        count_refused: bool = False,
        honour_filters: bool = True,
        order: Order = "newest",
        page_size: int = DEFAULT_SIZE,
        log_path: str | Path | None = None,
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not api_key:
            raise ValueError("The API key must not be empty")
        self.calls: list[Call] = list(calls)
        # Names out of LIST_FAULTS: each authorized GET /calls takes the first one away and meets it.
        self.list_faults: deque[str] = deque()
        self._api_key = api_key
        self._retry_after = retry_after
        self._pages = Pages(honour_filters, order, page_size)
        self._limiter = SlidingWindow(limit, period, count_refused)
        self._log = RequestLog(Path(log_path) if log_path else None)
        self._faults: dict[str, tuple[str, float]] = {}
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listeners: list[Listener] = []
        self._ports = {"api": port, "away": 0}
        # One clock for the limit and the log, so that the two cannot disagree.
        self._clock = clock
        self._epoch = time.time() - clock()

    # Life

    def start(self) -> Self:
        """Listen, and return the sandbox itself."""
        if self._listeners:
            raise RuntimeError("The sandbox is running already")
        self._stopping.clear()
        try:
            for name, port in self._ports.items():
                self._listeners.append(Listener(self, name, port))
            self._log.open_file()
        except OSError:
            self.stop()
            raise
        for listener in self._listeners:
            self._ports[listener.name] = listener.server_port
            listener.start()
        return self

    def stop(self) -> None:
        """Stop listening, break off what is still going on, and leave no thread behind."""
        self._stopping.set()
        for listener in self._listeners:
            listener.stop()
        self._listeners.clear()
        self._log.close_file()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def pause(self, seconds: float) -> None:
        """Wait, or raise StoppedError as soon as the sandbox is stopped.

        :param seconds: How long.
        """
        if self._stopping.wait(seconds):
            raise StoppedError

    # What a test arranges

    def add_calls(self, *calls: Call) -> None:
        """Let further calls appear, all at once.

        :param calls: Their rows.
        """
        with self._lock:
            self.calls.extend(calls)

    def set_fault(self, call_id: str, fault: str | None, times: int | None = None) -> None:
        """Let a call's recording show a fault, whatever its id says.

        :param call_id: The call's id.
        :param fault: The fault; None, or ``ok``, for none.
        :param times: Only so many requests meet it and those after them none; None for all.
        """
        name = known(fault or "ok", RECORDING_FAULTS)
        with self._lock:
            self._faults[call_id] = (name, math.inf if times is None else times)
            del self._attempts[call_id]

    def spend(self, n: int) -> None:
        """Let another client with the same key send requests to the recording endpoint.

        :param n: How many. Those over the limit are refused, as anyone's.
        """
        with self._lock:
            for _ in range(n):
                self._limiter.admit(self._clock())

    # What a test asks

    @property
    def url(self) -> str:
        """The base URL of the API."""
        return self._url("api")

    @property
    def away_url(self) -> str:
        """The base URL of the other host, to which redirects and links lead and which needs no key."""
        return self._url("away")

    def _url(self, name: str) -> str:
        if not self._ports[name]:
            raise RuntimeError("The sandbox has not been started")
        return f"http://127.0.0.1:{self._ports[name]}"

    def recording(self, call_id: str) -> bytes:
        """Return the bytes of a call's recording, as a healthy answer has them.

        :param call_id: The call's id. ValueError is raised for a ``large-N``; see `recording_sha256`.
        """
        recording = self._recording(call_id)
        if recording.repeats > 1:
            raise ValueError(f"The recording of {call_id} is too large to be built; ask for its SHA-256")
        return b"".join(recording)

    def recording_sha256(self, call_id: str) -> str:
        """Return the SHA-256 of these bytes, in hexadecimal.

        :param call_id: The call's id.
        """
        return self._recording(call_id).sha256()

    def recording_size(self, call_id: str) -> int:
        """Return how many bytes these are.

        :param call_id: The call's id.
        """
        return self._recording(call_id).size

    def _recording(self, call_id: str) -> Recording:
        with self._lock:
            name, _ = self._faults.get(call_id, (fault_of(call_id), 0))
        large = find(name, RECORDING_FAULTS) if name.startswith("large-") else None
        return recording_of(call_id, large[1] if large else None)

    @property
    def log(self) -> list[LogEntry]:
        """A copy of the log of both hosts, in the order in which the requests were accepted."""
        return self._log.snapshot()

    def recording_requests(self) -> list[LogEntry]:
        """Return the entries of requests to the recording endpoint, whatever was answered."""
        return [entry for entry in self.log if entry.recording]

    def away_requests(self) -> list[LogEntry]:
        """Return the entries of requests to the other host."""
        return [entry for entry in self.log if entry.listener == "away"]

    def most_in_any_period(self) -> int:
        """Return the greatest number of requests to the recording endpoint in any window of one period.

        Refused ones are among them; those of `spend`, which nobody sent, are not.
        """
        return most_in_any([entry.time for entry in self.recording_requests()], self._limiter.period)

    # What a listener asks

    def accept(self, request: Request) -> tuple[LogEntry, Answer | None]:
        """Enter a request in the log, and count it if it is for a recording.

        :param request: The request.
        :return: Its entry, and the refusal if it is refused.
        """
        api = request.listener == "api"
        recording = api and is_recording(request)
        authorized = self._knows(request.authorization)
        entry = LogEntry(
            time=0.0,
            listener=request.listener,
            method=request.method,
            path=self._redacted(request.path),
            query=self._redacted(request.raw_query),
            call_id=self._redacted(request.parts[1]) if recording else None,
            authorized=authorized,
            has_authorization=request.authorization is not None,
            host=self._redacted(request.host),
            user_agent=self._redacted(request.user_agent),
            recording=recording,
        )
        with self._lock:
            now = self._clock()
            entry.time = now + self._epoch
            self._log.add(entry)
            wait = self._limiter.admit(now) if recording and authorized else None
        if api and not authorized and not is_file(request):
            return entry, error(401, "unauthorized", "Invalid API key", {"header": "Authorization"})
        if wait is not None:
            return entry, too_many(retry_after(wait) if self._retry_after else None)
        return entry, None

    def finish(self, entry: LogEntry) -> None:
        """Note that a request is over.

        :param entry: Its entry in the log.
        """
        self._log.finish(entry, self._clock() + self._epoch)

    def answer(self, request: Request) -> Answer | None:
        """Return the answer to a request that was not refused, or None to close the connection without one.

        :param request: The request.
        """
        api, parts = request.listener == "api", request.parts
        if is_file(request):
            return self._answer_file(parts[2])
        if api and is_recording(request):
            return self._answer_recording(request, parts[1])
        if request.method == "GET" and parts == ["calls"]:
            return self._answer_page(request, faults=api)
        if request.method == "GET" and parts == ["account-info"] and api:
            return json_answer({"id": "00000000-0000-4000-8000-000000000000", "name": "Sandbox"})
        return error(404, "not_found", "No such endpoint")

    def answer_log(self) -> Answer:
        """Return the log and what follows from it, for tests in another process."""
        return json_answer(
            {
                "limit": self._limiter.limit,
                "period": self._limiter.period,
                "recording_requests": len(self.recording_requests()),
                "most_in_any_period": self.most_in_any_period(),
                "requests": [asdict(entry) for entry in self.log],
            }
        )

    def page(self, query: Query, overlap: int = 0) -> dict[str, Any]:
        """Return a page of calls, without any fault.

        :param query: The parameters of ``GET /calls``.
        :param overlap: So many rows of this page come again on the next.
        """
        with self._lock:
            calls = list(self.calls)
        return self._pages.page(calls, query, overlap)

    def _answer_page(self, request: Request, faults: bool) -> Answer | None:
        try:
            healthy = json_answer(self.page(request.query))
        except BadQueryError as problem:
            return error(400, "unsupported_value", "Unsupported value", {"parameter": problem.parameter})
        if not (faults and self.list_faults):
            return healthy
        return go_wrong(self.list_faults.popleft(), LIST_FAULTS, Exchange(self, request, healthy))

    def _answer_recording(self, request: Request, call_id: str) -> Answer | None:
        with self._lock:
            self._attempts[call_id] += 1
            attempt = self._attempts[call_id]
            fault, times = self._faults.get(call_id, (fault_of(call_id), math.inf))
            exists = any(call.get("id") == call_id and not call.get("external") for call in self.calls)
        healthy = self._answer_file(call_id)
        if fault not in ("", "ok") and attempt <= times:
            return go_wrong(fault, RECORDING_FAULTS, Exchange(self, request, healthy, call_id, attempt))
        return healthy if exists else not_found()

    def _answer_file(self, call_id: str) -> Answer:
        recording = self._recording(call_id)
        return Answer(200, {"Content-Type": AUDIO, "Content-Length": str(recording.size)}, recording)

    def _knows(self, authorization: str | None) -> bool:
        expected = f"Bearer {self._api_key}"
        return hmac.compare_digest((authorization or "").encode(), expected.encode())

    def _redacted(self, text: str) -> str:
        for key in (self._api_key, quote(self._api_key, safe="")):
            text = text.replace(key, "***")
        return text


def is_recording(request: Request) -> bool:
    """Return whether a request is one to the recording endpoint, wherever it was sent.

    :param request: The request.
    """
    parts = request.parts
    return request.method == "GET" and len(parts) == 3 and parts[0] == "calls" and parts[2] == "recording"


def is_file(request: Request) -> bool:
    """Return whether a request is for a file to which a redirect leads and which, as a signed URL, needs no key.

    :param request: The request.
    """
    parts = request.parts
    return request.method == "GET" and len(parts) == 3 and parts[:2] == ["sandbox", "files"]


def fault_of(call_id: str) -> str:
    """Return the fault that ends a call's id, or nothing.

    :param call_id: The call's id.
    """
    _, dashes, name = call_id.rpartition("--")
    return name if dashes and find(name, RECORDING_FAULTS) else ""
