"""Run the example DAG for a day of calls, and show how it goes and what it archived."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from airflow_provider_amplemarket.sandbox import Sandbox
from dev import example, home
from dev.airflow import Airflow
from dev.checkout import CHECKOUT, shown
from dev.processes import StepError, exit_after

#: The operator's lines of progress: ``12 of 20 archived, 8 left, …``; not those of its trigger, which repeat them.
PROGRESS = re.compile(r"(?<!\d)(?<!: )\d+ of \d+ archived,.*?(?=\s+\[|$)")


def main() -> int:
    """Run the demo; 0 only if the archive is right."""
    place = (home.LIVE if home.API_KEY else home.DEMO).as_set()
    with ExitStack() as stack:
        stack.enter_context(place.claim())
        sandbox: Sandbox | None = None
        if key := home.API_KEY:
            url = os.environ.get("AMPLEMARKET_BASE_URL") or "https://api.amplemarket.com"
            print(f"API        {url}: the real one, with the key of AMPLEMARKET_API_KEY; this spends of its quota")
        else:
            sandbox = stack.enter_context(place.make_sandbox())
            url, key = sandbox.url, home.SANDBOX_KEY
            print(f"API        {url}: a sandbox with {len(sandbox.calls)} calls of {home.yesterday()}")
        print(f"Airflow    {shown(place.path)}", flush=True)
        # In the environment, so that the key is written to no file.
        connection = {f"AIRFLOW_CONN_{home.CONN_ID.upper()}": json.dumps(place.connection(url, key))}
        # What was cut short would hold the only slot of the pool, should a scheduler ever run here.
        stack.callback(place.fail_unfinished)
        place.fail_unfinished()
        airflow = example.make_airflow(place, environment=connection)
        began = time.monotonic()
        airflow.cli("dags", "test", home.DAG_ID, watch=_show_progress)
        print(f"DAG        dags/{home.DAG_ID}.py, run in {time.monotonic() - began:.0f} s\n")
        found = results(place, airflow)
        show(place, **found)
        return verify(found["result"], found["summary"], sandbox)


def results(place: home.Home, airflow: Airflow) -> dict[str, Any]:
    """Read what the run has pushed."""
    quota = [str(place.limit), str(place.period)]
    command = [sys.executable, "-m", "dev.results", home.DAG_ID, home.CONN_ID, *quota, str(place.archive)]
    done = subprocess.run(command, env=airflow.environment, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        raise StepError(f"The run's result cannot be read:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(place: home.Home, result: list[dict[str, Any]], summary: dict[str, Any], spent: int) -> None:
    """Print what was archived, and what that cost."""
    table = [("CALL", "BEGAN", "STATUS", "SIZE", "OBJECT")]
    for row in result:
        began = (row["start_date"] or "")[:16].replace("T", " ")
        target = row["uri"].removeprefix(f"file://{place.archive}/")
        table.append((row["call_id"][:8], began, row["status"], f"{row['size']:,}", target))
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    counted = {name: summary[name] for name in ("external", "not_selected", "not_found", "too_large")}
    others = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counted.items() if count)
    print(f"\nArchived   {summary['stored']} now, {summary['already_stored']} before; {others or 'no others'}")
    print(
        f"Quota      {summary['permits_spent']} requests by this run; {spent} of {place.limit} spent in the last "
        f"{place.period:g} s, {max(0, place.limit - spent)} left"
    )
    if not summary["permits_spent"]:
        print("           Nothing new was asked for: all of it was in the archive. To begin anew: make reset")
    print(f"Listen     {shown(place.archive)}/date=*/*.mp3")


def verify(result: list[dict[str, Any]], summary: dict[str, Any], sandbox: Sandbox | None) -> int:
    """Compare the archive with its sidecars, and with the sandbox where there is one."""
    problems = []
    for row in result:
        path = Path(row["uri"].removeprefix("file://"))
        audio = path.read_bytes()
        sidecar = json.loads(path.with_suffix(".json").read_text())
        if not (hashlib.sha256(audio).hexdigest() == sidecar["sha256"] == row["sha256"]):
            problems.append(f"{path} does not fit its sidecar")
        if sandbox and audio != sandbox.recording(row["call_id"]):
            problems.append(f"{path} is not what was served")
    if sandbox:
        wanted = {call["id"] for call in sandbox.calls if not call["external"] and call["duration"]}
        found = {row["call_id"] for row in result}
        if not found <= wanted or len(found) + summary["deleted"] != len(wanted):
            problems.append("the archive does not have the recordings of just the wanted calls")
        if len(sandbox.recording_requests()) != summary["stored"]:
            problems.append("the recording endpoint was asked more often than recordings were archived")
    for problem in problems:
        print(f"WRONG      {problem}")
    if not problems:
        against = "as served" if sandbox else "as recorded"
        print(f"Verified   {len(result)} recordings, byte for byte {against}")
    return 1 if problems else 0


def _show_progress(line: str) -> None:
    if found := PROGRESS.search(line):
        print(f"Archive    {found[0].strip()}", flush=True)


if __name__ == "__main__":
    try:
        exit_after(main)
    except KeyboardInterrupt:
        print("\nStopped. The next `make demo` goes on from here; after `make reset` it begins anew.", flush=True)
        sys.exit(130)
