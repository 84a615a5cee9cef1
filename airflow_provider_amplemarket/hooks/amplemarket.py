"""The connection to Amplemarket: a session with the API key, pages of calls, one recording at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import pendulum
import requests
import tenacity
from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, BaseHook
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3 import PoolManager

from airflow_provider_amplemarket import __version__
from airflow_provider_amplemarket.api.clockskew import ClockSkew
from airflow_provider_amplemarket.api.deadline import DeadlineError, Watchdog, watch_connections, watched
from airflow_provider_amplemarket.api.settings import ConnectionSettings, is_loopback, origin
from airflow_provider_amplemarket.audio import is_mpeg, is_text
from airflow_provider_amplemarket.calls import is_plain_id, start_of
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConfigurationError,
    AmplemarketConnectionError,
    AuthenticationError,
    ConnectionNotDefinedError,
    InvalidRecordingError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
    RequestAbortedError,
)
from airflow_provider_amplemarket.get_provider_info import CONNECTION_FIELDS, get_provider_info

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

#: Largest page of calls that is read; twenty calls with transcripts stay far below.
MAX_PAGE_SIZE = 32 * 1024**2
#: Largest recording that is read: at 128 kbit/s eighteen hours of audio.
MAX_RECORDING_SIZE = 1024**3
#: Pages after which a listing that does not end is given up.
MAX_PAGES = 100_000
MAX_REDIRECTS = 5
#: Seconds after which a recording that still trickles in is given up.
MAX_DOWNLOAD_TIME = 3600.0
#: A listing ends after so many pages in a row that are older than the window: calls that were logged late lie above
#: newer ones.
OLDER_PAGES = 3
#: The same where there is nothing but older pages from the first one on: there the newest calls may all be hidden.
OLDER_PAGES_FROM_THE_FIRST = 10
#: A page is older when its newest call is by so much, for the order is not strict.
OLDER_BY = timedelta(days=1)

_CHUNK = 1024**2
_LIST_ATTEMPTS = 6
_LIST_LONGEST_WAIT = 60.0

_RECORDING_ERRORS: dict[int, type[AmplemarketAPIError]] = {
    404: RecordingNotFoundError,
    413: RecordingTooLargeError,
}


@dataclass(frozen=True)
class Recording:
    """
    One recording as it was served.

    :param call_id: the call's id.
    :param size: bytes received.
    :param sha256: SHA-256 of the bytes, in hexadecimal.
    :param content_type: the answer's media type, without parameters.
    :param is_mpeg: whether the bytes begin with an ID3 tag or an MPEG audio frame.
    :param requested_at: when the request was sent.
    :param answered_at: when the answer's header had arrived; the API has counted the request by then.
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


class BearerAuth(AuthBase):
    """
    Send the API key to its own host and to no other.

    :param api_key: the API key.
    :param base_url: requests to this scheme, host and port get the key.
    """

    def __init__(self, api_key: str, base_url: str) -> None:
        self._api_key = api_key
        self._origin = origin(base_url)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header where it belongs."""
        if request.url and origin(request.url) == self._origin:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


class _Adapter(HTTPAdapter):
    """Give every request a time-out, connections that can be ended, and no retries: each may cost quota."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        super().__init__(pool_maxsize=32, max_retries=0)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._timeout
        return super().send(request, **kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        watch_connections(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> PoolManager:
        is_new = proxy not in self.proxy_manager
        manager: PoolManager = super().proxy_manager_for(proxy, **kwargs)
        if is_new:
            watch_connections(manager)
        return manager


class _Session(requests.Session):
    """
    Follow no redirect of its own accord, nor read the body of one.

    :param watchdog: ends the requests.
    :param deadline: seconds after which it ends one that nobody watches over yet.
    """

    def __init__(self, watchdog: Watchdog, deadline: float) -> None:
        super().__init__()
        self._watchdog = watchdog
        self._deadline = deadline

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if watched():
            return super().send(request, **kwargs)
        with self._watchdog.watch(self._deadline) as watch:
            response = super().send(request, **kwargs)
            if watch.ended:  # a header that was ended can look whole
                response.close()
                raise watch.ended
            return response

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        return None


class AmplemarketHook(BaseHook):
    """
    Talk to Amplemarket's API.

    :param amplemarket_conn_id: the Airflow connection (type ``amplemarket``) with base URL and API key.
    """

    conn_name_attr = "amplemarket_conn_id"
    default_conn_name = "amplemarket_default"
    conn_type = "amplemarket"
    hook_name = "Amplemarket"

    def __init__(self, amplemarket_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.amplemarket_conn_id = amplemarket_conn_id
        self._watchdog = Watchdog()
        self._clock_skew = ClockSkew()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Describe the Extra fields for Airflow before 3.2; newer ones read ``get_provider_info``."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import IntegerField
        from wtforms.validators import Optional

        return {
            name: IntegerField(
                lazy_gettext(spec["label"]),
                widget=BS3TextFieldWidget(),
                validators=[Optional()],
                default=spec["schema"]["default"],
                description=spec["description"],
            )
            for name, spec in CONNECTION_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Describe the standard fields for Airflow before 3.2."""
        behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    @cached_property
    def settings(self) -> ConnectionSettings:
        """
        What the connection says.

        :raises AmplemarketConfigurationError: when a field is missing or malformed; the message names it.
        :raises ConnectionNotDefinedError: when Airflow has no such connection.
        """
        return ConnectionSettings.of(self.amplemarket_conn_id, self._read_connection())

    def _read_connection(self) -> Connection:
        name, kind = self.amplemarket_conn_id, self.conn_type
        try:
            return self.get_connection(name)
        except Exception as error:
            if not _is_not_defined(error) and not isinstance(error, AirflowException | ValueError):
                raise
            problem = error
        # Raised out here, for what Airflow raises can have the connection's text in it.
        if _is_not_defined(problem):
            raise ConnectionNotDefinedError(
                f"Connection {name!r} is not defined: make one of type {kind!r} with the API key as its password, in "
                f"the UI (Admin, Connections) or with "
                f"`airflow connections add {name} --conn-type {kind} --conn-password <API key>`"
            )
        raise AmplemarketConfigurationError(
            f"Connection {name!r} cannot be read ({type(problem).__name__}): what its environment variable or the "
            "secrets backend has is neither a URI nor a JSON object that Airflow understands"
        )

    @property
    def clock_skew(self) -> float:
        """
        Seconds that this machine's clock is ahead of the API's at least; below 0, behind.

        It comes from the ``Date`` of the answers so far; 0 before the first one, and where the clocks may agree.
        """
        return self._clock_skew.seconds

    def get_conn(self) -> requests.Session:
        """
        Return the session: bearer auth for the connection's host, a time-out and a deadline on every request.

        A body that is streamed by the caller has no deadline, and is not ended by :meth:`abort`.
        """
        return self._session

    @cached_property
    def _session(self) -> requests.Session:
        session = _Session(self._watchdog, self.settings.deadline)
        session.auth = BearerAuth(self.settings.api_key, self.settings.base_url)
        session.headers["User-Agent"] = f"airflow-provider-amplemarket/{__version__}"
        # A proxy would see the key of a connection without TLS.
        session.trust_env = self.settings.base_url.startswith("https:")
        # A compressed body can end early without anyone noticing, or grow without bounds.
        session.headers["Accept-Encoding"] = "identity"
        for scheme in ("https://", "http://"):
            session.mount(scheme, _Adapter(self.settings.timeout))
        return session

    def test_connection(self) -> tuple[bool, str]:
        """Ask for ``GET /account-info``, which costs nothing; never raise."""
        try:
            self._get_json(f"{self.settings.base_url}/account-info")
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"
        return True, f"{self.settings.base_url} accepts the API key"

    def iter_calls(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        user_id: str | int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """
        Yield every call with ``start <= start_date < end``, once each, reading page after page as needed.

        The API's own filters are asked for and not relied upon, nor is the order, newest first: reading ends once
        several pages in a row are older than the window by a clear margin. Calls without a readable ``start_date``
        are yielded, too: nothing shows that they lie outside.

        :param start: first moment, timezone-aware; None for the beginning.
        :param end: moment after the last, timezone-aware; None for now.
        :param user_id: only calls of this user.
        :raises AuthenticationError: when the API key is refused.
        :raises AmplemarketAPIError: when the list does not come, after some retries, or makes no sense.
        :raises RequestAbortedError: after :meth:`abort`.
        """
        # The API says "starting after" and "before": a second more on either side loses no call of the edge.
        params = {
            "start_date_from": _iso(start - timedelta(seconds=1)) if start else None,
            "start_date_to": _iso(end + timedelta(seconds=1)) if end else None,
            "user_id": str(user_id) if user_id is not None else None,
        }
        seen: set[str] = set()
        older = _OlderPages(start)
        for page in self._pages({name: value for name, value in params.items() if value is not None}):
            starts = [start_of(call) for call in page]
            for call, moment in zip(page, starts, strict=True):
                if moment is not None and ((start and moment < start) or (end and moment >= end)):
                    continue
                if user_id is not None and str(call.get("user_id", user_id)) != str(user_id):
                    continue
                if call.get("id") is not None:
                    if str(call["id"]) in seen:
                        continue
                    seen.add(str(call["id"]))
                yield call
            if older.are_enough(starts):
                return
            if older.is_first:
                self.log.warning(
                    "The newest calls of the list are older than the window, which begins at %s. Where there were none "
                    "since, all is well; else calls that were logged late hide them, so up to %d pages are read. "
                    "Calls that lie still deeper can be named in call_ids",
                    start,
                    OLDER_PAGES_FROM_THE_FIRST,
                )

    def download_recording(
        self,
        call_id: str,
        target: str | os.PathLike[str],
        *,
        cancelled: Callable[[], bool] | None = None,
        answered: Callable[[], None] | None = None,
    ) -> Recording:
        """
        Stream the recording of a call into a local file, with one request and no retry.

        :param call_id: the call's id.
        :param target: the file to write; it is removed again when the recording is not whole.
        :param cancelled: asked after every MiB; the download ends with an error once it answers True.
        :param answered: called when the answer has begun as a good one, before its body is read.
        :return: what was received: size, hash, content type and times.
        :raises RecordingNotFoundError: 404.
        :raises RecordingTooLargeError: 413.
        :raises RateLimitExceededError: 429, with ``retry_after``.
        :raises RecordingForbiddenError: 403.
        :raises AuthenticationError: 401.
        :raises InvalidRecordingError: a 200 that is no whole audio.
        :raises AmplemarketAPIError: any other answer, or none.
        :raises RequestAbortedError: after :meth:`abort`.
        """
        if not is_plain_id(call_id):
            raise AmplemarketConfigurationError(f"call_id {str(call_id)[:80]!r} is not a plain token")
        url = f"{self.settings.base_url}/calls/{call_id}/recording"
        requested_at = pendulum.now("UTC")
        with self._watchdog.watch(self.settings.deadline) as watch, self._follow(url) as response:
            answered_at = pendulum.now("UTC")
            if answered is not None:
                answered()
            content_type = self._check_header(response)
            watch.limit(MAX_DOWNLOAD_TIME)
            try:
                size, digest, head = self._save(response, Path(target), cancelled)
                like_mpeg = is_mpeg(head)
                if not like_mpeg and is_text(head):
                    raise InvalidRecordingError(f"{content_type} was announced, but the body is text")
            except BaseException:
                Path(target).unlink(missing_ok=True)
                raise
        return Recording(
            call_id=call_id,
            size=size,
            sha256=digest,
            content_type=content_type,
            is_mpeg=like_mpeg,
            requested_at=requested_at,
            answered_at=answered_at,
            received_at=pendulum.now("UTC"),
        )

    def abort(self) -> None:
        """
        End every request under way, whatever it waits for, and refuse those that follow; for a task that must stop.

        It may come from another thread or a signal's handler and does not raise. A new hook begins anew.
        """
        self._watchdog.stop()

    def _pages(self, params: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
        base = self.settings.base_url
        url: str | None = requests.Request("GET", f"{base}/calls", params=params).prepare().url
        visited: set[str] = set()
        while url:
            if url in visited or len(visited) >= MAX_PAGES:
                raise AmplemarketAPIError(f"GET /calls: the pages do not end ({len(visited)} read)")
            visited.add(url)
            body = self._get_json(url, retry=True)
            calls = body.get("calls")
            if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
                raise AmplemarketAPIError("GET /calls: the answer has no list of calls")
            yield calls
            url = self._next(body)

    def _next(self, body: dict[str, Any]) -> str | None:
        links = body.get("_links")
        link = links.get("next") if isinstance(links, dict) else None
        href = link.get("href") if isinstance(link, dict) else None
        if href is None or href == "":
            return None
        base = self.settings.base_url
        if not isinstance(href, str):
            raise AmplemarketAPIError("GET /calls: the link to the next page is no text")
        try:
            if href.startswith("?"):
                url = f"{base}/calls{href}"
            elif urlsplit(href).scheme or href.startswith("//"):
                url = urljoin(base, href)
            else:
                url = f"{base}/{href.lstrip('/')}"
        except ValueError:
            raise AmplemarketAPIError("GET /calls: the link to the next page is no address") from None
        # Elsewhere on the host is refused, too: a recording asked for by a link would be an uncounted request.
        if origin(url) != origin(base) or unquote(urlsplit(url).path) != urlsplit(f"{base}/calls").path:
            raise AmplemarketAPIError("GET /calls: the link to the next page leads elsewhere; not followed")
        return url

    def _get_json(self, url: str, *, retry: bool = False) -> dict[str, Any]:
        path = urlsplit(url).path
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_passing),
            wait=_list_wait,
            stop=tenacity.stop_after_attempt(_LIST_ATTEMPTS if retry else 1),
            sleep=self._sleep,
            before_sleep=lambda state: self.log.warning(
                "GET %s: %s; asking again in %.0f s",
                path,
                state.outcome.exception() if state.outcome else None,
                state.upcoming_sleep,
            ),
            reraise=True,
        )
        return retrying(self._get_json_once, url)

    def _get_json_once(self, url: str) -> dict[str, Any]:
        path = urlsplit(url).path
        with self._watchdog.watch(self.settings.deadline), self._send(url) as response:
            if response.status_code != 200:
                raise self._error(response)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise AmplemarketAPIError(f"GET {path}: the answer is compressed though that was not asked for")
            body = self._read_up_to(response, MAX_PAGE_SIZE)
        if len(body) > MAX_PAGE_SIZE:
            raise AmplemarketAPIError(f"GET {path}: the answer is larger than {MAX_PAGE_SIZE} bytes")
        try:
            data = self._redact(json.loads(body.decode()))
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise AmplemarketAPIError(f"GET {path}: the answer is no JSON object")
        return data

    def _sleep(self, seconds: float) -> None:
        self._watchdog.sleep(seconds)

    def _send(self, url: str) -> requests.Response:
        # Redirects are followed by hand, where at all: the key stays here, and a detour can cost quota.
        is_own = origin(url) == origin(self.settings.base_url)
        response: requests.Response | None = None
        problem: Exception | None = None
        if watch := watched():
            watch.forget()
        began = time.monotonic()
        try:
            response = self._session.get(url, stream=True, allow_redirects=False)
        except (requests.RequestException, ValueError) as error:
            problem = error
        problem = _ended() or problem  # a header that was ended can look whole
        if response is not None and problem is None:
            if is_own:
                now = time.time()
                self._clock_skew.note(response.headers, now - (time.monotonic() - began), now)
            return response
        if response is not None:
            response.close()
        # Raised out here, for what was caught has the key in its request, and an address that may be signed.
        if isinstance(problem, RequestAbortedError):
            raise problem
        what, why = f"GET {urlsplit(url).path}", type(problem).__name__
        if is_own or isinstance(problem, DeadlineError):
            why += f": {problem}"
        if not is_own:
            what = f"GET recording: redirected to {urlsplit(url).hostname}"
        raise AmplemarketConnectionError(self._redact(f"{what}: no answer ({why})"))

    def _follow(self, url: str) -> requests.Response:
        """Return the 200 for a recording, along redirects; raise for any other status."""
        base = self.settings.base_url
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(url)
            if response.status_code == 200:
                return response
            with response:
                location = response.headers.get("Location")
                if not response.is_redirect or location is None:
                    raise self._error(response, of_recording=True)
            try:
                url = urljoin(url, location)
                target = urlsplit(url)
            except ValueError:
                raise AmplemarketAPIError(
                    "GET recording: redirected to what is no address", status=response.status_code
                ) from None
            if origin(url) == origin(base) and unquote(target.path).rstrip("/").endswith("/recording"):
                raise AmplemarketAPIError(
                    "GET recording: redirected to the recording endpoint again, which would cost a second permit",
                    status=response.status_code,
                )
            # A sandbox on this machine may redirect to this machine; a server elsewhere has no business there.
            is_local = base.startswith("http:") and target.scheme == "http" and is_loopback(target.hostname)
            if target.scheme != "https" and not is_local:
                raise AmplemarketAPIError(
                    "GET recording: redirected to an address that is not HTTPS; not followed",
                    status=response.status_code,
                )
        raise AmplemarketAPIError(f"GET recording: more than {MAX_REDIRECTS} redirects", status=302)

    def _check_header(self, response: requests.Response) -> str:
        content_type = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if not content_type.startswith("audio/"):
            shown = self._redact(content_type[:80]) or "missing"
            raise InvalidRecordingError(f"the content type is {shown}, not audio")
        transfer = response.headers.get("Transfer-Encoding", "")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise InvalidRecordingError("the body is compressed though that was not asked for")
        if "Content-Length" not in response.headers and transfer.strip().lower() != "chunked":
            raise InvalidRecordingError(
                "the answer has neither a length nor chunks: nothing can show whether it is whole"
            )
        return content_type

    def _save(
        self, response: requests.Response, target: Path, cancelled: Callable[[], bool] | None
    ) -> tuple[int, str, bytes]:
        """Write the body to the file; answer its size, its SHA-256 and how it begins."""
        declared = response.headers.get("Content-Length")
        limit = MAX_RECORDING_SIZE
        if declared is not None and declared.isdecimal() and int(declared) > limit:
            raise InvalidRecordingError(f"the answer declares {declared} bytes; the most that is read is {limit}")
        size, digest, head = 0, hashlib.sha256(), b""
        with target.open("wb") as file:
            try:
                for chunk in _body(response, _CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise InvalidRecordingError(f"the body does not end within {limit} bytes")
                    if cancelled is not None and cancelled():
                        raise InvalidRecordingError(f"the download was cancelled after {size} bytes")
                    head += chunk[: max(0, 1024 - len(head))]
                    digest.update(chunk)
                    file.write(chunk)
            except requests.RequestException as error:
                raise InvalidRecordingError(
                    f"the body was cut short after {size} of {declared or 'an unknown number of'} bytes "
                    f"({type(error).__name__})",
                    content_length=int(declared) if declared is not None and declared.isdecimal() else None,
                ) from error
        if not size:
            raise InvalidRecordingError("the body is empty")
        if declared is not None and declared != str(size):
            raise InvalidRecordingError(f"the answer declares {declared[:20]} bytes, but {size} came")
        return size, digest.hexdigest(), head

    def _error(self, response: requests.Response, *, of_recording: bool = False) -> AmplemarketAPIError:
        """Make the error for an answer that is not what was asked for."""
        split = urlsplit(response.url)
        status = response.status_code
        if origin(response.url) != origin(self.settings.base_url):
            # Another host's 403 or 404 says nothing of the API key or of the call.
            host = self._redact(split.hostname)
            return AmplemarketAPIError(f"GET recording: redirected to {host}, which answered {status}")
        fields = self._error_fields(response)
        told = ": ".join(text for text in (fields["code"], fields["detail"] or fields["title"]) if text)
        message = f"GET {split.path} answered {status}" + (f" ({told})" if told else "")
        if status == 429:
            return RateLimitExceededError(message, retry_after=_retry_after(response), **fields)
        if split.path.endswith("/recording") and (kind := _RECORDING_ERRORS.get(status)):
            return kind(message, status=status, **fields)
        if of_recording and status == 403:
            return RecordingForbiddenError(message, status=status, **fields)
        if status in (401, 403):
            hint = f"; check the API key in the password of connection {self.amplemarket_conn_id!r}"
            return AuthenticationError(message + hint, status=status, **fields)
        return AmplemarketAPIError(message, status=status, **fields)

    def _error_fields(self, response: requests.Response) -> dict[str, str | None]:
        """Read the API's own words from the body; it may be no JSON at all."""
        error: Any = None
        if response.headers.get("Content-Encoding", "identity") == "identity":
            try:
                error = self._redact(json.loads(self._read_up_to(response, 65536).decode()))["_errors"][0]
            except (AmplemarketAPIError, ValueError, LookupError, TypeError, RecursionError):
                error = None
        texts = error if isinstance(error, dict) else {}
        return {
            name: str(texts[name])[:300] if texts.get(name) is not None else None
            for name in ("code", "title", "detail")
        }

    def _read_up_to(self, response: requests.Response, limit: int) -> bytes:
        """Read the body; one byte or more above the limit where it is longer."""
        body = bytearray()
        try:
            for chunk in _body(response, 65536):
                body += chunk
                if len(body) > limit:
                    break
        except requests.RequestException as error:
            raise AmplemarketConnectionError(
                f"GET {urlsplit(response.url).path}: the answer was cut short ({type(error).__name__})"
            ) from error
        return bytes(body)

    def _redact(self, value: Any) -> Any:
        """Take the API key out of what others wrote, in case they echo it; JSON may have escaped it."""
        if isinstance(value, str):
            return value.replace(self.settings.api_key, "***")
        if isinstance(value, list):
            return [self._redact(item) for item in value]
        if isinstance(value, dict):
            return {self._redact(name): self._redact(item) for name, item in value.items()}
        return value


def _is_not_defined(error: Exception) -> bool:
    """Tell whether Airflow says that there is no such connection."""
    kind = getattr(getattr(error, "error", None), "error", None)  # Airflow 3.0, in a task
    return isinstance(error, AirflowNotFoundException) or getattr(kind, "name", None) == "CONNECTION_NOT_FOUND"


def _ended() -> Exception | None:
    """Return why this thread's request was ended from here, if it was."""
    watch = watched()
    return watch.ended if watch else None


def _body(response: requests.Response, size: int) -> Iterator[bytes]:
    """Yield the body in chunks; where it was ended from here it can look whole, which is an error, too."""
    problem: Exception | None = None
    try:
        yield from response.iter_content(size)
    except requests.RequestException as error:
        problem = error
    problem = _ended() or problem
    if problem:
        raise problem


def _iso(moment: datetime) -> str:
    return pendulum.instance(moment).in_timezone("UTC").format("YYYY-MM-DD[T]HH:mm:ss[Z]")


class _OlderPages:
    """
    Count the pages in a row that are older than the window.

    :param start: where the window begins; without one, no page is older.
    """

    def __init__(self, start: datetime | None) -> None:
        self._start = start
        self._in_a_row = 0
        self._pages = 0

    @property
    def is_first(self) -> bool:
        """Whether the first page is older, and the last one that was read."""
        return self._pages == self._in_a_row == 1

    def are_enough(self, starts: list[pendulum.DateTime | None]) -> bool:
        """Tell with the next page's moments whether those after it are older, too, as far as one can know."""
        self._pages += 1
        self._in_a_row = self._in_a_row + 1 if self._is_older(starts) else 0
        is_all = self._in_a_row == self._pages
        return self._in_a_row >= (OLDER_PAGES_FROM_THE_FIRST if is_all else OLDER_PAGES)

    def _is_older(self, starts: list[pendulum.DateTime | None]) -> bool:
        moments = [moment for moment in starts if moment is not None]
        if self._start is None or not moments or len(moments) < len(starts):
            return False
        # On a page that ascends the newest calls are still to come.
        return max(moments) < self._start - OLDER_BY and moments[0] > moments[-1]


def _retry_after(response: requests.Response) -> float | None:
    """Read ``Retry-After`` (RFC 9110, 10.2.3): seconds or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        moment = pendulum.instance(parsedate_to_datetime(value))
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (moment - pendulum.now("UTC")).total_seconds())


def _is_passing(error: BaseException) -> bool:
    """Tell whether asking for the list again may help."""
    if isinstance(error, RateLimitExceededError | AmplemarketConnectionError):
        return True
    return isinstance(error, AmplemarketAPIError) and (error.status or 0) >= 500


_backoff = tenacity.wait_random_exponential(multiplier=1, max=30)


def _list_wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimitExceededError) and error.retry_after is not None:
        return min(error.retry_after, _LIST_LONGEST_WAIT)
    return _backoff(state)
