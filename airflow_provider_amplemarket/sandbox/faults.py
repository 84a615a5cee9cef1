"""Everything that can go wrong, by name.

A fault is a function from the exchange, which knows the healthy answer, to the answer that is given instead,
or to None: the connection is then closed without any. Most can befall a recording and a page of calls alike.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from airflow_provider_amplemarket.sandbox.answers import Answer, error, json_answer, not_found, plain, too_many
from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE, recording_of

if TYPE_CHECKING:
    from airflow_provider_amplemarket.sandbox.listener import Request
    from airflow_provider_amplemarket.sandbox.server import Sandbox

AUDIO = "audio/mpeg"
PROXY_PAGE = b"<!DOCTYPE html>\n<html><title>Oops</title><body><h1>Please try again</h1></body></html>\n"


@dataclass
class Exchange:
    """A request and the healthy answer to it, as a fault sees them.

    ``attempt`` counts this call's requests for a recording, from 1; ``number`` is the N of the fault's name.
    """

    sandbox: Sandbox
    request: Request
    healthy: Answer
    call_id: str = ""
    attempt: int = 1
    number: int = 0

    @property
    def payload(self) -> bytes:
        """The body of the healthy answer."""
        return b"".join(self.healthy.body)

    @property
    def half(self) -> bytes:
        """The first half of it."""
        return self.payload[: len(self.payload) // 2]

    @property
    def page(self) -> dict[str, Any]:
        """The same as a page of calls."""
        return dict(json.loads(self.payload))

    def changed(self, headers: Mapping[str, str | None], **fields: Any) -> Answer:
        """Return the healthy answer with some of its headers changed.

        :param headers: Their new values; None takes a header away.
        :param fields: Other fields of the answer to change.
        """
        merged: dict[str, str | None] = {**self.healthy.headers, **headers}
        kept = {name: value for name, value in merged.items() if value is not None}
        return replace(self.healthy, headers=kept, **fields)


Fault = Callable[[Exchange], Answer | None]
AnyFault = TypeVar("AnyFault", bound=Fault)
Faults = dict[str, Fault]

RECORDING_FAULTS: Faults = {}
LIST_FAULTS: Faults = {}


def fault(name: str, *tables: Faults) -> Callable[[AnyFault], AnyFault]:
    """Enter a function under a fault's name.

    :param name: The name, in which a final ``-N`` stands for any whole number.
    :param tables: Where to enter it, by default for recordings and lists alike.
    """

    def enter(function: AnyFault) -> AnyFault:
        for table in tables or (RECORDING_FAULTS, LIST_FAULTS):
            table[name] = function
        return function

    return enter


def find(name: str, table: Faults) -> tuple[Fault, int] | None:
    """Return the fault of a name and its number.

    :param name: What may be a fault's name.
    :param table: The faults to look among.
    """
    if name in table and not name.endswith("-N"):
        return table[name], 0
    numbered = re.fullmatch(r"(.+)-([0-9]{1,6})", name)
    if numbered and f"{numbered[1]}-N" in table:
        return table[f"{numbered[1]}-N"], int(numbered[2])
    return None


def known(name: str, table: Faults) -> str:
    """Return a fault's name, or raise ValueError where there is none such.

    :param name: The name.
    :param table: The faults to look among.
    """
    if not find(name, table):
        raise ValueError(f"{name!r} is no fault; there are: {', '.join(sorted(table))}")
    return name


def go_wrong(name: str, table: Faults, exchange: Exchange) -> Answer | None:
    """Return what a fault makes of an exchange.

    :param name: The fault's name.
    :param table: The faults to look among.
    :param exchange: The request and the healthy answer.
    """
    found = find(known(name, table), table)
    assert found
    function, exchange.number = found
    return function(exchange)


# Refusals and errors


@fault("ok")
def _ok(exchange: Exchange) -> Answer:
    return exchange.healthy


@fault("error-500")
def _error_500(exchange: Exchange) -> Answer:
    return error(500, "internal_server_error", "Something went wrong")


@fault("error-503")
def _error_503(exchange: Exchange) -> Answer:
    return error(503, "service_unavailable", "Try again later")


@fault("error-503-html")
def _error_503_html(exchange: Exchange) -> Answer:
    return plain(503, "text/html", PROXY_PAGE)


@fault("flaky")
def _flaky(exchange: Exchange) -> Answer:
    return _error_503(exchange) if exchange.attempt == 1 else exchange.healthy


@fault("not-found", RECORDING_FAULTS)
def _not_found(exchange: Exchange) -> Answer:
    return not_found()


@fault("late", RECORDING_FAULTS)
def _late(exchange: Exchange) -> Answer:
    return not_found() if exchange.attempt == 1 else exchange.healthy


@fault("too-large", RECORDING_FAULTS)
def _too_large(exchange: Exchange) -> Answer:
    return error(413, "content_too_large", "Recording is too big")


@fault("too-many")
def _too_many(exchange: Exchange) -> Answer:
    return too_many()


@fault("too-many-N")
def _too_many_n(exchange: Exchange) -> Answer:
    return too_many(str(exchange.number))


@fault("unauthorized")
def _unauthorized(exchange: Exchange) -> Answer:
    return error(401, "unauthorized", "Invalid API key", {"header": "Authorization"})


@fault("forbidden")
def _forbidden(exchange: Exchange) -> Answer:
    return error(403, "forbidden", "Not allowed for this API key")


@fault("echo-key")
def _echo_key(exchange: Exchange) -> Answer:
    return error(500, "internal_server_error", f"No handler for {exchange.request.authorization}")


# Connections


@fault("refuse")
def _refuse(exchange: Exchange) -> None:
    return None


@fault("hang")
def _hang(exchange: Exchange) -> None:
    exchange.sandbox.pause(30)


@fault("slow")
def _slow(exchange: Exchange) -> Answer:
    exchange.sandbox.pause(2)
    return exchange.healthy


@fault("drip")
def _drip(exchange: Exchange) -> Answer:
    def drops() -> Iterator[bytes]:
        payload = exchange.payload
        size = len(payload) // 30 + 1
        for start in range(0, len(payload), size):
            exchange.sandbox.pause(0.1)
            yield payload[start : start + size]

    return replace(exchange.healthy, body=drops())


@fault("reset")
def _reset(exchange: Exchange) -> Answer:
    return replace(exchange.healthy, body=[exchange.half], then="reset")


# Frames


@fault("cut")
def _cut(exchange: Exchange) -> Answer:
    return replace(exchange.healthy, body=[exchange.half], then="close")


@fault("chunked")
def _chunked(exchange: Exchange) -> Answer:
    return exchange.changed({"Content-Length": None, "Transfer-Encoding": "chunked"})


@fault("cut-chunked")
def _cut_chunked(exchange: Exchange) -> Answer:
    return replace(_chunked(exchange), body=[exchange.half], then="close")


@fault("unsized")
def _unsized(exchange: Exchange) -> Answer:
    return exchange.changed({"Content-Length": None}, then="close")


@fault("unsized-cut")
def _unsized_cut(exchange: Exchange) -> Answer:
    return replace(_unsized(exchange), body=[exchange.half])


@fault("short-length")
def _short_length(exchange: Exchange) -> Answer:
    # The rest of the body follows all the same; kept open, the connection would take it for the next answer.
    headers = {"Content-Length": str(len(exchange.half))}
    return exchange.changed(headers, body=[exchange.payload], then="close")


@fault("partial")
def _partial(exchange: Exchange) -> Answer:
    size, half = len(exchange.payload), exchange.half
    headers = {"Content-Length": str(len(half)), "Content-Range": f"bytes 0-{len(half) - 1}/{size}"}
    return exchange.changed(headers, status=206, body=[half])


@fault("endless", RECORDING_FAULTS)
def _endless(exchange: Exchange) -> Answer:
    def frames() -> Iterator[bytes]:
        recording = recording_of(exchange.call_id, mebibytes=1)
        yield recording.tag
        while True:
            exchange.sandbox.pause(0.01)
            yield recording.sample * recording.repeats

    return replace(_chunked(exchange), body=frames())


# Contents


@fault("empty")
def _empty(exchange: Exchange) -> Answer:
    return exchange.changed({"Content-Length": "0"}, body=())


@fault("html")
def _html(exchange: Exchange) -> Answer:
    return plain(200, "text/html", PROXY_PAGE)


@fault("json", RECORDING_FAULTS)
def _json(exchange: Exchange) -> Answer:
    return json_answer({"status": "processing"})


@fault("html-as-audio", RECORDING_FAULTS)
def _html_as_audio(exchange: Exchange) -> Answer:
    return plain(200, AUDIO, PROXY_PAGE)


@fault("json-as-audio", RECORDING_FAULTS)
def _json_as_audio(exchange: Exchange) -> Answer:
    return plain(200, AUDIO, b'{"status": "processing"}')


@fault("octet-stream", RECORDING_FAULTS)
def _octet_stream(exchange: Exchange) -> Answer:
    return exchange.changed({"Content-Type": "application/octet-stream"})


@fault("no-type")
def _no_type(exchange: Exchange) -> Answer:
    return exchange.changed({"Content-Type": None})


@fault("not-mpeg", RECORDING_FAULTS)
def _not_mpeg(exchange: Exchange) -> Answer:
    rng = Random(exchange.call_id)
    # Without 0xFF there is no frame anywhere, and with so many high bytes it is no text either.
    return plain(200, AUDIO, bytes(rng.randrange(0x80, 0xFF) for _ in range(8_000)))


@fault("large-N", RECORDING_FAULTS)
def _large(exchange: Exchange) -> Answer:
    # The size is a trait of the recording, which redirects and checksums have to know of: see `Sandbox`.
    return exchange.healthy


@fault("gzip")
def _gzip(exchange: Exchange) -> Answer:
    body = gzip.compress(exchange.payload, mtime=0)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
    return exchange.changed(headers, body=[body])


@fault("gzip-bomb")
def _gzip_bomb(exchange: Exchange) -> Answer:
    pieces = bomb(exchange.payload)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(sum(map(len, pieces)))}
    return exchange.changed(headers, body=pieces)


def bomb(opening: bytes, mebibytes: int = 1024) -> list[bytes]:
    """Return a small gzip file that expands to an opening and very many blanks.

    :param opening: How it begins, so that it looks right for a while.
    :param mebibytes: How many blanks.
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


# Redirects


def _redirect(location: str) -> Answer:
    return Answer(302, {"Location": location, "Content-Length": "0"})


@fault("redirect", RECORDING_FAULTS)
def _redirect_here(exchange: Exchange) -> Answer:
    return _redirect(f"/sandbox/files/{quote(exchange.call_id, safe='')}")


@fault("redirect-away", RECORDING_FAULTS)
def _redirect_away(exchange: Exchange) -> Answer:
    return _redirect(f"{exchange.sandbox.away_url}/sandbox/files/{quote(exchange.call_id, safe='')}")


@fault("redirect-loop")
def _redirect_loop(exchange: Exchange) -> Answer:
    return _redirect(exchange.request.target)


@fault("redirect-http", RECORDING_FAULTS)
def _redirect_http(exchange: Exchange) -> Answer:
    return _redirect(f"http://recordings.invalid/{quote(exchange.call_id, safe='')}.mp3")


# Pages of calls


def _next(exchange: Exchange, href: str) -> Answer:
    page = exchange.page
    page["_links"]["next"] = {"href": href}
    return json_answer(page)


@fault("loop", LIST_FAULTS)
def _loop(exchange: Exchange) -> Answer:
    return _next(exchange, exchange.page["_links"]["self"]["href"])


@fault("next-away", LIST_FAULTS)
def _next_away(exchange: Exchange) -> Answer:
    links = exchange.page["_links"]
    return _next(exchange, exchange.sandbox.away_url + links.get("next", links["self"])["href"])


@fault("next-http", LIST_FAULTS)
def _next_http(exchange: Exchange) -> Answer:
    links = exchange.page["_links"]
    return _next(exchange, "http://api.invalid" + links.get("next", links["self"])["href"])


@fault("no-links", LIST_FAULTS)
def _no_links(exchange: Exchange) -> Answer:
    return json_answer({"calls": exchange.page["calls"]})


@fault("repeat", LIST_FAULTS)
def _repeat(exchange: Exchange) -> Answer:
    return json_answer(exchange.sandbox.page(exchange.request.query, overlap=1))


@fault("not-json", LIST_FAULTS)
def _not_json(exchange: Exchange) -> Answer:
    return plain(200, "application/json", b"upstream timed out")


@fault("not-a-list", LIST_FAULTS)
def _not_a_list(exchange: Exchange) -> Answer:
    page = exchange.page
    return json_answer({**page, "calls": {str(index): row for index, row in enumerate(page["calls"])}})


@fault("row-not-object", LIST_FAULTS)
def _row_not_object(exchange: Exchange) -> Answer:
    page = exchange.page
    return json_answer({**page, "calls": [*page["calls"], "unexpected"]})


@fault("giant", LIST_FAULTS)
def _giant(exchange: Exchange) -> Answer:
    def pieces() -> Iterator[bytes]:
        # A right page, but for a field nobody asked for: blanks in it, so that the whole is valid JSON.
        yield exchange.payload.removesuffix(b"}") + b', "padding": "'
        for _ in range(65):
            yield b" " * MEBIBYTE
        yield b'"}'

    return replace(_chunked(exchange), body=pieces())
