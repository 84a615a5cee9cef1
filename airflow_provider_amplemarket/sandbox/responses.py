"""Responses as data: what is to be sent, how its end is marked, and what becomes of the connection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

Fields = Mapping[str, str]


@dataclass
class Response:
    """One HTTP response, right or wrong.

    The headers say how the end of the body is marked: by a ``Content-Length`` of any value, by
    ``Transfer-Encoding: chunked`` (the last, empty chunk is sent only if the connection is kept), or not at all.
    """

    status: int = 200
    headers: Fields = field(default_factory=dict)
    body: Iterable[bytes] = ()
    then: Literal["keep", "close", "reset"] = "keep"

    @property
    def chunked(self) -> bool:
        """Whether the body is sent in chunks."""
        return "Transfer-Encoding" in self.headers


def plain(status: int, content_type: str, body: bytes, headers: Fields | None = None) -> Response:
    """Return a response whose body has the length that its header says.

    :param status: The status.
    :param content_type: The type of the body.
    :param body: The body.
    :param headers: Further headers.
    """
    described = {"Content-Type": content_type, "Content-Length": str(len(body))}
    return Response(status, {**described, **(headers or {})}, [body])


def json_response(document: object, status: int = 200, headers: Fields | None = None) -> Response:
    """Return a JSON response.

    :param document: What to write as JSON.
    :param status: The status.
    :param headers: Further headers.
    """
    return plain(status, "application/json", json.dumps(document).encode(), headers)


def error(status: int, code: str, detail: str, source: Fields | None = None, headers: Fields | None = None) -> Response:
    """Return an error in the shape that the API documents.

    :param status: The status; its usual phrase becomes the title.
    :param code: The error's code.
    :param detail: What went wrong.
    :param source: The part of the request that is wrong.
    :param headers: Further headers.
    """
    problem: dict[str, Any] = {"code": code, "title": title_of(status), "detail": detail}
    if source:
        problem["source"] = source
    return json_response({"object": "error", "_errors": [problem]}, status, headers)


def title_of(status: int) -> str:
    """Return the phrase of a status, the same in every version of Python.

    :param status: The status.
    """
    return "Content Too Large" if status == 413 else HTTPStatus(status).phrase


def not_found(detail: str = "Call not found") -> Response:
    """Return the 404 for a call that is not known.

    :param detail: What was not found.
    """
    return error(404, "not_found", detail, {"pointer": "/id"})


def too_many(retry_after: str | None = None) -> Response:
    """Return the 429 of a limit that is used up.

    :param retry_after: The value of ``Retry-After``, or None for no such header.
    """
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return error(429, "too_many_requests", "Rate limit exceeded", headers=headers)
