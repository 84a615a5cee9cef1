"""Exceptions for answers that are not what was asked for."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import pendulum
import requests

from airflow_provider_amplemarket.api.body import is_compressed, read_up_to
from airflow_provider_amplemarket.api.redaction import redact
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AuthenticationError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
)

_LONGEST_ERROR_BODY = 65536
_LONGEST_WORD = 300

_RECORDING_ERRORS: dict[int, type[AmplemarketAPIError]] = {
    404: RecordingNotFoundError,
    413: RecordingTooLargeError,
}


@dataclass(frozen=True, kw_only=True)
class ErrorWords:
    """The API's own words for an error; each is None where the body has none."""

    code: str | None = None
    title: str | None = None
    detail: str | None = None

    def __str__(self) -> str:
        words = [self.code, self.detail or self.title]
        return ": ".join(filter(None, words))


def read_words(response: requests.Response, secret: str) -> ErrorWords:
    """Read the API's own words from the body of an error, which may be no JSON at all, and redact the secret."""
    if is_compressed(response):
        return ErrorWords()
    try:
        body = read_up_to(response, _LONGEST_ERROR_BODY)
        error = redact(json.loads(body.decode()), secret)["_errors"][0]
    except (AmplemarketAPIError, ValueError, LookupError, TypeError, RecursionError):
        return ErrorWords()
    if not isinstance(error, dict):
        return ErrorWords()
    return ErrorWords(code=_word(error, "code"), title=_word(error, "title"), detail=_word(error, "detail"))


def _word(error: dict[str, Any], name: str) -> str | None:
    value = error.get(name)
    return None if value is None else str(value)[:_LONGEST_WORD]


def error_of_answer(
    response: requests.Response, words: ErrorWords, *, of_recording: bool, key_name: str
) -> AmplemarketAPIError:
    """
    Make the exception for an answer of the API itself.

    :param of_recording: whether a recording was asked for, with or without redirects.
    :param key_name: where the user finds the API key.
    """
    status, path = response.status_code, urlsplit(response.url).path
    message = f"GET {path} answered {status}"
    if told := str(words):
        message += f" ({told})"
    if status == 429:
        return RateLimitExceededError(message, retry_after=_retry_after(response), **asdict(words))
    kind = _kind(status, is_of_endpoint=path.endswith("/recording"), of_recording=of_recording)
    if kind is AuthenticationError:
        message += f"; check {key_name}"
    return kind(message, status=status, **asdict(words))


def _kind(status: int, *, is_of_endpoint: bool, of_recording: bool) -> type[AmplemarketAPIError]:
    # What lies elsewhere on the host says nothing of the call.
    if is_of_endpoint and status in _RECORDING_ERRORS:
        return _RECORDING_ERRORS[status]
    if of_recording and status == 403:
        return RecordingForbiddenError
    if status in (401, 403):
        return AuthenticationError
    return AmplemarketAPIError


def _retry_after(response: requests.Response) -> float | None:
    """Read ``Retry-After`` (RFC 9110, 10.2.3): seconds or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        date = pendulum.instance(parsedate_to_datetime(value))
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (date - pendulum.now("UTC")).total_seconds())
