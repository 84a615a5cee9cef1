"""Azure's blob service on this machine: Azurite."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.processes import find_program, free_port, run_server
from dev.stores.relay import relayed
from dev.stores.store import BUCKET, Store

AZURE_ACCOUNT = "devaccount"
AZURE_KEY = base64.b64encode(b"no secret at all").decode()


@contextmanager
def azurite(directory: Path) -> Iterator[Store]:
    """Start Azurite's blob service."""
    from azure.storage.blob import BlobServiceClient, ContentSettings

    port = free_port()
    command = [str(find_program("azurite-blob")), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["-l", str(directory), "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    account = {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
    with run_server(command, directory / "azurite.log", port, environment=account), relayed(port) as relay:
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


def azure_connection(connection_string: str) -> str:
    """Return the Airflow connection of an Azure server."""
    return json.dumps({"conn_type": "azure_data_lake", "extra": {"connection_string": connection_string}})


def azure_connection_string(port: int, key: str = AZURE_KEY) -> str:
    """Return the address as Azure's clients take it."""
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": AZURE_ACCOUNT,
        "AccountKey": key,
        "BlobEndpoint": f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}",
    }
    return ";".join(f"{name}={value}" for name, value in parts.items())
