"""
One recording of 1 MiB, 50 MiB, 500 MiB, each in a process of its own: by how much that process grows at most
(``VmHWM``) above what it had when it was idle, after a first recording of 1 MiB had been archived so that all code was
loaded. It is archived three times; the peaks are taken above the idle memory before the first, so that what a process
keeps counts, too. The rest is as with the burst, but the API responds without delay.
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
from dev.stores.store import BUCKET

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
    grown = []
    for size, server in zip(SIZES, servers, strict=True):
        apis = {f"api_{time}": server.connection() for time in range(1, TIMES + 1)}
        apis["api_0"] = servers[0].connection()
        tasks = [
            {"path": f"{root}/{size}-{conn_id}", "amplemarket_conn_id": conn_id, **window} for conn_id in sorted(apis)
        ]
        grown.append(_growth(children.tasks("operators", {"kind": "run", "tasks": tasks}, connections | apis)[1:]))
    return grown


def _peer(servers: Sequence[ApiServer], connections: dict[str, str]) -> list[float]:
    """Do the same with Amazon's operator."""
    ids = [calls_of(1, size, end=NOW, days=1)[0]["id"] for size in SIZES]
    first = {"prefix": "first", "url": servers[0].url, "call_ids": ids[:1]}
    grown = []
    for call_id, server in zip(ids, servers, strict=True):
        runs = [{"prefix": f"peer-{time}", "url": server.url, "call_ids": [call_id]} for time in range(TIMES)]
        options = {"api_key": API_KEY, "first": first, "runs": runs, "bucket": BUCKET, "concurrency": 1}
        grown.append(_growth(children.tasks("http_to_s3", options, connections)))
    return grown


def _growth(figures: list[children.Figures]) -> float:
    return median(each["peak"] - figures[0]["idle"] for each in figures)
