"""Find the calls that a DAG names with ``call_ids``, with few questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from airflow_provider_amplemarket.archive.sidecar import Entry, Item
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.calls import Call, is_plain_id


@dataclass
class NamedCalls:
    """Find calls of which little more than the id is known: in the archive first, and the rest in the API's list.

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
        external = set(found["external"])
        is_of_these = found["keys"].keys() | external == self.starts.keys()
        if is_of_these:
            self.keys, self.unlisted, self.external = found["keys"], set(found["unlisted"]), external

    @property
    def memory(self) -> str:
        """What was found, as a text for :meth:`remember`."""
        return json.dumps(
            {"keys": self.keys, "unlisted": sorted(self.unlisted), "external": sorted(self.external)},
            separators=(",", ":"),
        )

    def find(self, archive: Archive, listing: Iterator[Call], is_pending: Callable[[Item], bool]) -> list[Item]:
        """Look for the calls.

        :param archive: where to look first.
        :param listing: the API's list, newest first; read no further than needed.
        :param is_pending: whether the recording is to be asked for, and so the call's fields are needed.
        """
        entries = self._remembered(archive) if self.keys else self._searched(archive)
        items = {call_id: Item({"id": call_id}, entry) for call_id, entry in entries.items()}
        wanted = {call_id for call_id, item in items.items() if is_pending(item)} - self.unlisted
        listed = self._listed(listing, wanted)
        self.unlisted |= wanted - listed.keys() - self.external
        items |= self._placed(archive, listed, entries)
        found = {call_id: item for call_id, item in items.items() if call_id not in self.external}
        self.keys = {call_id: item.entry.place.audio for call_id, item in found.items()}
        return list(found.values())

    def _listed(self, listing: Iterator[Call], wanted: set[str]) -> dict[str, Call]:
        """Read the list until all of these are found, or it ends."""
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
        placed = {entry.place.audio: entry for entry in entries.values()} | archive.entries(elsewhere)
        return {
            call_id: Item(call, _which(entries[call_id], placed[places[call_id].audio]))
            for call_id, call in listed.items()
        }

    def _remembered(self, archive: Archive) -> dict[str, Entry]:
        places = archive.layout.find(self.keys, self.keys.values())
        entries = archive.entries(chain.from_iterable(places.values()))
        return {call_id: entries[key] for call_id, key in self.keys.items()}

    def _searched(self, archive: Archive) -> dict[str, Entry]:
        """Look where the calls must lie if what is known of them is right, and then everywhere."""
        expected = archive.find({"id": call_id, "start_date": start} for call_id, start in self.starts.items())
        unsettled = [call_id for call_id, entry in expected.items() if not entry.is_settled]
        anywhere = archive.search(unsettled)
        nowhere = {call_id: Entry(archive.layout.undated({"id": call_id})) for call_id in unsettled}
        return expected | nowhere | anywhere


def _which(known: Entry, entry: Entry) -> Entry:
    """A recording that is archived stays where it is, whatever the list has learned of the call since."""
    if entry.is_settled:
        return entry
    return known if known.is_settled else entry
