"""One recording at a time: whole in its file, or an error and no file."""

from __future__ import annotations

import gzip
import hashlib
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.api import download as download_module
from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConfigurationError,
    AmplemarketConnectionError,
    AmplemarketError,
    AuthenticationError,
    InvalidRecordingError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
    RequestAbortedError,
)
from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from tests.api.servers import END, KEY, MIB, MP3, Connect, RawServer, chunks, download, everything_said, problem, raw


class TestDownloadingARecording:
    @pytest.mark.parametrize("fault", ["ok", "chunked", "large-3", "redirect", "redirect-away"])
    def test_the_file_has_the_bytes_that_were_served(self, connect: Connect, target: Path, fault: str) -> None:
        call = make_call(id=f"abc--{fault}", start_date=END)
        with Sandbox(calls=[call]) as sandbox:
            found = download(connect(sandbox.url), call["id"], target)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == sandbox.recording_sha256(call["id"])
        assert target.stat().st_size == sandbox.recording_size(call["id"])
        assert found == Recording(
            call_id=call["id"],
            size=sandbox.recording_size(call["id"]),
            sha256=sandbox.recording_sha256(call["id"]),
            content_type="audio/mpeg",
            is_mpeg=True,
            requested_at=found.requested_at,
            answered_at=found.answered_at,
            received_at=found.received_at,
        )
        assert len(sandbox.recording_requests()) == 1

    def test_a_body_may_take_longer_than_the_timeout_and_the_times_tell(self, connect: Connect, target: Path) -> None:
        before = datetime.now(UTC)
        with Sandbox(calls=[make_call(id="abc--drip", start_date=END)]) as sandbox:
            found = download(connect(sandbox.url, timeout=1.5), "abc--drip", target)
            assert target.read_bytes() == sandbox.recording("abc--drip")
        assert before <= found.requested_at <= found.answered_at < found.received_at <= datetime.now(UTC)
        assert found.answered_at - found.requested_at < timedelta(seconds=1)
        assert found.received_at - found.answered_at > timedelta(seconds=2)
        assert all(date.utcoffset() == timedelta(0) for date in (found.requested_at, found.received_at))

    @pytest.mark.parametrize("name", [str, Path])
    def test_an_older_file_is_replaced(self, connect: Connect, target: Path, name: type) -> None:
        target.write_bytes(bytes(10 * MIB))
        with RawServer(raw(MP3)) as server:
            connect(server.url).download_recording("abc", name(target))
        assert target.read_bytes() == MP3

    @pytest.mark.parametrize(
        ("content_type", "told"),
        [("audio/mpeg; charset=binary", "audio/mpeg"), ("Audio/X-WAV", "audio/x-wav"), (" audio/ogg", "audio/ogg")],
    )
    def test_the_media_type_is_told_without_parameters(
        self, connect: Connect, target: Path, content_type: str, told: str
    ) -> None:
        with RawServer(raw(MP3, Content_Type=content_type)) as server:
            assert download(connect(server.url), "abc", target).content_type == told

    def test_audio_that_is_not_mpeg_is_taken_and_marked(self, connect: Connect, target: Path) -> None:
        with Sandbox() as sandbox:
            found = download(connect(sandbox.url), "abc--not-mpeg", target)
        assert not found.is_mpeg
        assert found.size == target.stat().st_size == 8_000

    @pytest.mark.parametrize("opening", [b"I", b"ID3", MP3[:1], MP3[:3]])
    def test_audio_is_known_by_its_beginning_however_small_the_first_chunk(
        self, connect: Connect, target: Path, opening: bytes
    ) -> None:
        body = opening + (b"ID3\x03" + MP3 if opening[:1] == b"I" else MP3)[len(opening) :]
        response = raw(chunks(opening, body[len(opening) :]), Content_Length=None, Transfer_Encoding="chunked")
        with RawServer(response) as server:
            found = download(connect(server.url), "abc", target)
        assert found.is_mpeg
        assert target.read_bytes() == body

    @pytest.mark.parametrize("opening", [1, 5])
    def test_text_is_known_by_its_beginning_however_small_the_first_chunk(
        self, connect: Connect, target: Path, opening: int
    ) -> None:
        text = b"<html><body>Please try again</body></html>"
        pieces = chunks(text[:opening], text[opening:])
        with (
            RawServer(raw(pieces, Content_Length=None, Transfer_Encoding="chunked")) as server,
            pytest.raises(InvalidRecordingError, match="text"),
        ):
            download(connect(server.url), "abc", target)

    def test_a_large_recording_costs_little_memory(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--large-64", start_date=END)]) as sandbox:
            api = connect(sandbox.url)
            tracemalloc.start()
            try:
                found = download(api, "abc--large-64", target)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert found.size == 64 * MIB
        assert found.sha256 == sandbox.recording_sha256("abc--large-64")
        assert peak < 24 * MIB

    @pytest.mark.parametrize(
        "call_id", ["", ".", "..", "a/b", "a/../b", "a b", "a?b", "a#b", "a%2Fb", "ä", "a\n", "x" * 129, None, 7, b"a"]
    )
    def test_an_id_that_is_no_plain_token_is_never_sent(self, connect: Connect, target: Path, call_id: Any) -> None:
        with Sandbox() as sandbox:
            with pytest.raises(AmplemarketConfigurationError, match="call_id"):
                download(connect(sandbox.url), call_id, target)
            assert sandbox.log == []


REFUSALS: list[tuple[str, type[AmplemarketAPIError], int, str | None]] = [
    ("not-found", RecordingNotFoundError, 404, "not_found"),
    ("too-large", RecordingTooLargeError, 413, "content_too_large"),
    ("too-many", RateLimitExceededError, 429, "too_many_requests"),
    ("too-many-120", RateLimitExceededError, 429, "too_many_requests"),
    ("unauthorized", AuthenticationError, 401, "unauthorized"),
    ("forbidden", RecordingForbiddenError, 403, "forbidden"),
    ("error-500", AmplemarketAPIError, 500, "internal_server_error"),
    ("error-503", AmplemarketAPIError, 503, "service_unavailable"),
    ("error-503-html", AmplemarketAPIError, 503, None),
    ("echo-key", AmplemarketAPIError, 500, "internal_server_error"),
    ("partial", AmplemarketAPIError, 206, None),
    ("redirect-loop", AmplemarketAPIError, 302, None),
    ("redirect-http", AmplemarketAPIError, 302, None),
]
NO_ANSWERS = ["refuse", "hang"]
INVALID = [
    ("cut", r"cut short after \d+ of \d+ bytes"),
    ("cut-chunked", "cut short after .* of an unknown number of bytes"),
    ("reset", "cut short"),
    ("unsized", "neither a length nor chunks"),
    ("unsized-cut", "neither a length nor chunks"),
    ("empty", "empty"),
    ("html", "text/html"),
    ("json", "application/json"),
    ("octet-stream", "application/octet-stream"),
    ("no-type", "missing"),
    ("html-as-audio", "text"),
    ("json-as-audio", "text"),
    ("gzip", "compressed"),
    ("gzip-bomb", "compressed"),
]


class TestARecordingThatDoesNotCome:
    @pytest.mark.parametrize(("fault", "error", "status", "code"), REFUSALS)
    def test_the_response_becomes_an_error_in_the_words_of_the_api(
        self,
        connect: Connect,
        target: Path,
        fault: str,
        error: type[AmplemarketAPIError],
        status: int,
        code: str | None,
    ) -> None:
        with Sandbox() as sandbox, pytest.raises(AmplemarketAPIError) as caught:
            download(connect(sandbox.url), f"abc--{fault}", target)
        assert type(caught.value) is error
        assert caught.value.status == status
        assert caught.value.code == code
        assert (caught.value.title is None) == (code is None)
        assert (caught.value.detail is None) == (code is None)
        assert code is None or code in str(caught.value)

    def test_the_words_of_the_api_are_kept(self, connect: Connect, target: Path) -> None:
        with Sandbox() as sandbox, pytest.raises(RecordingTooLargeError, match="Recording is too big") as caught:
            download(connect(sandbox.url), "abc--too-large", target)
        assert caught.value.title == "Content Too Large"
        assert caught.value.detail == "Recording is too big"

    def test_a_call_that_the_api_does_not_know_is_not_found(self, connect: Connect, target: Path) -> None:
        with Sandbox() as sandbox, pytest.raises(RecordingNotFoundError, match="/calls/abc/recording returned 404"):
            download(connect(sandbox.url), "abc", target)

    @pytest.mark.parametrize("fault", NO_ANSWERS)
    def test_no_response_is_a_connection_error(self, connect: Connect, target: Path, fault: str) -> None:
        with Sandbox() as sandbox, pytest.raises(AmplemarketConnectionError, match="no response") as caught:
            download(connect(sandbox.url, timeout=0.2), f"abc--{fault}", target)
        assert caught.value.status is None

    def test_a_server_that_is_down_is_a_connection_error(self, connect: Connect, target: Path) -> None:
        sandbox = Sandbox()
        with sandbox:
            api = connect(sandbox.url)
        with pytest.raises(AmplemarketConnectionError, match="no response"):
            download(api, "abc", target)

    @pytest.mark.parametrize(("fault", "message"), INVALID)
    def test_a_body_that_is_no_whole_audio_is_invalid(
        self, connect: Connect, target: Path, fault: str, message: str
    ) -> None:
        with (
            Sandbox(calls=[make_call(id=f"abc--{fault}", start_date=END)]) as sandbox,
            pytest.raises(InvalidRecordingError, match=message),
        ):
            download(connect(sandbox.url), f"abc--{fault}", target)

    @pytest.mark.parametrize("fault", [*[row[0] for row in REFUSALS], *NO_ANSWERS, *[row[0] for row in INVALID]])
    def test_one_request_is_sent_no_file_is_left_and_the_key_is_not_shown(
        self, connect: Connect, target: Path, fault: str
    ) -> None:
        with (
            Sandbox(calls=[make_call(id=f"abc--{fault}", start_date=END)]) as sandbox,
            pytest.raises(AmplemarketError) as caught,
        ):
            download(connect(sandbox.url, timeout=0.5), f"abc--{fault}", target)
        assert [entry.call_id for entry in sandbox.log] == [f"abc--{fault}"]
        assert list(target.parent.iterdir()) == []
        assert KEY not in everything_said(caught.value)

    def test_one_request_is_sent_though_the_kept_connection_was_closed_meanwhile(
        self, connect: Connect, target: Path
    ) -> None:
        with Sandbox(calls=[make_call(id="abc", start_date=END)]) as sandbox:
            api = connect(sandbox.url)
            download(api, "abc", target)
            sandbox.stop()
            sandbox.start()
            download(api, "abc", target)
        assert len(sandbox.log) == 2

    @pytest.mark.parametrize("attempts", [2])
    def test_nothing_is_tried_again_of_its_own_accord(self, connect: Connect, target: Path, attempts: int) -> None:
        with Sandbox(calls=[make_call(id="abc--flaky", start_date=END)]) as sandbox:
            api = connect(sandbox.url)
            with pytest.raises(AmplemarketAPIError, match="503"):
                download(api, "abc--flaky", target)
            download(api, "abc--flaky", target)
        assert len(sandbox.log) == attempts
        assert api.waits == []

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("0", 0.0),
            ("120", 120.0),
            ("999999999", 999999999.0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
            (None, None),
            ("", None),
            ("soon", None),
            ("1.5", None),
            ("-5", None),
            ("9999999999", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ],
    )
    def test_retry_after_is_told_where_it_makes_sense(
        self, connect: Connect, target: Path, value: str | None, seconds: float | None
    ) -> None:
        with (
            RawServer(raw(b"", 429, Retry_After=value)) as server,
            pytest.raises(RateLimitExceededError) as caught,
        ):
            download(connect(server.url), "abc", target)
        assert caught.value.retry_after == seconds

    @pytest.mark.parametrize("zone", ["GMT", "-0000"])
    def test_retry_after_may_be_a_date(self, connect: Connect, target: Path, zone: str) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True).replace("GMT", zone)
        with (
            RawServer(raw(b"", 429, Retry_After=date)) as server,
            pytest.raises(RateLimitExceededError) as caught,
        ):
            download(connect(server.url), "abc", target)
        assert caught.value.retry_after == pytest.approx(600, abs=5)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"null",
            b"[]",
            b'{"_errors": []}',
            b'{"_errors": "no"}',
            b'{"_errors": {"code": 1}}',
            b'{"_errors": ["not_found"]}',
            b'{"_errors": [{"code": null}]}',
            b"[" * 60_000,
            b"\xff\xfe",
            problem(code="not_found", detail="x" * 1_000_000),
        ],
    )
    def test_the_status_decides_where_the_body_says_nothing(self, connect: Connect, target: Path, body: bytes) -> None:
        with RawServer(raw(body, 404)) as server, pytest.raises(RecordingNotFoundError, match=r"404$") as caught:
            download(connect(server.url), "abc", target)
        assert (caught.value.code, caught.value.title, caught.value.detail) == (None, None, None)

    @pytest.mark.parametrize(
        "response",
        [
            raw(problem(code="not_found"), 404, Content_Length="9999"),
            raw(gzip.compress(problem(code="not_found")), 404, Content_Encoding="gzip"),
        ],
        ids=["cut", "gzip"],
    )
    def test_the_status_decides_where_the_body_cannot_be_read(
        self, connect: Connect, target: Path, response: bytes
    ) -> None:
        with RawServer(response) as server, pytest.raises(RecordingNotFoundError) as caught:
            download(connect(server.url), "abc", target)
        assert caught.value.code is None

    def test_long_and_odd_words_of_the_api_are_cut_to_text(self, connect: Connect, target: Path) -> None:
        body = problem(code=40400, title=["Not", "Found"], detail="x" * 1000)
        with RawServer(raw(body, 404)) as server, pytest.raises(RecordingNotFoundError) as caught:
            download(connect(server.url), "abc", target)
        assert (caught.value.code, caught.value.title) == ("40400", "['Not', 'Found']")
        assert caught.value.detail == "x" * 300

    @pytest.mark.parametrize("declared", [len(MP3) - 1, len(MP3) + 1])
    def test_a_body_in_chunks_that_contradicts_its_length_is_invalid(
        self, connect: Connect, target: Path, declared: int
    ) -> None:
        response = raw(chunks(MP3), Content_Length=str(declared), Transfer_Encoding="chunked")
        with RawServer(response) as server, pytest.raises(InvalidRecordingError, match=f"declares {declared} bytes"):
            download(connect(server.url), "abc", target)
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    def test_a_transfer_encoding_without_chunks_or_length_proves_nothing(
        self, connect: Connect, target: Path, encoding: str
    ) -> None:
        response = raw(MP3, Content_Length=None, Transfer_Encoding=encoding)
        with RawServer(response) as server, pytest.raises(InvalidRecordingError, match="neither a length nor chunks"):
            download(connect(server.url), "abc", target)

    def test_a_recording_that_declares_too_much_is_not_read(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download_module, "MAX_RECORDING_SIZE", 2 * MIB)
        with (
            Sandbox(calls=[make_call(id="abc--large-3", start_date=END)]) as sandbox,
            pytest.raises(InvalidRecordingError, match=rf"declares {3 * MIB} bytes.* is {2 * MIB}"),
        ):
            download(connect(sandbox.url), "abc--large-3", target)
        assert list(target.parent.iterdir()) == []

    def test_a_recording_that_does_not_end_is_given_up(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download_module, "MAX_RECORDING_SIZE", 3 * MIB)
        with (
            Sandbox() as sandbox,
            pytest.raises(InvalidRecordingError, match=f"does not end within {3 * MIB} bytes"),
        ):
            download(connect(sandbox.url), "abc--endless", target)
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("fault", ["large-3", "chunked"])
    def test_a_recording_of_the_greatest_size_is_taken(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        with Sandbox(calls=[make_call(id=f"abc--{fault}", start_date=END)]) as sandbox:
            size = sandbox.recording_size(f"abc--{fault}")
            monkeypatch.setattr(download_module, "MAX_RECORDING_SIZE", size)
            assert download(connect(sandbox.url), f"abc--{fault}", target).size == size

    def test_a_download_ends_once_it_is_cancelled(self, connect: Connect, target: Path) -> None:
        asked: list[int] = []

        def cancelled() -> bool:
            asked.append(target.stat().st_size)
            return len(asked) == 3

        with Sandbox() as sandbox, pytest.raises(InvalidRecordingError, match="cancelled"):
            download(connect(sandbox.url), "abc--endless", target, cancelled=cancelled)
        assert len(asked) == 3
        assert list(target.parent.iterdir()) == []

    def test_a_download_goes_on_while_it_is_not_cancelled(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--large-3", start_date=END)]) as sandbox:
            assert download(connect(sandbox.url), "abc--large-3", target, cancelled=lambda: False).size == 3 * MIB

    def test_a_body_that_trickles_in_for_too_long_is_given_up(
        self, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download_module, "MAX_DOWNLOAD_TIME", 0.3)
        row = make_call(id="abc--drip", start_date=END)
        with Sandbox(calls=[row]) as sandbox, pytest.raises(InvalidRecordingError, match="cut short"):
            download(connect(sandbox.url), "abc--drip", target)
        assert list(target.parent.iterdir()) == []

    def test_aborting_ends_a_read_that_waits_for_the_next_byte(self, connect: Connect, target: Path) -> None:
        with Sandbox(calls=[make_call(id="abc--drip", start_date=END)]) as sandbox:
            api = connect(sandbox.url)
            timer = threading.Timer(0.5, api.abort)
            timer.start()
            with pytest.raises(RequestAbortedError):
                download(api, "abc--drip", target)
            timer.join()
        assert list(target.parent.iterdir()) == []

    def test_no_file_is_left_after_an_interruption(self, connect: Connect, target: Path) -> None:
        def interrupt() -> bool:
            raise KeyboardInterrupt

        with RawServer(raw(MP3)) as server, pytest.raises(KeyboardInterrupt):
            download(connect(server.url), "abc", target, cancelled=interrupt)
        assert list(target.parent.iterdir()) == []
