"""
The operator of the provider archives a backlog, and the calls of a day, through its real code: planning, ledger,
downloads, archive on the local disk, deferral. The API is the sandbox, over HTTP, with the limit of 50 recordings
in any hour. The clock is simulated: it jumps over every wait, and passes by itself while something is done. A task
starts and comes back as late as it does in the real Airflow below, and four downloads are under way at once, each as
long as in the row. The optimum for a backlog of n is ⌈n/50⌉ − 1 hours and the time of the last burst; for the day,
that each recording is asked for as soon as the hourly run after its call is due and 50 requests in any hour allow it.

A whole Airflow on PostgreSQL (scheduler, triggerer, LocalExecutor), with a period of seconds instead of an hour,
shows that the simulation is true: the same case is run in both.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from random import Random
from statistics import mean

from airflow_provider_amplemarket.quota.rate import RateLimit
from airflow_provider_amplemarket.sandbox.requestlog import LogEntry
from benchmarks import log, real
from benchmarks.simulation import HOUR, START, Case, Simulated, simulate
from benchmarks.table import Row

#: How far above the optimum the time until the last recording may be.
BOUND = 1.015
RESUMES = 6
#: Seconds that a recording takes: 2 MB at 2 MB/s after 300 ms; and a large one, or one on a slow line.
USUAL, SLOW = 1.3, 8.0


def run() -> list[Row]:
    """Measure all of it."""
    ours = real.measure()[real.OURS]
    start = latency(ours)
    rows = []
    for count, download in ((1200, USUAL), (300, SLOW)):
        case = backlog(count, start=start, download=download)
        name = f"{count:,} recordings in the backlog, {download:g} s each"
        rows += simulated_rows(name, case, simulate(case))
    case = day(start=start, download=USUAL)
    name = f"A day of 24 hourly runs: 500 recordings in the backlog, 400 new ones, {USUAL:g} s each"
    rows += simulated_rows(name, case, simulate(case))
    return [*rows, real_row(ours, start)]


def backlog(count: int, start: float, download: float = 0.0) -> Case:
    """Make the case of one run that finds all calls, those of the last two days."""
    return Case(
        [START - timedelta(days=2) * ((number + 0.5) / count) for number in range(count)],
        [START],
        start=start,
        download=download,
    )


def day(start: float, download: float) -> Case:
    """Make the case of hourly runs with calls that come in all the time, and a backlog that the first one finds."""
    rng = Random(0)
    runs = [START + number * HOUR for number in range(24)]
    old = [START - HOUR - timedelta(days=2) * rng.random() for _ in range(500)]
    new = [START - HOUR + timedelta(days=1) * rng.random() for _ in range(400)]
    return Case(old + new, runs, start=start, download=download)


def simulated_rows(name: str, case: Case, simulated: Simulated) -> list[Row]:
    """Put a simulated case beside its optimum."""
    count, entries = len(case.calls), log.recordings(simulated.log)
    began, burst = case.runs[0].timestamp(), log.last_burst(simulated.log)
    makespan, optimum = log.ended(simulated.log) - began, case.optimum[-1] - began + burst
    resumes = simulated.resumes / count * case.limit
    rows = [
        Row(
            measured=f"{name}: hours until the last one is archived (simulated clock)",
            ours=f"{makespan / 3600:.3f} h",
            peers={"optimum": f"{optimum / 3600:.3f} h"},
            ratio=f"{makespan / optimum:.4f}",
            bound=f"at most {BOUND}",
            met=makespan / optimum <= BOUND,
            note=f"the last burst takes {burst:.0f} s, a task comes back {case.start:.1f} s after its trigger "
            f"fires; workers are held for {simulated.worker_seconds / count * 100:.0f} s per 100 recordings",
        ),
        Row(
            measured=f"{name}: requests per recording; refused ones; resumes per {case.limit} recordings",
            ours=f"{len(entries) / count:.3f}; {log.refused(simulated.log)}; {resumes:.1f}",
            peers={},
            ratio="",
            bound=f"1.000; 0; at most {RESUMES}",
            met=len(entries) == count and not log.refused(simulated.log) and resumes <= RESUMES,
            note=f"beside them {len(simulated.log) - len(entries)} requests for pages of calls, and "
            f"{simulated.ledger} reads and writes of the ledger",
        ),
    ]
    if len(case.runs) > 1:
        delays = [
            mean(
                time - max(call, case.runs[0]).timestamp() for time, call in zip(times, sorted(case.calls), strict=True)
            )
            for times in (archived(case, simulated), case.optimum)
        ]
        rows.append(
            Row(
                measured=f"{name}: a recording's mean delay after its call (simulated clock)",
                ours=f"{delays[0] / 3600:.3f} h",
                peers={"optimum": f"{delays[1] / 3600:.3f} h"},
                ratio=f"{delays[0] / delays[1]:.4f}",
                bound="",
                met=None,
                note="of the backlog's, after the first run was due; new calls wait for their hourly run, too",
            )
        )
    return rows


def archived(case: Case, simulated: Simulated) -> list[float]:
    """Return when the recordings had come, in the order of their calls."""
    times = {str(entry.call_id): entry.answered or 0.0 for entry in log.recordings(simulated.log)}
    assert len(times) == len(case.calls)
    return [times[call_id] for call_id in sorted(times)]


def latency(measured: real.Measured) -> float:
    """
    Return how long a real task took to ask for its first recording, on the average.

    Counted from the run's trigger, and, whenever the task came back, from the time at which it was to.
    """
    hold = RateLimit(real.LIMIT, real.PERIOD).hold
    entries, seconds = log.recordings(measured.log), []
    for plan in log.plans(measured.log):
        before = [entry.answered or 0.0 for entry in entries if entry.time < plan]
        due = max(before) + hold if before else measured.triggered
        seconds.append(min(entry.time for entry in entries if entry.time >= plan) - due)
    return mean(seconds)


def real_row(measured: real.Measured, start: float) -> Row:
    """Put a real Airflow beside the simulation of the same."""
    case = replace(backlog(real.RECORDINGS, start=start), limit=real.LIMIT, period=real.PERIOD)
    simulated = simulate(case)
    begun = START.timestamp()
    makespan, expected = log.ended(measured.log) - measured.triggered, log.ended(simulated.log) - begun
    optimum = case.optimum[-1] - begun + log.last_burst(measured.log)
    return Row(
        measured=f"{real.RECORDINGS} recordings, {real.LIMIT} in {real.PERIOD:g} s, in a real Airflow and simulated: "
        "seconds until the last one is archived; requests per recording; refused ones; resumes",
        ours=figures(makespan, measured.log, measured.starts - 1),
        peers={"simulated": figures(expected, simulated.log, simulated.resumes), "optimum": f"{optimum:.1f} s"},
        ratio=f"{makespan / expected:.3f} of what is simulated",
        bound="",
        met=None,
        note=f"the {start:.1f} s (mean) in which this Airflow brings a task to its first recording are "
        f"{start / real.PERIOD:.0%} of the short period, and would be {start / 3600:.2%} of an hour",
    )


def figures(makespan: float, entries: list[LogEntry], resumes: int) -> str:
    """Return what is compared, as a text."""
    per_recording = len(log.recordings(entries)) / real.RECORDINGS
    return f"{makespan:.1f} s; {per_recording:.3f}; {log.refused(entries)}; {resumes}"
