"""The archive: recordings and their sidecars as whole objects in object storage, or on a local disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from airflow_provider_amplemarket.archive import background
from airflow_provider_amplemarket.archive.layout import Layout, Place
from airflow_provider_amplemarket.archive.probes import PROBES
from airflow_provider_amplemarket.archive.staging import staging
from airflow_provider_amplemarket.archive.storage import open_storage
from airflow_provider_amplemarket.audio import MpegFrames
from airflow_provider_amplemarket.exceptions import ArchiveError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: Folder in a local archive where files lie until they are whole.
STAGING = ".staging"
#: Begins the names of the objects that say whether the archive can be written.
WRITE_CHECK = ".amplemarket-write-check"

T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 8 * 1024**2
#: S3 takes no smaller parts. One at a time, as each is in memory twice while it is sent.
_S3_PART = 5 * 1024**2
_UPLOAD_ATTEMPTS = 4
#: Seconds for an upload of nothing, and bytes that each further second is good for.
_UPLOAD_PATIENCE = 120.0
_SLOWEST_UPLOAD = 100_000
#: Seconds for anything else that the store is asked for; a listing may have many pages.
_PATIENCE = 600.0
#: Seconds more for fsspec to say by itself that the time is over.
_GRACE = 5.0
_READERS = 16

#: How stores say that an object is there and stays as it is. In the words of Google's retention and holds and of its
#: users who may not delete, of Azure's immutability and of its tokens that may only create, of R2 and of MinIO.
_PROTECTED = re.compile(
    r"cannot be (deleted|overwritten)|storage\.objects\.delete access|immutable due to|BlobImmutableDueTo"
    r"|UnauthorizedBlobOverwrite|blob overwrites|ObjectLockedByBucketPolicy|by the bucket policy|by object lock"
)


@dataclass(frozen=True)
class Digest:
    """
    What an object is found to be when it is read.

    :param size: in bytes.
    :param sha256: in hexadecimal.
    :param is_whole: whether it is MPEG audio whose frames run to the end; False for other audio, of which nothing
        is known.
    """

    size: int
    sha256: str
    is_whole: bool


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
        return (
            bool(self.size)
            and is_new
            and record.get("status") in (None, "not_found", "failed", "given_up", "overwriting")
        )


class Archive:
    """
    Read and write one archive.

    :param path: its root, as Airflow writes object-storage paths.
    :param conn_id: the storage's connection, an alternative to the user part of ``path``.
    :param layout: where in it the recordings lie.
    :raises AmplemarketConfigurationError: when ``path`` cannot be a root.
    """

    def __init__(self, path: str, conn_id: str | None = None, layout: Layout | None = None) -> None:
        self.path = open_storage(path, conn_id)
        self.fs: AbstractFileSystem = self.path.fs
        self.layout = layout or Layout()
        # A plain value, because a signal's handler may set it, which must not wait for a lock.
        self._is_aborted = False

    def abort(self) -> None:
        """
        Let everything that the archive is asked for, by whatever thread, end within a second with an ArchiveError.

        What is under way is abandoned: an upload may still become visible, whole, and nothing is begun any more. This
        may be called from a signal's handler, and again; there is no way back.
        """
        self._is_aborted = True

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
        """Return the path of an object as Airflow's ObjectStoragePath takes it."""
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
        Find out whether the archive takes objects, leaving none where that can be.

        :raises ArchiveError: when it takes none.
        """
        try:
            self._ask(self._check_writable, 3 * _UPLOAD_PATIENCE)
        except ArchiveError:
            raise
        except Exception as error:
            raise ArchiveError(
                f"The archive {self.path} cannot be written ({type(error).__name__}: {error}). Check path and "
                "storage_conn_id, that the bucket exists and that the connection may write to it."
            ) from error

    def publish(self, local: Path, key: str, content_type: str) -> None:
        """
        Make a local file an object of the archive: all of it at once, or nothing.

        Tries again where the storage fails for a moment. On a local archive the file is moved. Where an object of that
        name is there already and may not be overwritten, the same bytes are as good.

        :raises ArchiveError: when the storage does not take it.
        """
        size = local.stat().st_size
        timeout = _UPLOAD_PATIENCE + size / _SLOWEST_UPLOAD
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_worth_another_try),
            # An upload that does not end in its time is tried twice more, and not for hours.
            stop=tenacity.stop_after_attempt(_UPLOAD_ATTEMPTS) | tenacity.stop_after_delay(2.5 * timeout),
            wait=tenacity.wait_exponential(multiplier=0.5, max=8),
            reraise=True,
        )
        try:
            retrying(self._ask, lambda: self._put(local, key, content_type, timeout), timeout)
            self.fs.invalidate_cache()
            stored = self._ask(lambda: self.fs.info(self._full(key), **self._patience(_PATIENCE))["size"], _PATIENCE)
        except ArchiveError:
            raise
        except Exception as error:
            if not _is_protection(error) or not self._exists(key):
                raise ArchiveError(f"{self.uri(key)} could not be written ({type(error).__name__}: {error})") from error
            if not self._has(key, local):
                raise ArchiveError(
                    f"{self.uri(key)} is there already and the bucket does not let it be replaced, because of "
                    "retention, immutability, a hold, or a connection that may not delete "
                    f"({type(error).__name__}: {error})"
                ) from error
            return
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

    def digest(self, key: str) -> Digest:
        """
        Read an object once and return what it is.

        :raises ArchiveError: when it cannot be read, or not in ten minutes.
        """
        try:
            return self._ask(lambda: self._read(key), _PATIENCE)
        except ArchiveError:
            raise
        except Exception as error:
            raise ArchiveError(f"{self.uri(key)} could not be read ({type(error).__name__}: {error})") from error

    def _read(self, key: str) -> Digest:
        deadline = time.monotonic() + _PATIENCE
        size, sha256, frames = 0, hashlib.sha256(), MpegFrames()
        with self.fs.open(self._full(key), "rb", block_size=_CHUNK) as file:
            while chunk := file.read(_CHUNK):
                self._check_aborted()
                if time.monotonic() > deadline:  # nobody waits for it any more
                    raise TimeoutError("it takes too long")
                size += len(chunk)
                sha256.update(chunk)
                frames.feed(chunk)
        return Digest(size, sha256.hexdigest(), frames.is_whole)

    def _has(self, key: str, local: Path) -> bool:
        """Tell whether an object has the bytes of a local file."""
        with local.open("rb") as file:
            return self.digest(key).sha256 == hashlib.file_digest(file, "sha256").hexdigest()

    def _exists(self, key: str) -> bool:
        self.fs.invalidate_cache()
        return bool(self._ask(lambda: self.fs.exists(self._full(key), **self._patience(_PATIENCE)), _PATIENCE))

    def _check_writable(self) -> None:
        with self.staging() as directory:
            probe = directory / WRITE_CHECK
            probe.write_bytes(bytes(65536))  # a full disk still takes an empty file
            if self.is_local or not self._begin_upload():
                self._put_probe(probe)

    def _begin_upload(self) -> bool:
        """Begin an upload and give it up, where the store knows how; tell whether it let us."""
        for protocol in self._protocols & PROBES.keys():
            try:
                PROBES[protocol](self.fs, self._full(_fresh_name()), _UPLOAD_PATIENCE)
            except TimeoutError:  # fsspec's has no text
                raise TimeoutError(
                    f"no upload could be begun within {_UPLOAD_PATIENCE:.0f} s; "
                    "check that the storage connection's endpoint can be reached from the worker"
                ) from None
            except Exception:  # not permitted, or not supported: an object will tell
                return False
            return True
        return False

    def _put_probe(self, probe: Path) -> None:
        """Put an object under a name that none has ever had, and remove it where that may be."""
        name = _fresh_name()
        self._put(probe, name, "application/octet-stream", _UPLOAD_PATIENCE)
        with suppress(Exception):  # an archive that nobody may delete from is a good archive
            self.fs.rm_file(self._full(name), **self._patience(_UPLOAD_PATIENCE))

    def _is_worth_another_try(self, error: BaseException) -> bool:
        # What Airflow raises in the main thread when the task's time is over is no Exception.
        return isinstance(error, Exception) and not self._is_aborted and not _is_protection(error)

    def _ask(self, function: Callable[[], T], seconds: float) -> T:
        """Return what the store answers, and wait no longer than so many seconds, nor after abort()."""
        (answer,) = self._ask_each(lambda _: function(), [None], seconds)
        return answer

    def _ask_each(self, function: Callable[[T], R], items: Iterable[T], seconds: float) -> list[R]:
        self._check_aborted()
        return background.each(function, items, threads=_READERS, patience=seconds + _GRACE, check=self._check_aborted)

    def _check_aborted(self) -> None:
        if self._is_aborted:
            raise ArchiveError(f"The archive {self.path} is not used any more, because the task was told to stop")

    def _entries(self, places: list[Place], sizes: Mapping[str, int]) -> dict[str, Entry]:
        present = [place.sidecar for place in places if place.sidecar in sizes]
        records = dict(zip(present, self._ask_each(self._record, present, _PATIENCE), strict=True))
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
        """Return the sizes of all objects in a folder, by key; what was listed before must have been forgotten."""
        try:
            options = self._patience(_PATIENCE)
            found = self._ask(lambda: self.fs.find(self._full(folder), detail=True, **options), _PATIENCE)
        except FileNotFoundError:
            return {}
        except ArchiveError:
            raise
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


def _fresh_name() -> str:
    return f"{WRITE_CHECK}-{uuid.uuid4().hex}"


def _is_protection(error: BaseException | None) -> bool:
    """Tell whether a store refuses to replace what is there; some of the clients hide its words in the context."""
    while error is not None:
        if _PROTECTED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
