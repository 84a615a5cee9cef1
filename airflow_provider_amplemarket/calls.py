"""What a row of ``GET /calls`` says; nothing in it is trusted, and every field but ``id`` may be missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import pendulum

Call: TypeAlias = Mapping[str, Any]

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def is_plain_id(value: object) -> bool:
    """Tell whether the value is a token that may become part of a URL or of an object's name."""
    return isinstance(value, str) and _PLAIN_ID.fullmatch(value) is not None


def start_of(call: Call) -> pendulum.DateTime | None:
    """Answer the call's ``start_date`` in UTC, None where it is missing or no ISO 8601 moment."""
    value = call.get("start_date")
    # pendulum takes "now" and a bare time for moments of today.
    if not isinstance(value, str) or len(value) > 64 or not re.match(r"\d{4}", value):
        return None
    try:
        moment = pendulum.parse(value)
        return moment.in_timezone("UTC") if isinstance(moment, pendulum.DateTime) else None
    except (IndexError, OverflowError, TypeError, ValueError):  # pendulum 3.0 has an IndexError for "2026/"
        return None
