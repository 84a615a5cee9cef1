"""An object store that runs on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dev.stores.relay import Relay

#: The bucket, or what the store has instead.
BUCKET = "recordings"


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
    :param head: Returns size and content type of an object below the root, from the store itself and not by fsspec.
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
