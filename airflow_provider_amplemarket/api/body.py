"""Bodies of answers, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import requests

from airflow_provider_amplemarket.api.deadline import reason_of_end
from airflow_provider_amplemarket.exceptions import AmplemarketConnectionError

_CHUNK = 65536


def is_compressed(response: requests.Response) -> bool:
    """Return whether the body is compressed, which is never asked for."""
    return bool(response.headers.get("Content-Encoding", "identity") != "identity")


def iter_body(response: requests.Response, size: int) -> Iterator[bytes]:
    """Yield the body in chunks; where it was ended from here it can look whole, which is an error, too."""
    problem: Exception | None = None
    try:
        yield from response.iter_content(size)
    except requests.RequestException as error:
        problem = error
    problem = reason_of_end() or problem
    if problem:
        raise problem


def read_up_to(response: requests.Response, limit: int) -> bytes:
    """Return the body; where it is longer than the limit, one byte or more above it."""
    body = bytearray()
    try:
        for chunk in iter_body(response, _CHUNK):
            body += chunk
            if len(body) > limit:
                break
    except requests.RequestException as error:
        raise AmplemarketConnectionError(
            f"GET {urlsplit(response.url).path}: the answer was cut short ({type(error).__name__})"
        ) from error
    return bytes(body)
