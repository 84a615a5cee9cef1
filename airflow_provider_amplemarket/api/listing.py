"""The list of calls, page after page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pendulum
import requests
import tenacity

from airflow_provider_amplemarket.api.client import Client
from airflow_provider_amplemarket.calls import start_of
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    RateLimitExceededError,
)

log = logging.getLogger(__name__)

#: Pages after which a listing that does not end is given up.
MAX_PAGES = 100_000
#: A listing ends after so many pages in a row that are older than the window: calls that were logged late lie above
#: newer ones.
OLDER_PAGES = 3
#: The same where there is nothing but older pages from the first one on: there the newest calls may all be hidden.
OLDER_PAGES_FROM_THE_FIRST = 10
#: A page is older when its newest call is by so much, for the order is not strict.
OLDER_BY = timedelta(days=1)

_ATTEMPTS = 6
_LONGEST_WAIT = 60.0
#: The API lists calls "starting after" and "before": with so much more on either side no call of the edge is lost.
_MARGIN = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class CallFilter:
    """Which calls are wanted: those with ``start <= start_date < end`` of this user; None for any."""

    start: datetime | None = None
    end: datetime | None = None
    user_id: str | int | None = None

    def as_params(self) -> dict[str, str]:
        """Return the parameters that ask the API for these calls."""
        params = {}
        if self.start is not None:
            params["start_date_from"] = _iso(self.start - _MARGIN)
        if self.end is not None:
            params["start_date_to"] = _iso(self.end + _MARGIN)
        if self.user_id is not None:
            params["user_id"] = str(self.user_id)
        return params

    def matches(self, call: dict[str, Any], start_date: datetime | None) -> bool:
        """Return whether a call is wanted; one without a readable start may lie in any window."""
        return self._is_in_window(start_date) and self._is_of_user(call)

    def _is_in_window(self, start_date: datetime | None) -> bool:
        if start_date is None:
            return True
        if self.start is not None and start_date < self.start:
            return False
        return self.end is None or start_date < self.end

    def _is_of_user(self, call: dict[str, Any]) -> bool:
        if self.user_id is None:
            return True
        return str(call.get("user_id", self.user_id)) == str(self.user_id)


def iter_calls(client: Client, wanted: CallFilter) -> Iterator[dict[str, Any]]:
    """Yield every call that is wanted, once each, reading page after page as needed.

    The API's own filters are asked for and not relied upon, nor is the order, newest first: reading ends once several
    pages in a row are older than the window by a clear margin.

    :raises AmplemarketAPIError: when the list does not come, after some retries, or makes no sense.
    """
    seen: set[str] = set()
    older_in_a_row = 0
    for number, page in enumerate(_iter_pages(client, wanted.as_params()), start=1):
        start_dates = [start_of(call) for call in page]
        for call, start_date in zip(page, start_dates, strict=True):
            if wanted.matches(call, start_date) and _is_new(call, seen):
                yield call
        if not _is_older(start_dates, wanted.start):
            older_in_a_row = 0
            continue
        older_in_a_row += 1
        if older_in_a_row >= _most_older(number, older_in_a_row):
            return
        if number == 1:
            _warn_of_older_calls(wanted)


def _most_older(number: int, older_in_a_row: int) -> int:
    """Return after how many older pages in a row a listing ends, of which so many pages were read."""
    has_only_older_pages = older_in_a_row == number
    return OLDER_PAGES_FROM_THE_FIRST if has_only_older_pages else OLDER_PAGES


def _warn_of_older_calls(wanted: CallFilter) -> None:
    log.warning(
        "The newest calls of the list are older than the window, which begins at %s. Where there were none "
        "since, all is well; else calls that were logged late hide them, so up to %d pages are read. "
        "Calls that lie still deeper can be named in call_ids",
        wanted.start,
        OLDER_PAGES_FROM_THE_FIRST,
    )


def _is_new(call: dict[str, Any], seen: set[str]) -> bool:
    """Return whether a call has not been seen, and note that it has been."""
    if call.get("id") is None:
        return True
    call_id = str(call["id"])
    is_new = call_id not in seen
    seen.add(call_id)
    return is_new


def _is_older(start_dates: list[pendulum.DateTime | None], start: datetime | None) -> bool:
    """Return whether a page lies before the window, and those after it, too."""
    dates = [start_date for start_date in start_dates if start_date is not None]
    has_undated = len(dates) < len(start_dates)
    if start is None or not dates or has_undated:
        return False
    # On a page that ascends the newest calls are still to come.
    is_descending = dates[0] > dates[-1]
    return is_descending and max(dates) < start - OLDER_BY


def _iter_pages(client: Client, params: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
    url = requests.Request("GET", f"{client.settings.base_url}/calls", params=params).prepare().url
    visited: set[str] = set()
    while url:
        if url in visited or len(visited) >= MAX_PAGES:
            raise AmplemarketAPIError(f"GET /calls: the pages do not end ({len(visited)} read)")
        visited.add(url)
        body = _get_page(client, url)
        yield _calls_of(body)
        url = _next_url(client, body)


def _calls_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    calls = body.get("calls")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise AmplemarketAPIError("GET /calls: the response has no list of calls")
    return calls


def _next_url(client: Client, body: dict[str, Any]) -> str | None:
    """Return the address of the next page, None after the last one."""
    href = _member(_member(body.get("_links"), "next"), "href")
    if href in (None, ""):
        return None
    if not isinstance(href, str):
        raise AmplemarketAPIError("GET /calls: the link to the next page is not a string")
    base = client.settings.base_url
    try:
        url = _resolve(base, href)
    except ValueError:
        raise AmplemarketAPIError("GET /calls: the link to the next page is not a valid URL") from None
    # Elsewhere on the host is refused, too: a recording asked for by a link would be an uncounted request.
    is_list = unquote(urlsplit(url).path) == urlsplit(f"{base}/calls").path
    if not (is_list and client.is_own(url)):
        raise AmplemarketAPIError("GET /calls: the link to the next page leads elsewhere; not followed")
    return url


def _member(value: object, name: str) -> object:
    if isinstance(value, dict):
        return value.get(name)
    return None


def _resolve(base: str, href: str) -> str:
    """Return the address that a link means; without a host it is below the base URL, path prefix included."""
    if href.startswith("?"):
        return f"{base}/calls{href}"
    if urlsplit(href).scheme or href.startswith("//"):
        return urljoin(base, href)
    return f"{base}/{href.lstrip('/')}"


def _get_page(client: Client, url: str) -> dict[str, Any]:
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_passing),
        wait=_wait,
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        sleep=client.watchdog.sleep,
        before_sleep=_warn,
        reraise=True,
    )
    return retrying(client.get_json, url)


def _is_passing(error: BaseException) -> bool:
    """Return whether another try may help."""
    if isinstance(error, RateLimitExceededError):
        return True
    return isinstance(error, AmplemarketAPIError) and error.is_outage


_backoff = tenacity.wait_random_exponential(multiplier=1, max=30)


def _wait(state: tenacity.RetryCallState) -> float:
    retry_after = getattr(_error_of(state), "retry_after", None)
    if retry_after is None:
        return _backoff(state)
    return min(float(retry_after), _LONGEST_WAIT)


def _warn(state: tenacity.RetryCallState) -> None:
    (url,) = state.args
    log.warning("GET %s: %s; trying again in %.0f s", urlsplit(url).path, _error_of(state), state.upcoming_sleep)


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _iso(timestamp: datetime) -> str:
    return pendulum.instance(timestamp).in_timezone("UTC").format("YYYY-MM-DD[T]HH:mm:ss[Z]")
