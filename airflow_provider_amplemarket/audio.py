"""Whether the bytes of a body are MPEG audio, text, or audio that was cut."""

from __future__ import annotations

from functools import lru_cache

_SYNC = 0x7FF
#: What text has though it is not printable: white space, and a byte order mark.
_NOT_PRINTABLE = dict.fromkeys(map(ord, "\r\n\t\ufeff"))


def is_mpeg(head: bytes) -> bool:
    """Return whether the bytes begin with an ID3v2 tag or an MPEG audio frame header (ISO/IEC 11172-3, 2.4.1.3)."""
    if head.startswith(b"ID3"):
        return True
    if len(head) < 4:
        return False
    sync = head[0] << 3 | head[1] >> 5
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, sampling = head[2] >> 4, head[2] >> 2 & 3
    not_in_use = (version == 1, layer == 0, bitrate == 15, sampling == 3)
    return sync == _SYNC and not any(not_in_use)


def is_text(head: bytes) -> bool:
    """Return whether the bytes read as text: no audio does for a kilobyte."""
    text = head.decode("utf-8", errors="replace").removesuffix("\ufffd")
    # Text in an older encoding has few bytes that are no UTF-8; sound has many.
    if text.count("\ufffd") > len(text) // 8:
        return False
    return text.translate(_NOT_PRINTABLE).isprintable()


class MpegFrames:
    """Follow the frames of MPEG audio through a stream of bytes, to know whether all of it is there.

    Each frame's header has the frame's length, so the last frame of a whole stream ends where the stream ends. A cut
    right between two frames is not noticed, and nothing is known of MPEG in the free format, which has no lengths.
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
        while position + self._HEADER <= len(data):
            length = _id3v2_length(data, position) or _frame_length(data[position : position + 3])
            if length == 0:
                self._is_past_frames = True
                break
            if data[position] == 0xFF:
                self._has_frames = True
            position += length
        self._until_next = max(position - len(data), 0)
        self._rest = data[position:]

    @property
    def is_whole(self) -> bool:
        """Whether frames run to the end without a gap, and nothing but tags follows the last one."""
        ends_within_a_frame = self._until_next > 0
        if not self._has_frames or ends_within_a_frame:
            return False
        tags = self._rest
        if len(tags) > self._MOST_TAGS:
            return False
        while length := _last_tag_length(tags):
            tags = tags[:-length]
        return not tags


#: By the two bits of the version in a frame's header: MPEG-1 or MPEG-2, which 2.5 is a kind of.
_GENERATIONS = {3: 1, 2: 2, 0: 2}
#: By the same bits: what the sampling rates of MPEG-1 are divided by.
_SAMPLING_DIVISORS = {3: 1, 2: 2, 0: 4}
#: kbit/s by the four bits of a frame's header, for MPEG-1 and MPEG-2; 0 is the free format, 15 is not used.
_BITRATES = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
#: Samples a second in MPEG-1.
_SAMPLING = (44_100, 48_000, 32_000)
#: A frame's bytes times the sampling rate by the bit rate; layer I counts in slots of four bytes.
_FACTORS = {(1, 2): 144, (1, 3): 144, (2, 2): 144, (2, 3): 72}


@lru_cache(maxsize=256)
def _frame_length(header: bytes) -> int:
    """Return the length of the frame that begins with these three bytes; 0 where none does, or it has no length."""
    if not is_mpeg(header + b"\0") or header[0] != 0xFF:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    kind = _GENERATIONS[version], layer
    bitrate = _BITRATES[kind][header[2] >> 4] * 1000
    sampling = _SAMPLING[header[2] >> 2 & 3] // _SAMPLING_DIVISORS[version]
    padding = header[2] >> 1 & 1
    if not bitrate:
        return 0
    if layer == 1:
        return (12 * bitrate // sampling + padding) * 4
    return _FACTORS[kind] * bitrate // sampling + padding


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
    length = _announced_tag_length(data)
    if length > len(data):
        return 0
    return length


def _announced_tag_length(data: bytes) -> int:
    if data[-128:-125] == b"TAG":
        return 355 if data[-355:-351] == b"TAG+" else 128
    if data[-32:-24] == b"APETAGEX":
        has_header = bool(data[-9] & 0x80)
        return int.from_bytes(data[-20:-16], "little") + (32 if has_header else 0)
    if data.endswith(b"LYRICS200"):
        size = data[-15:-9]
        if size.isdigit():
            return int(size) + 15
    if data.endswith(b"LYRICSEND"):
        # Where it does not begin, it is longer than the data.
        return len(data) - data.rfind(b"LYRICSBEGIN")
    return 0
