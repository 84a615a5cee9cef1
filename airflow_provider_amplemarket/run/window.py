"""The window: the span of time whose calls a run looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError


@dataclass(frozen=True)
class Window:
    """
    The span ``[start, end)``.

    :param start: its first moment, in UTC.
    :param end: the moment after its last, in UTC.
    """

    start: pendulum.DateTime
    end: pendulum.DateTime

    def __str__(self) -> str:
        return f"[{self.start.isoformat()}, {self.end.isoformat()})"


def resolve(context: Mapping[str, Any], *, start: Any, end: Any, lookback: timedelta) -> Window:
    """
    Find the window of a run.

    ``start`` and ``end`` come first; without them, the run's data interval. Where that is empty or missing
    (cron schedules of Airflow 3, runs that are triggered), it is the time since the last successful run, up
    to the moment from which this one was due, or the lookback alone where there was no such run. A scheduled
    run also begins no later than where the last successful one ended, so that a pause leaves no gap.

    :param context: the task's context.
    :param start: a moment, or its text (ISO 8601, UTC where no zone is given); nothing for the default.
    :param end: likewise.
    :param lookback: how much earlier the window begins, because calls appear late.
    :raises AmplemarketConfigurationError: when a moment cannot be read, the start is after the end, or the window
        would be empty.
    """
    run = context["dag_run"]
    interval = _moment(context.get("data_interval_start")), _moment(context.get("data_interval_end"))
    has_interval = interval[0] is not None and interval[1] is not None and interval[0] < interval[1]
    last = _read("end", end)
    if last is None:
        due = _moment(getattr(run, "run_after", None)) or interval[1] or pendulum.now("UTC")
        last = interval[1] if has_interval and interval[1] else due
    first = _read("start", start)
    if first is None:
        first = interval[0] if has_interval and interval[0] else last
        is_scheduled = str(getattr(run.run_type, "value", run.run_type)) == "scheduled"
        if is_scheduled or not has_interval:
            previous = _moment(context.get("prev_data_interval_end_success"))
            first = min(first, previous) if previous else first
    if first > last:
        raise AmplemarketConfigurationError(
            f"start={first.isoformat()} is after end={last.isoformat()}; change start or end, which default to the "
            "run's data interval"
        )
    try:
        window = Window(first - lookback, last)
    except OverflowError:
        raise AmplemarketConfigurationError(f"lookback={lookback} before {first} is before the first year") from None
    if window.start >= window.end:
        raise AmplemarketConfigurationError(f"The window {window} is empty; change start, end or lookback")
    return window


def _read(name: str, value: Any) -> pendulum.DateTime | None:
    # A template of nothing renders as the text "None".
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    try:
        moment = pendulum.parse(value.strip()) if isinstance(value, str) else pendulum.instance(value)
        if isinstance(moment, pendulum.DateTime):
            return moment.in_timezone("UTC")
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError):
        pass
    raise AmplemarketConfigurationError(
        f"{name}={value!r} is not a valid datetime; use ISO 8601, e.g. 2026-11-20T00:00:00Z"
    )


def _moment(value: datetime | None) -> pendulum.DateTime | None:
    # Airflow gives some of these as lazy proxies, which are never "None" but false.
    return pendulum.instance(value).in_timezone("UTC") if value else None
