"""What the dates of answers tell of this machine's clock."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_amplemarket.api.clockskew import ClockSkew

NOW = 1_800_000_000.0


def note(clock: ClockSkew, moment: float, skew: float, took: float = 0.2, dated: float = 0.1) -> None:
    """Let an answer come at a moment of the server's clock."""
    sent = moment + skew
    clock.note({"Date": formatdate(moment + dated, usegmt=True)}, sent, sent + took)


@given(
    skew=st.floats(-10, 10),
    answers=st.lists(
        st.tuples(st.floats(0, 3600), st.floats(0, 3)).flatmap(
            lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.floats(0, pair[1]))
        ),
        max_size=20,
    ),
)
def test_it_never_says_more_than_is_true(skew: float, answers: list[tuple[float, float, float]]) -> None:
    clock = ClockSkew()
    for moment, took, dated in answers:
        note(clock, NOW + moment, skew, took, dated)
    low, high = sorted((0.0, skew))
    assert low - 1e-5 <= clock.seconds <= high + 1e-5


@pytest.mark.parametrize("skew", [1.5, 5.0, -1.5, -300.0])
def test_some_answers_tell_it_closely(skew: float) -> None:
    clock = ClockSkew()
    for number in range(10):
        note(clock, NOW + number * 7.1, skew)
    assert abs(clock.seconds - skew) < 0.4


def test_one_quick_answer_tells_it_within_little_more_than_a_second() -> None:
    clock = ClockSkew()
    note(clock, NOW, 5.0)
    assert 3.8 <= clock.seconds <= 5.0


def test_a_clock_that_is_set_right_is_right_from_then_on() -> None:
    clock = ClockSkew()
    note(clock, NOW, 30.0)
    assert clock.seconds > 28
    note(clock, NOW + 60, 0.0)
    assert clock.seconds == 0.0


def test_a_slow_answer_does_not_loosen_what_is_known() -> None:
    clock = ClockSkew()
    note(clock, NOW, 5.0)
    known = clock.seconds
    note(clock, NOW + 60, 5.0, took=100.0, dated=50.0)
    assert clock.seconds == known
