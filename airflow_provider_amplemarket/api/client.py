"""The client of the API: each request is sent once, and gives an answer or an exception."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import requests

from airflow_provider_amplemarket.api.body import is_compressed, read_up_to
from airflow_provider_amplemarket.api.clockskew import ClockSkew
from airflow_provider_amplemarket.api.deadline import DeadlineError, Watch, Watchdog, reason_of_end
from airflow_provider_amplemarket.api.errors import error_of_answer, read_words
from airflow_provider_amplemarket.api.redaction import redact
from airflow_provider_amplemarket.api.session import Session
from airflow_provider_amplemarket.api.settings import Settings
from airflow_provider_amplemarket.api.urls import origin
from airflow_provider_amplemarket.exceptions import AmplemarketAPIError, AmplemarketConnectionError, RequestAbortedError

#: Largest page of calls that is read; twenty calls with transcripts stay far below.
MAX_PAGE_SIZE = 32 * 1024**2


class Client:
    """
    Send requests to the API, in any number of threads.

    :param settings: where the API is, and how it may be used.
    :param watchdog: ends the requests.
    :param clock_skew: learns from the answers.
    :param key_name: where the user finds the API key, for the message that it is refused.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        watchdog: Watchdog | None = None,
        clock_skew: ClockSkew | None = None,
        key_name: str = "the API key",
    ) -> None:
        self.settings = settings
        self.watchdog = watchdog or Watchdog()
        self.clock_skew = clock_skew or ClockSkew()
        self.session = Session(settings, self.watchdog)
        self._key_name = key_name
        self._origin = origin(settings.base_url)

    def watch(self) -> AbstractContextManager[Watch]:
        """Watch over the requests that this thread sends inside, and the reading of their bodies."""
        return self.watchdog.watch(self.settings.deadline)

    def is_own(self, url: str) -> bool:
        """Return whether a URL is on the API's host."""
        return origin(url) == self._origin

    def redact(self, text: str) -> str:
        """Take the API key out of a text that others wrote."""
        return str(redact(text, self.settings.api_key))

    def get(self, url: str) -> requests.Response:
        """
        Send one request and return the answer, whatever its status; redirects are not followed.

        To be called inside :meth:`watch`, which holds for reading the body, too.

        :raises AmplemarketConnectionError: when there is no answer.
        :raises RequestAbortedError: when everything was told to stop.
        """
        began = time.monotonic()
        response = self._get(url)
        if self.is_own(url):
            now = time.time()
            self.clock_skew.note(response.headers, now - (time.monotonic() - began), now)
        return response

    def _get(self, url: str) -> requests.Response:
        try:
            # Redirects are followed by hand, where at all: the key stays here, and a detour can cost quota.
            return self.session.get(url, stream=True, allow_redirects=False)
        except (requests.RequestException, ValueError) as error:
            problem = reason_of_end() or error
        # Raised out here, for what was caught has the key in its request, and an address that may be signed.
        if isinstance(problem, RequestAbortedError):
            raise problem
        raise self._no_answer(url, problem)

    def _no_answer(self, url: str, problem: Exception) -> AmplemarketConnectionError:
        split, is_own = urlsplit(url), self.is_own(url)
        what = f"GET {split.path}" if is_own else f"GET recording: redirected to {split.hostname}"
        why = type(problem).__name__
        shows_no_foreign_address = is_own or isinstance(problem, DeadlineError)
        if shows_no_foreign_address:
            why += f": {problem}"
        return AmplemarketConnectionError(self.redact(f"{what}: no answer ({why})"))

    def get_json(self, url: str) -> dict[str, Any]:
        """
        Send one request and return the JSON object of the answer, without the API key in case it is echoed.

        :raises AmplemarketAPIError: when the answer is not a 200 with a JSON object, or there is none.
        :raises RequestAbortedError: when everything was told to stop.
        """
        path = urlsplit(url).path
        with self.watch(), self.get(url) as response:
            if response.status_code != 200:
                raise self.error_for(response)
            if is_compressed(response):
                raise AmplemarketAPIError(f"GET {path}: the answer is compressed though that was not asked for")
            body = read_up_to(response, MAX_PAGE_SIZE)
        if len(body) > MAX_PAGE_SIZE:
            raise AmplemarketAPIError(f"GET {path}: the answer is larger than {MAX_PAGE_SIZE} bytes")
        try:
            data = redact(json.loads(body.decode()), self.settings.api_key)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise AmplemarketAPIError(f"GET {path}: the answer is not a JSON object")
        return data

    def error_for(self, response: requests.Response, *, of_recording: bool = False) -> AmplemarketAPIError:
        """Make the exception for an answer that is not what was asked for; its body is read."""
        if not self.is_own(response.url):
            # Another host's 403 or 404 says nothing of the API key or of the call.
            host = self.redact(str(urlsplit(response.url).hostname))
            return AmplemarketAPIError(f"GET recording: redirected to {host}, which answered {response.status_code}")
        words = read_words(response, self.settings.api_key)
        return error_of_answer(response, words, of_recording=of_recording, key_name=self._key_name)
