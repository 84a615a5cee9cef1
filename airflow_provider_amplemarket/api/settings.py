"""What the Airflow connection says, checked before anything is sent."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests

from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError
from airflow_provider_amplemarket.get_provider_info import CONNECTION_FIELDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

DEFAULT_BASE_URL = "https://api.amplemarket.com"
#: So many times the time-out, one for connecting and one for waiting, a request and what is not audio may take in all.
DEADLINE = 2


@dataclass(frozen=True)
class ConnectionSettings:
    """
    What the Airflow connection says, checked.

    :param base_url: scheme, host, port and path prefix, without a slash at the end.
    :param api_key: the API key; never shown.
    :param recording_limit: requests to the recording endpoint per period.
    :param recording_period: length of that period in seconds.
    :param timeout: seconds for connecting and for each read; see also :attr:`deadline`.
    """

    base_url: str
    api_key: str = field(repr=False)
    recording_limit: int
    recording_period: float
    timeout: float

    @classmethod
    def of(cls, conn_id: str, conn: Connection) -> ConnectionSettings:
        """
        Read an Airflow connection.

        :raises AmplemarketConfigurationError: when a field is missing or malformed; the message names it.
        """

        def wrong(what: str) -> AmplemarketConfigurationError:
            return AmplemarketConfigurationError(f"Connection {conn_id!r}: {what}")

        key = (conn.password or "").strip()
        if not key:
            raise wrong("the password is empty; put the API key there")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise wrong("the password (the API key) has spaces or characters that no HTTP header can carry")
        try:
            extra = json.loads(conn.extra or "{}")
        except ValueError:
            extra = None
        if not isinstance(extra, dict):
            raise wrong("Extra is not a JSON object")
        numbers: dict[str, float] = {}
        for name, spec in CONNECTION_FIELDS.items():
            schema = spec["schema"]
            number = _number(extra.pop(name, None), default=schema["default"])
            whole = "integer" in schema["type"]
            if number is None or number < schema.get("minimum", 0) or number <= 0 or (whole and number % 1):
                kind = "a whole number" if whole else "a number"
                raise wrong(f"Extra field {name!r} must be {kind} above 0")
            numbers[name] = number
        if extra:
            known = ", ".join(CONNECTION_FIELDS)
            raise wrong(f"Extra has unknown fields {sorted(extra)}; known are {known}")
        return cls(
            base_url=_base_url(conn, wrong),
            api_key=key,
            recording_limit=int(numbers["recording_limit"]),
            recording_period=numbers["recording_period"],
            timeout=numbers["timeout"],
        )

    @property
    def deadline(self) -> float:
        """Seconds after which an answer's header must be there, and an error or a page of calls be whole."""
        return DEADLINE * self.timeout


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host (as DNS has it) and port of a URL; nothing for what is no URL."""
    try:
        split = urlsplit(url)
        return split.scheme, _as_dns_has_it(split.hostname), split.port or {"https": 443, "http": 80}.get(split.scheme)
    except ValueError:
        return "", None, None


def _as_dns_has_it(hostname: str | None) -> str | None:
    """
    Return an international host name in ASCII, ``xn--…``, as requests sends it.

    :raises ValueError: when that cannot be done.
    """
    if hostname is None or hostname.isascii():
        return hostname
    return urlsplit(requests.Request("GET", f"https://{hostname}").prepare().url or "").hostname


def is_loopback(hostname: str | None) -> bool:
    """Tell whether a host is this machine."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname or "").is_loopback
    except ValueError:
        return False


def _number(value: object, *, default: float) -> float | None:
    """Read a form field: a number, or its text; None where it is neither."""
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _base_url(conn: Connection, wrong: Callable[[str], AmplemarketConfigurationError]) -> str:
    host = (conn.host or "").strip() or DEFAULT_BASE_URL
    url = host if "://" in host else f"https://{host}"
    try:
        split = urlsplit(url)
        port = split.port or conn.port
        hostname = _as_dns_has_it(split.hostname)
    except ValueError:
        raise wrong("the host is no URL, or its name is none that DNS can have") from None
    if not hostname or split.username is not None or split.query or split.fragment:
        raise wrong(f"the host must be a base URL like {DEFAULT_BASE_URL}")
    if split.scheme == "http" and not is_loopback(hostname):
        raise wrong("the host must begin with https://; http:// is for loopback addresses only")
    if split.scheme not in ("https", "http"):
        raise wrong("the host must begin with https://")
    name = f"[{hostname}]" if ":" in hostname else hostname
    return f"{split.scheme}://{name}{f':{port}' if port else ''}{split.path.rstrip('/')}"
