"""The client of the API: each request is sent once, and gives a response or an exception."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3 import PoolManager

from airflow_provider_amplemarket import __version__
from airflow_provider_amplemarket.api.deadline import (
    DeadlineError,
    Watch,
    Watchdog,
    current_watch,
    reason_of_end,
    watch_connections,
)
from airflow_provider_amplemarket.api.responses import ClockSkew, error_of, is_compressed, read_up_to, redact
from airflow_provider_amplemarket.api.settings import Settings, is_loopback, origin
from airflow_provider_amplemarket.exceptions import AmplemarketAPIError, AmplemarketConnectionError, RequestAbortedError

#: Largest page of calls that is read; twenty calls with transcripts stay far below.
MAX_PAGE_SIZE = 32 * 1024**2
MAX_REDIRECTS = 5


class BearerAuth(AuthBase):
    """Send the API key to the scheme, host and port of its base URL, and to no other."""

    def __init__(self, api_key: str, base_url: str) -> None:
        self._api_key = api_key
        self._origin = origin(base_url)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
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


class Session(requests.Session):
    """Follow no redirect of its own accord, nor read the body of one.

    :param settings: the API key, its host, the time-out and the deadline.
    :param watchdog: ends the requests; it gets those to watch that nobody watches yet.
    """

    def __init__(self, settings: Settings, watchdog: Watchdog) -> None:
        super().__init__()
        self._watchdog = watchdog
        self._deadline = settings.deadline
        self.auth = BearerAuth(settings.api_key, settings.base_url)
        # A proxy would see the key of a connection without TLS.
        self.trust_env = settings.base_url.startswith("https:")
        self.headers["User-Agent"] = f"airflow-provider-amplemarket/{__version__}"
        # A compressed body can end early without anyone noticing, or grow without bounds.
        self.headers["Accept-Encoding"] = "identity"
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Adapter(settings.timeout))

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        watch = current_watch()
        if watch is None:
            with self._watchdog.watch(self._deadline):
                return self.send(request, **kwargs)
        watch.forget()
        response = super().send(request, **kwargs)
        if watch.ended:  # a header that was ended can look whole
            response.close()
            raise watch.ended
        return response

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        return None


class Client:
    """Send requests to the API, in any number of threads.

    :param settings: where the API is, and how it may be used.
    :param watchdog: ends the requests.
    :param key_name: where the user finds the API key, for the message that it is refused.
    """

    def __init__(self, settings: Settings, *, watchdog: Watchdog | None = None, key_name: str = "the API key") -> None:
        self.settings = settings
        self.watchdog = watchdog or Watchdog()
        self.clock_skew = ClockSkew()
        self.session = Session(settings, self.watchdog)
        self._key_name = key_name

    def watch(self) -> AbstractContextManager[Watch]:
        """Watch over the requests that this thread sends inside, and the reading of their bodies."""
        return self.watchdog.watch(self.settings.deadline)

    def is_own(self, url: str) -> bool:
        """Return whether a URL is on the API's host."""
        return origin(url) == origin(self.settings.base_url)

    def redact(self, text: str) -> str:
        """Return a text from elsewhere without the API key."""
        return text.replace(self.settings.api_key, "***")

    def get_json(self, url: str) -> dict[str, Any]:
        """Send one request and return the JSON object of the response, without the API key in case it is echoed.

        :raises AmplemarketAPIError: when there is no response, or it is not a 200 with a JSON object.
        :raises RequestAbortedError: when everything was told to stop.
        """
        path = urlsplit(url).path
        with self.watch(), self._get(url) as response:
            if response.status_code != 200:
                raise self._error_of(response)
            if is_compressed(response):
                raise AmplemarketAPIError(f"GET {path}: the response is compressed though that was not asked for")
            body = read_up_to(response, MAX_PAGE_SIZE)
        if len(body) > MAX_PAGE_SIZE:
            raise AmplemarketAPIError(f"GET {path}: the response is larger than {MAX_PAGE_SIZE} bytes")
        try:
            data = redact(json.loads(body.decode()), self.settings.api_key)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise AmplemarketAPIError(f"GET {path}: the response is not a JSON object")
        return data

    def open_recording(self, url: str) -> requests.Response:
        """Return the 200 for a recording, along redirects that are safe and cost no second permit.

        To be called inside :meth:`watch`, which holds for reading the body, too.

        :raises AmplemarketAPIError: for no response, any other status, and a redirect that is not followed.
        :raises RequestAbortedError: when everything was told to stop.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(url)
            if response.status_code == 200:
                return response
            with response:
                url = self._redirect_target(url, response)
        raise AmplemarketAPIError(f"GET recording: more than {MAX_REDIRECTS} redirects", status=302)

    def _get(self, url: str) -> requests.Response:
        """Send one request and return the response, whatever its status."""
        began = time.monotonic()
        response = self._send(url)
        if self.is_own(url):
            now = time.time()
            self.clock_skew.note(response.headers, now - (time.monotonic() - began), now)
        return response

    def _send(self, url: str) -> requests.Response:
        try:
            # Redirects are followed by hand, where at all: the key stays here, and a detour can cost quota.
            return self.session.get(url, stream=True, allow_redirects=False)
        except (requests.RequestException, ValueError) as error:
            problem = reason_of_end() or error
        # Raised out here, for what was caught has the key in its request, and an address that may be signed.
        if isinstance(problem, RequestAbortedError):
            raise problem
        raise self._no_response(url, problem)

    def _no_response(self, url: str, problem: Exception) -> AmplemarketConnectionError:
        split, is_own = urlsplit(url), self.is_own(url)
        what = f"GET {split.path}" if is_own else f"GET recording: redirected to {split.hostname}"
        why = type(problem).__name__
        shows_no_foreign_address = is_own or isinstance(problem, DeadlineError)
        if shows_no_foreign_address:
            why += f": {problem}"
        return AmplemarketConnectionError(self.redact(f"{what}: no response ({why})"))

    def _error_of(self, response: requests.Response, *, of_recording: bool = False) -> AmplemarketAPIError:
        """Return the exception for a response that is not what was asked for; its body is read."""
        if not self.is_own(response.url):
            # Another host's 403 or 404 says nothing of the API key or of the call.
            host = self.redact(str(urlsplit(response.url).hostname))
            return AmplemarketAPIError(f"GET recording: redirected to {host}, which returned {response.status_code}")
        return error_of(response, secret=self.settings.api_key, of_recording=of_recording, key_name=self._key_name)

    def _redirect_target(self, url: str, response: requests.Response) -> str:
        """Return where a response redirects to; raise the error of one that is no redirect, or not to be followed."""
        location = response.headers.get("Location")
        if location is None or not response.is_redirect:
            raise self._error_of(response, of_recording=True)
        try:
            target = urljoin(url, location)
            reason = self._reason_against(target)
        except ValueError:
            reason = "to something that is not a valid URL"
        if reason:
            raise AmplemarketAPIError(f"GET recording: redirected {reason}", status=response.status_code)
        return target

    def _reason_against(self, target: str) -> str | None:
        """Return why a redirect to an address is not followed, None where it is."""
        split = urlsplit(target)
        is_endpoint = unquote(split.path).rstrip("/").endswith("/recording")
        if is_endpoint and self.is_own(target):
            return "to the recording endpoint again, which would cost a second permit"
        if split.scheme == "https":
            return None
        # A sandbox on this machine may redirect to this machine; a server elsewhere has no business there.
        is_local = is_loopback(split.hostname) and self.settings.base_url.startswith("http:")
        if split.scheme == "http" and is_local:
            return None
        return "to an address that is not HTTPS; not followed"
