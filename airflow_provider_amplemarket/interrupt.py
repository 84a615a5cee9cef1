"""Ctrl-C during ``airflow dags test`` ends the run, and leaves nothing behind that holds the pool's slot.

``dags test`` runs the task, and the trigger that it defers to, in its own process, and lets a KeyboardInterrupt pass.
In the trigger that leaves a task instance that is ``queued`` for good, as no scheduler ever queued it; in the operator
Airflow takes it for a failure like any other, and waits for the retry. Elsewhere it does not arise: a worker's task is
told to stop by ``on_kill``, and a triggerer cancels.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

#: What an interrupted trigger hands to the task.
INTERRUPTED = "interrupted"

_Run = Callable[[Any], AsyncIterator[TriggerEvent]]


@contextmanager
def failing_when_interrupted(event: Any = None) -> Iterator[None]:
    """Fail the task for good when Ctrl-C stops it, or has stopped its trigger.

    :param event: what the trigger has handed to the task.
    :raises AirflowFailException: when it was stopped.
    """
    try:
        if event == INTERRUPTED:
            raise KeyboardInterrupt
        yield
    except KeyboardInterrupt:
        raise AirflowFailException(
            "Stopped by Ctrl-C. What is archived stays; the next run asks for the rest"
        ) from None


def firing_when_interrupted(run: _Run) -> _Run:
    """Let a trigger's ``run`` fire when Ctrl-C stops it, so that its task comes back and can fail."""

    @functools.wraps(run)
    async def run_or_fire(self: BaseTrigger) -> AsyncIterator[TriggerEvent]:
        try:
            async for event in run(self):
                yield event
        except asyncio.CancelledError:
            is_in_triggerer = self.trigger_id is not None
            if is_in_triggerer:
                raise
            yield TriggerEvent(INTERRUPTED)  # type: ignore[no-untyped-call]

    return run_or_fire
