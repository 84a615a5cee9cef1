"""What an object turns out to be when it is read: its size, its hash, and whether it is whole audio."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from airflow_provider_amplemarket.audio import MpegFrames

#: Bytes that are read at once.
CHUNK = 8 * 1024**2


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


def read_digest(file: BinaryIO, check: Callable[[], None]) -> Digest:
    """
    Read an open file to its end.

    :param file: the file, at its beginning.
    :param check: is called for each chunk, and ends the reading by raising.
    """
    size, sha256, frames = 0, hashlib.sha256(), MpegFrames()
    while chunk := file.read(CHUNK):
        check()
        size += len(chunk)
        sha256.update(chunk)
        frames.feed(chunk)
    return Digest(size, sha256.hexdigest(), frames.is_whole)
