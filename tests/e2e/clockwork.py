"""An account with new calls every few seconds, and DAGs that look at it by the clock while other tests run."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from airflow_provider_amplemarket.sandbox import Sandbox, make_call
from dev.observed import ObservedAirflow

SCHEDULED = ("cron", "cron_interval", "delta_interval")
TRIGGERED = ("by_hand", "by_asset")
#: Two of the minutely runs at least fall into it.
PAUSE = 130.0
STEP = 3.0


class Clockwork(threading.Thread):
    """
    Let calls come in; let the scheduled DAGs run once, rest for two minutes, and run again.

    :param airflow: runs the DAGs.
    :param sandbox: takes the calls.
    """

    def __init__(self, airflow: ObservedAirflow, sandbox: Sandbox) -> None:
        super().__init__(name="clockwork")
        self.problem: BaseException | None = None
        self.resumed = threading.Event()
        self._airflow = airflow
        self._sandbox = sandbox
        self._over = threading.Event()

    def run(self) -> None:
        """Do all of it."""
        try:
            self._airflow.unpause(*SCHEDULED, *TRIGGERED)
            self.trigger()
            # Runs of the past minute look at a time before the first call; the next ones do not.
            self._tick_until_each_has_run_since(datetime.now(UTC))
            self._airflow.pause(*SCHEDULED)
            self._tick(PAUSE)
            self.trigger()
            self._airflow.unpause(*SCHEDULED)
            self._tick_until_each_has_run_since(datetime.now(UTC))
            self._airflow.pause(*SCHEDULED)
            self.resumed.set()
            while not self._over.is_set():
                self._tick(STEP)
        except BaseException as problem:
            self.problem = problem
            self.resumed.set()

    def trigger(self) -> None:
        """Let the DAGs run that have no schedule."""
        self._airflow.trigger("by_hand", datetime.now(UTC))
        [asset] = self._airflow.rest("GET", "/assets?name_pattern=new_calls")["assets"]
        self._airflow.rest("POST", "/assets/events", {"asset_id": asset["id"], "extra": {}})

    def stop(self) -> None:
        """Let no more calls come in."""
        self._over.set()
        self.join()

    def _tick(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._over.is_set():
            now = datetime.now(UTC)
            self._sandbox.add_calls(make_call(id=f"tick-{now:%H%M%S}", start_date=now))
            self._over.wait(STEP)

    def _tick_until_each_has_run_since(self, start: datetime) -> None:
        """Go on until each scheduled DAG has had a good run that was due after that datetime."""
        due: set[str] = set()
        while due != set(SCHEDULED) and not self._over.is_set():
            self._tick(STEP)
            rows = [row for row in self._airflow.runs(*SCHEDULED) if row["run_after"] > start]
            due = {row["dag_id"] for row in rows if row["state"] == "success"}
