"""Audio that lies in the archive without its sidecar, because its writer died in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from airflow_provider_amplemarket.archive.objects import Digest
from airflow_provider_amplemarket.archive.sidecar import Item, Status
from airflow_provider_amplemarket.exceptions import ArchiveError
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.work import Work

log = logging.getLogger(__name__)


def commit_orphans(plan: Plan, work: Work) -> Iterator[tuple[Item, Status]]:
    """Write the sidecars of orphaned audio, which saves the permits of asking for it again, and yield the results.

    Audio is published whole or not at all. What is not seen to be whole all the same, by its frames and by the length
    on record, is asked for again.

    :raises ArchiveError: when the archive takes nothing at all.
    :raises AmplemarketError: when the task is told to stop.
    """
    orphans = [item for item in plan.items_with(Status.PENDING) if item.entry.is_orphaned]
    if not orphans or not work.archive.publishes_whole:
        return
    with work.archive.staging() as directory:
        for item in orphans:
            work.go_on()
            if digest := _digest_if_whole(item, work):
                yield _commit(item, digest, work, directory)


def _digest_if_whole(item: Item, work: Work) -> Digest | None:
    audio = item.entry.place.audio
    try:
        digest = work.archive.digest(audio)
    except ArchiveError as error:
        if work.cancel.is_set():
            raise
        log.warning("Found audio without its sidecar; it is not adopted: %s", error)
        return None
    promised = item.sidecar.content_length
    is_as_promised = promised in (None, digest.size)
    if digest.is_whole and is_as_promised:
        return digest
    log.warning(
        "Found %s without its sidecar; it is not adopted: its %d bytes are not known to be whole%s",
        work.archive.uri(audio),
        digest.size,
        f", as {promised} were promised" if promised is not None else "",
    )
    return None


def _commit(item: Item, digest: Digest, work: Work, directory: Path) -> tuple[Item, Status]:
    place = item.entry.place
    sidecar = work.recorder.adopted(item, size=digest.size, sha256=digest.sha256)
    try:
        work.archive.write_sidecar(place, sidecar, directory)
    except ArchiveError as error:
        work.archive.check_writable()  # where nothing can be written, the run ends
        failed = work.recorder.unwritable(item, error)
        return item.with_sidecar(failed, size=digest.size), Status.FAILED
    log.info("Found %s without its sidecar; written now", work.archive.uri(place.audio))
    return item.with_sidecar(sidecar, size=digest.size), Status.STORED
