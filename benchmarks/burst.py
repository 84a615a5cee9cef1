"""
Fifty recordings of 2 MiB, from an API whose every response takes 300 ms to begin, onto the local disk and onto rclone's
S3. Servers are processes of their own. The operator runs in a DAG with its defaults, four downloads at once; measured
is the whole of its ``execute``: listing calls and archive, ledger and XCom (the API server of Airflow is in the same
process), downloads, uploads, sidecars. curl, the floor, is given the addresses, runs under ``xargs -P 4``, and puts
what it fetched into S3 itself. Amazon's HttpToS3Operator is executed by four threads in one process, which spares it
the start of a process for each mapped task. The loop is a task of one's own: ``requests.get``, then a write or boto3's
``put_object``, one after the other. Starting a process and importing is left out for all but curl.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import children
from benchmarks.api import API_KEY, calls_of
from benchmarks.servers import S3, ApiServer, api, s3
from benchmarks.table import Row
from dev.stores.s3 import ACCESS
from dev.stores.store import BUCKET

CALLS = 50
MEBIBYTES = 2
DELAY = 0.3
CONCURRENCY = 4
TIMES = 3
BOUND = 1.25


def run() -> list[Row]:
    """Measure on the local disk and on S3."""
    with tempfile.TemporaryDirectory(prefix="amplemarket-burst-") as name:
        folder = Path(name)
        end = datetime.now(UTC).replace(microsecond=0)
        options = {"mebibytes": MEBIBYTES, "delay": DELAY, "end": end.isoformat()}
        with s3(folder / "s3") as store, api(CALLS, **options) as server:
            return [Burst(server, folder, end, target).row() for target in (None, store)]


class Burst:
    """
    The same recordings, archived in several ways.

    :param server: the API.
    :param folder: for what is written.
    :param end: the calls begin before.
    :param store: the object store; None for the local disk.
    """

    def __init__(self, server: ApiServer, folder: Path, end: datetime, store: S3 | None) -> None:
        self._server = server
        self._folder = folder
        self._end = end
        self._store = store
        self._call_ids = [call["id"] for call in calls_of(CALLS, MEBIBYTES, end=end, days=1)]
        self._connections = {f"api_{number}": server.connection() for number in range(TIMES + 1)}
        if store:
            self._connections["aws"] = store.connection

    def row(self) -> Row:
        """Measure, and compare."""
        ours = median(figures["seconds"] for figures in self._operator())
        floor = median(self._curl(f"curl-{number}") for number in range(TIMES))
        peers = {"(c) curl": floor}
        if self._store:
            peers["(a) HttpToS3Operator"] = self._peer("http_to_s3", TIMES, concurrency=CONCURRENCY)
        peers["(b) loop"] = self._peer("loop", 1)
        place = "S3" if self._store else "local disk"
        return Row(
            f"Burst of {CALLS} recordings of {MEBIBYTES} MiB, 300 ms to the first byte, onto {place}",
            f"{ours:.2f} s",
            {name: f"{seconds:.2f} s" for name, seconds in peers.items()},
            ", ".join(f"{ours / seconds:.2f} of {name[:3]}" for name, seconds in peers.items()),
            f"at most {BOUND} of (c)",
            ours / floor <= BOUND,
            "" if self._store else "(a) writes to S3 only",
        )

    def _operator(self) -> list[children.Figures]:
        root = f"s3://aws@{BUCKET}" if self._store else f"file://{self._folder}"
        window = {"start": (self._end - timedelta(days=1)).isoformat(), "end": self._end.isoformat()}
        tasks: list[dict[str, Any]] = [
            {"path": f"{root}/ours-{number}", "amplemarket_conn_id": f"api_{number}", **window}
            for number in range(TIMES + 1)
        ]
        tasks[0] |= {"call_ids": self._call_ids[:1]}
        figures = children.tasks("operators", {"kind": "run", "tasks": tasks}, self._connections)
        archive = self._store.folder if self._store else self._folder
        for number in range(1, TIMES + 1):
            _check(archive / f"ours-{number}")
        return figures[1:]

    def _curl(self, prefix: str) -> float:
        """Fetch with curl, four at once; for S3 each is put there from the file."""
        target = self._folder / prefix
        target.mkdir()
        fetch = (
            f'curl -sSf -H "Authorization: Bearer {API_KEY}" -o {target}/$0.mp3 {self._server.url}/calls/$0/recording'
        )
        put = ""
        if self._store:
            login = "{login}:{password}".format(**ACCESS)
            put = (
                f" && curl -sSf --aws-sigv4 aws:amz:us-east-1:s3 --user {login} -T {target}/$0.mp3"
                f" {self._store.url}/{BUCKET}/{prefix}/$0.mp3"
            )
        began = time.perf_counter()
        command = ["xargs", "-P", str(CONCURRENCY), "-n", "1", "sh", "-c", fetch + put]
        children.run(command, text="\n".join(self._call_ids))
        seconds = time.perf_counter() - began
        _check(target)
        if self._store:
            _check(self._store.folder / prefix)
        shutil.rmtree(target)
        return seconds

    def _peer(self, kind: str, times: int, **options: Any) -> float:
        prefixes = [f"{kind}-{number}" for number in range(times)]
        options |= {
            "api_key": API_KEY,
            "runs": [{"prefix": each, "url": self._server.url, "call_ids": self._call_ids} for each in prefixes],
            **({"bucket": BUCKET} if self._store else {"folder": str(self._folder)}),
        }
        figures = children.tasks(kind, options, self._connections)
        for prefix in prefixes:
            _check((self._store.folder if self._store else self._folder) / prefix)
        return median(each["seconds"] for each in figures)


def _check(folder: Path) -> None:
    """Make sure that all of it is there: what leaves something out is quick."""
    sizes = [path.stat().st_size for path in folder.rglob("*.mp3")]
    if sizes != [MEBIBYTES << 20] * CALLS:
        raise RuntimeError(f"{folder.name} has {len(sizes)} recordings of {sum(sizes)} bytes")
