"""The archive: recordings and their sidecars as whole objects in object storage, or on a local disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tenacity
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, ArchiveError
from airflow_provider_amplemarket.layout import Layout, Place
from airflow_provider_amplemarket.staging import staging

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: Folder in a local archive where files lie until they are whole.
STAGING = ".staging"
WRITE_CHECK = ".amplemarket-write-check"

_CHUNK = 8 * 1024**2
#: S3 takes no smaller parts. One at a time, as each is in memory twice while it is sent.
_S3_PART = 5 * 1024**2
_UPLOAD_ATTEMPTS = 4
#: Seconds for an upload of nothing, and bytes that each further second is good for.
_UPLOAD_PATIENCE = 120.0
_SLOWEST_UPLOAD = 100_000
#: Seconds for anything else that the store is asked for; a listing may have many pages.
_PATIENCE = 600.0
_READERS = 16


@dataclass(frozen=True)
class Entry:
    """
    What lies in the archive for one call.

    :param place: its keys.
    :param size: size of the audio object in bytes; None where there is none.
    :param record: what the sidecar says; None where there is none that can be read.
    """

    place: Place
    size: int | None = None
    record: Mapping[str, Any] | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the recording is there, whole and committed."""
        return (
            self.record is not None
            and self.record.get("status") == "stored"
            and self.size is not None
            and self.record.get("size") == self.size
        )

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to do about it, ever: it is stored, or was removed for good."""
        return self.is_stored or (self.record is not None and self.record.get("status") == "deleted")

    @property
    def is_uncommitted(self) -> bool:
        """Whether the audio was published, which is always whole, but its writer died before the sidecar."""
        record = self.record or {}
        # What was there already when the sidecar was written is not what its writer published afterwards.
        is_new = self.size != record.get("audio_size")
        return bool(self.size) and is_new and record.get("status") in (None, "not_found", "failed", "overwriting")


class Archive:
    """
    Read and write one archive.

    :param path: its root, as Airflow writes object-storage paths.
    :param conn_id: the storage's connection, an alternative to the user part of ``path``.
    :param layout: where in it the recordings lie.
    :raises AmplemarketConfigurationError: when ``path`` cannot be a root.
    """

    def __init__(self, path: str, conn_id: str | None = None, layout: Layout | None = None) -> None:
        if "://" not in str(path):  # not what a template of nothing renders, nor a folder of whatever worker it is
            raise AmplemarketConfigurationError(
                f"path={path!r} must begin with a scheme: s3://, gs://, abfs:// or file:///"
            )
        try:
            # Before 3.2, Airflow prefers a None given here to the connection that the path names.
            given = {"conn_id": conn_id} if conn_id else {}
            self.path = ObjectStoragePath(str(path), **given)
            self.fs: AbstractFileSystem = self.path.fs
        except (ImportError, ValueError) as error:
            raise AmplemarketConfigurationError(f"path={path!r} cannot be used: {error}") from error
        self.layout = layout or Layout()

    @cached_property
    def _root(self) -> str:
        return str(self.fs._strip_protocol(self.path.path)).rstrip("/")

    @cached_property
    def _protocols(self) -> set[str]:
        protocol = self.fs.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    @property
    def is_local(self) -> bool:
        """Whether the archive lies on a local disk."""
        return "file" in self._protocols

    @property
    def publishes_whole(self) -> bool:
        """Whether the store is one whose uploads are known to become visible all at once."""
        return self.is_local or bool(self._protocols & {"s3", "gs", "abfs"})

    def uri(self, key: str) -> str:
        """Answer the path of an object as Airflow's ObjectStoragePath takes it."""
        return str(self.path / key)

    def staging(self) -> AbstractContextManager[Path]:
        """Give a local directory for files until they are published; for a local archive, on the same disk."""
        if self.is_local:
            return staging(Path(self._root) / STAGING)
        parent = Path(tempfile.gettempdir()) / f"airflow-provider-amplemarket-{os.getuid()}"
        # Another task that ends may remove it at any moment; staging() makes it again.
        with suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            if parent.stat().st_uid != os.getuid():
                raise ArchiveError(f"{parent} belongs to another user; set TMPDIR to a folder of your own")
        return staging(parent)

    def entries(self, places: Iterable[Place]) -> dict[str, Entry]:
        """
        Read what is there for the given places: one listing for each folder, and the sidecars.

        :return: an entry for each audio key, also where there is nothing.
        """
        places = list(places)
        sizes: dict[str, int] = {}
        # Once, and not for each folder: s3fs asks for the size of what it has not just listed before it reads it.
        self.fs.invalidate_cache()
        for folder in sorted({place.folder for place in places}):
            sizes.update(self._list(folder))
        return self._entries(places, sizes)

    def search(self, call_ids: Iterable[str]) -> dict[str, Entry]:
        """
        Look for calls whose place is not known, in one listing of the whole archive.

        :return: an entry for each call id that was found.
        """
        wanted = set(call_ids)
        if not wanted:
            return {}
        self.fs.invalidate_cache()
        sizes = self._list("")
        places = self.layout.find(wanted, sizes)
        entries = self._entries([place for some in places.values() for place in some], sizes)
        return {
            call_id: max((entries[place.audio] for place in some), key=lambda entry: entry.is_settled)
            for call_id, some in places.items()
        }

    def check_writable(self) -> None:
        """
        Write a small object and remove it again.

        :raises ArchiveError: when the archive takes none.
        """
        try:
            with self.staging() as directory:
                probe = directory / WRITE_CHECK
                probe.write_bytes(bytes(65536))  # a full disk still takes an empty file
                self._put(probe, WRITE_CHECK, "application/octet-stream", _UPLOAD_PATIENCE)
        except Exception as error:
            raise ArchiveError(
                f"The archive {self.path} cannot be written ({type(error).__name__}: {error}). Check path and "
                "storage_conn_id, that the bucket exists and that the connection may write to it."
            ) from error
        try:
            self.fs.rm_file(self._full(WRITE_CHECK), **self._patience(_PATIENCE))
        except Exception:  # an archive that nobody may delete from is a good archive
            return

    def publish(self, local: Path, key: str, content_type: str) -> None:
        """
        Make a local file an object of the archive: all of it at once, or nothing.

        Tries again where the storage fails for a moment. On a local archive the file is moved.

        :raises ArchiveError: when the storage does not take it.
        """
        size = local.stat().st_size
        timeout = _UPLOAD_PATIENCE + size / _SLOWEST_UPLOAD
        retrying = tenacity.Retrying(
            # An upload that does not end in its time is tried twice more, and not for hours.
            stop=tenacity.stop_after_attempt(_UPLOAD_ATTEMPTS) | tenacity.stop_after_delay(2.5 * timeout),
            wait=tenacity.wait_exponential(multiplier=0.5, max=8),
            reraise=True,
        )
        try:
            retrying(self._put, local, key, content_type, timeout)
            self.fs.invalidate_cache()
            stored = self.fs.info(self._full(key), **self._patience(_PATIENCE))["size"]
        except Exception as error:
            raise ArchiveError(f"{self.uri(key)} could not be written ({type(error).__name__}: {error})") from error
        if stored != size:
            raise ArchiveError(f"{self.uri(key)} has {stored} bytes after {size} were written")

    def write_record(self, place: Place, record: Mapping[str, Any], directory: Path) -> None:
        """
        Write the sidecar, which commits what it says.

        :param directory: where to put the file until it is published.
        :raises ArchiveError: when the storage does not take it.
        """
        local = directory / f"{uuid.uuid4().hex}.json"
        text = json.dumps(record, ensure_ascii=False, indent=2, default=str) + "\n"
        local.write_bytes(text.encode("utf-8", "backslashreplace"))  # half of a surrogate pair is no UTF-8
        self.publish(local, place.sidecar, "application/json")
        local.unlink(missing_ok=True)

    def digest(self, key: str) -> tuple[int, str]:
        """Answer size and SHA-256 of an object, reading it once."""
        size, digest = 0, hashlib.sha256()
        with self.fs.open(self._full(key), "rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                digest.update(chunk)
        return size, digest.hexdigest()

    def _entries(self, places: list[Place], sizes: Mapping[str, int]) -> dict[str, Entry]:
        with ThreadPoolExecutor(_READERS) as readers:
            present = [place.sidecar for place in places if place.sidecar in sizes]
            records = dict(zip(present, readers.map(self._record, present), strict=True))
        return {place.audio: Entry(place, sizes.get(place.audio), records.get(place.sidecar)) for place in places}

    def _record(self, key: str) -> Mapping[str, Any] | None:
        try:
            record = json.loads(self.fs.cat_file(self._full(key), **self._patience(_PATIENCE)))
        except (FileNotFoundError, ValueError):
            return None
        except Exception as error:
            raise ArchiveError(f"{self.uri(key)} could not be read ({type(error).__name__}: {error})") from error
        return record if isinstance(record, dict) else None

    def _list(self, folder: str) -> dict[str, int]:
        """Answer the sizes of all objects in a folder, by key; what was listed before must have been forgotten."""
        try:
            found = self.fs.find(self._full(folder), detail=True, **self._patience(_PATIENCE))
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise ArchiveError(
                f"{self.uri(folder) if folder else self.path} could not be listed ({type(error).__name__}: {error})"
            ) from error
        sizes = {name.removeprefix(f"{self._root}/"): int(info["size"] or 0) for name, info in found.items()}
        return {key: size for key, size in sizes.items() if STAGING not in key.split("/")}

    def _full(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _patience(self, seconds: float) -> dict[str, float]:
        """
        Say when to give up.

        Some of the stores' clients would wait for ever for a server that falls silent. It is fsspec that ends them.
        """
        return {"timeout": seconds} if self.fs.async_impl else {}

    def _put(self, local: Path, key: str, content_type: str, timeout: float) -> None:
        if self.is_local:
            _move(local, Path(self._full(key)))
            return
        options = self._upload_options(content_type) | self._patience(timeout)
        try:
            self.fs.put_file(str(local), self._full(key), **options)
        except TimeoutError as error:  # fsspec's has no text
            raise TimeoutError(
                f"{local.stat().st_size} bytes were not taken within {timeout:.0f} s; "
                "check that the storage connection's endpoint can be reached from the worker"
            ) from error

    def _upload_options(self, content_type: str) -> dict[str, Any]:
        """Say content type and bounded memory in each store's own words; others may not take either."""
        if "s3" in self._protocols:
            return {"ContentType": content_type, "chunksize": _S3_PART, "max_concurrency": 1}
        if "gs" in self._protocols:
            return {"content_type": content_type, "chunksize": _CHUNK}
        if "abfs" in self._protocols:
            # adlfs has no setting for it: the SDK reads what one request can take, 64 MiB, whole into memory.
            with suppress(AttributeError):
                self.fs.service_client._config.max_single_put_size = _CHUNK
            return {"content_settings": {"content_type": content_type}, "max_concurrency": 2}
        return {}


def _move(local: Path, target: Path) -> None:
    """Put a file where it belongs, so that it is never seen in part, not even after a crash of the machine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with local.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.replace(local, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The folder is on another disk than the root: once more on that one.
        with staging(target.parent / STAGING) as directory:
            _move(Path(shutil.copyfile(local, directory / "copy")), target)
