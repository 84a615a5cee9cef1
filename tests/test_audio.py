"""What the first bytes of a body say of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_amplemarket.audio import is_mpeg, is_text
from tests import sandbox

SAMPLES = sorted((Path(sandbox.__file__).parent / "audio").glob("*.mp3"))

TEXTS = [
    b"<!DOCTYPE html>\r\n<html><body>\tPlease try again</body></html>\n",
    b'{"status": "processing"}',
    "\ufeff<?xml version='1.0'?><Error>é 漢 🎧</Error>".encode(),
    "<p>Téléphone indisponible, réessayez à midi</p>".encode("latin-1"),
    b"x",
]
SOUNDS = [
    b"RIFF\x24\x08\x00\x00WAVEfmt ",
    b"OggS\x00\x02\x00\x00\x00\x00",
    b"fLaC\x00\x00\x00\x22",
    b"\x00\x00\x00\x20ftypM4A ",
    b"\x1aE\xdf\xa3\x01\x00\x00\x00",
    b"\xff\xf1\x50\x80\x02\x1f\xfc\x00",
    bytes(1024),
    b"\xff" * 1024,
    b"\x80\xfe" * 512,
    b"\xd5" * 1024,
    random.Random(7).randbytes(1024),
]


def frame(version: int = 3, layer: int = 1, bitrate: int = 9, sampling: int = 0, sync: int = 0x7FF) -> bytes:
    """Write an MPEG audio frame header: 11 bits of sync, version, layer, protection, bit rate, sampling rate."""
    bits = sync << 21 | version << 19 | layer << 17 | 1 << 16 | bitrate << 12 | sampling << 10
    return bits.to_bytes(4, "big")


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_real_recording_is_mpeg_with_its_tag_and_without(path: Path) -> None:
    body = path.read_bytes()
    assert is_mpeg(body[:1024])
    assert is_mpeg(b"ID3\x03\x00\x00\x00\x00\x00\x00" + body[:100])


@pytest.mark.parametrize("version", [0, 2, 3])
@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_every_frame_header_of_the_standard_is_mpeg(version: int, layer: int, sampling: int) -> None:
    assert all(is_mpeg(frame(version, layer, bitrate, sampling)) for bitrate in range(15))


@pytest.mark.parametrize(
    "head",
    [
        frame(version=1),
        frame(layer=0),
        frame(bitrate=15),
        frame(sampling=3),
        frame(sync=0x7FE),
        frame(sync=0x3FF),
        frame()[:3],
        frame()[:1],
        b"",
        b"\x00" + frame(),
        b"ID",
        b"id3\x03",
        *TEXTS,
        *SOUNDS,
    ],
)
def test_anything_else_is_not(head: bytes) -> None:
    assert not is_mpeg(head)


@pytest.mark.parametrize("head", TEXTS)
def test_a_page_of_a_server_is_text(head: bytes) -> None:
    assert is_text(head)


@pytest.mark.parametrize(
    "head", [*SOUNDS, *[path.read_bytes()[:1024] for path in SAMPLES]], ids=lambda head: head[:8].hex()
)
def test_sound_is_no_text(head: bytes) -> None:
    assert not is_text(head)


@given(
    st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\u00a0"), min_size=8),
    st.integers(0, 3),
)
def test_text_stays_text_where_it_is_cut_within_a_character(text: str, cut: int) -> None:
    printable = "".join(character for character in text if character.isprintable())
    head = f"<html>{printable}".encode()
    assert is_text(head[: len(head) - cut])


@given(st.binary(min_size=4, max_size=64))
def test_any_bytes_get_an_answer(head: bytes) -> None:
    assert is_mpeg(head) in (True, False)
    # Control characters have no place in text.
    assert not is_text(b"\x00" + head)
