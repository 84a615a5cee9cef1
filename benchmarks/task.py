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
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import requests
from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import DAG, Connection

from airflow_provider_amplemarket.operators.recording import AmplemarketRecordingOperator
from airflow_provider_amplemarket.plan import Plan
from airflow_provider_amplemarket.quota import VARIABLE_PREFIX, LedgerState

Options = dict[str, Any]
Figures = dict[str, float]

#: What was measured, in the order in which it was.
FIGURES: list[Figures] = []


@contextmanager
def measured() -> Iterator[None]:
    """Measure the time of a block, and by how much the process's memory grows in it at most."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    idle, began, worked = _status("VmRSS"), time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        FIGURES.append({"seconds": seconds, "cpu": cpu, "memory": _status("VmHWM") - idle})


def _status(name: str) -> float:
    """Answer a figure of the process's memory, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


class Measured(AmplemarketRecordingOperator):
    """The operator, whose work is measured; the first of them, which loads what is loaded late, is not counted."""

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
            task = operator(task_id=f"task_{number}", trigger_rule="all_done", **arguments)
            if previous:
                previous >> task
            previous = task
    return dag


def run_operators(options: Options) -> None:
    """Run tasks with our operator, one after the other."""
    from airflow.models.variable import Variable

    os.environ["AMPLEMARKET_BENCHMARK"] = json.dumps(options)
    for arguments in options["tasks"]:
        # A ledger that was never there is asked for several times before that is believed; once in its life.
        Variable.set(VARIABLE_PREFIX + arguments["amplemarket_conn_id"], LedgerState().dump())
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
            aws_conn_id=options["aws_conn_id"],
            s3_bucket=options["bucket"],
            s3_key=f"{prefix}/{call_id}.mp3",
        ).execute({})

    archive("warm-a", options["warm"])
    for prefix in options["prefixes"]:
        with measured(), ThreadPoolExecutor(options["concurrency"]) as threads:
            list(threads.map(partial(archive, prefix), options["call_ids"]))


def loop(options: Options) -> None:
    """Do what a task of one's own with requests does, one recording after the other."""
    save = _saver(options)

    def archive(prefix: str, call_id: str) -> None:
        while True:
            headers = {"Authorization": f"Bearer {options['api_key']}"}
            response = requests.get(f"{options['url']}/calls/{call_id}/recording", headers=headers, timeout=60)
            if response.status_code != 429:
                break
            time.sleep(float(response.headers.get("Retry-After", 60)))
        response.raise_for_status()
        save(f"{prefix}/{call_id}.mp3", response.content)

    archive("warm-b", options["warm"])
    for prefix in options["prefixes"]:
        with measured():
            for call_id in options["call_ids"]:
                archive(prefix, call_id)


def _saver(options: Options) -> Callable[[str, bytes], object]:
    if "folder" in options:
        folder = Path(options["folder"])

        def save(key: str, content: bytes) -> None:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(content)

        return save
    client = s3_client(options["aws_conn_id"])
    return lambda key, content: client.put_object(Bucket=options["bucket"], Key=key, Body=content)


def heads(options: Options) -> None:
    """Find what is missing as a task of one's own does: ask the API for the calls, and the store for each of them."""
    client = s3_client(options["aws_conn_id"])
    headers = {"Authorization": f"Bearer {options['api_key']}"}
    for _ in range(options["times"]):
        with measured():
            url, missing = f"{options['url']}/calls", []
            while url:
                page = requests.get(url, headers=headers, timeout=60).json()
                for call in page["calls"]:
                    try:
                        key = f"{options['prefix']}/date={call['start_date'][:10]}/{call['id']}.mp3"
                        client.head_object(Bucket=options["bucket"], Key=key)
                    except client.exceptions.ClientError:
                        missing.append(call["id"])
                following = page["_links"].get("next")
                url = following and options["url"] + following["href"]
        if missing:
            raise RuntimeError(f"{len(missing)} of the recordings are missing")


def s3_client(conn_id: str) -> Any:
    """Make boto3's client for an Airflow connection."""
    conn = Connection.get(conn_id)
    return boto3.client(
        "s3",
        endpoint_url=conn.extra_dejson["endpoint_url"],
        region_name=conn.extra_dejson["region_name"],
        aws_access_key_id=conn.login,
        aws_secret_access_key=conn.password,
    )


def main() -> None:
    """Run what the command line says."""
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    {"operators": run_operators, "http_to_s3": http_to_s3, "loop": loop, "heads": heads}[kind](options)
    print(json.dumps(FIGURES))


if __name__ == "__main__":
    from benchmarks import task

    task.main()  # by its own name, under which Airflow loads it, too
