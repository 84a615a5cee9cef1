"""The API key in an answer is not passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_amplemarket.exceptions import AmplemarketAPIError
from tests.api.servers import KEY, Connect, RawServer, echo, everything_said, raw


@pytest.mark.parametrize("key", [KEY, 'quo"te-back\\slash-sl/ash-<tag>'])
@pytest.mark.parametrize("escape", [True, False])
class TestAnAnswerThatEchoesTheKey:
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
