"""What a row of ``GET /calls`` says; nothing in it is trusted, and every field but ``id`` may be missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import pendulum

Call: TypeAlias = Mapping[str, Any]

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
#: At most 64 characters that begin with a year: pendulum takes "now" and a bare time for datetimes of today.
_DATED = re.compile(r"\d{4}.{0,60}", re.DOTALL)


def is_plain_id(value: object) -> bool:
    """Return whether the value is a token that may become part of a URL or of an object's name."""
    return isinstance(value, str) and _PLAIN_ID.fullmatch(value) is not None


def start_of(call: Call) -> pendulum.DateTime | None:
    """Return the call's ``start_date`` in UTC; None where it is missing or no ISO 8601 datetime."""
    return parse_datetime(call.get("start_date"))


def parse_datetime(text: object) -> pendulum.DateTime | None:
    """Return a datetime in UTC.

    :param text: ISO 8601, UTC where no zone is given.
    :return: None where it is anything else, or no text.
    """
    if not isinstance(text, str) or _DATED.fullmatch(text) is None:
        return None
    try:
        parsed = pendulum.parse(text)
        if isinstance(parsed, pendulum.DateTime):
            return parsed.in_timezone("UTC")
    except (IndexError, OverflowError, TypeError, ValueError):  # pendulum 3.0 has an IndexError for "2026/"
        pass
    return None
