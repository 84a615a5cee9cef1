"""The sandbox's recordings can be played, are unique, and are served byte for byte."""

from __future__ import annotations

import hashlib

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox
from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE, id3, recording_of, samples
from tests.sandbox.client import fetch, good_call


class TestAudio:
    def test_a_recording_is_unique_playable_and_always_the_same(self, sandbox: Sandbox) -> None:
        recordings = {call["id"]: sandbox.recording(call["id"]) for call in sandbox.calls}
        assert len(set(recordings.values())) == len(recordings)
        for call_id, recording in recordings.items():
            tag = id3(call_id)
            assert recording.startswith(b"ID3\x03\x00\x00")
            assert call_id.encode() in tag
            # The tag says where the sound begins.
            length = 10 + (recording[8] << 7 | recording[9])
            assert recording[:length] == tag
            assert recording[length:] in samples()
            assert sandbox.recording_sha256(call_id) == hashlib.sha256(recording).hexdigest()
            assert sandbox.recording_size(call_id) == len(recording)

    @pytest.mark.parametrize("sample", samples())
    def test_a_sample_is_small_and_of_whole_frames(self, sample: bytes) -> None:
        assert len(sample) < 15_000
        # MPEG-2 layer III, mono, 16 kbit/s at 16 kHz: frames of 72 bytes, from the first byte to the last.
        assert len(sample) % 72 == 0
        assert {sample[at : at + 2] for at in range(0, len(sample), 72)} == {b"\xff\xf3"}

    def test_a_large_recording_has_exactly_its_size_and_whole_frames(self) -> None:
        recording = recording_of("call--large-3", mebibytes=3)
        data = b"".join(recording)
        assert len(data) == recording.size == 3 * MEBIBYTE
        assert data.endswith(recording.sample)
        assert data[len(recording.tag) :][:2] == b"\xff\xf3"


class TestServing:
    def test_a_recording_is_served_byte_for_byte(self, sandbox: Sandbox) -> None:
        call_id = good_call(sandbox)
        got = fetch(sandbox, call_id)
        assert (got.status, got.headers["content-type"]) == (200, "audio/mpeg")
        assert got.headers["content-length"] == str(len(got.body))
        assert got.body == sandbox.recording(call_id)

    def test_recordings_of_external_and_unknown_calls_are_not_found(self, sandbox: Sandbox) -> None:
        external = next(call["id"] for call in sandbox.calls if call["external"])
        for call_id in (external, "unknown", "%2e%2e%2fsecret", "unknown--nofault"):
            got = fetch(sandbox, call_id)
            assert got.status == 404
            assert got.error() == {
                "code": "not_found",
                "title": "Not Found",
                "detail": "Call not found",
                "source": {"pointer": "/id"},
            }
