"""From an Airflow connection to the settings of a client, checked before anything is sent."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException

from airflow_provider_amplemarket.api.settings import DEFAULT_BASE_URL, Settings, parse_base_url
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, ConnectionNotDefinedError
from airflow_provider_amplemarket.get_provider_info import CONNECTION_FIELDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection


def read_connection(name: str, kind: str, get_connection: Callable[[str], Connection]) -> Connection:
    """Get a connection of this type from Airflow; raise an error that shows nothing of it where that fails."""
    try:
        return get_connection(name)
    except Exception as error:
        is_mistake = isinstance(error, AirflowException | ValueError)
        if not is_mistake and not _is_not_defined(error):
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


def _is_not_defined(error: Exception) -> bool:
    """Return whether Airflow says that there is no such connection."""
    kind = getattr(getattr(error, "error", None), "error", None)  # Airflow 3.0, in a task
    return isinstance(error, AirflowNotFoundException) or getattr(kind, "name", None) == "CONNECTION_NOT_FOUND"


def settings_of(conn: Connection, *, name: str) -> Settings:
    """Read the fields of a connection.

    :raises AmplemarketConfigurationError: when a field is missing or malformed; the message names it.
    """
    try:
        return _settings_of(conn)
    except AmplemarketConfigurationError as error:
        message = str(error)
    raise AmplemarketConfigurationError(f"Connection {name!r}: {message}")


def _settings_of(conn: Connection) -> Settings:
    api_key = _api_key(conn.password)
    numbers = _numbers(_extra(conn.extra))
    host = _stripped(conn.host)
    return Settings(
        base_url=parse_base_url(host or DEFAULT_BASE_URL, conn.port, setting="the host"),
        api_key=api_key,
        limit=int(numbers["recording_limit"]),
        period=numbers["recording_period"],
        timeout=numbers["timeout"],
    )


def _api_key(password: str | None) -> str:
    key = _stripped(password)
    if not key:
        raise AmplemarketConfigurationError("the password is empty; put the API key there")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise AmplemarketConfigurationError(
            "the password (the API key) has spaces or characters that no HTTP header can carry"
        )
    return key


def _stripped(text: str | None) -> str:
    return (text or "").strip()


def _extra(text: str | None) -> dict[str, Any]:
    with suppress(ValueError):
        extra = json.loads(text or "{}")
        if isinstance(extra, dict):
            return extra
    raise AmplemarketConfigurationError("Extra is not a JSON object")


def _numbers(extra: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: _number(name, extra.get(name)) for name in CONNECTION_FIELDS}
    unknown = sorted(set(extra) - set(CONNECTION_FIELDS))
    if unknown:
        known = ", ".join(CONNECTION_FIELDS)
        raise AmplemarketConfigurationError(f"Extra has unknown fields {unknown}; known are {known}")
    return numbers


def _number(name: str, value: object) -> float:
    """Read a field of the form; its default where it is empty."""
    schema = CONNECTION_FIELDS[name]["schema"]
    if value in (None, ""):
        default: float = schema["default"]
        return default
    number = _parse_number(value)
    is_positive = 0 < number < math.inf
    if "integer" not in schema["type"]:
        kind, is_right = "a number", is_positive
    else:
        kind, is_right = "a whole number", is_positive and number.is_integer()
    if not is_right:
        raise AmplemarketConfigurationError(f"Extra field {name!r} must be {kind} above 0")
    return number


def _parse_number(value: object) -> float:
    """Return a number, or what its text says; NaN where it is neither."""
    if type(value) not in (str, int, float):  # a bool would do for a number
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return math.nan
