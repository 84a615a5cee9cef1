"""One recording: asked for once, checked, and written to a file that is whole or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pendulum
import requests

from airflow_provider_amplemarket.api.client import Client
from airflow_provider_amplemarket.api.responses import is_compressed, iter_body
from airflow_provider_amplemarket.audio import is_mpeg, is_text
from airflow_provider_amplemarket.calls import is_plain_id
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, InvalidRecordingError

#: Largest recording that is read: at 128 kbit/s eighteen hours of audio.
MAX_RECORDING_SIZE = 1024**3
#: Seconds after which a recording that still trickles in is given up.
MAX_DOWNLOAD_TIME = 3600.0

_CHUNK = 1024**2
#: Bytes by which a body is known for what it is.
_HEAD = 1024


@dataclass(frozen=True)
class Recording:
    """One recording as it was served.

    :param call_id: the call's id.
    :param size: bytes received.
    :param sha256: SHA-256 of the bytes, in hexadecimal.
    :param content_type: the response's media type, without parameters.
    :param is_mpeg: whether the bytes begin with an ID3 tag or an MPEG audio frame.
    :param requested_at: when the request was sent.
    :param answered_at: when the response's header had arrived; the API has counted the request by then.
    :param received_at: when the last byte had arrived.
    """

    call_id: str
    size: int
    sha256: str
    content_type: str
    is_mpeg: bool
    requested_at: datetime
    answered_at: datetime
    received_at: datetime


class Body:
    """What has come of a body so far: its size, its hash and how it begins."""

    def __init__(self) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.head = b""

    def take(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.size += len(chunk)
        self.sha256.update(chunk)
        self.head += chunk[: _HEAD - len(self.head)]


def download_recording(
    client: Client,
    call_id: str,
    target: Path,
    *,
    cancelled: Callable[[], bool] | None = None,
    on_response: Callable[[], None] | None = None,
) -> Recording:
    """Stream the recording of a call into a local file, with one request and no retry.

    :param target: the file to write; it is removed again when the recording is not whole.
    :param cancelled: asked after every MiB; the download ends with an error once it returns True.
    :param on_response: called when the response has begun with a 200, before its body is read.
    :raises AmplemarketAPIError: when the status is not 200, or there is no response; a subclass by status.
    :raises InvalidRecordingError: when the body is not audio, or not whole.
    """
    if not is_plain_id(call_id):
        raise AmplemarketConfigurationError(f"call_id {str(call_id)[:80]!r} is not a plain token")
    url = f"{client.settings.base_url}/calls/{call_id}/recording"
    requested_at = pendulum.now("UTC")
    with client.watch() as watch, client.open_recording(url) as response:
        answered_at = pendulum.now("UTC")
        if on_response is not None:
            on_response()
        content_type = _check_header(client, response)
        watch.limit(MAX_DOWNLOAD_TIME)
        with _removed_on_error(target):
            body = save_body(response, target, cancelled)
            like_mpeg = _check_head(body.head, content_type)
    return Recording(
        call_id=call_id,
        size=body.size,
        sha256=body.sha256.hexdigest(),
        content_type=content_type,
        is_mpeg=like_mpeg,
        requested_at=requested_at,
        answered_at=answered_at,
        received_at=pendulum.now("UTC"),
    )


def save_body(response: requests.Response, target: Path, cancelled: Callable[[], bool] | None) -> Body:
    """Write the body of a recording to a file; raise InvalidRecordingError when it is not whole, or too large."""
    declared = response.headers.get("Content-Length", "")
    length = _length(declared)
    body = Body()
    try:
        with target.open("wb") as file:
            for chunk in iter_body(response, _CHUNK):
                body.take(chunk)
                _check_progress(body, cancelled)
                file.write(chunk)
    except requests.RequestException as error:
        raise InvalidRecordingError(
            f"the body was cut short after {body.size} of {declared or 'an unknown number of'} bytes "
            f"({type(error).__name__})",
            content_length=length,
        ) from error
    if not body.size:
        raise InvalidRecordingError("the body is empty")
    if "Content-Length" in response.headers and declared != str(body.size):
        raise InvalidRecordingError(f"the response declares {declared[:20]} bytes, but {body.size} came")
    return body


def _length(declared: str) -> int | None:
    """Return the length that the header declares, None where it declares none; a body too large is not read."""
    if not declared.isdecimal():
        return None
    length = int(declared)
    if length > MAX_RECORDING_SIZE:
        raise InvalidRecordingError(
            f"the response declares {declared} bytes; the most that is read is {MAX_RECORDING_SIZE}"
        )
    return length


def _check_progress(body: Body, cancelled: Callable[[], bool] | None) -> None:
    if body.size > MAX_RECORDING_SIZE:
        raise InvalidRecordingError(f"the body does not end within {MAX_RECORDING_SIZE} bytes")
    if cancelled is not None and cancelled():
        raise InvalidRecordingError(f"the download was cancelled after {body.size} bytes")


def _check_header(client: Client, response: requests.Response) -> str:
    """Return the media type of a response whose header promises a whole recording."""
    content_type = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if not content_type.startswith("audio/"):
        shown = client.redact(content_type[:80]) or "missing"
        raise InvalidRecordingError(f"the content type is {shown}, not audio")
    if is_compressed(response):
        raise InvalidRecordingError("the body is compressed though that was not asked for")
    is_chunked = response.headers.get("Transfer-Encoding", "").strip().lower() == "chunked"
    if "Content-Length" not in response.headers and not is_chunked:
        raise InvalidRecordingError(
            "the response has neither a length nor chunks, so nothing shows whether it is whole"
        )
    return content_type


def _check_head(head: bytes, content_type: str) -> bool:
    """Return whether a body begins like MPEG audio; text in place of audio is raised."""
    if is_mpeg(head):
        return True
    if is_text(head):
        raise InvalidRecordingError(f"{content_type} was announced, but the body is text")
    return False


@contextmanager
def _removed_on_error(target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        raise
