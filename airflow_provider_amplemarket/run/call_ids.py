"""Read ``call_ids``, whatever a template or an XCom has made of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_amplemarket.calls import is_plain_id
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError


def is_nothing(value: Any) -> bool:
    """Return whether a parameter is empty, or was rendered to nothing: such a template may read "None"."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def read_call_ids(value: Any) -> dict[str, Any]:
    """
    Read ``call_ids``: ids or rows, from a list, an XCom result, or the text of either.

    :return: for each id the ``start_date`` that came with it; None where there was none.
    :raises AmplemarketConfigurationError: when it has anything else.
    """
    if is_nothing(value):
        raise AmplemarketConfigurationError(
            f"call_ids={value!r}: it was given, but there is nothing in it. Look at the template or the XCom that it "
            "comes from; [] asks for no calls, and without the parameter all calls of the window are archived."
        )
    starts: dict[str, Any] = {}
    for row in _rows(value):
        call_id, start = _id_and_start(row)
        starts[call_id] = starts.get(call_id) or start
    return starts


def _rows(value: Any) -> Iterable[Any]:
    if isinstance(value, str):
        text = value.strip()
        return _read_list(text) if text.startswith("[") else [text]
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, Iterable):
        raise AmplemarketConfigurationError(f"call_ids={value!r} is no list of ids")
    return value


def _id_and_start(row: Any) -> tuple[str, Any]:
    if not isinstance(row, Mapping):
        row = {"id": row}
    call_id = row.get("call_id", row.get("id"))
    if not is_plain_id(call_id) or is_nothing(call_id):
        raise AmplemarketConfigurationError(f"call_ids has {str(call_id)[:100]!r}, which is no call id")
    return call_id, row.get("start_date")


def _read_list(text: str) -> list[Any]:
    """Read a list that a template rendered: as JSON, or as Python writes it."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return list(read(text))
    raise AmplemarketConfigurationError(f"call_ids={text[:100]!r} is no list")
