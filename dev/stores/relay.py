"""What stands between a client and a store on the network: a relay that cuts connections, a server that is mute."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Stands between a client and a server, and can stop what the client sends at any byte.

    :param port: Where the server listens on this machine.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.reached = threading.Event()
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._left: int | None = None
        self._holds = False
        self._cuts = 0
        self._after = 0
        self.cut_off = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, after: int) -> None:
        """Let so many bytes through and no more; ``reached`` is set then, ``release`` ends those connections."""
        with self._lock:
            self._left, self._holds = after, True
            self.reached.clear()
            self._released.clear()

    def release(self) -> None:
        """Close what is held, as the end of the client does, and let everything through."""
        with self._lock:
            self._left, self._holds = None, False
            self._released.set()

    def cut(self, after: int, times: int) -> None:
        """Close a connection whenever so many more bytes have come, so many times."""
        with self._lock:
            self._left, self._after, self._cuts, self.cut_off = after, after, times, 0

    def close(self) -> None:
        self.release()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server))
                except OSError:
                    client.close()
                    continue
                for pump in (self._up, self._down):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if not self._passes(len(data)):
                    break
                server.sendall(data)
        _shut(server, client)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        _shut(client, server)

    def _passes(self, size: int) -> bool:
        with self._lock:
            if self._left is None:
                return True
            self._left -= size
            if self._left >= 0:
                return True
            if not self._holds:
                self._cuts -= 1
                self.cut_off += 1
                self._left = self._after if self._cuts else None
                return False
        self.reached.set()
        self._released.wait(60)
        return False


class MuteServer:
    """Takes connections and never comes to an end with them.

    :param way: ``silent`` takes all that is sent and sends nothing; ``drips`` responds as slowly as a byte a second;
        ``sips`` takes what is sent as slowly.
    """

    def __init__(self, way: str) -> None:
        self._way = way
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.port = int(self._listener.getsockname()[1])
        self.reached = threading.Event()
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many there were."""
        return len(self._clients)

    def close(self) -> None:
        _shut(self._listener, *self._clients)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._way == "drips":
                threading.Thread(target=self._drip, args=(client,), daemon=True).start()
            while client.recv(1 if self._way == "sips" else 65536):
                self.reached.set()
                if self._way == "sips":
                    time.sleep(1)

    def _drip(self, client: socket.socket) -> None:
        self.reached.wait()
        with suppress(OSError):
            for number in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                client.send(bytes([number]))
                time.sleep(1)


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextmanager
def relayed(port: int) -> Iterator[Relay]:
    """Put a relay before a server until the end of the block."""
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()
