"""Google Cloud Storage on this machine: an emulator."""

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.processes import free_port, run_server
from dev.stores.relay import relayed
from dev.stores.store import BUCKET, Store


@contextmanager
def gcs(directory: Path) -> Iterator[Store]:
    """Start an emulator of Google Cloud Storage, which takes all credentials."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory"]
    command += ["--host=127.0.0.1", f"--port={port}", f"--default-bucket={BUCKET}"]
    address = f"http://127.0.0.1:{port}"
    with run_server(command, directory / "gcs.log", port), relayed(port) as relay:

        def head(key: str) -> tuple[int, str | None]:
            name = urllib.parse.quote(f"archive/{key}", safe="")
            with urllib.request.urlopen(f"{address}/storage/v1/b/{BUCKET}/o/{name}") as response:
                found = json.load(response)
            return int(found["size"]), found["contentType"]

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
