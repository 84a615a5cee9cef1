"""A session of requests that gives the API key to its own host alone, and whose every request ends."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3 import PoolManager

from airflow_provider_amplemarket import __version__
from airflow_provider_amplemarket.api.deadline import Watch, Watchdog, current_watch, watch_connections
from airflow_provider_amplemarket.api.settings import Settings
from airflow_provider_amplemarket.api.urls import origin


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


class Session(requests.Session):
    """
    Follow no redirect of its own accord, nor read the body of one.

    :param settings: the API key, its host, the time-out and the deadline of requests that nobody watches over yet.
    :param watchdog: ends the requests.
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
        if watch is not None:
            watch.forget()
            return self._send(watch, request, **kwargs)
        with self._watchdog.watch(self._deadline) as watch:
            return self._send(watch, request, **kwargs)

    def _send(self, watch: Watch, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        response = super().send(request, **kwargs)
        if watch.ended:  # a header that was ended can look whole
            response.close()
            raise watch.ended
        return response

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        return None
