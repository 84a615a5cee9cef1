"""Where in the archive a recording lies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from airflow_provider_amplemarket.archive.template import KeyTemplate, Place
from airflow_provider_amplemarket.calls import Call, start_of

__all__ = ["DEFAULT_KEY", "UNDATED_KEY", "Layout", "Place"]

DEFAULT_KEY = "date={start_date:%Y-%m-%d}/{id}.mp3"
UNDATED_KEY = "undated/{id}.mp3"


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
        self._dated = KeyTemplate(key)
        self._undated = KeyTemplate(UNDATED_KEY)

    def place(self, call: Call) -> Place:
        """
        Return where a call's recording belongs.

        :param call: the call, whose id must be a plain token.
        """
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
