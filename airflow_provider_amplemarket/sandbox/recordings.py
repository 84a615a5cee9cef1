"""Recordings that can be played: an ID3 tag with the call's id, so that each is unique, and a sample."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Recording:
    """The bytes of one recording, described rather than built, so that a huge one costs no memory."""

    tag: bytes
    sample: bytes
    repeats: int = 1

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.tag) + len(self.sample) * self.repeats

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of at most about 1 MiB."""
        yield self.tag
        at_once = max(1, MEBIBYTE // len(self.sample))
        for sent in range(0, self.repeats, at_once):
            yield self.sample * min(at_once, self.repeats - sent)

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes, in hexadecimal."""
        digest = hashlib.sha256()
        for piece in self:
            digest.update(piece)
        return digest.hexdigest()


def recording_of(call_id: str, mebibytes: int | None = None) -> Recording:
    """Return the recording of a call, which depends on its id alone.

    :param call_id: The call's id.
    :param mebibytes: Make it exactly this large, by repeating the sample.
    """
    sample = samples()[zlib.crc32(call_id.encode()) % len(samples())]
    tag = id3(call_id)
    if not mebibytes:
        return Recording(tag, sample)
    # Only whole samples, so that no frame is cut. The rest of the size is padding in the tag.
    repeats, padding = divmod(mebibytes * MEBIBYTE - len(tag), len(sample))
    return Recording(id3(call_id, padding), sample, repeats)


def id3(title: str, padding: int = 0) -> bytes:
    """Return an ID3v2.3 tag with a title.

    :param title: The title.
    :param padding: The number of empty bytes at the end of the tag.
    """
    text = b"\0" + title.encode("latin-1", "backslashreplace")
    body = b"TIT2" + len(text).to_bytes(4, "big") + b"\0\0" + text + bytes(padding)
    # The tag's size has seven bits a byte, so that it cannot look like the start of an MPEG frame.
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + size + body


@cache
def samples() -> tuple[bytes, ...]:
    """Read the samples that lie beside this file, always in the same order."""
    return tuple(path.read_bytes() for path in sorted(Path(__file__).with_name("audio").glob("*.mp3")))
