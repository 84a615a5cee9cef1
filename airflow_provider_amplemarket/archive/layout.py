"""Where in the archive a recording lies: keys made from a call's fields, never trusting them."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
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


@dataclass(frozen=True)
class Place:
    """
    The keys of one call, relative to the archive's root.

    :param audio: the recording.
    :param sidecar: the JSON object beside it.
    :param folder: what is listed to see whether they are there; many calls share it.
    """

    audio: str
    sidecar: str
    folder: str


class Layout:
    """
    Give every call its place, and find places among the keys that are there.

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
        """
        Answer where a call's recording belongs.

        :param call: the call, whose id must be a plain token.
        """
        return (self._dated if start_of(call) else self._undated).place(call)

    def undated(self, call: Call) -> Place:
        """Answer where a recording lies that was archived before the call's date was known."""
        return self._undated.place(call)

    def find(self, call_ids: Iterable[str], keys: Iterable[str]) -> dict[str, list[Place]]:
        """Answer the places of those calls whose audio or sidecar is among the keys."""
        ids = "|".join(map(re.escape, call_ids))
        patterns = [(template, re.compile(template.pattern(ids))) for template in (self._undated, self._dated)]
        found: dict[str, list[Place]] = {}
        for key in keys:
            for template, pattern in patterns:
                audio = key.removesuffix(".json") + template.suffix if key.endswith(".json") else key
                if match := pattern.fullmatch(audio):
                    place = template.place_of(audio, audio[: match.start("id")])
                    if place not in (places := found.setdefault(match["id"], [])):
                        places.append(place)
        return found


class _Template:
    def __init__(self, key: str) -> None:
        self._key = key
        self._parts = self._parse()
        suffix = re.search(r"\.[A-Za-z0-9]+$", self._parts[-1][0]) if self._parts[-1][1] is None else None
        self.suffix = suffix.group() if suffix else ""
        example = self.place(_EXAMPLE).audio
        if self.suffix.lower() == ".json":
            raise self._wrong("what ends in .json are the sidecars")
        if any(part in ("", ".", "..") for part in example.split("/")) or re.search(r"[\x00-\x1f\\]", example):
            raise self._wrong(f"it gives {example!r}, which is no relative path")

    def place(self, call: Call) -> Place:
        if not is_plain_id(call.get("id")):
            raise ValueError("a call whose id is not a plain token has no place in the archive")
        audio, before_id = "", None
        for literal, name, spec in self._parts:
            audio += literal
            if name == "id":
                before_id = audio if before_id is None else before_id
                audio += call["id"]
            elif name == "start_date" and (start := start_of(call)) is not None:
                audio += format(start, spec) if spec else start.isoformat()
            elif name is not None:
                audio += _plain(call.get(name))
        return self.place_of(audio, before_id or "")

    def place_of(self, audio: str, before_id: str) -> Place:
        return Place(audio, audio.removesuffix(self.suffix) + ".json", before_id.rpartition("/")[0])

    def pattern(self, ids: str) -> str:
        """Write the pattern of the keys of some ids, themselves given as a pattern."""
        pattern, group = "", f"(?P<id>{ids})"
        for literal, name, _ in self._parts:
            pattern += re.escape(literal)
            if name == "id":
                pattern, group = pattern + group, "(?P=id)"
            elif name is not None:
                pattern += ".*?"
        return pattern

    def _parse(self) -> list[tuple[str, str | None, str]]:
        try:
            parsed = list(string.Formatter().parse(self._key))
        except (TypeError, ValueError) as error:
            raise self._wrong(str(error)) from None
        for _, name, spec, conversion in parsed:
            if name is not None and name not in FIELDS:
                raise self._wrong(f"{{{name}}} is no field of a call; known are {', '.join(FIELDS)}")
            if conversion or (spec and (name != "start_date" or "{" in spec)):
                raise self._wrong(f"of the fields only start_date takes a format, not {name}")
        if "id" not in [name for _, name, _, _ in parsed]:
            raise self._wrong("it must contain {id}")
        for (_, left, left_spec, _), (between, right, right_spec, _) in pairwise(parsed):
            if left and not between and left != right and "id" in (left, right):
                # What a date's format ends with is not looked into: only other text is the same for every value.
                better = f"{_field(left, left_spec)}/{_field(right, right_spec)}"
                raise self._wrong(
                    f"only text outside the braces keeps {{id}} apart from other fields, so that each call has a "
                    f"name of its own; write {better}"
                )
        return [(literal, name, spec or "") for literal, name, spec, _ in parsed]

    def _wrong(self, why: str) -> AmplemarketConfigurationError:
        return AmplemarketConfigurationError(f"key={self._key!r} cannot be used: {why}")


def _field(name: str | None, spec: str | None) -> str:
    """Write a field as in a key, its format without separators at its ends."""
    date = (spec or "").strip("/._=-")
    return f"{{{name}:{date}}}" if date else f"{{{name}}}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None else re.sub(r"[^A-Za-z0-9._+@=-]", "_", str(value))[:128]
    return text if text.strip(".") else "unknown"
