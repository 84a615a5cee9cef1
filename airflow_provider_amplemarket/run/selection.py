"""The calls that a DAG names with ``call_ids``: reading what was given, and finding them with few questions."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_amplemarket.archive.layout import Place
from airflow_provider_amplemarket.archive.store import Archive, Entry
from airflow_provider_amplemarket.calls import Call, is_plain_id
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError
from airflow_provider_amplemarket.run.plan import Item


def is_nothing(value: Any) -> bool:
    """Tell whether a parameter is empty, or was rendered to nothing: such a template may read "None"."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def read_call_ids(value: Any) -> dict[str, Any]:
    """
    Read ``call_ids``: ids or rows, from a list, an XCom result, or the text of either.

    :return: for each id the ``start_date`` that came with it; None where there was none.
    :raises AmplemarketConfigurationError: when it has anything else.
    """
    if is_nothing(value):
        raise AmplemarketConfigurationError(
            f"call_ids={value!r}: it was given, but there is nothing in it. Look at the template or the XCom that it "
            "comes from; [] asks for no calls, and without the parameter all calls of the window are archived."
        )
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, str) and value.startswith("["):
        value = _read_list(value)
    if isinstance(value, str | Mapping):
        value = [value]
    if not isinstance(value, Iterable):
        raise AmplemarketConfigurationError(f"call_ids={value!r} is no list of ids")
    starts: dict[str, Any] = {}
    for row in value:
        row = row if isinstance(row, Mapping) else {"id": row}
        call_id = row.get("call_id", row.get("id"))
        if not is_plain_id(call_id) or is_nothing(call_id):
            raise AmplemarketConfigurationError(f"call_ids has {str(call_id)[:100]!r}, which is no call id")
        starts[call_id] = starts.get(call_id) or row.get("start_date")
    return starts


def _read_list(text: str) -> Any:
    """Read a list that a template rendered: as JSON, or as Python writes it."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    raise AmplemarketConfigurationError(f"call_ids={text[:100]!r} is no list")


@dataclass
class NamedCalls:
    """
    Find calls of which little more than the id is known: in the archive first, and the rest in the API's list.

    What was found is remembered. To look again, also after a wait, takes no search of the archive, and no more
    pages of the list than it takes to find again what is still missing.

    :param starts: the ids, each with its ``start_date`` as far as that is known.
    :param keys: where each lies, or is to lie, in the archive; empty until they were looked for.
    :param unlisted: ids that are not in the API's list.
    :param external: ids whose recordings the API does not serve.
    """

    starts: Mapping[str, Any]
    keys: dict[str, str] = field(default_factory=dict)
    unlisted: set[str] = field(default_factory=set)
    external: set[str] = field(default_factory=set)

    def remember(self, memory: str) -> None:
        """Take over what an earlier stretch of the same try has found, unless other calls are named by now."""
        found = json.loads(memory)
        if found["keys"].keys() | set(found["external"]) == self.starts.keys():
            self.keys, self.unlisted, self.external = found["keys"], set(found["unlisted"]), set(found["external"])

    @property
    def memory(self) -> str:
        """What was found, as a text for :meth:`remember`."""
        return json.dumps(
            {"keys": self.keys, "unlisted": sorted(self.unlisted), "external": sorted(self.external)},
            separators=(",", ":"),
        )

    def find(self, archive: Archive, listing: Iterator[Call], is_missing: Callable[[Item], bool]) -> list[Item]:
        """
        Look for the calls.

        :param archive: where to look first.
        :param listing: the API's list, newest first; read no further than needed.
        :param is_missing: whether the recording is to be asked for, and so the call's fields are needed.
        """
        entries = self._remembered(archive) if self.keys else self._searched(archive)
        items = {call_id: Item({"id": call_id}, entry) for call_id, entry in entries.items()}
        wanted = {call_id for call_id, item in items.items() if is_missing(item)} - self.unlisted
        listed = self._listed(listing, wanted)
        self.unlisted |= wanted - listed.keys() - self.external
        items |= self._placed(archive, listed, entries)
        found = {call_id: item for call_id, item in items.items() if call_id not in self.external}
        self.keys = {call_id: item.entry.place.audio for call_id, item in found.items()}
        return list(found.values())

    def _listed(self, listing: Iterator[Call], wanted: set[str]) -> dict[str, Call]:
        left = set(wanted)
        listed: dict[str, Call] = {}
        while left and (call := next(listing, None)) is not None:
            call_id = call.get("id")
            if not is_plain_id(call_id) or call_id not in left:
                continue
            left.discard(call_id)
            if call.get("external") is True:
                self.external.add(call_id)
            else:
                listed[call_id] = call
        return listed

    def _placed(self, archive: Archive, listed: Mapping[str, Call], entries: Mapping[str, Entry]) -> dict[str, Item]:
        """See what lies where calls belong whose fields are known by now."""
        places = {call_id: archive.layout.place(call) for call_id, call in listed.items()}
        elsewhere = [place for call_id, place in places.items() if place != entries[call_id].place]
        placed = {**{entry.place.audio: entry for entry in entries.values()}, **archive.entries(elsewhere)}
        items = {}
        for call_id, call in listed.items():
            entry = placed[places[call_id].audio]
            # A recording that is archived stays where it is, whatever the list has learned of the call since.
            stays = entries[call_id].is_settled and not entry.is_settled
            items[call_id] = Item(call, entries[call_id] if stays else entry)
        return items

    def _remembered(self, archive: Archive) -> dict[str, Entry]:
        places = archive.layout.find(self.keys, self.keys.values())
        entries = archive.entries(place for some in places.values() for place in some)
        return {call_id: entries[key] for call_id, key in self.keys.items()}

    def _searched(self, archive: Archive) -> dict[str, Entry]:
        """Look where the calls must lie if what is known of them is right, and then everywhere."""
        layout = archive.layout
        undated = {call_id: layout.undated({"id": call_id}) for call_id in self.starts}
        places: dict[str, list[Place]] = {
            call_id: [layout.place({"id": call_id, "start_date": start}), undated[call_id]]
            for call_id, start in self.starts.items()
        }
        entries = archive.entries(place for some in places.values() for place in some)
        found = {
            call_id: next((entries[place.audio] for place in some if entries[place.audio].is_settled), None)
            for call_id, some in places.items()
        }
        anywhere = archive.search(call_id for call_id, entry in found.items() if entry is None)
        return {
            call_id: entry or anywhere.get(call_id) or entries[undated[call_id].audio]
            for call_id, entry in found.items()
        }
