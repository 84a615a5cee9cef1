"""Make local files objects of a store: whole or not at all, with retries, minding what a bucket protects."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import tenacity

from airflow_provider_amplemarket.archive.objects import ObjectStore
from airflow_provider_amplemarket.archive.staging import STAGING, staging
from airflow_provider_amplemarket.exceptions import ArchiveError

#: Seconds for an upload of nothing, and bytes that each further second is good for.
UPLOAD_TIMEOUT = 120.0
SLOWEST_UPLOAD = 100_000

_ATTEMPTS = 4
_CHUNK = 8 * 1024**2
#: S3 takes no smaller parts. One at a time, as each is in memory twice while it is sent.
_S3_PART = 5 * 1024**2

#: How stores say that an object is there and stays as it is. In the words of Google's retention and holds and of its
#: users who may not delete, of Azure's immutability and of its tokens that may only create, of R2 and of MinIO.
_PROTECTED = re.compile(
    r"cannot be (deleted|overwritten)|storage\.objects\.delete access|immutable due to|BlobImmutableDueTo"
    r"|UnauthorizedBlobOverwrite|blob overwrites|ObjectLockedByBucketPolicy|by the bucket policy|by object lock"
)


def publish(objects: ObjectStore, local: Path, key: str, content_type: str) -> None:
    """Make a local file an object of the store: all of it at once, or nothing.

    Tries again where the storage fails for a short time. On a local archive the file is moved. Where an object of that
    name is there already and may not be overwritten, the same bytes are as good.

    :raises ArchiveError: when the storage does not take it.
    """
    size = local.stat().st_size
    try:
        _put_with_retries(objects, local, key, content_type, UPLOAD_TIMEOUT + size / SLOWEST_UPLOAD)
        stored = objects.size(key)
    except ArchiveError:
        raise
    except Exception as error:
        _check_is_there(objects, local, key, error)
        return
    if stored != size:
        raise ArchiveError(f"{objects.uri(key)} has {stored} bytes after {size} were written")


def put(objects: ObjectStore, local: Path, key: str, content_type: str, timeout: float) -> None:
    """Try once to make a local file an object; this raises what the file system raises."""
    if objects.is_local:
        _move(local, Path(objects.full_name(key)))
        return
    options = _options(objects, content_type) | objects.timeout_option(timeout)
    try:
        objects.fs.put_file(str(local), objects.full_name(key), **options)
    except TimeoutError as error:  # fsspec's has no text
        raise TimeoutError(
            f"{local.stat().st_size} bytes were not taken within {timeout:.0f} s; "
            "check that the storage connection's endpoint can be reached from the worker"
        ) from error


def _put_with_retries(objects: ObjectStore, local: Path, key: str, content_type: str, timeout: float) -> None:
    def is_worth_another_try(error: BaseException) -> bool:
        # What Airflow raises in the main thread when the task's time is over is no Exception.
        return isinstance(error, Exception) and not objects.is_aborted and not _is_protection(error)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_worth_another_try),
        # An upload that does not end in its time is tried twice more, and not for hours.
        stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_after_delay(2.5 * timeout),
        wait=tenacity.wait_exponential(multiplier=0.5, max=8),
        reraise=True,
    )
    retrying(objects.wait_for, lambda: put(objects, local, key, content_type, timeout), timeout)


def _check_is_there(objects: ObjectStore, local: Path, key: str, error: Exception) -> None:
    """Return if an upload failed because the same bytes are there already, and are protected; raise otherwise."""
    reason = f"({type(error).__name__}: {error})"
    is_protected = _is_protection(error) and objects.exists(key)
    if not is_protected:
        raise ArchiveError(f"{objects.uri(key)} could not be written {reason}") from error
    with local.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if objects.digest(key).sha256 != sha256:
        raise ArchiveError(
            f"{objects.uri(key)} is there already and the bucket does not let it be replaced, because of retention, "
            f"immutability, a hold, or a connection that may not delete {reason}"
        ) from error


def _options(objects: ObjectStore, content_type: str) -> dict[str, Any]:
    """Return content type and bounded memory as each store's client takes them; others may not take either."""
    if "s3" in objects.protocols:
        return {"ContentType": content_type, "chunksize": _S3_PART, "max_concurrency": 1}
    if "gs" in objects.protocols:
        return {"content_type": content_type, "chunksize": _CHUNK}
    if "abfs" in objects.protocols:
        # adlfs has no setting for it: the SDK reads what one request can take, 64 MiB, whole into memory.
        with suppress(AttributeError):
            objects.fs.service_client._config.max_single_put_size = _CHUNK
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


def _is_protection(error: BaseException | None) -> bool:
    """Return whether a store refuses to replace what is there; some clients hide its words in the context."""
    while error is not None:
        if _PROTECTED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
