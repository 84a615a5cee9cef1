"""S3 on this machine: moto's, rclone's, and one that takes every object once."""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dev.processes import find_program, free_port, run_server
from dev.stores.relay import Relay, relayed
from dev.stores.store import BUCKET, Store

ACCESS = {"login": "AKIAEXAMPLE", "password": "secretsecret"}


@contextmanager
def moto(directory: Path) -> Iterator[Store]:
    """Start moto's S3 on the loopback interface."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with run_server(command, directory / "moto.log", port), relayed(port) as relay:
        yield s3_store("moto", port, relay)


@contextmanager
def rclone(directory: Path) -> Iterator[Store]:
    """Start rclone's S3, which looks at credentials and knows of no moto."""
    port = free_port()
    key = ",".join(ACCESS.values())
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", key, "--config", os.devnull]
    # Kept in memory, because a folder cannot hold content types.
    command = [str(find_program("rclone")), "serve", "s3", ":memory:", *options]
    with run_server(command, directory / "rclone.log", port), relayed(port) as relay:
        store = s3_store("rclone", port, relay)
        refused = aws_connection(endpoint_of(store), login="AKIAWRONG")
        yield replace(store, refused=refused, quirks=("shows-parts",))


def s3_store(name: str, port: int, relay: Relay) -> Store:
    """Describe an S3 server on this machine, with a new bucket in it."""
    client = s3_client(f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=BUCKET)

    def head(key: str) -> tuple[int, str | None]:
        found = client.head_object(Bucket=BUCKET, Key=f"archive/{key}")
        return found["ContentLength"], found["ContentType"]

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


def aws_connection(endpoint: str, **changes: Any) -> str:
    """Return the Airflow connection of an S3 server on this machine."""
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
