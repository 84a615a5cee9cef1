"""Let a whole Airflow run the example DAG on its schedule, with a quota so small that the task defers.

The demo's ``airflow dags test`` knows neither scheduler nor triggerer; here both have their part.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

from airflow_provider_amplemarket.sandbox.settings import PORT
from dev import demo, example, home
from dev.processes import exit_after

PATIENCE = 300.0


def main() -> int:
    """Run it; 0 only if the task deferred and the archive is right."""
    place, port = home.STANDALONE.as_set(), PORT.read(example.DEFAULT_PORT)
    with place.claim(), place.make_sandbox() as sandbox:
        with example.running(place, sandbox, port) as airflow:
            states = _states(place)
        print(f"States     {' → '.join(states)}")
        if states[-1:] != ["success"] or "deferred" not in states:
            print(f"WRONG      the task was to defer and then to succeed\n\n{airflow.describe()}")
            return 1
        results = demo.results(place, airflow)
        demo.show(place, **results)
        return demo.verify(results["result"], results["summary"], sandbox)


def _states(place: home.Home) -> list[str]:
    """Look at the task until it is done, and return the states it was seen in."""
    states: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and states[-1:] not in (["success"], ["failed"]):
        time.sleep(0.3)
        # Airflow's command line would take ten seconds for it.
        with closing(sqlite3.connect(place.database, timeout=30)) as database:
            found = database.execute("SELECT state FROM task_instance WHERE dag_id = ?", (home.DAG_ID,)).fetchone()
        state = str(found[0] or "waiting") if found else "waiting"
        if states[-1:] != [state]:
            states.append(state)
    return states


if __name__ == "__main__":
    exit_after(main)
