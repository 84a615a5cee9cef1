"""Find out whether an archive takes objects, leaving none where that can be."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fsspec.asyn import sync

from airflow_provider_amplemarket.archive.objects import ObjectStore
from airflow_provider_amplemarket.archive.upload import UPLOAD_TIMEOUT, put
from airflow_provider_amplemarket.exceptions import ArchiveError

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem

#: Begins the names of the objects that show whether the archive can be written.
WRITE_CHECK = ".amplemarket-write-check"


def check_writable(objects: ObjectStore) -> None:
    """Find out whether a store takes objects; raise an ArchiveError where it takes none."""
    try:
        objects.wait_for(lambda: _write(objects), 3 * UPLOAD_TIMEOUT)
    except ArchiveError:
        raise
    except Exception as error:
        raise ArchiveError(
            f"The archive {objects.path} cannot be written ({type(error).__name__}: {error}). Check path and "
            "storage_conn_id, that the bucket exists and that the connection may write to it."
        ) from error


def _write(objects: ObjectStore) -> None:
    with objects.staging() as directory:
        local = directory / WRITE_CHECK
        local.write_bytes(bytes(65536))  # a full disk still takes an empty file
        if objects.is_local or not _can_begin_upload(objects):
            _put_and_remove(objects, local)


def _put_and_remove(objects: ObjectStore, local: Path) -> None:
    """Put an object under a name that none has ever had, and remove it where that is allowed."""
    name = _new_name()
    put(objects, local, name, "application/octet-stream", UPLOAD_TIMEOUT)
    with suppress(Exception):  # an archive that nobody may delete from is a good archive
        objects.fs.rm_file(objects.full_name(name), **objects.timeout_option(UPLOAD_TIMEOUT))


def _can_begin_upload(objects: ObjectStore) -> bool:
    """Return whether an upload could be begun, and was given up; False also where only an object can show it."""
    for protocol in objects.protocols & PROBES.keys():
        try:
            PROBES[protocol](objects.fs, objects.full_name(_new_name()), UPLOAD_TIMEOUT)
        except TimeoutError:  # fsspec's has no text
            raise TimeoutError(
                f"no upload could be begun within {UPLOAD_TIMEOUT:.0f} s; "
                "check that the storage connection's endpoint can be reached from the worker"
            ) from None
        except Exception:  # not permitted, or not supported
            return False
        return True
    return False


def _new_name() -> str:
    return f"{WRITE_CHECK}-{uuid.uuid4().hex}"


def _s3(fs: AsyncFileSystem, name: str, timeout: float) -> None:
    bucket, key, _ = fs.split_path(name)
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key, timeout=timeout)
    with suppress(Exception):  # who may not end it has a lifecycle rule that does
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload["UploadId"], timeout=timeout)


def _gcs(fs: AsyncFileSystem, name: str, timeout: float) -> None:
    bucket, key, _ = fs.split_path(name)
    url = f"{fs._location}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
    headers, _ = sync(fs.loop, fs._call, "POST", url, uploadType="resumable", json={"name": key}, timeout=timeout)
    with suppress(Exception):  # Google ends it after a week
        sync(fs.loop, fs._call, "DELETE", str(headers["Location"]), timeout=timeout)


def _azure(fs: AsyncFileSystem, name: str, timeout: float) -> None:
    container, blob, *_ = fs.split_path(name)

    async def stage_block() -> None:
        # Of a blob that is not there before its list of blocks is; Azure collects the block after a week.
        async with fs.service_client.get_blob_client(container, blob) as client:
            await client.stage_block("0", b"0")

    sync(fs.loop, stage_block, timeout=timeout)


#: By the store's protocol: begin an upload and give it up. That proves the right to write, and leaves nothing to be
#: seen, paid for or deleted. Each takes the file system, the name of an object that is not there, and seconds, and
#: raises what the store raises, but for an upload that was begun and could not be given up.
PROBES: Mapping[str, Callable[[Any, str, float], None]] = {"s3": _s3, "gs": _gcs, "abfs": _azure}
