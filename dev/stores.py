"""Object stores on this machine that an archive can lie in, for the same tests to run on each of them."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

BUCKET = "recordings"
ACCESS = {"login": "AKIAEXAMPLE", "password": "secretsecret"}
AZURE_ACCOUNT = "devaccount"
AZURE_KEY = base64.b64encode(b"no secret at all").decode()

#: Where the Makefile puts the stores that do not come from PyPI.
TOOLS = Path(__file__).parent.parent / ".stores"
#: Names the kinds of store to test on, with commas; all of them by default.
SELECTION = "AMPLEMARKET_TEST_STORES"


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
        """Let so many bytes through and no more; ``reached`` tells when, ``release`` ends those connections."""
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
        with contextlib.suppress(OSError):
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
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if not self._passes(len(data)):
                    break
                server.sendall(data)
        _shut(server, client)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
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

    :param way: ``silent`` takes all that is sent and answers nothing; ``drips`` answers as slowly as a byte a second;
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
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._way == "drips":
                threading.Thread(target=self._drip, args=(client,), daemon=True).start()
            while client.recv(1 if self._way == "sips" else 65536):
                self.reached.set()
                if self._way == "sips":
                    time.sleep(1)

    def _drip(self, client: socket.socket) -> None:
        self.reached.wait()
        with contextlib.suppress(OSError):
            for number in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                client.send(bytes([number]))
                time.sleep(1)


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@dataclass(frozen=True)
class Store:
    """One store that runs.

    :param name: What kind it is.
    :param root: A folder in it, without a slash at the end, as ObjectStoragePath takes it.
    :param missing: The root of an archive in a bucket that does not exist; None where there are no buckets.
    :param connections: The Airflow connections that it needs, as JSON by id.
    :param refused: A connection with credentials that the store does not take; None where it takes all.
    :param settings: What else has to be in the environment.
    :param quirks: Where the emulator does less than what it stands for: ``shows-parts`` of an object while it is
        written, ``takes-cut-bodies`` of requests for whole ones.
    :param relay: What its clients are connected to; None where there is no network.
    :param head: What the store itself, and not fsspec, says of an object below the root: size and content type.
    :param put: Puts an object there behind the back of fsspec, as another worker does.
    """

    name: str
    root: str
    head: Callable[[str], tuple[int, str | None]]
    put: Callable[[str, bytes], object]
    missing: str | None = None
    connections: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    quirks: tuple[str, ...] = ()
    relay: Relay | None = None

    @property
    def is_s3(self) -> bool:
        return self.root.startswith("s3:")

    @property
    def apart(self) -> tuple[str, str | None]:
        """The root without its connection, and the connection's id."""
        (conn_id,) = self.connections or (None,)
        return (self.root.replace(f"{conn_id}@", ""), conn_id) if conn_id else (self.root, None)

    def environment(self) -> dict[str, str]:
        """Return the connections as Airflow reads them from the environment, and the settings."""
        connections = {f"AIRFLOW_CONN_{conn_id.upper()}": text for conn_id, text in self.connections.items()}
        return {**connections, **self.settings}


@dataclass(frozen=True)
class Kind:
    """A kind of store.

    :param name: Its name.
    :param start: Starts one, given a directory to keep things in.
    :param packages: What has to be importable for that.
    :param program: What has to be installed for that.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Store]]
    packages: tuple[str, ...] = ()
    program: str | None = None

    @contextmanager
    def running(self, directory: Path) -> Iterator[Store]:
        """Start a store, put its connections into the environment, and undo both at the end."""
        for package in self.packages:
            if not is_importable(package):
                lacking(f"{self.name} needs the package {package}")
        if self.program and not program(self.program):
            lacking(f"{self.name} needs {self.program}, which `make test-stores` installs")
        with self.start(directory) as store, pytest.MonkeyPatch.context() as patch:
            for name, value in store.environment().items():
                patch.setenv(name, value)
            yield store


@contextmanager
def local(directory: Path) -> Iterator[Store]:
    """Use a folder on the local disk."""

    def head(key: str) -> tuple[int, str | None]:
        return (directory / key).stat().st_size, None

    def put(key: str, data: bytes) -> None:
        (directory / key).parent.mkdir(parents=True, exist_ok=True)
        (directory / key).write_bytes(data)

    yield Store("local", f"file://{directory}", head, put)


@contextmanager
def moto(directory: Path) -> Iterator[Store]:
    """Start moto's S3 on the loopback interface."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, directory / "moto.log", port), relayed(port) as relay:
        yield s3_store("moto", port, relay)


@contextmanager
def rclone(directory: Path) -> Iterator[Store]:
    """Start rclone's S3, which looks at credentials and knows of no moto."""
    port = free_port()
    key = ",".join(ACCESS.values())
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", key, "--config", os.devnull]
    # Kept in memory, because a folder cannot hold content types.
    command = [str(program("rclone")), "serve", "s3", ":memory:", *options]
    with process(command, directory / "rclone.log", port), relayed(port) as relay:
        store = s3_store("rclone", port, relay)
        refused = aws_connection(endpoint_of(store), login="AKIAWRONG")
        yield replace(store, refused=refused, quirks=("shows-parts",))


def s3_store(name: str, port: int, relay: Relay) -> Store:
    """Describe an S3 server on this machine, with a new bucket in it."""
    client = s3_client(f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=BUCKET)

    def head(key: str) -> tuple[int, str | None]:
        answer = client.head_object(Bucket=BUCKET, Key=f"archive/{key}")
        return answer["ContentLength"], answer["ContentType"]

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=f"archive/{key}", Body=data)

    # Airflow keeps file systems by connection id as long as it runs, so every server gets an id of its own.
    conn_id = f"aws_{port}"
    return Store(
        name,
        f"s3://{conn_id}@{BUCKET}/archive",
        head,
        put,
        missing=f"s3://{conn_id}@no-such-bucket/archive",
        connections={conn_id: aws_connection(f"http://127.0.0.1:{relay.port}")},
        relay=relay,
    )


@contextmanager
def write_once(*, takes_parts: bool = True) -> Iterator[str]:
    """Run an S3 server that replaces and deletes nothing, as a bucket under retention does that keeps no versions.

    It is moto's with a door before it; the words are those of Google's XML API.

    :param takes_parts: Whether uploads in parts may be begun.
    :return: Its URL.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    taken: set[str] = set()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        is_of_upload = "uploadId" in query
        creates = path.count("/") > 1 and (method, is_of_upload) in (("PUT", False), ("POST", True))
        begins_parts = method == "POST" and query.startswith("uploads")
        deletes = query == "delete" or (method, is_of_upload) == ("DELETE", False)
        if deletes or (creates and path in taken) or (begins_parts and not takes_parts):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            words = "The object is subject to bucket's retention policy and cannot be deleted or overwritten"
            return [f"<Error><Code>AccessDenied</Code><Message>{words}</Message></Error>".encode()]
        if creates:
            taken.add(path)
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        s3_client(endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def azurite(directory: Path) -> Iterator[Store]:
    """Start Azurite's blob service."""
    from azure.storage.blob import BlobServiceClient, ContentSettings

    port = free_port()
    command = [str(program("azurite-blob")), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["-l", str(directory), "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    account = {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
    with process(command, directory / "azurite.log", port, environment=account), relayed(port) as relay:
        client = BlobServiceClient.from_connection_string(azure_connection_string(port))
        container = client.create_container(BUCKET)

        def head(key: str) -> tuple[int, str | None]:
            properties = container.get_blob_client(f"archive/{key}").get_blob_properties()
            return properties.size, properties.content_settings.content_type

        def put(key: str, data: bytes) -> None:
            settings = ContentSettings(content_type="application/octet-stream")
            container.upload_blob(f"archive/{key}", data, overwrite=True, content_settings=settings)

        conn_id = f"azure_{port}"
        wrong = base64.b64encode(b"another one").decode()
        yield Store(
            "azurite",
            f"abfs://{conn_id}@{BUCKET}/archive",
            head,
            put,
            missing=f"abfs://{conn_id}@no-such-bucket/archive",
            connections={conn_id: azure_connection(azure_connection_string(relay.port))},
            refused=azure_connection(azure_connection_string(relay.port, wrong)),
            relay=relay,
        )
        client.close()


@contextmanager
def gcs(directory: Path) -> Iterator[Store]:
    """Start an emulator of Google Cloud Storage, which takes all credentials."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory"]
    command += ["--host=127.0.0.1", f"--port={port}", f"--default-bucket={BUCKET}"]
    address = f"http://127.0.0.1:{port}"
    with process(command, directory / "gcs.log", port), relayed(port) as relay:

        def head(key: str) -> tuple[int, str | None]:
            name = urllib.parse.quote(f"archive/{key}", safe="")
            with urllib.request.urlopen(f"{address}/storage/v1/b/{BUCKET}/o/{name}") as answer:
                told = json.load(answer)
            return int(told["size"]), told["contentType"]

        def put(key: str, data: bytes) -> None:
            query = urllib.parse.urlencode({"uploadType": "media", "name": f"archive/{key}"})
            headers = {"Content-Type": "application/octet-stream"}
            url = f"{address}/upload/storage/v1/b/{BUCKET}/o?{query}"
            urllib.request.urlopen(urllib.request.Request(url, data, headers, method="POST")).close()

        conn_id = f"google_{port}"
        extra = {"is_anonymous": True, "project": "test", "gcs.endpoint": f"http://127.0.0.1:{relay.port}"}
        yield Store(
            "gcs",
            f"gs://{conn_id}@{BUCKET}/archive",
            head,
            put,
            missing=f"gs://{conn_id}@no-such-bucket/archive",
            connections={conn_id: json.dumps({"conn_type": "google_cloud_platform", "extra": extra})},
            # What kind a bucket is, gcsfs asks by gRPC, which the emulator does not speak.
            settings={"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
            quirks=("takes-cut-bodies",),
            relay=relay,
        )


_S3 = ("s3fs", "boto3", "airflow.providers.amazon")
KINDS = (
    Kind("local", local),
    Kind("moto", moto, (*_S3, "moto", "flask")),
    Kind("rclone", rclone, _S3, "rclone"),
    Kind("azurite", azurite, ("adlfs", "airflow.providers.microsoft.azure"), "azurite-blob"),
    Kind("gcs", gcs, ("gcsfs", "airflow.providers.google", "gcp_storage_emulator")),
)
_SELECTED = [name.strip() for name in os.environ.get(SELECTION, "").split(",") if name.strip()]
STORES = tuple(kind for kind in KINDS if not _SELECTED or kind.name in _SELECTED)


def lacking(why: str) -> NoReturn:
    """Skip the test; in CI, where every store has to be there, let it fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def is_importable(package: str) -> bool:
    """Return whether a package is installed, whose parents may not be, either."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(package) is not None
    return False


def program(name: str) -> str | None:
    """Find a program beside this Python, in the folder of the stores, or on the path."""
    folders = [Path(sys.executable).parent, TOOLS / "node_modules" / ".bin"]
    return shutil.which(name, path=os.pathsep.join(map(str, folders))) or shutil.which(name)


def azure_connection(connection_string: str) -> str:
    """Write the Airflow connection of an Azure server."""
    return json.dumps({"conn_type": "azure_data_lake", "extra": {"connection_string": connection_string}})


def azure_connection_string(port: int, key: str = AZURE_KEY) -> str:
    """Write what Azure's clients take for an address."""
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": AZURE_ACCOUNT,
        "AccountKey": key,
        "BlobEndpoint": f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}",
    }
    return ";".join(f"{name}={value}" for name, value in parts.items())


def aws_connection(endpoint: str, **changes: Any) -> str:
    """Write the Airflow connection of an S3 server on this machine."""
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    return json.dumps({"conn_type": "aws", **ACCESS, "extra": extra, **changes})


def s3_client(endpoint: str) -> Any:
    """Return a client of an S3 server on this machine."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS["login"],
        aws_secret_access_key=ACCESS["password"],
    )


def endpoint_of(store: Store) -> str:
    """Return the URL of an S3 server."""
    (text,) = store.connections.values()
    return str(json.loads(text)["extra"]["endpoint_url"])


@contextmanager
def demanding_credentials(store: Store) -> Iterator[None]:
    """Let moto look at credentials, which it does not by default; then it knows none at all."""
    address = f"{endpoint_of(store)}/moto-api/reset-auth"

    def after(requests: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, requests, headers, method="POST")).close()

    after(b"0")
    try:
        yield
    finally:
        after(b"inf")


@contextmanager
def relayed(port: int) -> Iterator[Relay]:
    """Put a relay before a server until the end of the block."""
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()


@contextmanager
def process(
    command: list[str], log: Path, port: int, seconds: float = 120.0, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block, which begins when its port answers."""
    variables = {**os.environ, **(environment or {})}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
    try:
        deadline = time.monotonic() + seconds
        while not answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not run: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    """Return a port of this machine that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
