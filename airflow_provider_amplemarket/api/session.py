"""A session of requests that gives the API key to its own host alone, and whose every request ends."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3 import PoolManager

from airflow_provider_amplemarket import __version__
from airflow_provider_amplemarket.api.deadline import Watchdog, current_watch, watch_connections
from airflow_provider_amplemarket.api.settings import Settings, origin


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
