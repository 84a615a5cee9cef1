"""Read the operator's parameters, whatever a template or an XCom has made of them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.calls import is_plain_id
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError


def is_nothing(value: Any) -> bool:
    """Return whether a parameter is empty, or a template of nothing, which renders as the text "None"."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def read_text(value: Any) -> str | None:
    """Return a parameter as text; None for nothing."""
    if is_nothing(value):
        return None
    return str(value).strip()


def read_datetime(name: str, value: Any) -> pendulum.DateTime | None:
    """Return a parameter in UTC; None for nothing.

    :raises AmplemarketConfigurationError: when it is no datetime.
    """
    if is_nothing(value):
        return None
    try:
        parsed = pendulum.parse(value.strip()) if isinstance(value, str) else pendulum.instance(value)
        if isinstance(parsed, pendulum.DateTime):
            return parsed.in_timezone("UTC")
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError):
        pass
    raise AmplemarketConfigurationError(
        f"{name}={value!r} is not a valid datetime; use ISO 8601, e.g. 2026-11-20T00:00:00Z"
    )


def check_parameters(task: Any) -> None:
    """Refuse parameters of an operator that cannot work.

    :raises AmplemarketConfigurationError: when one is wrong; the message names it, and the task.
    """
    try:
        _check(task)
        Layout(task.key)
    except AmplemarketConfigurationError as error:
        raise AmplemarketConfigurationError(f"{type(task).__name__} {task.task_id!r}: {error}") from None


def _check(task: Any) -> None:
    for name in ("lookback", "not_found_for", "give_up_after"):
        _check_duration(name, getattr(task, name))
    if task.max_wait is not None:
        _check_duration("max_wait", task.max_wait)
    if not isinstance(task.max_concurrency, int) or not 1 <= task.max_concurrency <= 32:
        raise AmplemarketConfigurationError(
            f"max_concurrency must be a whole number from 1 to 32, not {task.max_concurrency!r}"
        )
    if task.sidecar not in ("full", "minimal"):
        raise AmplemarketConfigurationError(f"sidecar must be 'full' or 'minimal', not {task.sidecar!r}")
    if not callable(task.select):
        raise AmplemarketConfigurationError("select must be callable with a call")


def _check_duration(name: str, value: Any) -> None:
    if not isinstance(value, timedelta) or value < timedelta(0):
        raise AmplemarketConfigurationError(f"{name} must be a timedelta of 0 or more, not {value!r}")


def read_call_ids(value: Any) -> dict[str, Any]:
    """Read ``call_ids``: ids or rows, from a list, an XCom result, or the text of either.

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
        raise AmplemarketConfigurationError(f"call_ids={value!r} is not a list of ids or of rows with a call_id")
    return value


def _id_and_start(row: Any) -> tuple[str, Any]:
    if not isinstance(row, Mapping):
        row = {"id": row}
    call_id = row.get("call_id", row.get("id"))
    if not is_plain_id(call_id) or is_nothing(call_id):
        raise AmplemarketConfigurationError(
            f"call_ids has {str(call_id)[:100]!r}, which is not a call id; use ids as GET /calls gives them"
        )
    return call_id, row.get("start_date")


def _read_list(text: str) -> list[Any]:
    """Read a list that a template rendered: as JSON, or as Python writes it."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return list(read(text))
    raise AmplemarketConfigurationError(f'call_ids={text[:100]!r} is not a list; use JSON, e.g. ["id-1", "id-2"]')
