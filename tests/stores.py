"""Object stores on this machine that an archive can lie in, for the same tests to run on each of them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BUCKET = "recordings"
ACCESS = {"login": "AKIAEXAMPLE", "password": "secretsecret"}


@dataclass(frozen=True)
class Store:
    """One store that runs.

    :param name: What kind it is.
    :param root: A folder in it, without a slash at the end, as ObjectStoragePath takes it.
    :param missing: The root of an archive in a bucket that does not exist; None where there are no buckets.
    :param connections: The Airflow connections that it needs, as JSON by id.
    :param head: What the store itself, and not fsspec, says of an object below the root: size and content type.
    :param put: Puts an object there behind the back of fsspec, as another worker does.
    """

    name: str
    root: str
    head: Callable[[str], tuple[int, str | None]]
    put: Callable[[str, bytes], object]
    missing: str | None = None
    connections: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return the connections as Airflow reads them from the environment."""
        return {f"AIRFLOW_CONN_{conn_id.upper()}": text for conn_id, text in self.connections.items()}


@dataclass(frozen=True)
class Kind:
    """A kind of store.

    :param name: Its name.
    :param start: Starts one, given a directory to keep things in.
    :param packages: What has to be importable for that.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Store]]
    packages: tuple[str, ...] = ()

    @contextmanager
    def running(self, directory: Path) -> Iterator[Store]:
        """Start a store, put its connections into the environment, and undo both at the end."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{self.name} needs {package}")
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
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, directory / "moto.log", port):
        client = s3_client(endpoint)
        client.create_bucket(Bucket=BUCKET)

        def head(key: str) -> tuple[int, str | None]:
            answer = client.head_object(Bucket=BUCKET, Key=f"archive/{key}")
            return answer["ContentLength"], answer["ContentType"]

        def put(key: str, data: bytes) -> None:
            client.put_object(Bucket=BUCKET, Key=f"archive/{key}", Body=data)

        # Airflow keeps file systems by connection id as long as it runs, so every server gets an id of its own.
        conn_id = f"aws_{port}"
        yield Store(
            "moto",
            f"s3://{conn_id}@{BUCKET}/archive",
            head,
            put,
            missing=f"s3://{conn_id}@no-such-bucket/archive",
            connections={conn_id: aws_connection(endpoint)},
        )


STORES = (Kind("local", local), Kind("moto", moto, ("moto", "s3fs", "flask", "airflow.providers.amazon")))


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
def process(command: list[str], log: Path, port: int, seconds: float = 30.0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block, which begins when its port answers."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ})
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
    """Say whether something listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    """Return a port of this machine that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
