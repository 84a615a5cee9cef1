"""
Tasks in a process of their own: ``python -m benchmarks.task KIND OPTIONS`` runs some and prints what they took.

The operator runs in a DAG, through ``dag.test()``: with real templates, XComs and Variables, by way of an API server
that lives in the same process. The peers' code is run as it is, without Airflow's part of a task.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import DAG, Connection

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
from airflow_provider_amplemarket.quota.ledger import VARIABLE_PREFIX
from airflow_provider_amplemarket.quota.lock import FREE
from airflow_provider_amplemarket.quota.rate import LedgerState
from airflow_provider_amplemarket.run.plan import Plan
from dev.stores.s3 import s3_client

Options = dict[str, Any]
Figures = dict[str, float]

#: What was measured, in the order in which it was.
FIGURES: list[Figures] = []


@contextmanager
def measured() -> Iterator[None]:
    """Measure the time of a block, and the process's memory before it and at its peak."""
    gc.collect()
    gc.freeze()  # all that Airflow's API server has loaded into this process would be looked through again and again
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    idle, began = _status("VmRSS"), time.perf_counter()
    try:
        yield
    finally:
        FIGURES.append({"seconds": time.perf_counter() - began, "idle": idle, "peak": _status("VmHWM")})


def _status(name: str) -> float:
    """Return a figure of the process's memory, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


class Measured(AmplemarketRecordingOperator):
    """The operator, whose work is measured."""

    def execute(self, context: Any) -> Any:
        """Archive what is missing."""
        with measured():
            return super().execute(context)


class Planned(AmplemarketRecordingOperator):
    """The operator, of which only the planning is done and measured."""

    def _plan(self, *arguments: Any) -> Plan:
        with measured():
            plan = super()._plan(*arguments)
        raise AirflowSkipException(json.dumps(plan.counts()))


def make_dag() -> DAG:
    """Make the DAG of the tasks that the environment names, one after the other."""
    options = json.loads(os.environ["AMPLEMARKET_BENCHMARK"])
    operator = {"run": Measured, "plan": Planned}[options["kind"]]
    with DAG("benchmark", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        previous = None
        for number, arguments in enumerate(options["tasks"]):
            task = operator(task_id=f"task_{number}", trigger_rule="all_done", lookback=timedelta(0), **arguments)
            if previous:
                previous >> task
            previous = task
    return dag


def run_operators(options: Options) -> None:
    """Run tasks with our operator, one after the other."""
    from airflow.models.variable import Variable

    os.environ["AMPLEMARKET_BENCHMARK"] = json.dumps(options)
    for arguments in options["tasks"]:
        # What was never there is asked for several times before that is believed; once in a ledger's life.
        ledger = VARIABLE_PREFIX + arguments["amplemarket_conn_id"]
        Variable.set(ledger, LedgerState().dump())
        Variable.set(f"{ledger}__lock", FREE)
    dags = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    (dags / "benchmark.py").write_text("# an airflow dag\nfrom benchmarks.task import make_dag\n\ndag = make_dag()\n")
    run = make_dag().test()
    if options["kind"] == "run" and run.state != "success":
        raise RuntimeError(f"the DAG run is {run.state}")


def http_to_s3(options: Options) -> None:
    """Let Amazon's operator archive some recordings, several at once, as mapped tasks would."""

    def archive(prefix: str, call_id: str) -> None:
        HttpToS3Operator(
            task_id="archive",
            http_conn_id="amplemarket_http",
            endpoint=f"calls/{call_id}/recording",
            headers={"Authorization": f"Bearer {options['api_key']}"},
            aws_conn_id="aws",
            s3_bucket=options["bucket"],
            s3_key=f"{prefix}/{call_id}.mp3",
        ).execute({})

    def run(prefix: str, url: str, call_ids: list[str]) -> None:
        os.environ["AIRFLOW_CONN_AMPLEMARKET_HTTP"] = url
        with ThreadPoolExecutor(options["concurrency"]) as threads:
            list(threads.map(partial(archive, prefix), call_ids))

    _repeat(run, options)


def loop(options: Options) -> None:
    """Do what a task of one's own with requests does, one recording after the other."""
    save = _saver(options)

    def run(prefix: str, url: str, call_ids: list[str]) -> None:
        headers = {"Authorization": f"Bearer {options['api_key']}"}
        for call_id in call_ids:
            while True:
                response = requests.get(f"{url}/calls/{call_id}/recording", headers=headers, timeout=60)
                if response.status_code != 429:
                    break
                time.sleep(float(response.headers.get("Retry-After", 60)))
            response.raise_for_status()
            save(f"{prefix}/{call_id}.mp3", response.content)

    _repeat(run, options)


def _repeat(run: Callable[[str, str, list[str]], None], options: Options) -> None:
    """Measure the runs, after one recording that loads what is loaded late."""
    first = options.get("first") or options["runs"][0]
    run(f"{uuid4()}", first["url"], first["call_ids"][:1])
    for each in options["runs"]:
        with measured():
            run(each["prefix"], each["url"], each["call_ids"])


def _saver(options: Options) -> Callable[[str, bytes], object]:
    if "bucket" in options:
        client = make_client()
        return lambda key, content: client.put_object(Bucket=options["bucket"], Key=key, Body=content)

    def save(key: str, content: bytes) -> None:
        path = Path(options["folder"]) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return save


def look(options: Options) -> None:
    """Find what is missing as a task of one's own does: list the calls, and look for each of them."""
    exists = _finder(options)

    def run(prefix: str, url: str) -> None:
        headers = {"Authorization": f"Bearer {options['api_key']}"}
        page_url, missing = f"{url}/calls", []
        while page_url:
            page = requests.get(page_url, headers=headers, timeout=60).json()
            for call in page["calls"]:
                if not exists(f"{prefix}/date={call['start_date'][:10]}/{call['id']}.mp3"):
                    missing.append(call["id"])
            following = page["_links"].get("next")
            page_url = following and url + following["href"]
        if missing:
            raise RuntimeError(f"{len(missing)} of the recordings are missing")

    for each in options["runs"]:
        with measured():
            run(each["prefix"], each["url"])


def _finder(options: Options) -> Callable[[str], bool]:
    if "bucket" not in options:
        return lambda key: (Path(options["folder"]) / key).exists()
    client = make_client()

    def exists(key: str) -> bool:
        try:
            client.head_object(Bucket=options["bucket"], Key=key)
        except client.exceptions.ClientError:
            return False
        return True

    return exists


def make_client() -> Any:
    """Return boto3's client for the Airflow connection of the store."""
    return s3_client(Connection.get("aws").extra_dejson["endpoint_url"])


def main() -> None:
    """Run what the command line names."""
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    {"operators": run_operators, "http_to_s3": http_to_s3, "loop": loop, "look": look}[kind](options)
    print(json.dumps(FIGURES))


if __name__ == "__main__":
    from benchmarks import task

    task.main()  # by its own name, under which Airflow loads it, too
