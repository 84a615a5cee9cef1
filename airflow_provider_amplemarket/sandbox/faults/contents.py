"""Faults of what is served: the wrong body, the wrong type, an encoding."""

from __future__ import annotations

import gzip
import zlib
from random import Random

from airflow_provider_amplemarket.sandbox.faults.registry import AUDIO, PROXY_PAGE, RECORDING_FAULTS, Exchange, fault
from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE
from airflow_provider_amplemarket.sandbox.responses import Response, json_response, plain


@fault("empty")
def _empty(exchange: Exchange) -> Response:
    return exchange.changed({"Content-Length": "0"}, body=())


@fault("html")
def _html(exchange: Exchange) -> Response:
    return plain(200, "text/html", PROXY_PAGE)


@fault("json", RECORDING_FAULTS)
def _json(exchange: Exchange) -> Response:
    return json_response({"status": "processing"})


@fault("html-as-audio", RECORDING_FAULTS)
def _html_as_audio(exchange: Exchange) -> Response:
    return plain(200, AUDIO, PROXY_PAGE)


@fault("json-as-audio", RECORDING_FAULTS)
def _json_as_audio(exchange: Exchange) -> Response:
    return plain(200, AUDIO, b'{"status": "processing"}')


@fault("octet-stream", RECORDING_FAULTS)
def _octet_stream(exchange: Exchange) -> Response:
    return exchange.changed({"Content-Type": "application/octet-stream"})


@fault("no-type")
def _no_type(exchange: Exchange) -> Response:
    return exchange.changed({"Content-Type": None})


@fault("not-mpeg", RECORDING_FAULTS)
def _not_mpeg(exchange: Exchange) -> Response:
    rng = Random(exchange.call_id)
    # Without 0xFF there is no frame anywhere, and with so many high bytes it is no text either.
    return plain(200, AUDIO, bytes(rng.randrange(0x80, 0xFF) for _ in range(8_000)))


@fault("large-N", RECORDING_FAULTS)
def _large(exchange: Exchange) -> Response:
    # The recording itself is larger, so that redirects and checksums know of it; see `Sandbox`.
    return exchange.healthy


@fault("gzip")
def _gzip(exchange: Exchange) -> Response:
    body = gzip.compress(exchange.payload, mtime=0)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
    return exchange.changed(headers, body=[body])


@fault("gzip-bomb")
def _gzip_bomb(exchange: Exchange) -> Response:
    pieces = bomb(exchange.payload)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(sum(map(len, pieces)))}
    return exchange.changed(headers, body=pieces)


def bomb(opening: bytes, mebibytes: int = 1024) -> list[bytes]:
    """Return a small gzip file that expands to some first bytes and very many blanks.

    :param opening: The first bytes, so that it looks right for a while.
    :param mebibytes: The number of blanks, in MiB.
    """
    blanks = b" " * MEBIBYTE
    # After a full flush nothing refers back, so one compressed block can be repeated.
    block = _deflate(blanks)
    checksum = zlib.crc32(opening)
    for _ in range(mebibytes):
        checksum = zlib.crc32(blanks, checksum)
    size = (len(opening) + mebibytes * MEBIBYTE) & 0xFFFFFFFF
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    tail = b"\x03\0" + checksum.to_bytes(4, "little") + size.to_bytes(4, "little")
    return [head, _deflate(opening), *[block] * mebibytes, tail]


def _deflate(data: bytes) -> bytes:
    raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return raw.compress(data) + raw.flush(zlib.Z_FULL_FLUSH)
