"""Audio that lies in the archive without its sidecar, because its writer died in between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_amplemarket.archive.entry import Item
from airflow_provider_amplemarket.archive.objects import Digest
from airflow_provider_amplemarket.archive.recorder import Recorder
from airflow_provider_amplemarket.archive.sidecar import Status
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import AmplemarketError, ArchiveError
from airflow_provider_amplemarket.run.plan import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Orphans:
    """
    Commit orphaned audio, which saves the permit of asking for it again.

    Audio is published whole or not at all. What is not seen to be whole all the same, by its frames and by the length
    on record, is asked for again.

    :param archive: where it lies.
    :param recorder: makes the sidecars.
    :param cancel: set when the task is told to stop.
    """

    archive: Archive
    recorder: Recorder
    cancel: threading.Event

    def commit(self, plan: Plan) -> Plan:
        """
        Write the sidecars of orphaned audio, and return the plan after that.

        :raises ArchiveError: when the archive takes nothing at all.
        :raises AmplemarketError: when the task is told to stop.
        """
        orphans = [item for item in plan.items_with(Status.PENDING) if item.entry.is_orphaned]
        if not orphans or not self.archive.publishes_whole:
            return plan
        with self.archive.staging() as directory:
            return plan.with_results(self._committed(orphans, directory))

    def _committed(self, orphans: list[Item], directory: Path) -> Iterator[tuple[Item, Status]]:
        for item in orphans:
            if self.cancel.is_set():
                raise AmplemarketError("The task was told to stop")
            if digest := self._digest_if_whole(item):
                yield self._commit(item, digest, directory)

    def _digest_if_whole(self, item: Item) -> Digest | None:
        audio = item.entry.place.audio
        try:
            digest = self.archive.digest(audio)
        except ArchiveError as error:
            if self.cancel.is_set():
                raise
            log.warning("Found audio without its sidecar; it is not adopted: %s", error)
            return None
        promised = item.sidecar.content_length
        is_as_promised = promised in (None, digest.size)
        if digest.is_whole and is_as_promised:
            return digest
        log.warning(
            "Found %s without its sidecar; it is not adopted: its %d bytes are not known to be whole%s",
            self.archive.uri(audio),
            digest.size,
            f", as {promised} were promised" if promised is not None else "",
        )
        return None

    def _commit(self, item: Item, digest: Digest, directory: Path) -> tuple[Item, Status]:
        place = item.entry.place
        sidecar = self.recorder.adopted(item, size=digest.size, sha256=digest.sha256)
        try:
            self.archive.write_sidecar(place, sidecar, directory)
        except ArchiveError as error:
            self.archive.check_writable()  # where nothing can be written, the run ends
            failed = self.recorder.unwritable(item, error)
            return item.with_sidecar(failed, size=digest.size), Status.FAILED
        log.info("Found %s without its sidecar; written now", self.archive.uri(place.audio))
        return item.with_sidecar(sidecar, size=digest.size), Status.STORED
