"""Each kind of run looks at the calls it should, and never in silence at none."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError
from airflow_provider_amplemarket.run.window import Window, resolve

DAY = datetime(2026, 11, 20, tzinfo=UTC)
NEXT_DAY = datetime(2026, 11, 21, tzinfo=UTC)
NOTHING = timedelta(0)
MONTH = timedelta(days=30)


class LazyNothing:
    """What Airflow gives for a datetime that there is none of: not None, but false."""

    def __bool__(self) -> bool:
        return False


def context(
    interval: tuple[Any, Any] | None = (DAY, NEXT_DAY),
    *,
    run_type: Any = "scheduled",
    run_after: datetime | None = NEXT_DAY,
    previous: Any = None,
) -> dict[str, Any]:
    """Make what a task knows of its run."""
    made: dict[str, Any] = {"dag_run": SimpleNamespace(run_type=run_type, run_after=run_after)}
    if interval is not None:
        made |= {"data_interval_start": interval[0], "data_interval_end": interval[1]}
    if previous is not None:
        made["prev_data_interval_end_success"] = previous
    return made


def window(made: dict[str, Any], start: Any = None, end: Any = None, lookback: timedelta = NOTHING) -> Window:
    return resolve(made, start=start, end=end, lookback=lookback)


def test_it_is_the_data_interval() -> None:
    assert window(context()) == Window(DAY, NEXT_DAY)


def test_the_lookback_lets_it_begin_earlier() -> None:
    assert window(context(), lookback=timedelta(days=3)) == Window(DAY - timedelta(days=3), NEXT_DAY)


def test_it_says_what_it_is() -> None:
    assert str(window(context())) == "[2026-11-20T00:00:00+00:00, 2026-11-21T00:00:00+00:00)"


def test_it_is_in_utc() -> None:
    zone = timezone(timedelta(hours=-8))
    found = window(context((DAY.astimezone(zone), NEXT_DAY.astimezone(zone))))
    assert found == Window(DAY, NEXT_DAY)
    assert {found.start.timezone_name, found.end.timezone_name} == {"UTC"}


@pytest.mark.parametrize("run_type", ["scheduled", SimpleNamespace(value="scheduled")])
def test_after_a_pause_a_scheduled_run_begins_where_the_last_successful_one_ended(run_type: Any) -> None:
    made = context(run_type=run_type, previous=DAY - timedelta(days=9))
    assert window(made, lookback=timedelta(days=1)) == Window(DAY - timedelta(days=10), NEXT_DAY)


def test_a_successful_run_that_ended_later_does_not_cut_the_interval() -> None:
    assert window(context(previous=NEXT_DAY)) == Window(DAY, NEXT_DAY)


@pytest.mark.parametrize("run_type", ["manual", "backfill", "asset_triggered"])
def test_a_run_with_an_interval_that_is_not_scheduled_keeps_to_it(run_type: str) -> None:
    assert window(context(run_type=run_type, previous=DAY - MONTH)) == Window(DAY, NEXT_DAY)


EMPTY = pytest.mark.parametrize(
    "interval",
    [None, (None, None), (NEXT_DAY, NEXT_DAY), (NEXT_DAY, DAY), (LazyNothing(), LazyNothing()), (DAY, None)],
    ids=["none", "nothing", "empty", "backwards", "lazy", "half"],
)


@EMPTY
@pytest.mark.parametrize("run_type", ["scheduled", "manual"])
def test_without_interval_it_is_the_time_since_the_last_successful_run(interval: Any, run_type: str) -> None:
    made = context(interval, run_type=run_type, previous=DAY - MONTH)
    assert window(made) == Window(DAY - MONTH, NEXT_DAY)


@EMPTY
@pytest.mark.parametrize("previous", [None, LazyNothing()])
def test_without_a_successful_run_either_it_is_the_lookback(interval: Any, previous: Any) -> None:
    assert window(context(interval, previous=previous), lookback=MONTH) == Window(NEXT_DAY - MONTH, NEXT_DAY)


def test_a_run_that_does_not_know_when_it_was_due_takes_the_end_of_its_empty_interval() -> None:
    assert window(context((DAY, DAY), run_after=None), lookback=MONTH) == Window(DAY - MONTH, DAY)


def test_a_run_that_knows_no_datetime_at_all_looks_up_to_now() -> None:
    before = pendulum.now("UTC")
    found = window({"dag_run": SimpleNamespace(run_type="manual")}, lookback=MONTH)
    assert before <= found.end <= pendulum.now("UTC")
    assert found.start == found.end - MONTH


def test_start_and_end_come_first() -> None:
    made = context(previous=DAY - MONTH)
    found = window(made, start="2026-10-01", end="2026-10-02T12:00:00+02:00", lookback=timedelta(days=1))
    assert found == Window(datetime(2026, 9, 30, tzinfo=UTC), datetime(2026, 10, 2, 10, tzinfo=UTC))


def test_start_alone_reaches_to_the_interval_s_end() -> None:
    assert window(context(previous=DAY - MONTH), start="2026-11-20T06:00:00") == Window(
        datetime(2026, 11, 20, 6, tzinfo=UTC), NEXT_DAY
    )


def test_end_alone_cuts_the_interval() -> None:
    assert window(context(), end="2026-11-20T06:00:00Z") == Window(DAY, datetime(2026, 11, 20, 6, tzinfo=UTC))


def test_end_alone_without_interval_looks_back_from_there() -> None:
    found = window(context(None), end="2026-11-20T00:00:00Z", lookback=MONTH)
    assert found == Window(DAY - MONTH, DAY)


@pytest.mark.parametrize(
    "start",
    [
        DAY,
        DAY.replace(tzinfo=None),
        DAY.astimezone(timezone(timedelta(hours=5))),
        pendulum.instance(DAY),
        "2026-11-20",
        " 2026-11-20T00:00:00Z\n",
        "2026-11-20 00:00:00",
        "2026-11-20T05:30:00+05:30",
        str(DAY),
    ],
    ids=str,
)
def test_a_datetime_may_be_given_in_many_ways(start: Any) -> None:
    assert window(context(None), start=start, end=NEXT_DAY) == Window(DAY, NEXT_DAY)


@pytest.mark.parametrize("nothing", [None, "", "  ", "None", " None "])
def test_a_template_of_nothing_is_nothing(nothing: str | None) -> None:
    assert window(context(), start=nothing, end=nothing) == Window(DAY, NEXT_DAY)


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize(
    "value",
    [
        "yesterday",
        "{{ ds }}",
        "2026-11-31",
        "2026-11-20/",
        "P1D",
        "2026-11-20/2026-11-21",
        "2:",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2026-11-20T00:00:00+24:00",
        7,
        1.5,
        date(2026, 11, 20),
        [DAY],
    ],
    ids=str,
)
def test_what_is_no_datetime_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(
        AmplemarketConfigurationError,
        match=f"^{name}=.* is not a valid datetime; use ISO 8601, e.g. 2026-11-20T00:00:00Z$",
    ):
        window(context(), **{name: value})


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(AmplemarketConfigurationError, match="is empty; change start, end or lookback"):
        window(context(), start="2026-11-20", end="2026-11-20")


@pytest.mark.parametrize("lookback", [NOTHING, MONTH])
@pytest.mark.parametrize(
    ("start", "end"),
    [("2026-11-21", "2026-11-20"), ("2026-11-21T00:00:01Z", None), (None, "2026-11-19T23:59:59Z")],
    ids=["both", "after the interval", "before the interval"],
)
def test_a_start_after_the_end_is_refused_whatever_the_lookback(
    start: str | None, end: str | None, lookback: timedelta
) -> None:
    with pytest.raises(AmplemarketConfigurationError, match=r"^start=2026-11-2\S+ is after end=2026-11-\S+;"):
        window(context(), start=start, end=end, lookback=lookback)


def test_a_run_that_would_look_at_nothing_is_refused() -> None:
    with pytest.raises(AmplemarketConfigurationError, match="is empty"):
        window(context(None))


@pytest.mark.parametrize("lookback", [timedelta(days=3), timedelta.max], ids=["days", "ages"])
def test_a_lookback_before_all_time_is_refused_or_ends_there(lookback: timedelta) -> None:
    try:
        found = window(context(), start="0001-01-01", lookback=lookback)
    except AmplemarketConfigurationError:
        return
    assert found.end == NEXT_DAY


datetimes = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@settings(deadline=None)
@given(
    st.one_of(st.none(), st.tuples(datetimes, datetimes)),
    st.sampled_from(["scheduled", "manual", "backfill"]),
    datetimes,
    st.one_of(st.none(), datetimes),
    st.timedeltas(NOTHING, MONTH),
)
def test_of_the_run_s_own_interval_nothing_is_left_out(
    interval: Any, run_type: str, run_after: datetime, previous: datetime | None, lookback: timedelta
) -> None:
    made = context(interval, run_type=run_type, run_after=run_after, previous=previous)
    try:
        found = window(made, lookback=lookback)
    except AmplemarketConfigurationError:
        assert interval is None or interval[0] >= interval[1]
        assert lookback == NOTHING
        assert previous is None or previous >= run_after
        return
    assert found.start < found.end
    if interval is not None and interval[0] < interval[1]:
        assert found.start <= interval[0] - lookback
        assert found.end == interval[1]
    else:
        assert found.start <= run_after - lookback
        assert found.end == run_after
    if previous is not None and run_type == "scheduled":
        assert found.start <= previous - lookback
