"""The sidecar: the JSON object beside a recording that commits what became of its call.

Nothing else knows the names of its fields. A sidecar may be old, or edited by hand: what cannot be read counts as
absent, and what is not known is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from airflow_provider_amplemarket.archive.layout import Place
from airflow_provider_amplemarket.calls import Call, parse_datetime, start_of

VERSION = 1


class Status(StrEnum):
    """What is with a call."""

    #: The recording is to be asked for.
    PENDING = "pending"
    #: This run archived it; or an earlier one did.
    STORED = "stored"
    ALREADY_STORED = "already_stored"
    #: There is none: not (yet), or never through the API.
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    #: It was asked for and did not come whole.
    FAILED = "failed"
    #: It has failed for so long that nobody asks for it any more, unless somebody insists.
    GIVEN_UP = "given_up"
    #: Somebody removed it for good by writing this status into its sidecar.
    DELETED = "deleted"
    #: The sidecar vouches for its audio no longer, because another is being written in its place.
    OVERWRITING = "overwriting"
    #: Not wanted: the API does not serve it, or the DAG does not select it.
    EXTERNAL = "external"
    NOT_SELECTED = "not_selected"


@dataclass(frozen=True)
class Attempt:
    """Who asks: one try of one task. Clearing the task raises ``max_tries``, a retry does not."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    max_tries: int
    try_number: int

    @property
    def run(self) -> dict[str, Any]:
        """The run that it is part of, whatever the try; once the task is cleared, another one."""
        return {"dag_id": self.dag_id, "run_id": self.run_id, "max_tries": self.max_tries}


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What a sidecar says; absent fields are None. Its fields have the names of the JSON object's.

    :param start_date: when the call began.
    :param key: the recording's object, below the archive's root; ``size``, its bytes.
    :param is_mpeg: whether it begins like MPEG audio; ``adopted``, whether it was found without its sidecar.
    :param permit: the id of the request's permit.
    :param earlier_permits: permits of earlier requests for the call, with the time of their responses.
    :param requested_at: when the request was sent; ``answered_at``, when the response came.
    :param requests: how many requests in a row, since ``first_requested_at``, came to this status.
    :param first_failed_in: the run in which the call began to fail.
    :param audio_size: size of the object that was there already; not what is published afterwards.
    :param content_length: bytes that a response has promised.
    :param call: the call, as the API gave it.
    :param overwrite: what became of the last attempt to overwrite the recording.
    :param unknown: all other fields, and values that cannot be read, as they are.
    """

    call_id: str | None = None
    status: Status | None = None
    start_date: datetime | None = None
    key: str | None = None
    size: int | None = None
    sha256: str | None = None
    content_type: str | None = None
    is_mpeg: bool | None = None
    adopted: bool | None = None
    first_failed_in: Mapping[str, Any] | None = None
    audio_size: int | None = None
    content_length: int | None = None
    error: str | None = None
    permit: str | None = None
    earlier_permits: Mapping[str, datetime] | None = None
    requested_at: datetime | None = None
    answered_at: datetime | None = None
    first_requested_at: datetime | None = None
    requests: int | None = None
    archived_at: datetime | None = None
    amplemarket_conn_id: str | None = None
    dag_id: str | None = None
    task_id: str | None = None
    run_id: str | None = None
    map_index: int | None = None
    max_tries: int | None = None
    try_number: int | None = None
    call: Mapping[str, Any] | None = None
    overwrite: Sidecar | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Sidecar:
        """Read the JSON object."""
        known: dict[str, Any] = {}
        unknown: dict[str, Any] = {}
        for name, value in data.items():
            read = _READERS[name](value) if name in _READERS else None
            if read is not None:
                known[name] = read
            elif name not in _READERS or value is not None:  # of a later edition, perhaps, or by hand
                unknown[name] = value
        if unknown.get("version") == VERSION:
            del unknown["version"]
        return cls(**known, unknown=unknown)

    def dump(self) -> dict[str, Any]:
        """Return the JSON object."""
        values = {name: _plain(getattr(self, name)) for name in _READERS}
        present = {name: value for name, value in values.items() if value is not None or name == "start_date"}
        unread = {name: value for name, value in self.unknown.items() if present.get(name) is None}
        return {"version": VERSION, **present, **unread}

    @property
    def last(self) -> Sidecar:
        """What the last request came to."""
        return self.overwrite or self

    @property
    def is_blank(self) -> bool:
        """Whether it says nothing of what became of the call."""
        return self.status is None and "status" not in self.unknown

    @property
    def run(self) -> dict[str, Any]:
        """The run that wrote it, as :attr:`Attempt.run`."""
        return {"dag_id": self.dag_id, "run_id": self.run_id, "max_tries": self.max_tries}

    def was_written_by(self, attempt: Attempt, *, this_try: bool = False) -> bool:
        """Return whether it was written by that task in that run since it was last cleared, or in that very try."""
        differing = {name for name, value in asdict(attempt).items() if getattr(self, name) != value}
        return differing <= (set() if this_try else {"try_number"})

    def requests_of(self, *statuses: Status) -> int:
        """Return how many requests in a row, the last ones, came to one of these statuses."""
        if self.status not in statuses:
            return 0
        return max(1, self.requests or 1)

    def known_requests(self, conn_id: str) -> Iterator[tuple[str | None, datetime]]:
        """Yield a connection's requests that it knows: the permit, None in older ones, and when it was answered."""
        if self.amplemarket_conn_id == conn_id:
            yield from (self.earlier_permits or {}).items()
            if self.answered_at is not None:
                yield self.permit, self.answered_at
        if self.overwrite is not None:
            yield from self.overwrite.known_requests(conn_id)


#: Where there is no sidecar, or none that can be read.
NO_SIDECAR = Sidecar()


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


def _plain(value: Any) -> Any:
    """Return a field's value as JSON has it."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Sidecar):
        return {name: part for name, part in value.dump().items() if name != "call"}
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return value


def _of_type(kind: type) -> Callable[[Any], Any]:
    return lambda value: value if type(value) is kind else None


def _integer(value: Any) -> int | None:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    return None


def _status(value: Any) -> Status | None:
    return _STATUSES.get(value) if isinstance(value, str) else None


def _permits(value: Any) -> Mapping[str, datetime] | None:
    if not isinstance(value, Mapping):
        return None
    return {name: answered_at for name, text in value.items() if (answered_at := parse_datetime(text))}


def _sidecar(value: Any) -> Sidecar | None:
    if not isinstance(value, Mapping) or not value:
        return None
    return Sidecar.load(value)


_STATUSES = {status.value: status for status in Status}
_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "status": _status,
    "earlier_permits": _permits,
    "overwrite": _sidecar,
}
_BY_TYPE: dict[str, Callable[[Any], Any]] = {
    "str": _of_type(str),
    "int": _integer,
    "bool": _of_type(bool),
    "datetime": parse_datetime,
    "Mapping[str, Any]": _of_type(dict),
}
_READERS: dict[str, Callable[[Any], Any]] = {
    found.name: _SPECIAL.get(found.name) or _BY_TYPE[str(found.type).removesuffix(" | None")]
    for found in fields(Sidecar)
    if found.name != "unknown"
}
