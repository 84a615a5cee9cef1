"""Keep a secret out of what others wrote, in case they echo it."""

from __future__ import annotations

from typing import Any


def redact(value: Any, secret: str) -> Any:
    """
    Replace a secret in a text, or in every text of a value that was JSON.

    :param value: parsed JSON; in its source the secret may be escaped.
    :param secret: what must not be shown.
    """
    if isinstance(value, str):
        return value.replace(secret, "***")
    if isinstance(value, list):
        return [redact(item, secret) for item in value]
    if isinstance(value, dict):
        return {redact(name, secret): redact(item, secret) for name, item in value.items()}
    return value
