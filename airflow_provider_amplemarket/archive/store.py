"""The archive: recordings and their sidecars as whole objects in object storage, or on a local disk."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter
from pathlib import Path

from airflow_provider_amplemarket.archive.layout import Layout, Place
from airflow_provider_amplemarket.archive.objects import TIMEOUT, ObjectStore, archive_errors
from airflow_provider_amplemarket.archive.sidecar import NO_SIDECAR, Entry, Sidecar
from airflow_provider_amplemarket.archive.storage import open_storage
from airflow_provider_amplemarket.archive.upload import publish
from airflow_provider_amplemarket.archive.writecheck import check_writable
from airflow_provider_amplemarket.calls import Call


class Archive(ObjectStore):
    """Read and write one archive.

    :param path: its root, as Airflow writes object-storage paths.
    :param conn_id: the storage's connection, an alternative to the user part of ``path``.
    :param layout: where in it the recordings lie.
    :raises AmplemarketConfigurationError: when ``path`` cannot be a root.
    """

    def __init__(self, path: str, *, conn_id: str | None = None, layout: Layout | None = None) -> None:
        super().__init__(open_storage(path, conn_id))
        self.layout = layout or Layout()

    def find(self, calls: Iterable[Call]) -> dict[str, Entry]:
        """Read what is there for calls: at their places, or where they lie if their date was not known at the time.

        :return: an entry for each call id, all of which must be plain tokens.
        """
        calls = list(calls)
        found = self._at(self.layout.place, calls)
        unsettled = [call for call in calls if not found[call["id"]].is_settled]
        for call_id, entry in self._at(self.layout.undated, unsettled).items():
            if entry.is_settled:
                found[call_id] = entry
        return found

    def entries(self, places: Iterable[Place]) -> dict[str, Entry]:
        """Read what is there for the given places: one listing for each folder, and the sidecars.

        :return: an entry for each audio key, also where there is nothing.
        """
        places = list(places)
        sizes: dict[str, int] = {}
        # Once, and not for each folder: s3fs asks for the size of what it has not just listed before it reads it.
        self.fs.invalidate_cache()
        for folder in sorted({place.folder for place in places}):
            sizes.update(self.list_sizes(folder))
        return self._entries(places, sizes)

    def search(self, call_ids: Iterable[str]) -> dict[str, Entry]:
        """Look for calls whose place is not known, in one listing of the whole archive.

        :return: an entry for each call id that was found.
        """
        wanted = set(call_ids)
        if not wanted:
            return {}
        self.fs.invalidate_cache()
        sizes = self.list_sizes("")
        places = self.layout.find(wanted, sizes)
        entries = self._entries(list(chain.from_iterable(places.values())), sizes)
        return {
            call_id: max((entries[place.audio] for place in some), key=attrgetter("is_settled"))
            for call_id, some in places.items()
        }

    def check_writable(self) -> None:
        """Find out whether the archive takes objects, leaving none where that can be; else raise an ArchiveError."""
        check_writable(self)

    def publish(self, local: Path, key: str, content_type: str) -> None:
        """Make a local file an object: all of it at once, or nothing. On a local archive the file is moved.

        :raises ArchiveError: when the storage does not take it.
        """
        publish(self, local, key, content_type)

    def write_sidecar(self, place: Place, sidecar: Sidecar, directory: Path) -> None:
        """Write a sidecar, which commits what it says; until it is published, it lies in the directory.

        :raises ArchiveError: when the storage does not take it.
        """
        local = directory / f"{uuid.uuid4().hex}.json"
        text = json.dumps(sidecar.dump(), ensure_ascii=False, indent=2, default=str) + "\n"
        local.write_bytes(text.encode("utf-8", "backslashreplace"))  # half of a surrogate pair is no UTF-8
        self.publish(local, place.sidecar, "application/json")
        local.unlink(missing_ok=True)

    def _at(self, place_of: Callable[[Call], Place], calls: Iterable[Call]) -> dict[str, Entry]:
        places = {call["id"]: place_of(call) for call in calls}
        entries = self.entries(places.values())
        return {call_id: entries[place.audio] for call_id, place in places.items()}

    def _entries(self, places: list[Place], sizes: Mapping[str, int]) -> dict[str, Entry]:
        present = [place.sidecar for place in places if place.sidecar in sizes]
        sidecars = dict(zip(present, self.wait_for_each(self._read_sidecar, present, TIMEOUT), strict=True))
        return {
            place.audio: Entry(place, sizes.get(place.audio), sidecars.get(place.sidecar, NO_SIDECAR))
            for place in places
        }

    def _read_sidecar(self, key: str) -> Sidecar:
        """Return what a sidecar says; nothing where there is none that can be read."""
        with archive_errors(f"{self.uri(key)} could not be read"):
            try:
                data = json.loads(self.fs.cat_file(self.full_name(key), **self.timeout_option(TIMEOUT)))
            except (FileNotFoundError, ValueError):
                return NO_SIDECAR
        return Sidecar.load(data) if isinstance(data, dict) else NO_SIDECAR
