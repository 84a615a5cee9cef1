"""The trigger that waits for the quota."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pendulum
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_amplemarket.interrupt import firing_when_interrupted

#: Seconds that are slept at most before the time is looked at again: a machine that was suspended, or whose clock
#: was set, is late by no more than that.
LONGEST_SLEEP = 30.0


class QuotaTrigger(BaseTrigger):
    """Fire once at a given time. It logs once until when it waits and why, and asks nobody for anything.

    :param until: that time, as a timestamp (seconds since the epoch).
    :param reason: what is waited for.
    """

    def __init__(self, until: float, reason: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.until = until
        self.reason = reason

    @property
    def fires_at(self) -> pendulum.DateTime:
        """That time as a datetime, in UTC."""
        return pendulum.from_timestamp(self.until)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer makes the trigger of."""
        return f"{__name__}.{type(self).__name__}", {"until": self.until, "reason": self.reason}

    @firing_when_interrupted
    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and fire."""
        until = self.fires_at.isoformat(timespec="seconds")
        self.log.info("Waiting until %s: %s", until, self.reason)
        while (seconds := self.until - time.time()) > 0:
            await asyncio.sleep(min(seconds, LONGEST_SLEEP))
        yield TriggerEvent(until)  # type: ignore[no-untyped-call]
