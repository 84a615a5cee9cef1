"""
One recording of 1 MiB, 50 MiB, 500 MiB: by how much the process that archives it grows at most (``VmHWM``) above what
it had when it was idle, after a first recording had been archived so that all code was loaded. Smaller recordings come
first, each size three times in the same process; the peak is taken above the idle memory before the first of them, so
that what a process keeps counts, too. The rest is as with the burst.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks import children
from benchmarks.api import API_KEY, calls_of
from benchmarks.servers import ApiServer, api, s3
from benchmarks.table import Row
from tests.stores import BUCKET

SIZES = (1, 50, 500)
TIMES = 3
BOUND = 16

NOW = datetime.now(UTC).replace(microsecond=0)


def run() -> list[Row]:
    """Measure on the local disk and on S3."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amplemarket-memory-")))
        store = stack.enter_context(s3(folder / "s3"))
        servers = [stack.enter_context(api(1, mebibytes=size, end=NOW.isoformat())) for size in SIZES]
        connections = {"aws": store.connection}
        peer = _peer(servers, connections)
        return [
            _row("the local disk", _operator(f"file://{folder / 'archive'}", servers, connections), {}),
            _row("S3", _operator(f"s3://aws@{BUCKET}/archive", servers, connections), {"(a) HttpToS3Operator": peer}),
        ]


def _row(place: str, ours: Sequence[float], peers: dict[str, Sequence[float]]) -> Row:
    growth = max(ours) - min(ours)
    return Row(
        f"Memory above idle for a recording of {_listed(SIZES)} MiB, onto {place}",
        f"{_listed(ours)} MiB",
        {name: f"{_listed(figures)} MiB" for name, figures in peers.items()},
        ", ".join(f"{ours[-1] / figures[-1]:.2f} of {name[:3]} at {SIZES[-1]} MiB" for name, figures in peers.items()),
        f"flat within {BOUND} MiB",
        growth <= BOUND,
        "" if peers else "(a) writes to S3 only",
    )


def _listed(figures: Sequence[float]) -> str:
    return " / ".join(f"{figure:.0f}" for figure in figures)


def _operator(root: str, servers: Sequence[ApiServer], connections: dict[str, str]) -> list[float]:
    window = {"start": "2000-01-01T00:00:00Z", "end": NOW.isoformat()}
    sizes = [0, *(number for number in range(len(SIZES)) for _ in range(TIMES))]
    tasks = [
        {"path": f"{root}/{place}", "amplemarket_conn_id": f"api_{place}", **window} for place in range(len(sizes))
    ]
    apis = {f"api_{place}": servers[number].connection() for place, number in enumerate(sizes)}
    return _by_size(children.tasks("operators", {"kind": "run", "tasks": tasks}, connections | apis)[1:])


def _peer(servers: Sequence[ApiServer], connections: dict[str, str]) -> list[float]:
    """Do the same with Amazon's operator."""
    ids = [calls_of(1, size, end=NOW, days=1)[0]["id"] for size in SIZES]
    runs = [
        {"prefix": f"peer-{time}", "url": server.url, "call_ids": [call_id]}
        for server, call_id in zip(servers, ids, strict=True)
        for time in range(TIMES)
    ]
    options = {"api_key": API_KEY, "runs": runs, "bucket": BUCKET, "concurrency": 1}
    return _by_size(children.tasks("http_to_s3", options, connections))


def _by_size(figures: list[children.Figures]) -> list[float]:
    """Answer the growth for each size, above what was idle before the first."""
    idle = figures[0]["idle"]
    groups = [figures[place : place + TIMES] for place in range(0, len(figures), TIMES)]
    return [median(each["peak"] - idle for each in group) for group in groups]
