"""The way from the recording endpoint to the recording, along redirects that are safe and cost no second permit."""

from __future__ import annotations

from urllib.parse import unquote, urljoin, urlsplit

import requests

from airflow_provider_amplemarket.api.client import Client
from airflow_provider_amplemarket.api.urls import is_loopback
from airflow_provider_amplemarket.exceptions import AmplemarketAPIError

MAX_REDIRECTS = 5


def open_recording(client: Client, url: str) -> requests.Response:
    """
    Return the 200 for a recording, along redirects.

    :raises AmplemarketAPIError: for any other status, and for a redirect that is not followed.
    """
    for _ in range(MAX_REDIRECTS + 1):
        response = client.get(url)
        if response.status_code == 200:
            return response
        with response:
            url = _target(client, url, response)
    raise AmplemarketAPIError(f"GET recording: more than {MAX_REDIRECTS} redirects", status=302)


def _target(client: Client, url: str, response: requests.Response) -> str:
    """Return where the answer for an address redirects to; raise one that is no redirect, or not to be followed."""
    location = response.headers.get("Location")
    if location is None or not response.is_redirect:
        raise client.error_for(response, of_recording=True)
    try:
        target = urljoin(url, location)
        reason = _reason_against(client, target)
    except ValueError:
        reason = "to something that is not a valid URL"
    if reason:
        raise AmplemarketAPIError(f"GET recording: redirected {reason}", status=response.status_code)
    return target


def _reason_against(client: Client, target: str) -> str | None:
    """Return why a redirect to an address is not followed, None where it is."""
    split = urlsplit(target)
    is_endpoint = unquote(split.path).rstrip("/").endswith("/recording")
    if is_endpoint and client.is_own(target):
        return "to the recording endpoint again, which would cost a second permit"
    if split.scheme == "https":
        return None
    # A sandbox on this machine may redirect to this machine; a server elsewhere has no business there.
    is_local = is_loopback(split.hostname) and client.settings.base_url.startswith("http:")
    if split.scheme == "http" and is_local:
        return None
    return "to an address that is not HTTPS; not followed"
