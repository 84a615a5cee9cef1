"""Redirects from the recording endpoint: which are followed, and what the other host gets and says."""

from __future__ import annotations

import gzip
import traceback
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest

from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    AmplemarketError,
    AuthenticationError,
    InvalidRecordingError,
    RecordingForbiddenError,
)
from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from tests.api.drips import Drips
from tests.api.servers import END, KEY, MIB, MP3, Connect, RawServer, download, everything_said, problem, raw


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_the_own_host_gets_the_key_again(self, connect: Connect, target: Path, status: int) -> None:
        with RawServer(raw(b"", status, Location="/files/abc"), raw(MP3)) as server:
            download(connect(server.url), "abc", target)
        assert server.paths == ["/calls/abc/recording", "/files/abc"]
        assert [headers["Authorization"] for _, headers in server.seen] == [f"Bearer {KEY}"] * 2
        assert target.read_bytes() == MP3

    def test_another_host_does_not_get_the_key(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--redirect-away", start_date=END)]) as sandbox:
            download(connect(sandbox.url), "abc--redirect-away", target)
        assert [entry.has_authorization for entry in sandbox.log] == [True, False]
        assert [entry.path for entry in sandbox.away_requests()] == ["/sandbox/files/abc--redirect-away"]

    def test_another_host_never_gets_the_key_along_many_redirects(self, connect: Connect, target: Path) -> None:
        with RawServer() as server, RawServer(raw(b"", 302, Location="/files")) as other:
            port = other.url.rpartition(":")[2]
            server.responses.append(raw(b"", 302, Location=f"http://localhost:{port}/files"))
            with pytest.raises(AmplemarketAPIError, match="more than 5 redirects"):
                download(connect(server.url), "abc", target)
        assert ["Authorization" in headers for _, headers in server.seen] == [True]
        assert ["Authorization" in headers for _, headers in other.seen] == [False] * 5

    def test_five_redirects_are_followed(self, connect: Connect, target: Path) -> None:
        hops = [raw(b"", 302, Location=f"/hop/{n}?signature=a%2Fb") for n in range(5)]
        with RawServer(*hops, raw(MP3)) as server:
            download(connect(server.url), "abc", target)
        assert server.paths[1:] == [f"/hop/{n}?signature=a%2Fb" for n in range(5)]

    def test_six_redirects_are_not(self, connect: Connect, target: Path) -> None:
        hops = [raw(b"", 302, Location=f"/hop/{n}") for n in range(6)]
        with RawServer(*hops, raw(MP3)) as server, pytest.raises(AmplemarketAPIError, match="more than 5"):
            download(connect(server.url), "abc", target)
        assert len(server.paths) == 6

    @pytest.mark.parametrize(
        "location",
        [
            "/calls/abc/recording",
            "recording",
            "/calls/other/recording",
            "/calls/abc/recording/",
            "/calls/abc/recording?again=1",
            "/calls/abc/%72ecording",
            "/calls/./abc/../abc/recording",
            "{url}/calls/abc/recording",
        ],
    )
    @pytest.mark.parametrize("detours", [0, 1])
    def test_the_recording_endpoint_is_not_asked_a_second_time(
        self, connect: Connect, target: Path, location: str, detours: int
    ) -> None:
        with RawServer() as server:
            server.responses += [raw(b"", 302, Location="/calls/abc/detour")] * detours
            server.responses += [raw(b"", 302, Location=location.format(url=server.url)), raw(MP3)]
            with pytest.raises(AmplemarketAPIError, match="second permit") as caught:
                download(connect(server.url), "abc", target)
        assert caught.value.status == 302
        assert server.paths == ["/calls/abc/recording", "/calls/abc/detour"][: 1 + detours]

    def test_another_host_cannot_lead_back_to_the_recording_endpoint(self, connect: Connect, target: Path) -> None:
        with RawServer() as server, RawServer(raw(b"", 302, Location=f"{server.url}/calls/abc/recording")) as away:
            server.responses += [raw(b"", 302, Location=f"{away.url}/calls/abc/recording"), raw(MP3)]
            with pytest.raises(AmplemarketAPIError, match="second permit"):
                download(connect(server.url), "abc", target)
        assert (len(server.paths), len(away.paths)) == (1, 1)

    @pytest.mark.parametrize("encoding", [None, "gzip"])
    def test_the_body_of_a_redirect_costs_little_memory(
        self, connect: Connect, target: Path, encoding: str | None
    ) -> None:
        blanks = bytes(64 * MIB)
        body = gzip.compress(blanks, 1) if encoding else blanks
        response = raw(body, 302, Location="/files/abc", Content_Encoding=encoding)
        with RawServer(response, raw(MP3)) as server:
            api = connect(server.url)
            tracemalloc.start()
            try:
                download(api, "abc", target)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert peak < 24 * MIB

    @pytest.mark.parametrize(
        "location",
        [
            "http://recordings.example.com/abc.mp3",
            "http://127.0.0.1.example.com/abc.mp3",
            "http://localhost.example.com/abc.mp3",
            "ftp://127.0.0.1/abc.mp3",
            "file:///etc/hostname",
            "mailto:someone@example.com",
        ],
    )
    def test_an_address_that_is_not_https_is_refused(self, connect: Connect, target: Path, location: str) -> None:
        with (
            RawServer(raw(b"", 302, Location=location)) as server,
            pytest.raises(AmplemarketAPIError, match="not HTTPS") as caught,
        ):
            download(connect(server.url), "abc", target)
        assert caught.value.status == 302
        assert len(server.paths) == 1

    @pytest.mark.parametrize(
        "location",
        [
            "http://[oops/abc.mp3",
            "https://[oops/abc.mp3",
            "https://",
            "https://127.0.0.1:port/abc.mp3",
            "https://127.0.0.1:99999/abc.mp3",
            f"https://{'a' * 64}.example.com/abc.mp3",
            "https://.example.com/abc.mp3",
            "https://\xa0/abc.mp3",
        ],
    )
    def test_an_address_that_is_none_is_an_error_of_the_api(
        self, connect: Connect, target: Path, location: str
    ) -> None:
        with RawServer(raw(b"", 302, Location=location)) as server, pytest.raises(AmplemarketAPIError):
            download(connect(server.url), "abc", target)
        assert len(server.paths) == 1
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("status", [300, 302, 304])
    def test_a_redirect_to_nowhere_is_an_error(self, connect: Connect, target: Path, status: int) -> None:
        with RawServer(raw(b"", status)) as server, pytest.raises(AmplemarketAPIError) as caught:
            download(connect(server.url), "abc", target)
        assert caught.value.status == status

    @pytest.mark.parametrize("status", [401, 403, 404, 413, 429, 500])
    def test_what_another_host_responds_says_nothing_of_the_key_or_the_call(
        self, connect: Connect, target: Path, status: int
    ) -> None:
        with (
            RawServer(raw(problem(code="not_found"), status, Retry_After="60")) as away,
            RawServer(raw(b"", 302, Location=f"{away.url}/calls/abc/recording?signature=s3cret")) as server,
            pytest.raises(AmplemarketAPIError, match=f"127.0.0.1, which returned {status}") as caught,
        ):
            download(connect(server.url), "abc", target)
        assert type(caught.value) is AmplemarketAPIError
        assert caught.value.status is None
        assert caught.value.code is None
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("status", [404, 413])
    def test_a_file_elsewhere_on_the_own_host_says_nothing_of_the_call(
        self, connect: Connect, target: Path, status: int
    ) -> None:
        responses = raw(b"", 302, Location="/files/abc"), raw(problem(code="not_found"), status)
        with RawServer(*responses) as server, pytest.raises(AmplemarketAPIError, match="/files/abc") as caught:
            download(connect(server.url), "abc", target)
        assert type(caught.value) is AmplemarketAPIError
        assert caught.value.status == status

    @pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (403, RecordingForbiddenError)])
    def test_a_file_elsewhere_on_the_own_host_may_be_forbidden(
        self, connect: Connect, target: Path, status: int, error: type[AmplemarketAPIError]
    ) -> None:
        responses = raw(b"", 302, Location="/files/abc"), raw(b"", status)
        with RawServer(*responses) as server, pytest.raises(AmplemarketAPIError, match="/files/abc") as caught:
            download(connect(server.url), "abc", target)
        assert type(caught.value) is error

    def test_another_host_that_is_down_is_a_connection_error(self, connect: Connect, target: Path) -> None:
        with RawServer(raw()) as away:
            pass
        with (
            RawServer(raw(b"", 302, Location=f"{away.url}/abc")) as server,
            pytest.raises(AmplemarketConnectionError, match="no response"),
        ):
            download(connect(server.url), "abc", target)

    @pytest.mark.parametrize(
        "response",
        [
            None,
            b"",
            b"garbage\r\n\r\n",
            raw(MP3, Content_Length="a, b"),
            raw(MP3, Content_Length=str(2 * len(MP3))),
            raw(MP3, Content_Length=None, Transfer_Encoding="chunked"),
            raw(b"", 302, Location="/abc?signature=s3cret&again=1"),
            raw(b"", 302, Location="https://[s3cret"),
            raw(b"", 302, Location="https://127.0.0.1:s3cret/"),
            raw(b"", 302, Location="http://example.com/?s3cret"),
            raw(b"s3cret", 403),
        ],
    )
    def test_an_address_that_may_be_signed_is_in_no_traceback_and_no_log(
        self, connect: Connect, target: Path, response: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        with RawServer(response or b"") as away:
            pass
        with ExitStack() as stack:
            if response is not None:
                away = stack.enter_context(RawServer(response))
            location = f"{away.url}/files/s3cret.mp3?signature=s3cret"
            server = stack.enter_context(RawServer(raw(b"", 302, Location=location)))
            with pytest.raises(AmplemarketError) as caught:
                download(connect(server.url, timeout=2), "abc", target)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        assert "s3cret" not in everything_said(caught.value)
        assert "s3cret" not in caplog.text

    def test_neither_is_one_whose_response_is_malformed(
        self, connect: Connect, target: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        response = raw(MP3).replace(b"\r\nConn", b"\r\nNo colon here\r\nConn")
        with RawServer(response) as away:
            location = f"{away.url}/files/s3cret.mp3?signature=s3cret"
            with RawServer(raw(b"", 302, Location=location)) as server:
                download(connect(server.url), "abc", target)
        assert f"Failed to parse headers (url={away.url})" in caplog.text
        assert "s3cret" not in caplog.text

    def test_neither_is_one_that_takes_too_long(self, connect: Connect, target: Path) -> None:
        with Drips("header") as away:
            location = raw(b"", 302, Location=f"{away.url}/files/s3cret.mp3?signature=s3cret")
            with RawServer(location) as server, pytest.raises(AmplemarketConnectionError, match="not over") as caught:
                download(connect(server.url, timeout=0.5), "abc", target)
        assert "127.0.0.1" in str(caught.value)
        assert "s3cret" not in everything_said(caught.value)

    @pytest.mark.parametrize(("body", "match"), [(b"", "empty"), (b"<html>", "text")])
    def test_what_another_host_sends_is_checked_as_well(
        self, connect: Connect, target: Path, body: bytes, match: str
    ) -> None:
        with (
            RawServer(raw(body)) as away,
            RawServer(raw(b"", 302, Location=f"{away.url}/abc")) as server,
            pytest.raises(InvalidRecordingError, match=match),
        ):
            download(connect(server.url), "abc", target)
