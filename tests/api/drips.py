"""A server that sends its responses one byte at a time, for as long as anybody listens."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook

#: Seconds between two bytes, and for which they come: far longer than anybody should listen.
INTERVAL, LASTING = 0.05, 40.0

HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 99999\r\n"
#: How a response begins, and what is then repeated.
RESPONSES = {
    "status line": (b"HTTP/1.1 200 ", b"O"),
    "header": (HEADER + b"X-Drip: ", b"x"),
    "error body": (HEADER.replace(b"200", b"500") + b"\r\n", b" "),
    "body": (HEADER + b"\r\n", b" "),
    "body in chunks": (
        HEADER.replace(b"Content-Length: 99999", b"Transfer-Encoding: chunked") + b"\r\n",
        b"1\r\nx\r\n",
    ),
    "body without a length": (HEADER.replace(b"Content-Length: 99999", b"Connection: close") + b"\r\n", b" "),
    "nothing at all": (b"", b""),
}


def read_list(hook: AmplemarketHook, directory: Path) -> None:
    list(hook.iter_calls())


def ask_for_account(hook: AmplemarketHook, directory: Path) -> None:
    ok, message = hook.test_connection()
    assert not ok
    raise RuntimeError(message)


def download(hook: AmplemarketHook, directory: Path) -> None:
    hook.download_recording("abc", directory / "abc")


REQUESTS: dict[str, Callable[[AmplemarketHook, Path], None]] = {
    "list": read_list,
    "account-info": ask_for_account,
    "recording": download,
}
#: A recording without a length is not read.
MODES = [
    (request, response)
    for request in REQUESTS
    for response in RESPONSES
    if (request, response) != ("recording", "body without a length")
]


class Drips:
    """
    The server.

    :param responses: the responses it gives, one for each request; the last one is for all that follow, too.
    """

    def __init__(self, *responses: str) -> None:
        self.responses = [RESPONSES[response] for response in responses]
        self.connections: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self.connections:
            connection.close()

    def wait_for(self, requests: int) -> None:
        """Wait until so many requests have come."""
        end = time.monotonic() + LASTING
        while len(self.connections) < requests and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(2 * INTERVAL)  # until a response has begun

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(65536)
            with self._lock:
                opening, drop = self.responses[min(len(self.connections), len(self.responses) - 1)]
                self.connections.append(connection)
            connection.sendall(opening)
            for _ in range(int(LASTING / INTERVAL)):
                if self._is_over.wait(INTERVAL):
                    break
                connection.sendall(drop)
        connection.close()
