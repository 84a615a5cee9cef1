"""
One DAG after the other archives the same recordings to the same kind of store (moto's S3), in one whole Airflow on
PostgreSQL with the LocalExecutor. Each has an account of its own in the sandbox, with a fresh quota of a few recordings
in some seconds. The DAGs lie in `benchmarks/dags`: the provider's operator; `HttpToS3Operator` of the Amazon provider,
mapped over the recordings, four at once, whose retries wait for one period; a task that asks with `requests` and
sleeps as a 429 asks for. Worker seconds are how long the processes live in which tasks run, each looked for
five times a second: the time of a deferral is not in it, because no process is there, and neither is what Airflow's
supervisor holds its slot for after its task's process has ended, at times 5 s, whatever the task. In the end every
DAG's recordings are compared with those that the account has.

The task that sleeps and the provider's are also run with the real quota of 50 an hour, on the simulated clock of
*hour*. There a worker is held from a task's beginning to its end or its deferral.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import log, real
from benchmarks.hour import USUAL, backlog, latency
from benchmarks.simulation import Simulated, simulate, simulate_sleeping
from benchmarks.table import Row
from dev.stores.s3 import aws_connection

NAMES = {real.HTTP_TO_S3: "HttpToS3Operator", real.SLEEPING: "requests and sleep"}
#: Recordings of the simulation with the real quota.
HOURLY = 150


def run() -> list[Row]:
    """Measure all of it."""
    measured = real.measure()
    ours, peers = measured[real.OURS], {NAMES[name]: measured[name] for name in NAMES}
    share = 100 / real.RECORDINGS
    case = f"{real.RECORDINGS} recordings, {real.LIMIT} in {real.PERIOD:g} s, in a real Airflow"

    def ratios(figure: str) -> str:
        return "; ".join(
            f"{getattr(ours, figure) / getattr(peer, figure):.2f} ({name})" for name, peer in peers.items()
        )

    def pressure(one: real.Measured) -> str:
        return f"{one.starts * share:.0f}, {one.at_once} at once"

    def asked(one: real.Measured) -> str:
        return f"{len(log.recordings(one.log)) / real.RECORDINGS:.3f}; {log.refused(one.log)}"

    rows = [
        Row(
            measured=f"{case}: worker seconds per 100 recordings",
            ours=f"{ours.worker_seconds * share:.0f} s",
            peers={name: f"{peer.worker_seconds * share:.0f} s" for name, peer in peers.items()},
            ratio=ratios("worker_seconds"),
            bound="",
            met=None,
            note="the shorter the period, the better for those that wait in the worker: an hour is 240 of these",
        ),
        Row(
            measured=f"{case}: worker processes per 100 recordings",
            ours=pressure(ours),
            peers={name: pressure(peer) for name, peer in peers.items()},
            ratio=ratios("starts"),
            bound="",
            met=None,
            note=f"ours takes one for each burst, of {real.LIMIT} recordings here and of 50 with the real quota; the "
            "task that sleeps takes one, and keeps it",
        ),
        Row(
            measured=f"{case}: requests per recording; refused ones",
            ours=asked(ours),
            peers={name: asked(peer) for name, peer in peers.items()},
            ratio="",
            bound="1.000; 0",
            met=asked(ours) == "1.000; 0",
            note="mapped tasks are refused little here because Airflow cannot start many more of them than the quota "
            "has room for; in an hour it can start all that are left, so 1,000 would be asked for 10.5 times each",
        ),
        Row(
            measured=f"{case}: seconds until the last one is archived",
            ours=f"{ours.makespan:.0f} s",
            peers={name: f"{peer.makespan:.0f} s" for name, peer in peers.items()},
            ratio=ratios("makespan"),
            bound="",
            met=None,
            note="a deferral costs some seconds for each burst, whatever the period is",
        ),
    ]
    return [*rows, hourly(ours)]


def hourly(measured: real.Measured) -> Row:
    """Put the provider beside the task that sleeps, with the real quota, on the simulated clock."""
    case = backlog(HOURLY, start=latency(measured), download=USUAL)
    ours = simulate(case)
    with TemporaryDirectory() as directory, real.s3(Path(directory)) as store:
        sleeping = simulate_sleeping(case, aws_connection(store))
    share = 100 / HOURLY

    def figure(one: Simulated) -> str:
        return (
            f"{one.worker_seconds * share:,.0f} s; {len(log.recordings(one.log)) / HOURLY:.3f}; {log.refused(one.log)}"
        )

    return Row(
        measured=f"{HOURLY} recordings in the backlog, {USUAL:g} s each, 50 an hour (simulated clock): worker seconds "
        "per 100 recordings; requests per recording; refused ones",
        ours=figure(ours),
        peers={NAMES[real.SLEEPING]: figure(sleeping)},
        ratio=f"{ours.worker_seconds / sleeping.worker_seconds:.4f}",
        bound="",
        met=None,
        note="of ours, the start of the process is not in it, once for each 50 recordings",
    )
