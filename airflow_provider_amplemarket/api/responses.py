"""What responses say: their bodies, the API's own words for an error, and what the server's clock shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import pendulum
import requests

from airflow_provider_amplemarket.api.deadline import reason_of_end
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    AuthenticationError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
)

_CHUNK = 65536
_LONGEST_ERROR_BODY = 65536
_LONGEST_WORD = 300

_RECORDING_ERRORS: dict[int, type[AmplemarketAPIError]] = {
    404: RecordingNotFoundError,
    413: RecordingTooLargeError,
}


def is_compressed(response: requests.Response) -> bool:
    """Return whether the body is compressed, which is never asked for."""
    return bool(response.headers.get("Content-Encoding", "identity") != "identity")


def iter_body(response: requests.Response, size: int) -> Iterator[bytes]:
    """Yield the body in chunks; one that was ended from here may look whole, and raises an error all the same."""
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
            f"GET {urlsplit(response.url).path}: the response was cut short ({type(error).__name__})"
        ) from error
    return bytes(body)


def redact(value: Any, secret: str) -> Any:
    """Return parsed JSON with the secret replaced in every text; unparsed, the secret may be escaped."""
    if isinstance(value, str):
        return value.replace(secret, "***")
    if isinstance(value, list):
        return [redact(item, secret) for item in value]
    if isinstance(value, dict):
        return {redact(name, secret): redact(item, secret) for name, item in value.items()}
    return value


def error_of(response: requests.Response, *, secret: str, of_recording: bool, key_name: str) -> AmplemarketAPIError:
    """Return the exception for a response of the API itself, after reading its body.

    :param secret: the API key, which the response may echo.
    :param of_recording: whether a recording was asked for, with or without redirects.
    :param key_name: where the user finds the API key.
    """
    words = _read_words(response, secret)
    status, path = response.status_code, urlsplit(response.url).path
    message = f"GET {path} returned {status}"
    reason = ": ".join(filter(None, [words.get("code"), words.get("detail") or words.get("title")]))
    if reason:
        message += f" ({reason})"
    if status == 429:
        return RateLimitExceededError(message, retry_after=_retry_after(response), **words)
    kind = _kind(status, is_of_endpoint=path.endswith("/recording"), of_recording=of_recording)
    if kind is AuthenticationError:
        message += f"; check {key_name}"
    return kind(message, status=status, **words)


def _read_words(response: requests.Response, secret: str) -> dict[str, str]:
    """Return ``code``, ``title`` and ``detail``, as far as the body of an error has them."""
    if is_compressed(response):
        return {}
    try:
        body = read_up_to(response, _LONGEST_ERROR_BODY)
        error = redact(json.loads(body.decode()), secret)["_errors"][0]
        words = {name: error.get(name) for name in ("code", "title", "detail")}
    except (AmplemarketAPIError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return {}
    return {name: str(word)[:_LONGEST_WORD] for name, word in words.items() if word is not None}


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
    """Return the seconds of ``Retry-After`` (RFC 9110, 10.2.3), which has seconds or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    date = _parse_date(value)
    if date is None:
        return None
    return max(0.0, date - pendulum.now("UTC").timestamp())


def _parse_date(text: str) -> float | None:
    """Return the timestamp of a date in a header, None where it is none."""
    try:
        return pendulum.instance(parsedate_to_datetime(text)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


class ClockSkew:
    """Bounds of this machine's clock minus the server's, closer with each response.

    A response was dated between its request and its arrival here, and its ``Date`` (RFC 9110, 6.6.1) leaves out the
    fraction of the second. Bounds that contradict those before are taken alone: one of the clocks was set.
    """

    def __init__(self) -> None:
        self._low, self._high = -math.inf, math.inf

    def note(self, headers: Mapping[str, str], sent_at: float, received_at: float) -> None:
        """Learn from the header of a response; it is ignored when it is not dated, or a cache kept it (``Age``).

        :param sent_at: when the request was sent, by this machine's clock.
        :param received_at: when the header had arrived.
        """
        date = _parse_date(headers.get("Date", ""))
        if date is None or "Age" in headers:
            return
        low, high = sent_at - (date + 1), received_at - date
        if max(self._low, low) <= min(self._high, high):
            low, high = max(self._low, low), min(self._high, high)
        self._low, self._high = low, high

    @property
    def seconds(self) -> float:
        """The seconds that this machine is ahead at least; below 0, behind; 0 where the clocks may agree."""
        return max(self._low, 0.0) + min(self._high, 0.0)
