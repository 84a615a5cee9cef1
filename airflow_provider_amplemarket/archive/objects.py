"""The objects below an archive's root. Every access is limited in time, and ends when the task is told to stop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_amplemarket.archive.staging import STAGING, staging, temporary_parent
from airflow_provider_amplemarket.audio import MpegFrames
from airflow_provider_amplemarket.exceptions import ArchiveError
from airflow_provider_amplemarket.threads import each

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath
    from fsspec import AbstractFileSystem

#: Seconds for anything but an upload; a listing may have many pages.
TIMEOUT = 600.0

T = TypeVar("T")
R = TypeVar("R")

#: Seconds more for fsspec to end by itself what takes too long.
_GRACE = 5.0
_THREADS = 16
#: Bytes that are read at once.
_CHUNK = 8 * 1024**2

#: Protocols of stores whose uploads are known to become visible all at once.
_WHOLE = frozenset({"file", "s3", "gs", "abfs"})


@dataclass(frozen=True)
class Digest:
    """What an object is found to be when it is read; its size is in bytes.

    :param is_whole: whether it is MPEG audio whose frames run to the end; nothing is known of other audio.
    """

    size: int
    sha256: str
    is_whole: bool


class ObjectStore:
    """Read and list the objects below one root."""

    def __init__(self, path: ObjectStoragePath) -> None:
        self.path = path
        self.fs: AbstractFileSystem = path.fs
        #: A plain value, because a signal's handler may set it, which must not wait for a lock.
        self.is_aborted = False

    def abort(self) -> None:
        """Let everything that the archive is asked for, by whatever thread, end within a second with an ArchiveError.

        What is under way is abandoned: an upload may still become visible, whole, and nothing is begun any more. This
        may be called from a signal's handler, and again; there is no way back.
        """
        self.is_aborted = True

    @cached_property
    def root(self) -> str:
        """The root as the file system names it."""
        return str(self.fs._strip_protocol(self.path.path)).rstrip("/")

    @cached_property
    def protocols(self) -> set[str]:
        """All names of the file system's protocol."""
        protocol = self.fs.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    @property
    def is_local(self) -> bool:
        """Whether the archive lies on a local disk."""
        return "file" in self.protocols

    @property
    def publishes_whole(self) -> bool:
        """Whether the store is one whose uploads are known to become visible all at once."""
        return not _WHOLE.isdisjoint(self.protocols)

    def uri(self, key: str) -> str:
        """Return the path of an object as Airflow's ObjectStoragePath takes it."""
        return str(self.path / key)

    def full_name(self, key: str) -> str:
        """Return the name of an object, or of the root for an empty key, as the file system takes it."""
        return f"{self.root}/{key}" if key else self.root

    def timeout_option(self, seconds: float) -> dict[str, float]:
        """Return the option that limits a method of the file system in time.

        Some of the stores' clients would wait for ever for a server that falls silent. It is fsspec that ends them.
        """
        return {"timeout": seconds} if self.fs.async_impl else {}

    def staging(self) -> AbstractContextManager[Path]:
        """Give a local directory for files until they are published; for a local archive, on the same disk."""
        if self.is_local:
            return staging(Path(self.root) / STAGING)
        return staging(temporary_parent())

    def list_sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes of all objects in a folder, by key; what was listed before must have been forgotten.

        :raises ArchiveError: when it cannot be listed.
        """
        with archive_errors(f"{self.uri(folder) if folder else self.path} could not be listed"):
            found = self.wait_for(lambda: self._find(folder), TIMEOUT)
        sizes = {}
        for name, info in found.items():
            key = name.removeprefix(f"{self.root}/")
            if STAGING not in key.split("/"):
                sizes[key] = int(info["size"] or 0)
        return sizes

    def digest(self, key: str) -> Digest:
        """Read an object once and return what it is.

        :raises ArchiveError: when it cannot be read, or not in ten minutes.
        """
        with archive_errors(f"{self.uri(key)} could not be read"):
            return self.wait_for(lambda: self._read_digest(key), TIMEOUT)

    def size(self, key: str) -> int:
        """Return the size that an object has by now; this raises what the file system raises."""
        self.fs.invalidate_cache()
        options = self.timeout_option(TIMEOUT)
        return int(self.wait_for(lambda: self.fs.info(self.full_name(key), **options), TIMEOUT)["size"])

    def exists(self, key: str) -> bool:
        """Return whether an object is there by now; this raises what the file system raises."""
        self.fs.invalidate_cache()
        options = self.timeout_option(TIMEOUT)
        return bool(self.wait_for(lambda: self.fs.exists(self.full_name(key), **options), TIMEOUT))

    def wait_for(self, function: Callable[[], T], timeout: float) -> T:
        """Return a function's result, and wait for it no longer than the time-out, nor after :meth:`abort`.

        :raises ArchiveError: when the task was told to stop.
        """
        (result,) = self.wait_for_each(lambda _: function(), [None], timeout)
        return result

    def wait_for_each(self, function: Callable[[T], R], items: Iterable[T], timeout: float) -> list[R]:
        """Return a function's results for several items; so many seconds may pass without any."""
        self._check_aborted()
        return each(function, items, threads=_THREADS, timeout=timeout + _GRACE, check=self._check_aborted)

    def _check_aborted(self) -> None:
        if self.is_aborted:
            raise ArchiveError(f"The archive {self.path} is not used any more, because the task was told to stop")

    def _find(self, folder: str) -> dict[str, Any]:
        try:
            return dict(self.fs.find(self.full_name(folder), detail=True, **self.timeout_option(TIMEOUT)))
        except FileNotFoundError:
            return {}

    def _read_digest(self, key: str) -> Digest:
        deadline = time.monotonic() + TIMEOUT
        size, sha256, frames = 0, hashlib.sha256(), MpegFrames()
        with self.fs.open(self.full_name(key), "rb", block_size=_CHUNK) as file:
            while chunk := file.read(_CHUNK):
                self._check_aborted()
                if time.monotonic() > deadline:  # nobody waits for it any more
                    raise TimeoutError("it takes too long")
                size += len(chunk)
                sha256.update(chunk)
                frames.feed(chunk)
        return Digest(size, sha256.hexdigest(), frames.is_whole)


@contextmanager
def archive_errors(problem: str) -> Iterator[None]:
    """Raise what a store raises as an ArchiveError whose message begins with the problem."""
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:
        raise ArchiveError(f"{problem} ({type(error).__name__}: {error})") from error
