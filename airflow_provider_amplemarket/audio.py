"""What the bytes of a body say of it."""

from __future__ import annotations

from functools import lru_cache


def is_mpeg(head: bytes) -> bool:
    """Tell whether the bytes begin with an ID3v2 tag or an MPEG audio frame header (ISO/IEC 11172-3, 2.4.1.3)."""
    if head.startswith(b"ID3"):
        return True
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, sampling = head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer != 0 and bitrate != 15 and sampling != 3


def is_text(head: bytes) -> bool:
    """Tell whether the bytes read as text: no audio does for a kilobyte."""
    text = head.decode("utf-8", errors="replace").removesuffix("\ufffd")
    # Text in an older encoding has few bytes that are no UTF-8; sound has many.
    if text.count("\ufffd") > len(text) // 8:
        return False
    return all(character.isprintable() or character in "\r\n\t\ufeff" for character in text)


class MpegFrames:
    """
    Follow the frames of MPEG audio through a stream of bytes, to tell whether all of it is there.

    Each frame's header tells where the next one begins, so a stream that was cut is known by a last frame that does
    not end with it, unless it was cut right between two. Of MPEG in the free format, which tells no lengths, nothing
    is known.
    """

    #: What is needed to know a block by: an ID3v2 tag's header; no frame is as short as that.
    _HEADER = 10
    #: Bytes after the last frame that may be tags.
    _MOST_TAGS = 1024**2

    def __init__(self) -> None:
        self._rest = b""
        self._until_next = 0
        self._has_frames = False
        self._is_past_frames = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._is_past_frames:
            self._rest += chunk[: self._MOST_TAGS + 1 - len(self._rest)]
            return
        data, position = self._rest + chunk, self._until_next
        while position + self._HEADER <= len(data) and not self._is_past_frames:
            length = _id3v2_length(data, position) or _frame_length(data[position : position + 3])
            self._has_frames = self._has_frames or (length > 0 and data[position] == 0xFF)
            self._is_past_frames = length == 0
            position += length
        self._until_next = max(position - len(data), 0)
        self._rest = data[position:]

    @property
    def is_whole(self) -> bool:
        """Whether frames run to the end without a gap, and nothing but tags follows the last one."""
        tags = self._rest if len(self._rest) <= self._MOST_TAGS else b"?"
        while tags and (length := _last_tag_length(tags)):
            tags = tags[:-length]
        return self._has_frames and self._until_next == 0 and not tags


#: kbit/s by the four bits of a frame's header, for MPEG-1 and MPEG-2; 0 is the free format, 15 is not used.
_BITRATES = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
#: Samples a second in MPEG-1; half of it in MPEG-2, a quarter in MPEG-2.5.
_SAMPLING = (44_100, 48_000, 32_000)


@lru_cache(maxsize=256)
def _frame_length(header: bytes) -> int:
    """Return the length of the frame that begins with these three bytes; 0 where none does, or it does not tell."""
    if not is_mpeg(header + b"\0") or header[0] != 0xFF:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate = _BITRATES[1 if version == 3 else 2, layer][header[2] >> 4] * 1000
    sampling = _SAMPLING[header[2] >> 2 & 3] // {3: 1, 2: 2, 0: 4}[version]
    padding = header[2] >> 1 & 1
    if not bitrate:
        return 0
    if layer == 1:
        return (12 * bitrate // sampling + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bitrate // sampling + padding


def _id3v2_length(data: bytes, position: int) -> int:
    """Return the length of the ID3v2 tag there, with its header and footer; 0 where there is none."""
    header = data[position : position + 10]
    if not header.startswith(b"ID3") or max(header[6:]) > 0x7F:
        return 0
    first, second, third, fourth = header[6:]
    has_footer = bool(header[5] & 0x10)
    return (first << 21 | second << 14 | third << 7 | fourth) + (20 if has_footer else 10)


def _last_tag_length(data: bytes) -> int:
    """Return the length of the ID3v1, APE or Lyrics3 tag at the end; 0 where there is none that is whole."""
    length = 0
    if data[-128:-125] == b"TAG" and len(data) >= 128:
        length = 355 if data[-355:-351] == b"TAG+" else 128
    elif data[-32:-24] == b"APETAGEX":
        has_header = bool(data[-9] & 0x80)
        length = int.from_bytes(data[-20:-16], "little") + (32 if has_header else 0)
    elif data.endswith(b"LYRICS200") and data[-15:-9].isdigit():
        length = int(data[-15:-9]) + 15
    elif data.endswith(b"LYRICSEND"):
        begin = data.rfind(b"LYRICSBEGIN")
        length = len(data) - begin if begin >= 0 else 0
    return length if 0 < length <= len(data) else 0
