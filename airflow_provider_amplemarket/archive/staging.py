"""A place for files that are not published yet, which leaves nothing behind, not even after a kill."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airflow_provider_amplemarket.exceptions import ArchiveError

#: Folder in a local archive where files lie until they are whole.
STAGING = ".staging"

_LOCK = ".amplemarket-staging.lock"


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Give a new private directory below ``parent``, and remove it and what killed tasks have left there.

    A directory is alive as long as its task holds the lock in it; the kernel frees the lock of a dead one.

    :param parent: the folder that such directories, and nothing else, lie in; made where it is missing.
    """
    with suppress(FileNotFoundError):  # another task's end removed it meanwhile
        _sweep(parent)
    directory, lock = _make(parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):
            parent.rmdir()


def temporary_parent() -> Path:
    """Return a folder below the system's temporary one that belongs to this user alone.

    :raises ArchiveError: when another user has it.
    """
    parent = Path(tempfile.gettempdir()) / f"airflow-provider-amplemarket-{os.getuid()}"
    # Another task that ends may remove it at any time; staging() makes it again.
    with suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    with suppress(FileNotFoundError):
        if parent.stat().st_uid != os.getuid():
            raise ArchiveError(f"{parent} belongs to another user; set TMPDIR to a folder of your own")
    return parent


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        parent.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # and not exist_ok, which minds that it is gone again at once
            parent.mkdir()
        with suppress(FileNotFoundError):  # a sweep, or another task's end, was quicker
            directory = Path(tempfile.mkdtemp(dir=parent))
            lock = os.open(directory / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return directory, lock
            os.close(lock)


def _sweep(parent: Path) -> None:
    if parent.is_symlink():
        raise OSError(f"{parent} is a link, so it is none of ours")
    for path in parent.glob("*"):
        with suppress(OSError):
            path.rmdir()  # its task died before it had a lock
    for path in parent.glob(f"*/{_LOCK}"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
            finally:
                os.close(lock)
