"""The window: the span of time whose calls a run looks at."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pendulum

from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError
from airflow_provider_amplemarket.run.parameters import read_datetime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """The span ``[start, end)``, in UTC."""

    start: pendulum.DateTime
    end: pendulum.DateTime

    def __str__(self) -> str:
        return f"[{self.start.isoformat()}, {self.end.isoformat()})"


def resolve(context: Mapping[str, Any], *, start: Any, end: Any, lookback: timedelta) -> Window:
    """Return the window of a run.

    ``start`` and ``end`` come first; without them, the run's data interval. Where that is empty or missing
    (cron schedules of Airflow 3, runs that are triggered), it is the time since the last successful run, up
    to the datetime from which this one was due, or the lookback alone where there was no such run. A scheduled
    run also begins no later than where the last successful one ended, so that a pause leaves no gap.

    :param context: the task's context.
    :param start: a datetime, or its text (ISO 8601, UTC where no zone is given); nothing for the default.
    :param end: likewise.
    :param lookback: how much earlier the window begins, because calls appear late.
    :raises AmplemarketConfigurationError: when a datetime cannot be read, the start is after the end, or the window
        would be empty.
    """
    interval = _data_interval(context)
    last = read_datetime("end", end) or _default_end(context, interval)
    first = read_datetime("start", start) or _default_start(context, interval, last)
    if first > last:
        raise AmplemarketConfigurationError(
            f"start={first.isoformat()} is after end={last.isoformat()}; change start or end, which default to the "
            "run's data interval"
        )
    try:
        window = Window(first - lookback, last)
    except OverflowError:
        raise AmplemarketConfigurationError(
            f"lookback={lookback} reaches from {first.isoformat()} to before the year 1; use a shorter one"
        ) from None
    if window.start >= window.end:
        raise AmplemarketConfigurationError(f"The window {window} is empty; change start, end or lookback")
    return window


def warn_of_lookback(lookback: timedelta, not_found_for: timedelta) -> None:
    """Warn where calls may leave the window while they are still to be asked for."""
    if not_found_for > lookback:
        log.warning(
            "lookback=%s is shorter than not_found_for=%s: calls without recording may leave the window "
            "before they are asked for again",
            lookback,
            not_found_for,
        )


def _data_interval(context: Mapping[str, Any]) -> Window | None:
    """Return the run's data interval; None where it is empty or missing."""
    start, end = _utc(context.get("data_interval_start")), _utc(context.get("data_interval_end"))
    if start is None or end is None or start >= end:
        return None
    return Window(start, end)


def _default_end(context: Mapping[str, Any], interval: Window | None) -> pendulum.DateTime:
    """Return the end of the data interval, or the datetime from which the run was due."""
    if interval:
        return interval.end
    run_after = getattr(context["dag_run"], "run_after", None)
    return _utc(run_after) or _utc(context.get("data_interval_end")) or pendulum.now("UTC")


def _default_start(context: Mapping[str, Any], interval: Window | None, last: pendulum.DateTime) -> pendulum.DateTime:
    """Return the start of the data interval, or the end of the last successful run where that has to follow on."""
    run_type = context["dag_run"].run_type
    is_scheduled = str(getattr(run_type, "value", run_type)) == "scheduled"
    if interval and not is_scheduled:
        return interval.start
    first = interval.start if interval else last
    return min(first, _utc(context.get("prev_data_interval_end_success")) or first)


def _utc(value: datetime | None) -> pendulum.DateTime | None:
    # Airflow gives some of these as lazy proxies, which are never "None" but false.
    return pendulum.instance(value).in_timezone("UTC") if value else None
