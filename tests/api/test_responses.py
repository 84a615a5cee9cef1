"""What responses say of this machine's clock, and that none passes the API key on."""

from __future__ import annotations

from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_amplemarket.api.responses import ClockSkew
from airflow_provider_amplemarket.exceptions import AmplemarketAPIError
from tests.api.servers import KEY, Connect, RawServer, echo, everything_said, raw

NOW = 1_800_000_000.0


def note(clock: ClockSkew, timestamp: float, skew: float, took: float = 0.2, dated: float = 0.1) -> None:
    """Let a response come at a time of the server's clock."""
    sent_at = timestamp + skew
    clock.note({"Date": formatdate(timestamp + dated, usegmt=True)}, sent_at, sent_at + took)


@given(
    skew=st.floats(-10, 10),
    responses=st.lists(
        st.tuples(st.floats(0, 3600), st.floats(0, 3)).flatmap(
            lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.floats(0, pair[1]))
        ),
        max_size=20,
    ),
)
def test_the_skew_is_never_more_than_is_true(skew: float, responses: list[tuple[float, float, float]]) -> None:
    clock = ClockSkew()
    for seconds, took, dated in responses:
        note(clock, NOW + seconds, skew, took, dated)
    low, high = sorted((0.0, skew))
    assert low - 1e-5 <= clock.seconds <= high + 1e-5


@pytest.mark.parametrize("skew", [1.5, 5.0, -1.5, -300.0])
def test_some_responses_show_it_closely(skew: float) -> None:
    clock = ClockSkew()
    for number in range(10):
        note(clock, NOW + number * 7.1, skew)
    assert abs(clock.seconds - skew) < 0.4


def test_one_quick_response_shows_it_within_little_more_than_a_second() -> None:
    clock = ClockSkew()
    note(clock, NOW, 5.0)
    assert 3.8 <= clock.seconds <= 5.0


def test_a_clock_that_is_set_right_is_right_from_then_on() -> None:
    clock = ClockSkew()
    note(clock, NOW, 30.0)
    assert clock.seconds > 28
    note(clock, NOW + 60, 0.0)
    assert clock.seconds == 0.0


def test_a_slow_response_does_not_loosen_what_is_known() -> None:
    clock = ClockSkew()
    note(clock, NOW, 5.0)
    known = clock.seconds
    note(clock, NOW + 60, 5.0, took=100.0, dated=50.0)
    assert clock.seconds == known


@pytest.mark.parametrize("key", [KEY, 'quo"te-back\\slash-sl/ash-<tag>'])
@pytest.mark.parametrize("escape", [True, False])
class TestAResponseThatEchoesTheKey:
    @pytest.mark.parametrize("status", [401, 429, 500])
    def test_an_error_for_a_recording_does_not_show_it(
        self, connect: Connect, target: Path, key: str, escape: bool, status: int
    ) -> None:
        with (
            RawServer(raw(echo(key, escape), status)) as server,
            pytest.raises(AmplemarketAPIError) as caught,
        ):
            connect(server.url, key).download_recording("abc", target)
        assert caught.value.detail == "Bearer ***"
        assert key not in everything_said(caught.value)

    def test_an_error_for_the_list_does_not_show_it(self, connect: Connect, key: str, escape: bool) -> None:
        with (
            RawServer(raw(echo(key, escape), 400)) as server,
            pytest.raises(AmplemarketAPIError) as caught,
        ):
            list(connect(server.url, key).iter_calls())
        assert key not in everything_said(caught.value)

    def test_a_call_does_not_carry_it(self, connect: Connect, key: str, escape: bool) -> None:
        body = echo(key, escape).replace(b"_errors", b"calls")
        with RawServer(raw(body)) as server:
            (call,) = connect(server.url, key).iter_calls()
        assert call["detail"] == "Bearer ***"
