"""What a client gets of each fault."""

from __future__ import annotations

import gzip
import http.client
import re
from collections.abc import Callable

from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE
from tests.sandbox.client import KEY, Got


def is_error(status: int, code: str, **headers: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.error()["code"]) == (status, code)
        assert got.headers.get("retry-after") == headers.get("retry_after")

    return check


def is_healthy(got: Got, healthy: bytes) -> None:
    assert (got.status, got.body, got.problem) == (200, healthy, None)


def is_redirect(pattern: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.body) == (302, b"")
        assert re.fullmatch(pattern, got.headers["location"])

    return check


def is_chunked(got: Got, healthy: bytes) -> None:
    is_healthy(got, healthy)
    assert got.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in got.headers


def is_cut(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, http.client.IncompleteRead)
    assert got.headers["content-length"] == str(len(healthy))
    assert got.body == healthy[: len(healthy) // 2]


def is_cut_chunked(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, http.client.IncompleteRead)
    assert got.headers["transfer-encoding"] == "chunked"


def is_unsized(got: Got, healthy: bytes) -> None:
    is_healthy(got, healthy)
    assert not {"content-length", "transfer-encoding"} & set(got.headers)
    assert got.headers["connection"] == "close"


def is_unsized_cut(got: Got, healthy: bytes) -> None:
    # The client has no way to see that anything is missing.
    is_unsized(got, healthy[: len(healthy) // 2])


def is_short_length(got: Got, healthy: bytes) -> None:
    half = healthy[: len(healthy) // 2]
    is_healthy(got, half)
    assert got.headers["content-length"] == str(len(half))


def is_html(status: int, content_type: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.headers["content-type"]) == (status, content_type)
        assert got.body.startswith(b"<!DOCTYPE html>")

    return check


def is_json(content_type: str) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        assert (got.status, got.headers["content-type"]) == (200, content_type)
        assert isinstance(got.json(), dict)

    return check


def has_type(content_type: str | None) -> Callable[[Got, bytes], None]:
    def check(got: Got, healthy: bytes) -> None:
        is_healthy(got, healthy)
        assert got.headers.get("content-type") == content_type

    return check


def is_empty(got: Got, healthy: bytes) -> None:
    is_healthy(got, b"")
    assert (got.headers["content-length"], got.headers["content-type"]) == ("0", "audio/mpeg")


def is_gzip(got: Got, healthy: bytes) -> None:
    assert got.headers["content-encoding"] == "gzip"
    assert gzip.decompress(got.body) == healthy


def is_gzip_bomb(got: Got, healthy: bytes) -> None:
    assert got.headers["content-encoding"] == "gzip"
    assert len(got.body) < 2 * MEBIBYTE
    assert int.from_bytes(got.body[-4:], "little") == len(healthy) + 1024 * MEBIBYTE


def is_not_mpeg(got: Got, healthy: bytes) -> None:
    assert (got.status, got.headers["content-type"]) == (200, "audio/mpeg")
    assert len(got.body) > 1000
    assert b"\xff" not in got.body
    assert not got.body.startswith(b"ID3")


def is_partial(got: Got, healthy: bytes) -> None:
    half = len(healthy) // 2
    assert (got.status, got.body) == (206, healthy[:half])
    assert got.headers["content-range"] == f"bytes 0-{half - 1}/{len(healthy)}"


def is_refused(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, http.client.RemoteDisconnected)


def is_reset(got: Got, healthy: bytes) -> None:
    assert isinstance(got.problem, ConnectionResetError)
    assert got.status == 200


def echoes_the_key(got: Got, healthy: bytes) -> None:
    assert got.status == 500
    assert f"Bearer {KEY}" in got.error()["detail"]


# Each with what its first request and, if that differs, the second gets.
FAULTS: dict[str, tuple[Callable[[Got, bytes], None], ...]] = {
    "ok": (is_error(404, "not_found"),),
    "not-found": (is_error(404, "not_found"),),
    "too-large": (is_error(413, "content_too_large"),),
    "error-500": (is_error(500, "internal_server_error"),),
    "error-503": (is_error(503, "service_unavailable"),),
    "error-503-html": (is_html(503, "text/html"),),
    "flaky": (is_error(503, "service_unavailable"), is_healthy),
    "late": (is_error(404, "not_found"), is_healthy),
    "cut": (is_cut,),
    "cut-chunked": (is_cut_chunked,),
    "chunked": (is_chunked,),
    "unsized": (is_unsized,),
    "unsized-cut": (is_unsized_cut,),
    "short-length": (is_short_length,),
    "empty": (is_empty,),
    "html": (is_html(200, "text/html"),),
    "json": (is_json("application/json"),),
    "html-as-audio": (is_html(200, "audio/mpeg"),),
    "json-as-audio": (is_json("audio/mpeg"),),
    "octet-stream": (has_type("application/octet-stream"),),
    "no-type": (has_type(None),),
    "gzip": (is_gzip,),
    "gzip-bomb": (is_gzip_bomb,),
    "not-mpeg": (is_not_mpeg,),
    "redirect": (is_redirect(r"/sandbox/files/call--redirect"),),
    "redirect-away": (is_redirect(r"http://127\.0\.0\.1:\d+/sandbox/files/call--redirect-away"),),
    "redirect-loop": (is_redirect(r"/calls/call--redirect-loop/recording"),),
    "redirect-http": (is_redirect(r"http://recordings\.invalid/.+"),),
    "refuse": (is_refused,),
    "reset": (is_reset,),
    "too-many": (is_error(429, "too_many_requests"),),
    "too-many-N": (is_error(429, "too_many_requests", retry_after="17"),),
    "unauthorized": (is_error(401, "unauthorized"),),
    "forbidden": (is_error(403, "forbidden"),),
    "partial": (is_partial,),
    "echo-key": (echoes_the_key,),
}


TESTED_ON_THEIR_OWN = {"slow", "drip", "hang", "endless", "large-N"}
