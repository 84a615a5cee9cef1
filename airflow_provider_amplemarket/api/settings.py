"""Where the API is, and how it may be used."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import requests

from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError

DEFAULT_BASE_URL = "https://api.amplemarket.com"

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a client of the API needs to know.

    :param base_url: scheme, host, port and path prefix, as :func:`parse_base_url` returns it.
    :param api_key: the API key; never shown.
    :param limit: requests to the recording endpoint per period.
    :param period: length of that period in seconds.
    :param timeout: seconds for connecting and for each read.
    """

    base_url: str
    api_key: str = field(repr=False)
    limit: int
    period: float
    timeout: float

    @property
    def deadline(self) -> float:
        """Seconds for a request and its response in all; of a recording, for the response's header."""
        return 2 * self.timeout


def parse_base_url(text: str, port: int | None = None, *, setting: str = "base_url") -> str:
    """Return a base URL in its normal form: scheme, host, port and path prefix, without a slash at the end.

    :param text: a URL or a host name; https is assumed where there is no scheme.
    :param port: the port, where the text has none.
    :param setting: what a message calls it.
    :raises AmplemarketConfigurationError: when it is not a URL, or not one that the API key may be sent to.
    """
    if "://" not in text:
        text = f"https://{text}"
    try:
        split = urlsplit(text)
        port = split.port or port
        hostname = _dns_name(split)
    except ValueError:
        raise AmplemarketConfigurationError(f"{setting} is not a valid URL, or no name that DNS can have") from None
    rule = _broken_rule(split, hostname)
    if rule:
        raise AmplemarketConfigurationError(f"{setting} must {rule}")
    address = str(hostname)
    if ":" in address:
        address = f"[{address}]"
    if port:
        address += f":{port}"
    path = split.path.rstrip("/")
    return f"{split.scheme}://{address}{path}"


def _broken_rule(split: SplitResult, hostname: str | None) -> str | None:
    """Return what a base URL must do and this one does not, None where it is right."""
    has_more = [split.username is not None, split.query, split.fragment]
    if not hostname or any(has_more):
        return f"be a base URL like {DEFAULT_BASE_URL}"
    if split.scheme == "https":
        return None
    if split.scheme != "http":
        return "begin with https://"
    if is_loopback(hostname):
        return None
    return "begin with https://; http:// is for loopback addresses only"


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host (as DNS has it) and port of a URL; an empty scheme and None for anything else."""
    try:
        split = urlsplit(url)
        return split.scheme, _dns_name(split), split.port or _DEFAULT_PORTS.get(split.scheme)
    except ValueError:
        return "", None, None


def is_loopback(hostname: str | None) -> bool:
    """Return whether a host is this machine."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(hostname)).is_loopback
    except ValueError:
        return False


def _dns_name(split: SplitResult) -> str | None:
    """Return the host's name in ASCII (``xn--…`` for an international one), as requests sends it.

    :raises ValueError: when that cannot be done.
    """
    hostname = split.hostname
    if hostname is None or hostname.isascii():
        return hostname
    prepared = requests.Request("GET", f"https://{hostname}").prepare()
    return urlsplit(str(prepared.url)).hostname
