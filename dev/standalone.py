"""Run an Airflow with its UI until Ctrl-C: scheduler, triggerer, DAG processor, API server, and the sandbox."""

from __future__ import annotations

import json
import signal
import sys
import time

from airflow_provider_amplemarket.sandbox.settings import PORT, SettingError
from dev import example, home
from dev.airflow import Airflow
from dev.checkout import shown
from dev.processes import StepError


def main() -> int:
    """Start everything, print where it is, and stop everything again."""
    if home.API_KEY:
        print("make airflow runs with the sandbox only; leave AMPLEMARKET_API_KEY out")
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(home.STANDALONE.as_set(), PORT.read(example.DEFAULT_PORT))
    except SettingError as problem:
        print(problem, file=sys.stderr)
        return 2
    except StepError as problem:
        print(problem)
        return 1
    except KeyboardInterrupt:
        print("\nAirflow is stopped.", flush=True)
    return 0


def run(place: home.Home, port: int) -> None:
    """Run Airflow until a part of it ends.

    :raises StepError: when a part has ended.
    """
    with place.claim():
        is_new = not place.has_run()
        with place.make_sandbox() as sandbox, example.running(place, sandbox, port) as airflow:
            show(place, airflow, sandbox.url, is_new=is_new)
            while True:
                airflow.check()
                time.sleep(1)


def show(place: home.Home, airflow: Airflow, sandbox_url: str, *, is_new: bool) -> None:
    """Print where everything is, and what happens now."""
    passwords = json.loads((place.path / "simple_auth_manager_passwords.json.generated").read_text())
    print(f"Airflow    {airflow.url}  (login: admin, password: {passwords['admin']})")
    print(f"DAG        {airflow.url}/dags/{home.DAG_ID}")
    if is_new:
        print("           Its first run begins now: it archives, waits for the quota in the triggerer, and ends.")
        print("           Another one that is triggered meanwhile waits for its turn in the pool.")
    else:
        print("           It has run before: what was cut short goes on, and what is archived is not asked for again.")
        print("           The next run begins as soon as another day (UTC) is over, or when it is triggered.")
    print(f"Sandbox    {sandbox_url}  ({place.limit} recordings in {place.period:g} s; calls of {home.yesterday()})")
    print(f"Archive    {shown(place.archive)}")
    print("Stop it with Ctrl-C. The next one goes on from there; after `make reset` it begins anew.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
