"""What the first bytes of a body say of it."""

from __future__ import annotations


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
