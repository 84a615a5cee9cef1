"""Where in the archive a recording lies: keys are made from a call's fields, which are never trusted."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from airflow_provider_amplemarket.calls import Call, is_plain_id, start_of
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError

DEFAULT_KEY = "date={start_date:%Y-%m-%d}/{id}.mp3"
UNDATED_KEY = "undated/{id}.mp3"

#: The fields of a call that a key may be made from.
FIELDS = (
    "id",
    "from",
    "to",
    "direction",
    "duration",
    "answered",
    "human",
    "start_date",
    "external",
    "disposition_id",
    "disposition_name",
    "task_id",
    "user_id",
    "user_email",
)

_EXAMPLE = {"id": "0190c5d8-0000-4000-8000-000000000000", "start_date": "2026-11-20T16:30:08Z"}

#: A part between slashes that is empty, "." or "..", or a character that no path should have.
_NO_RELATIVE_PATH = re.compile(r"(^|/)\.{0,2}(/|\Z)|[\x00-\x1f\\]")


@dataclass(frozen=True)
class Place:
    """The keys of one call's objects, relative to the archive's root, and the folder to list in order to see them."""

    audio: str
    sidecar: str
    folder: str


class Layout:
    """Give every call its place, and find places among the keys that are there.

    :param key: a format string over the fields of a call, ``start_date`` being a datetime in UTC. It must
        contain ``{id}``, with some text between it and any other field, outside the braces. Of the other fields'
        values what is not plain is replaced by ``_``, and a missing one reads ``unknown``. Calls without a date go
        under ``undated/``.
    :raises AmplemarketConfigurationError: when the key cannot work; the message says why.
    """

    def __init__(self, key: str = DEFAULT_KEY) -> None:
        self._dated = _Template(key)
        self._undated = _Template(UNDATED_KEY)

    def place(self, call: Call) -> Place:
        """Return where the recording of a call belongs, whose id must be a plain token."""
        template = self._dated if start_of(call) else self._undated
        return template.place(call)

    def undated(self, call: Call) -> Place:
        """Return where a recording lies that was archived before the call's date was known."""
        return self._undated.place(call)

    def find(self, call_ids: Iterable[str], keys: Iterable[str]) -> dict[str, list[Place]]:
        """Return the places of those calls whose audio or sidecar is among the keys."""
        found: dict[str, list[Place]] = {}
        for call_id, place in self._matches("|".join(map(re.escape, call_ids)), keys):
            places = found.setdefault(call_id, [])
            if place not in places:
                places.append(place)
        return found

    def _matches(self, ids: str, keys: Iterable[str]) -> Iterator[tuple[str, Place]]:
        patterns = [(template, template.pattern(ids)) for template in (self._undated, self._dated)]
        for key in keys:
            for template, pattern in patterns:
                audio = template.audio_of(key)
                if match := pattern.fullmatch(audio):
                    yield match["id"], template.place_of(audio, audio[: match.start("id")])


@dataclass(frozen=True)
class _Text:
    """Text of a template, the same for every call."""

    text: str

    @property
    def pattern(self) -> str:
        return re.escape(self.text)

    def fill(self, _: Call) -> str:
        return self.text


@dataclass(frozen=True)
class _Field:
    """A field of a call in a template. Only a date may have a format; it is written as ISO 8601 without one."""

    name: str
    format: str = ""

    def __str__(self) -> str:
        """Return it as in a template, its format without separators at its ends."""
        date_format = self.format.strip("/._=-")
        return f"{{{self.name}:{date_format}}}" if date_format else f"{{{self.name}}}"

    @property
    def pattern(self) -> str:
        # The id is the one that was found before in the same key.
        return "(?P=id)" if self == _ID else ".*?"

    def fill(self, call: Call) -> str:
        start = start_of(call) if self.name == "start_date" else None
        if start is None:
            return _plain(call.get(self.name))
        return format(start, self.format) if self.format else start.isoformat()


_ID = _Field("id")


class _Template:
    """Make keys from calls, and recognize such keys; :class:`Layout` explains ``key``."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._parts = list(self._parse())
        self._check_parts()
        self._id_at = self._parts.index(_ID)
        suffix = re.search(r"\.[A-Za-z0-9]+$", key)
        self._suffix = suffix.group() if suffix else ""
        self._check_example()

    def place(self, call: Call) -> Place:
        """Return the place of a call, whose id must be a plain token."""
        if not is_plain_id(call.get("id")):
            raise ValueError("a call whose id is not a plain token has no place in the archive")
        texts = [part.fill(call) for part in self._parts]
        return self.place_of("".join(texts), "".join(texts[: self._id_at]))

    def place_of(self, audio: str, before_id: str) -> Place:
        """Return the place of an audio key, of which the second argument is what stands before the call's id."""
        return Place(audio, audio.removesuffix(self._suffix) + ".json", before_id.rpartition("/")[0])

    def audio_of(self, key: str) -> str:
        """Return the audio key that a key, which may be a sidecar's, belongs to."""
        return key.removesuffix(".json") + self._suffix if key.endswith(".json") else key

    def pattern(self, ids: str) -> re.Pattern[str]:
        """Return the pattern of the audio keys of some ids, themselves given as a pattern; its group is ``id``."""
        patterns = [part.pattern for part in self._parts]
        patterns[self._id_at] = f"(?P<id>{ids})"
        return re.compile("".join(patterns))

    def _parse(self) -> Iterator[_Text | _Field]:
        try:
            parsed = list(string.Formatter().parse(self._key))
        except (TypeError, ValueError) as error:
            raise self._error(str(error)) from None
        for text, name, spec, conversion in parsed:
            if text:
                yield _Text(text)
            if name is not None:
                yield self._field(name, spec or "", conversion)

    def _field(self, name: str, spec: str, conversion: str | None) -> _Field:
        if name not in FIELDS:
            raise self._error(f"{{{name}}} is not a field of a call; the fields are {', '.join(FIELDS)}")
        is_date_format = name == "start_date" and "{" not in spec
        if conversion or (spec and not is_date_format):
            raise self._error(f"of the fields only start_date takes a format, not {name}")
        return _Field(name, spec)

    def _check_parts(self) -> None:
        if _ID not in self._parts:
            raise self._error("it must contain {id}")
        for left, right in pairwise(self._parts):
            # What a date's format ends with is not looked into: only other text is the same for every value.
            has_text_between = isinstance(left, _Text) or isinstance(right, _Text)
            is_next_to_id = (left == _ID) != (right == _ID)
            if is_next_to_id and not has_text_between:
                raise self._error(
                    f"only text outside the braces keeps {{id}} apart from other fields, so that each call has a "
                    f"name of its own; write {left}/{right}"
                )

    def _check_example(self) -> None:
        if self._suffix.lower() == ".json":
            raise self._error("what ends in .json are the sidecars")
        example = self.place(_EXAMPLE).audio
        if _NO_RELATIVE_PATH.search(example):
            raise self._error(f"it gives {example!r}, which is not a relative path")

    def _error(self, why: str) -> AmplemarketConfigurationError:
        return AmplemarketConfigurationError(f"key={self._key!r} cannot be used: {why}")


def _plain(value: Any) -> str:
    """Return a value as part of a key: what is not plain in it is replaced."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return str(value).lower()
    text = re.sub(r"[^A-Za-z0-9._+@=-]", "_", str(value))[:128]
    return text if text.strip(".") else "unknown"
