"""What lies in the archive for one call, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from airflow_provider_amplemarket.archive.layout import Place
from airflow_provider_amplemarket.archive.sidecar import NO_SIDECAR, Sidecar, Status
from airflow_provider_amplemarket.calls import Call, start_of

#: Audio beside a sidecar of these was published after it, by a writer that died before the next sidecar.
_BEFORE_AUDIO = frozenset({Status.NOT_FOUND, Status.FAILED, Status.GIVEN_UP, Status.OVERWRITING})


@dataclass(frozen=True)
class Entry:
    """What lies in the archive for one call; ``size`` is that of the audio in bytes, None where there is none."""

    place: Place
    size: int | None = None
    sidecar: Sidecar = NO_SIDECAR

    @property
    def is_stored(self) -> bool:
        """Whether the recording is there, whole and committed."""
        if self.size is None or self.sidecar.status != Status.STORED:
            return False
        return self.sidecar.size == self.size

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to do about it, ever: it is stored, or was removed for good."""
        return self.is_stored or self.sidecar.status == Status.DELETED

    @property
    def is_orphaned(self) -> bool:
        """Whether the audio was published, which is always whole, but its writer died before the sidecar."""
        # What was there already when the sidecar was written is not what its writer published afterwards.
        if not self.size or self.size == self.sidecar.audio_size:
            return False
        return self.sidecar.is_blank or self.sidecar.status in _BEFORE_AUDIO


@dataclass(frozen=True)
class Item:
    """A wanted call, of which only the ``id`` may be known, and what the archive has of it."""

    call: Call
    entry: Entry

    @property
    def call_id(self) -> str:
        """The call's id."""
        return str(self.call["id"])

    @property
    def sidecar(self) -> Sidecar:
        """What the sidecar says."""
        return self.entry.sidecar

    @property
    def last(self) -> Sidecar:
        """What the last request came to: that of an attempt to overwrite the recording, where there was one."""
        return self.sidecar.last

    @property
    def start(self) -> datetime | None:
        """When the call began, as far as the list or the sidecar knows."""
        return start_of(self.call) or self.sidecar.start_date

    def with_sidecar(self, sidecar: Sidecar, *, size: int | None = None) -> Item:
        """Return it as it is once that sidecar is written.

        :param size: of the audio that was published with it, in bytes; None where none was.
        """
        if size is None:
            size = self.entry.size
        return replace(self, entry=replace(self.entry, sidecar=sidecar, size=size))
