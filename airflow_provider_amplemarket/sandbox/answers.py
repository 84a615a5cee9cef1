"""Answers as data: what is to be sent, in which frame, and what becomes of the connection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

Fields = Mapping[str, str]


@dataclass
class Answer:
    """One HTTP answer, right or wrong.

    The headers say what frames the body: a ``Content-Length`` of any value, ``Transfer-Encoding: chunked``
    (the body is then sent in chunks, the last, empty one only if the connection is kept), or neither.
    """

    status: int = 200
    headers: Fields = field(default_factory=dict)
    body: Iterable[bytes] = ()
    then: Literal["keep", "close", "reset"] = "keep"

    @property
    def chunked(self) -> bool:
        """Whether the body is sent in chunks."""
        return "Transfer-Encoding" in self.headers


def plain(status: int, content_type: str, body: bytes, headers: Fields | None = None) -> Answer:
    """Return an answer whose body has the length that it declares.

    :param status: The status.
    :param content_type: The type of the body.
    :param body: The body.
    :param headers: Further headers.
    """
    frame = {"Content-Type": content_type, "Content-Length": str(len(body))}
    return Answer(status, {**frame, **(headers or {})}, [body])


def json_answer(document: object, status: int = 200, headers: Fields | None = None) -> Answer:
    """Return a JSON answer.

    :param document: What to write as JSON.
    :param status: The status.
    :param headers: Further headers.
    """
    return plain(status, "application/json", json.dumps(document).encode(), headers)


def error(status: int, code: str, detail: str, source: Fields | None = None, headers: Fields | None = None) -> Answer:
    """Return an error in the shape that the API documents.

    :param status: The status, whose usual phrase becomes the title.
    :param code: The error's code.
    :param detail: What went wrong.
    :param source: Which part of the request is to blame.
    :param headers: Further headers.
    """
    problem: dict[str, Any] = {"code": code, "title": title_of(status), "detail": detail}
    if source:
        problem["source"] = source
    return json_answer({"object": "error", "_errors": [problem]}, status, headers)


def title_of(status: int) -> str:
    """Return the phrase of a status; that of 413 has changed between versions of Python.

    :param status: The status.
    """
    return "Content Too Large" if status == 413 else HTTPStatus(status).phrase


def not_found(detail: str = "Call not found") -> Answer:
    """Return the 404 of an unknown call.

    :param detail: What was not found.
    """
    return error(404, "not_found", detail, {"pointer": "/id"})


def too_many(retry_after: str | None = None) -> Answer:
    """Return the 429 of a limit that is exceeded.

    :param retry_after: The value of ``Retry-After``, or None for no such header.
    """
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return error(429, "too_many_requests", "Rate limit exceeded", headers=headers)
