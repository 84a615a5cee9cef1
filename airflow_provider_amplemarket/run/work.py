"""What one try of a task works with."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import AmplemarketError
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.run.recorder import Recorder
from airflow_provider_amplemarket.run.rules import Rules


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one try of a task works with; all of it may be used by any thread.

    :param hook: asks the API.
    :param archive: has the recordings.
    :param rules: what is to be done about a call.
    :param recorder: makes the sidecars.
    :param cancel: set when the task is told to stop; then nothing is sent and nothing is written any more.
    """

    hook: AmplemarketHook
    archive: Archive
    rules: Rules
    recorder: Recorder
    cancel: threading.Event

    def go_on(self) -> None:
        """Do nothing, unless the task was told to stop.

        :raises AmplemarketError: when it was.
        """
        if self.cancel.is_set():
            raise AmplemarketError("The task was told to stop")
