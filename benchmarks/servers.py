"""What is measured against, each a process of its own: the API, and an object store with or without a counter."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen

from benchmarks.api import API_KEY
from dev.processes import find_program, free_port, run_server
from dev.stores.s3 import ACCESS, aws_connection
from dev.stores.store import BUCKET


@dataclass(frozen=True)
class ApiServer:
    """
    The API.

    :param url: its base URL.
    """

    url: str

    def connection(self, **extra: Any) -> str:
        """Return its Airflow connection."""
        return json.dumps({"conn_type": "amplemarket", "host": self.url, "password": API_KEY, "extra": extra})

    def pages(self) -> int:
        """Count the requests for pages of calls until now."""
        with urlopen(f"{self.url}/sandbox/log") as response:
            return sum(entry["path"] == "/calls" for entry in json.load(response)["requests"])


@contextmanager
def api(calls: int, **options: Any) -> Iterator[ApiServer]:
    """
    Start the API.

    :param calls: how many calls it has.
    :param options: other options of ``benchmarks.api``.
    """
    command = [sys.executable, "-m", "benchmarks.api", f"--calls={calls}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield ApiServer(server.stdout.readline().strip())
        finally:
            server.terminate()


@dataclass(frozen=True)
class S3:
    """
    An object store.

    :param url: its address.
    :param folder: the folder that its bucket is.
    """

    url: str
    folder: Path

    @property
    def connection(self) -> str:
        """Its Airflow connection."""
        return aws_connection(self.url)


@contextmanager
def s3(directory: Path) -> Iterator[S3]:
    """
    Start rclone's S3 over a folder: it is quick, and a listing costs it no more than what is listed.

    :param directory: holds the bucket; what lies there already is in the store.
    """
    (directory / BUCKET).mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(find_program("rclone")), "serve", "s3", str(directory), "--config", "/dev/null"]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(ACCESS.values()), "--no-modtime", "--etag-hash="]
    with run_server(command, directory.with_suffix(".log"), port):
        yield S3(f"http://127.0.0.1:{port}", directory / BUCKET)


class Counting:
    """
    Stands before an object store and counts what is asked of it, by kind and by the first folder of the key.

    :param url: the store's address.
    """

    _REQUEST = re.compile(rb"(?:^|\r\n\r\n|\n)(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP/1\.1\r\n")

    def __init__(self, url: str) -> None:
        self._server = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.counts: Counter[tuple[str, str]] = Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(65536):
                # The clients send a header in one piece, and small requests have nothing else.
                if counted and (match := self._REQUEST.match(data)):
                    self._count(match[1].decode(), unquote(match[2].decode()))
                target.sendall(data)

    def _count(self, method: str, target: str) -> None:
        path, _, query = target.partition("?")
        if method == "GET" and "list-type=" in query:
            prefix = re.search(r"(?:^|&)prefix=([^/&]*)", query)
            kind = "LIST, further page" if "continuation-token=" in query else "LIST"
            self.counts[prefix[1] if prefix else "", kind] += 1
        else:
            self.counts[path.strip("/").split("/")[1], method] += 1
