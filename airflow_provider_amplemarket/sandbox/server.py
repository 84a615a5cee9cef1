"""The sandbox itself: its life, what a test arranges in it and asks of it, and how it responds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from airflow_provider_amplemarket.sandbox.admission import Admission
from airflow_provider_amplemarket.sandbox.calls import Call
from airflow_provider_amplemarket.sandbox.faults import (
    AUDIO,
    LIST_FAULTS,
    RECORDING_FAULTS,
    AssignedFaults,
    Exchange,
    find,
    go_wrong,
)
from airflow_provider_amplemarket.sandbox.limiter import SlidingWindow
from airflow_provider_amplemarket.sandbox.listener import Listener, Request, StoppedError
from airflow_provider_amplemarket.sandbox.pages import DEFAULT_SIZE, BadQueryError, Order, Pages, Query
from airflow_provider_amplemarket.sandbox.recordings import Recording, recording_of
from airflow_provider_amplemarket.sandbox.requestlog import LogEntry, RequestLog
from airflow_provider_amplemarket.sandbox.responses import Response, error, json_response, not_found


class Sandbox:
    """The Amplemarket API on the loopback interface, for as long as the ``with`` block lasts.

    Stopped and started again, it has the same port, calls, log and count: that is an outage, not another server.

    :param calls: The rows of ``GET /calls``.
    :param api_key: The only key that is accepted.
    :param limit: How many requests the recording endpoint admits in any period.
    :param period: The length of that period, in seconds.
    :param retry_after: Whether a 429 of the limit carries ``Retry-After``.
    :param count_refused: Whether a request that the limit refuses counts as well.
    :param honour_filters: Whether the filters of ``GET /calls`` do anything.
    :param order: ``newest`` or ``oldest`` first, or ``shuffled``: newest first with rows a few places off.
    :param page_size: The most rows that a page has, whatever is asked for.
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
            raise ValueError("api_key must not be empty")
        self.calls: list[Call] = list(calls)
        # Names out of LIST_FAULTS: each authorized GET /calls takes the first one away and meets it.
        self.list_faults: deque[str] = deque()
        self._pages = Pages(honour_filters, order, page_size)
        self._faults = AssignedFaults()
        self._log = RequestLog(Path(log_path) if log_path else None)
        self._admission = Admission(
            api_key=api_key,
            limiter=SlidingWindow(limit, period, count_refused),
            log=self._log,
            sends_retry_after=retry_after,
            clock=clock,
        )
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listeners: list[Listener] = []
        self._ports = {"api": port, "away": 0}

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
        self._faults.set(call_id, fault, times)

    def spend(self, n: int) -> None:
        """Let another client with the same key send requests to the recording endpoint.

        :param n: How many. Those over the limit are refused, as anyone's.
        """
        self._admission.spend(n)

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
        """Return the bytes of a call's recording, as a healthy response has them.

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
        """Return the number of these bytes.

        :param call_id: The call's id.
        """
        return self._recording(call_id).size

    def _recording(self, call_id: str) -> Recording:
        name = self._faults.of(call_id)
        large = find(name, RECORDING_FAULTS) if name.startswith("large-") else None
        return recording_of(call_id, large[1] if large else None)

    @property
    def log(self) -> list[LogEntry]:
        """A copy of the log of both hosts, in the order in which the requests were accepted."""
        return self._admission.log

    def recording_requests(self) -> list[LogEntry]:
        """Return the log entries of requests to the recording endpoint, whatever the response."""
        return self._admission.recording_requests()

    def away_requests(self) -> list[LogEntry]:
        """Return the log entries of requests to the other host."""
        return [entry for entry in self.log if entry.listener == "away"]

    def most_in_any_period(self) -> int:
        """Return the greatest number of requests to the recording endpoint in any window of one period.

        Refused ones are among them; those of `spend`, which nobody sent, are not.
        """
        return self._admission.most_in_any_period()

    # What a listener asks

    def accept(self, request: Request) -> tuple[LogEntry, Response | None]:
        """Log a request, and count it if it is for a recording.

        :param request: The request.
        :return: Its log entry, and the refusal if it is refused.
        """
        return self._admission.accept(request)

    def finish(self, entry: LogEntry) -> None:
        """Note in the log that a request is over.

        :param entry: Its log entry.
        """
        self._admission.finish(entry)

    def respond(self, request: Request) -> Response | None:
        """Return the response to a request that was not refused, or None to close the connection without one.

        :param request: The request.
        """
        is_to_api, parts = request.listener == "api", request.parts
        if request.is_for_file:
            return self._file(parts[2])
        if is_to_api and request.is_for_recording:
            return self._respond_with_recording(request, parts[1])
        if request.method == "GET" and parts == ["calls"]:
            return self._respond_with_page(request, has_faults=is_to_api)
        if request.method == "GET" and parts == ["account-info"] and is_to_api:
            return json_response({"id": "00000000-0000-4000-8000-000000000000", "name": "Sandbox"})
        return error(404, "not_found", "No such endpoint")

    def respond_with_log(self) -> Response:
        """Return the log and its figures, for tests in another process."""
        return json_response(self._admission.report())

    def page(self, query: Query, overlap: int = 0) -> dict[str, Any]:
        """Return a page of calls, without any fault.

        :param query: The parameters of ``GET /calls``.
        :param overlap: So many rows of this page come again on the next.
        """
        with self._lock:
            calls = list(self.calls)
        return self._pages.page(calls, query, overlap)

    def _respond_with_page(self, request: Request, *, has_faults: bool) -> Response | None:
        try:
            healthy = json_response(self.page(request.query))
        except BadQueryError as problem:
            return error(400, "unsupported_value", "Unsupported value", {"parameter": problem.parameter})
        if not (has_faults and self.list_faults):
            return healthy
        return go_wrong(self.list_faults.popleft(), LIST_FAULTS, Exchange(self, request, healthy))

    def _respond_with_recording(self, request: Request, call_id: str) -> Response | None:
        fault, attempt = self._faults.next(call_id)
        with self._lock:
            exists = any(call.get("id") == call_id and not call.get("external") for call in self.calls)
        healthy = self._file(call_id)
        if fault:
            return go_wrong(fault, RECORDING_FAULTS, Exchange(self, request, healthy, call_id, attempt))
        return healthy if exists else not_found()

    def _file(self, call_id: str) -> Response:
        recording = self._recording(call_id)
        return Response(200, {"Content-Type": AUDIO, "Content-Length": str(recording.size)}, recording)
