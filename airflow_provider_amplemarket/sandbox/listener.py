"""The wire: sockets, threads, and responses sent exactly as they are described, however broken."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from airflow_provider_amplemarket.sandbox.requestlog import LogEntry
from airflow_provider_amplemarket.sandbox.responses import Response, title_of

if TYPE_CHECKING:
    from airflow_provider_amplemarket.sandbox.server import Sandbox


class StoppedError(Exception):
    """The sandbox is being stopped, so that nothing is waited for any more."""


@dataclass(frozen=True)
class Request:
    """A request, of which ``target`` is the path and query as they were sent."""

    listener: str
    method: str
    target: str
    authorization: str | None
    host: str
    user_agent: str

    @property
    def path(self) -> str:
        """The path, as it was sent."""
        return self.target.partition("?")[0]

    @property
    def parts(self) -> list[str]:
        """The decoded parts of the path."""
        return [unquote(part) for part in self.path.split("/")[1:]]

    @property
    def is_for_recording(self) -> bool:
        """Whether it is one for a recording, wherever it was sent."""
        parts = self.parts
        return self.method == "GET" and len(parts) == 3 and (parts[0], parts[2]) == ("calls", "recording")

    @property
    def is_for_file(self) -> bool:
        """Whether it is for a file to which a redirect leads and which, as a signed URL, needs no key."""
        return self.method == "GET" and len(self.parts) == 3 and self.parts[:2] == ["sandbox", "files"]

    @property
    def raw_query(self) -> str:
        """The query, as it was sent."""
        return self.target.partition("?")[2]

    @property
    def query(self) -> dict[str, str]:
        """The decoded parameters of the query."""
        return dict(parse_qsl(self.raw_query, keep_blank_values=True))


class Listener(ThreadingHTTPServer):
    """One address of the sandbox, with a thread for each connection; all of them end with it.

    :param sandbox: The sandbox that makes the responses.
    :param name: The name of this address.
    :param port: The port, or 0 for any that is free.
    """

    request_queue_size = 128

    def __init__(self, sandbox: Sandbox, name: str, port: int) -> None:
        self.sandbox = sandbox
        self.name = name
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._acceptor = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        super().__init__(("127.0.0.1", port), Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service for this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def start(self) -> None:
        """Serve in a thread."""
        self._acceptor.start()

    def stop(self) -> None:
        """Accept no more, break every connection, and wait for the threads."""
        if self._acceptor.is_alive():
            # Where a listening socket can be shut down, this wakes the thread; elsewhere the thread wakes by itself.
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.shutdown()
            self._acceptor.join()
        self.server_close()
        for thread, connection in self._connections.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread that `stop` knows of.

        :param request: The connection.
        :param client_address: The client's address.
        """
        # Threads do not remove themselves: they would live on for a short time after that, unknown to `stop`.
        self._connections = {old: own for old, own in self._connections.items() if old.is_alive()}
        handle, arguments = self.process_request_thread, (request, client_address)
        thread = threading.Thread(target=handle, args=arguments, daemon=True)
        self._connections[thread] = request
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that go away in the middle; anything else is a bug and is shown.

        :param request: The connection.
        :param client_address: The client's address.
        """
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection and its requests."""

    server: Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Respond to one request."""
        # An unread body would be taken for the next request.
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sandbox = self.server.sandbox
        request = Request(
            listener=self.server.name,
            method=self.command,
            target=self.path,
            authorization=self.headers.get("Authorization"),
            host=self.headers.get("Host", ""),
            user_agent=self.headers.get("User-Agent", ""),
        )
        if request.parts == ["sandbox", "log"]:
            self._send(sandbox.respond_with_log())
            return
        entry, refusal = sandbox.accept(request)
        try:
            response = refusal or sandbox.respond(request)
            if response:
                self._send(response, entry)
            else:
                self.close_connection = True
        except (StoppedError, OSError):
            self.close_connection = True
        finally:
            sandbox.finish(entry)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def _send(self, response: Response, entry: LogEntry | None = None) -> None:
        """Send a response.

        :param response: The response.
        :param entry: The request's log entry. It is finished before the last piece is sent, so that a client that
            has the whole response finds it in the log.
        """
        if response.then != "keep":
            self.close_connection = True
        if entry:
            entry.status = response.status
        held, size = self._head(response), 0
        for piece in response.body if self.command != "HEAD" else ():
            self.wfile.write(held)
            if entry:
                entry.bytes_sent += size
            held, size = b"%x\r\n%b\r\n" % (len(piece), piece) if response.chunked else piece, len(piece)
        if response.chunked and response.then == "keep":
            held += b"0\r\n\r\n"
        if entry:
            entry.bytes_sent += size
            self.server.sandbox.finish(entry)
        self.wfile.write(held)
        if response.then == "reset":
            self._reset()

    def _head(self, response: Response) -> bytes:
        lines = [f"HTTP/1.1 {response.status} {title_of(response.status)}", f"Date: {self.date_time_string()}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        if not (response.chunked or "Content-Length" in response.headers):
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _reset(self) -> None:
        # A reset may discard what the client has not read yet, so the client gets some time to read it.
        self.server.sandbox.pause(0.1)
        # A socket closed without lingering sends RST; it is closed only when the file made from it is, too.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to standard error, as there is a log.

        :param format: What would be written.
        :param args: What would be put into it.
        """
