"""Invented calls, the same for the same seed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

Call = dict[str, Any]

USERS = ("ada", "grace", "hedy", "katherine")
CONTACTS = ("Robin Field", "Sasha Brook", "Noor Hill", "Kim Rivers", "Alex Marsh")
DISPOSITIONS = ("Interested", "Call back later", "Not interested", "Left voicemail")
NOTES = (None, "", "Asked for a quote.", "Wants to talk again after the holidays — send the “short” deck.")


def make_call(*, id: str, start_date: datetime | str, **fields: Any) -> Call:
    """Return one call as ``GET /calls`` lists it; one that was answered, unless the fields say otherwise.

    :param id: The call's id. If it ends in ``--`` and a fault's name, its recording shows that fault.
    :param start_date: When it began: an aware datetime, or text that is passed on as it is.
    :param fields: Any other fields of the row, even some that the API does not have.
    """
    return {
        "id": id,
        "from": "+12025550100",
        "to": "+12025550101",
        "direction": "outgoing",
        "duration": 60,
        "answered": True,
        "human": True,
        "start_date": start_date if isinstance(start_date, str) else api_time(start_date),
        "external": False,
        "recording_url": f"https://recordings.example.com/{id}.mp3",
        "transcription": None,
        "transcript": [],
        "notes": None,
        "disposition_id": None,
        "disposition_name": None,
        "task_id": None,
        **user_fields(USERS[0]),
        "contact": None,
        **fields,
    }


def make_calls(n: int, *, end: datetime, days: float = 1.0, seed: int = 0) -> list[Call]:
    """Return calls spread over a span of time, newest first. Of twelve, one is external and one has no duration.

    :param n: How many.
    :param end: All of them begin before this time.
    :param days: The length of the span, in days.
    :param seed: The same seed gives the same calls.
    """
    rng = Random(seed)
    span = timedelta(days=days)
    calls = []
    for index in range(n):
        # Each lies in a slice of its own: never two at once, and none outside the span.
        start = end - span * ((index + rng.uniform(0.1, 0.9)) / n)
        calls.append(_realistic(index, start, rng))
    return calls


def _realistic(index: int, start: datetime, rng: Random) -> Call:
    call_id = str(UUID(int=rng.getrandbits(128), version=4))
    answered = index % 12 != 7
    human = answered and rng.random() < 0.8
    contact = rng.choice((*CONTACTS, None))
    disposition = rng.choice((*DISPOSITIONS, None)) if answered else None
    numbers = [f"+1202555{rng.randrange(100, 200):04d}" for _ in range(2)]
    call = make_call(
        id=call_id,
        start_date=start,
        **{"from": numbers[0], "to": numbers[1]},
        direction=rng.choice(("outgoing", "outgoing", "outgoing", "incoming")),
        duration=rng.randrange(4, 900) if answered else 0,
        answered=answered,
        human=human,
        external=index % 12 == 3,
        transcript=_transcript(contact or "Somebody") if human else [],
        notes=rng.choice(NOTES),
        disposition_id=disposition and str(UUID(int=DISPOSITIONS.index(disposition) + 1)),
        disposition_name=disposition,
        task_id=str(UUID(int=rng.getrandbits(128), version=4)) if rng.random() < 0.3 else None,
        **user_fields(rng.choice(USERS)),
        contact=contact and contact_fields(contact),
    )
    # The API promises a URL only "if available".
    if not answered or index % 12 == 9:
        call["recording_url"] = None
    elif index % 12 == 5:
        del call["recording_url"]
    return call


def user_fields(name: str) -> Mapping[str, str]:
    """Return the fields of a call that name its user.

    :param name: One of the users.
    """
    return {"user_id": str(UUID(int=1_000 + USERS.index(name))), "user_email": f"{name}@example.com"}


def contact_fields(name: str) -> Mapping[str, str]:
    """Return the ``contact`` of a call, the person at the other end.

    :param name: One of the contacts.
    """
    address = name.lower().replace(" ", ".")
    contact_id = str(UUID(int=2_000 + CONTACTS.index(name)))
    return {"id": contact_id, "name": name, "email": f"{address}@example.com"}


def _transcript(name: str) -> list[Mapping[str, Any]]:
    return [
        {"speaker": "user", "start": 0.4, "text": f"Hello, am I speaking with {name}?"},
        {"speaker": "contact", "start": 2.9, "text": "Yes, what is it about?"},
    ]


def api_time(value: datetime) -> str:
    """Return a datetime as the API writes it: UTC, whole seconds, ``Z``.

    :param value: An aware datetime.
    """
    if value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
