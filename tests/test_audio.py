"""What the first bytes of a body say of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_amplemarket import sandbox
from airflow_provider_amplemarket.audio import MpegFrames, is_mpeg, is_text
from airflow_provider_amplemarket.sandbox.recordings import id3, recording_of

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


# Whole streams of frames

#: Length of one frame by version (3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5), layer (3: I, 2: II, 1: III), four bits of the
#: bit rate and two of the sampling rate; computed by hand from the standard's tables.
LENGTHS = {
    (3, 1, 9, 0): 417,  # 144 * 128,000 / 44,100
    (3, 1, 14, 2): 1440,  # 144 * 320,000 / 32,000
    (3, 2, 10, 1): 576,  # 144 * 192,000 / 48,000
    (3, 3, 1, 0): 32,  # 12 * 32,000 / 44,100, times 4
    (3, 3, 14, 2): 672,  # 12 * 448,000 / 32,000, times 4
    (2, 1, 2, 2): 72,  # 72 * 16,000 / 16,000
    (2, 1, 1, 1): 24,  # 72 * 8,000 / 24,000, the shortest there is
    (2, 2, 8, 0): 417,  # 144 * 64,000 / 22,050
    (2, 3, 7, 2): 336,  # 12 * 112,000 / 16,000, times 4
    (0, 1, 8, 2): 576,  # 72 * 64,000 / 8,000
    (0, 1, 3, 0): 156,  # 72 * 24,000 / 11,025
    (0, 2, 14, 1): 1920,  # 144 * 160,000 / 12,000
    (0, 3, 1, 1): 128,  # 12 * 32,000 / 12,000, times 4
}


def frames(count: int = 5, version: int = 3, layer: int = 1, bitrate: int = 9, sampling: int = 0) -> bytes:
    """Write frames without padding, with noise in them that never looks like a header."""
    noise = bytes(random.Random(7).choices(range(0xF0), k=LENGTHS[version, layer, bitrate, sampling] - 4))
    return (frame(version, layer, bitrate, sampling) + noise) * count


def padded(count: int = 1) -> bytes:
    """Write frames that are one byte longer than those of ``frames``, and say so."""
    header = bytearray(frame())
    header[2] |= 0x02
    return (bytes(header) + bytes(414)) * count


def ape(size: int, has_header: bool = True) -> bytes:
    """Write an APEv2 tag with so many bytes of items."""

    def end(flags: int) -> bytes:
        numbers = (2000, size + 32, 1, flags, 0, 0)
        return b"APETAGEX" + b"".join(number.to_bytes(4, "little") for number in numbers)

    flags = 0x80000000 if has_header else 0
    return (end(flags | 0x20000000) if has_header else b"") + bytes(size) + end(flags)


LYRICS2 = b"LYRICSBEGIN" + b"IND0000200" + b"000021" + b"LYRICS200"
LYRICS1 = b"LYRICSBEGIN" + b"la la la" + b"LYRICSEND"
ID3V1 = b"TAG" + bytes(125)


def is_whole(body: bytes, chunk: int = 1000) -> bool:
    walker = MpegFrames()
    for start in range(0, len(body), chunk):
        walker.feed(body[start : start + chunk])
    return walker.is_whole


@pytest.mark.no_cover
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_real_recording_is_whole_and_any_cut_within_a_frame_is_not(path: Path) -> None:
    body = path.read_bytes()
    assert is_whole(body)
    # 16 kbit/s at 16 kHz: frames of 72 bytes each. A cut between two of them shows nothing.
    for size in range(len(body)):
        assert is_whole(body[:size], chunk=4096) == (size % 72 == 0 and size > 0), size


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 9, 10, 11, 71, 72, 73, 4096, 10**6])
def test_it_does_not_matter_how_the_bytes_come(chunk: int) -> None:
    body = b"".join(recording_of("one")) + ape(5) + LYRICS2 + ID3V1
    assert is_whole(body, chunk)
    assert not is_whole(body[:-1], chunk)
    assert not is_whole(body[:-200], chunk)


@pytest.mark.parametrize("variant", LENGTHS, ids=str)
def test_every_kind_of_frame_has_its_length(variant: tuple[int, int, int, int]) -> None:
    body = frames(5, *variant)
    assert is_whole(body)
    assert not is_whole(body[:-1])
    assert not is_whole(body + b"\0")
    assert not is_whole(body[:50] + body[51:])


def test_padding_and_changing_bit_rates_are_followed() -> None:
    assert is_whole(frames(2) + padded(3) + frames(1, 3, 1, 14, 2) + frames(1))
    assert not is_whole(frames(2) + padded(3)[:-1])


@pytest.mark.parametrize(
    "tags",
    [
        ID3V1,
        b"TAG+" + bytes(223) + ID3V1,
        ape(0),
        ape(40),
        ape(40, has_header=False),
        ape(40) + ID3V1,
        LYRICS1 + ID3V1,
        LYRICS2 + ID3V1,
        ape(7) + LYRICS2 + ID3V1,
        id3("at the end"),
    ],
    ids=lambda tags: tags[:11].hex(),
)
def test_tags_may_follow_the_frames_and_must_be_whole(tags: bytes) -> None:
    assert is_whole(id3("title") + frames() + tags)
    assert not is_whole(frames() + tags[:-1])
    assert not is_whole(frames() + b"?" + tags)
    assert not is_whole(tags)


def test_a_tag_with_a_footer_is_skipped_whole() -> None:
    body = bytes(30)
    tag = b"ID3\x04\x00\x10\x00\x00\x00" + bytes([len(body)]) + body + b"3DI\x04\x00\x10\x00\x00\x00\x1e"
    assert is_whole(tag + frames())
    assert not is_whole(tag)


def test_a_tag_longer_than_the_rest_is_a_cut() -> None:
    assert not is_whole(id3("title", padding=500)[:-1])
    assert not is_whole(frames() + id3("title", padding=500)[:-1])
    assert is_whole(id3("title", padding=500) + frames())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ID3",
        frame(),
        b"ID3" + bytes(range(256)) * 40,
        b"ID3\x03\x00\x00\xff\xff\xff\xff" + frames(),
        frames() + frame(bitrate=0) + bytes(413) + frames(),  # the free format tells no length
        frames() + frame(bitrate=15) + bytes(413) + frames(),
        frames() + frame(sampling=3) + bytes(413) + frames(),
        frames() + frame(version=1) + bytes(413) + frames(),
        frames() + frame(layer=0) + bytes(413) + frames(),
        frames(3) + bytes(417) + frames(3),
        frames(3)[:-100] + bytes(100 + 417),  # a hole where the rest should be
        b"\0" + frames(),
        frames() + b"\0" * (2 * 1024**2) + ID3V1,
        b"LYRICSEND",
        frames() + b"LYRICSEND",
        frames() + b"999999LYRICS200",
        *TEXTS,
        *SOUNDS,
    ],
    ids=lambda body: f"{len(body)}-{body[:6].hex()}",
)
def test_anything_else_is_not_whole(body: bytes) -> None:
    assert not is_whole(body, chunk=100_000)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_taken_and_frames_before_them_do_not_help(body: bytes, chunk: int) -> None:
    assert is_whole(body, chunk) in (True, False)
    # No tag ends with this byte, and no frame is as short.
    assert not is_whole(frames() + b"x" * (len(body) % 20 + 1), chunk)


def test_much_audio_takes_little_memory() -> None:
    walker = MpegFrames()
    for _ in range(50):
        walker.feed(frames(100))
    assert len(walker._rest) < 10
    for _ in range(50):
        walker.feed(bytes(100_000))
    assert len(walker._rest) <= 1024**2 + 1
    assert not walker.is_whole
