"""Requests that end: each at its deadline, and all of them when the task is told to stop.

The time-out of a socket counts from one byte to the next, so a server that sends a byte a second holds a reader for as
long as it likes. Here the connection is shut down from outside, which ends whatever waits for it: the TLS handshake,
the response's header, its body. What comes before that, looking up a name and connecting, waits in a thread of its own,
which is left behind.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import requests
from urllib3 import HTTPConnectionPool, PoolManager

from airflow_provider_amplemarket.exceptions import RequestAbortedError

#: Seconds after which a wait looks up to see whether it has been ended.
SLICE = 0.1


class DeadlineError(requests.Timeout):
    """The other side sends, but not fast enough to be done in time."""


class Watch:
    """One request under way. It is used by one thread, and ended by any other or a signal's handler."""

    def __init__(self) -> None:
        self.ended: Exception | None = None
        self._sockets: list[socket.socket] = []
        # Reentrant: the handler of a signal may interrupt the thread that has it.
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def limit(self, seconds: float) -> None:
        """Set the deadline for all that is still to come."""
        self._cancel_timer()
        self._timer = threading.Timer(seconds, self.end, [DeadlineError(f"not over after {seconds:g} s")])
        self._timer.daemon = True
        self._timer.start()

    def add(self, descriptor: int) -> None:
        """Take the connection with this socket under watch."""
        # A copy: TLS takes it from one object to another, and once it is closed the number may be something else's.
        with self._lock:
            self._sockets.append(socket.socket(fileno=os.dup(descriptor)))
            if self.ended:
                self._shut_down()

    def end(self, why: Exception) -> None:
        """End the request now; never raise."""
        with self._lock:
            self.ended = self.ended or why
            self._shut_down()

    def close(self) -> None:
        """Stop watching."""
        self._cancel_timer()
        self.forget()

    def forget(self) -> None:
        """Watch the connections so far no longer: their requests are over, and they may serve others."""
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    def _shut_down(self) -> None:
        for connection in self._sockets:
            with suppress(OSError):  # the other side was faster
                connection.shutdown(socket.SHUT_RDWR)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


_current: ContextVar[Watch | None] = ContextVar("amplemarket_watch", default=None)


def current_watch() -> Watch | None:
    """Return the watch over this thread's request."""
    return _current.get()


def reason_of_end() -> Exception | None:
    """Return why this thread's request was ended from here, None where it was not."""
    watch = current_watch()
    return None if watch is None else watch.ended


class Watchdog:
    """The requests of one client."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._is_stopped = False

    @contextmanager
    def watch(self, seconds: float) -> Iterator[Watch]:
        """Watch over the requests that this thread sends inside, one after another.

        :param seconds: the deadline, from now.
        :raises RequestAbortedError: when everything was told to stop.
        """
        watch = Watch()
        token = _current.set(watch)
        try:
            self._watches.add(watch)
            self.check()  # after the watch can be seen, so that no stop comes in between
            watch.limit(seconds)
            yield watch
        finally:
            _current.reset(token)
            self._watches.discard(watch)
            watch.close()

    def stop(self) -> None:
        """End what is under way and refuse what comes after; from any thread or a signal's handler, never raising."""
        self._is_stopped = True
        for watch in tuple(self._watches):
            watch.end(RequestAbortedError())

    def check(self) -> None:
        """Raise RequestAbortedError when everything was told to stop."""
        if self._is_stopped:
            raise RequestAbortedError

    def sleep(self, seconds: float) -> None:
        """Sleep, in slices so that it ends when everything is told to stop."""
        while seconds > 0:
            self.check()
            time.sleep(min(seconds, SLICE))
            seconds -= SLICE
        self.check()


class _WatchedConnection:
    """A connection that gives its socket to the current watch, and keeps addresses that may be signed out of logs."""

    sock: Any
    _response_options: Any

    def _new_conn(self) -> socket.socket:
        connect: Callable[[], socket.socket] = super()._new_conn  # type: ignore[misc]
        watch = current_watch()
        if watch is None:
            return connect()
        connected = _connect(connect, watch)
        watch.add(connected.fileno())
        return connected

    def request(self, *args: Any, **kwargs: Any) -> None:
        watch = current_watch()
        if watch is not None and self.sock is not None:  # one that was kept from an earlier request
            watch.add(self.sock.fileno())
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _tunnel(self) -> None:
        super()._tunnel()  # type: ignore[misc]
        watch = current_watch()
        if watch is not None and watch.ended:  # a header that was ended can look whole
            raise watch.ended

    def getresponse(self) -> Any:
        # urllib3 warns of a malformed header with the whole address, and needs it for nothing else any more.
        if self._response_options is not None:
            self._response_options = self._response_options._replace(request_url=None)
        return super().getresponse()  # type: ignore[misc]


def watch_connections(manager: PoolManager) -> None:
    """Make a manager's connections such that they are watched, those through proxies, too."""
    manager.pool_classes_by_scheme = {
        scheme: _with_watched_connections(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


def _with_watched_connections(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    # The names of the originals are kept: urllib3 puts them into its messages.
    connection: Any = pool.ConnectionCls
    connection = type(connection.__name__, (_WatchedConnection, connection), {})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


def _connect(connect: Callable[[], socket.socket], watch: Watch) -> socket.socket:
    """Connect in another thread, which nobody waits for any more once the request is ended."""
    future: Future[socket.socket] = Future()

    def run() -> None:
        try:
            future.set_result(connect())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="amplemarket-connect", daemon=True).start()
    try:
        while not wait([future], SLICE).done:
            if watch.ended:
                raise watch.ended
        return future.result()
    except BaseException:
        future.add_done_callback(_close)
        raise


def _close(future: Future[socket.socket]) -> None:
    if future.exception() is None:
        future.result().close()
