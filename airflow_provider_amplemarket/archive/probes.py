"""
Begin an upload and give it up: it proves the right to write, and leaves nothing to be seen, paid for or deleted.

Each raises what the store raises; that what was begun could not be given up is no reason to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fsspec.asyn import sync

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem


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


#: By the store's protocol. Each takes the file system, the name of an object that is not there, and seconds.
PROBES: Mapping[str, Callable[[Any, str, float], None]] = {"s3": _s3, "gs": _gcs, "abfs": _azure}
