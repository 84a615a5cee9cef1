"""
The planning of a run: the calls are listed, the archive is listed, the sidecars are read, and what is missing is found,
which here is nothing, because reading is the more work the more is archived. Outside the window lie 1,000 to 100,000
objects in date partitions of 1,000; in it 100 to 10,000 calls, at most 1,000 a day, each with audio and sidecar. The
plan of 100 calls is made seven times, that of 1,000 three times, that of 10,000 once, by turns. The requests to S3 are
counted by a relay in front of it, those for pages of calls by the API. The loop is how a task of one's own would do it:
for each call on each page it looks whether its recording is there, with boto3's ``head_object`` or ``Path.exists``.
Servers and processes are as with the burst; the API responds without delay.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from airflow_provider_amplemarket.archive.layout import Layout
from benchmarks import children
from benchmarks.api import API_KEY, calls_of
from benchmarks.servers import ApiServer, Counting, api, s3
from benchmarks.table import Row
from dev.stores.s3 import aws_connection
from dev.stores.store import BUCKET

END = datetime(2026, 11, 20, tzinfo=UTC)
A_DAY = 1000
#: Times of the same amount of work differ by as much.
NOISE = 1.25


@dataclass(frozen=True)
class Case:
    """
    An archive.

    :param outside: objects outside the window.
    :param inside: calls in the window.
    """

    outside: int
    inside: int

    @property
    def name(self) -> str:
        """The archive's folder."""
        return f"{self.outside}-objects-{self.inside}-calls"

    @property
    def days(self) -> int:
        """Length of the window."""
        return ceil(self.inside / A_DAY)

    @property
    def times(self) -> int:
        """How often its plan is made."""
        return {100: 7, 1_000: 3, 10_000: 1}[self.inside]

    def fill(self, bucket: Path) -> None:
        """Make the archive."""
        layout = Layout()
        for number in range(self.outside):
            folder = bucket / self.name / f"date={END - timedelta(days=100 + number // 1000):%Y-%m-%d}"
            if number % 1000 == 0:
                folder.mkdir(parents=True)
            (folder / f"{number // 2:08}.{'json' if number % 2 else 'mp3'}").touch()
        for call in calls_of(self.inside, 1, end=END, days=self.days):
            place = layout.place(call)
            audio, sidecar = bucket / self.name / place.audio, bucket / self.name / place.sidecar
            audio.parent.mkdir(parents=True, exist_ok=True)
            audio.write_bytes(b"audio")
            record = {"version": 1, "call_id": call["id"], "status": "stored", "size": 5, "sha256": "0" * 64}
            sidecar.write_text(json.dumps({**record, "start_date": call["start_date"], "call": call}, indent=2))


OUTSIDE = (Case(1_000, 100), Case(10_000, 100), Case(100_000, 100))
INSIDE = (Case(1_000, 100), Case(1_000, 1_000), Case(1_000, 10_000))
CASES = tuple(dict.fromkeys(OUTSIDE + INSIDE))
#: What is measured first loads what is loaded late, and does not count.
PLANS = (CASES[0], *(case for turn in range(7) for case in CASES if turn < case.times))


def run() -> list[Row]:
    """Measure on the local disk and on S3."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amplemarket-growth-"))) / "s3"
        for case in CASES:
            case.fill(folder / BUCKET)
        store = stack.enter_context(s3(folder))
        counting = Counting(store.url)
        stack.callback(counting.close)
        servers = {
            case.inside: stack.enter_context(api(case.inside, end=END.isoformat(), days=case.days)) for case in INSIDE
        }
        counters = [Counting(store.url), Counting(store.url)]
        for counter in counters:
            stack.callback(counter.close)
        connections = {f"api_{number}": server.connection() for number, server in servers.items()}
        local = Planning(f"file://{folder / BUCKET}", {"folder": str(folder / BUCKET)}, servers, connections)
        on_s3 = Planning(f"s3://aws@{BUCKET}", {"bucket": BUCKET}, servers, connections, counters)
        return [*local.rows("the local disk"), *on_s3.rows("S3"), *on_s3.requests(*counters)]


def _tasks(cases: Sequence[Case], root: str) -> list[dict[str, Any]]:
    return [
        {
            "path": f"{root}/{case.name}",
            "amplemarket_conn_id": f"api_{case.inside}",
            "start": (END - timedelta(days=case.days)).isoformat(),
            "end": END.isoformat(),
        }
        for case in cases
    ]


class Planning:
    """
    The same plans on one store.

    :param root: the store, as ObjectStoragePath takes it.
    :param place: the same for the loop.
    :param servers: the API with so many calls.
    :param counters: stand before the store; the first for us, the second for the loop.
    """

    def __init__(
        self,
        root: str,
        place: dict[str, str],
        servers: dict[int, ApiServer],
        connections: dict[str, str],
        counters: Sequence[Counting] = (),
    ) -> None:
        tasks = {"kind": "plan", "tasks": _tasks(PLANS, root)}
        runs = [{"prefix": case.name, "url": servers[case.inside].url} for case in PLANS]
        options = {"api_key": API_KEY, "runs": runs, **place}
        ours, loop = [connections | {"aws": aws_connection(each.url)} for each in counters] or [connections] * 2
        before = {number: server.pages() for number, server in servers.items()}
        self._ours = _times(children.tasks("operators", tasks, ours))
        self._pages = {
            number: (server.pages() - before[number]) / sum(case.inside == number for case in PLANS)
            for number, server in servers.items()
        }
        self._loop = _times(children.tasks("look", options, loop))

    def rows(self, store: str) -> list[Row]:
        """Compare what lies outside, and what lies inside."""
        outside = [self._ours[case] for case in OUTSIDE]
        inside = [self._ours[case] for case in INSIDE]
        growths = [later / earlier for earlier, later in pairwise(inside)]
        objects, calls = _listed(case.outside for case in OUTSIDE), _listed(case.inside for case in INSIDE)
        return [
            Row(
                f"Planning 100 calls, {objects} objects outside the window, on {store}",
                _seconds(outside),
                {"(b) loop": _seconds(self._loop[case] for case in OUTSIDE)},
                self._ratios(OUTSIDE),
                f"no growth: the last at most {NOISE} of the first, for noise",
                outside[-1] <= NOISE * outside[0],
                f"the last is {outside[-1] / outside[0]:.2f} of the first",
            ),
            Row(
                f"Planning {calls} calls, 1,000 objects outside the window, on {store}",
                _seconds(inside),
                {"(b) loop": _seconds(self._loop[case] for case in INSIDE)},
                self._ratios(INSIDE),
                f"at most linear: 10 for each step, and {NOISE} for noise",
                all(growth <= 10 * NOISE for growth in growths),
                f"{' and '.join(f'{growth:.1f}' for growth in growths)} for each step",
            ),
        ]

    def _ratios(self, cases: Sequence[Case]) -> str:
        return " / ".join(f"{self._ours[case] / self._loop[case]:.2f}" for case in cases) + " of (b)"

    def requests(self, ours: Counting, loop: Counting) -> list[Row]:
        """Compare the requests of a plan."""
        counts, looks = _counts(ours), _counts(loop)
        listings = [counts[case]["LIST"] for case in INSIDE]
        few = [
            self._pages[case.inside] <= ceil(case.inside / 20)
            and counts[case].keys() <= {"GET", "LIST", "LIST, further page"}
            and counts[case]["GET"] == case.inside
            for case in INSIDE
        ]
        return [
            Row(
                f"Its requests to S3, {_listed(case.outside for case in OUTSIDE)} objects outside the window",
                " / ".join(_kinds(counts[case]) for case in OUTSIDE),
                {"(b) loop": " / ".join(_kinds(looks[case]) for case in OUTSIDE)},
                "",
                "no growth",
                counts[OUTSIDE[0]] == counts[OUTSIDE[1]] == counts[OUTSIDE[2]],
            ),
            Row(
                f"Its requests to S3, and for pages of 20 calls, {_listed(case.inside for case in INSIDE)} calls",
                " / ".join(f"{_kinds(counts[case])}, pages {self._pages[case.inside]:,g}" for case in INSIDE),
                {"(b) loop": " / ".join(_kinds(looks[case]) for case in INSIDE) + ", and the same pages"},
                "",
                f"one listing for each date partition: {_listed(case.days for case in INSIDE)}; one GET a sidecar",
                listings == [case.days for case in INSIDE] and all(few),
                "S3 lists 1,000 objects at once, hence further pages",
            ),
        ]


def _times(figures: list[children.Figures]) -> dict[Case, float]:
    """Return the median of each case."""
    seconds: dict[Case, list[float]] = {case: [] for case in CASES}
    for case, each in zip(PLANS[1:], figures[1:], strict=True):
        seconds[case].append(each["seconds"])
    return {case: median(some) for case, some in seconds.items()}


def _counts(counting: Counting) -> dict[Case, dict[str, float]]:
    """Return how many requests of each kind a plan has sent."""
    return {
        case: {
            kind: count / PLANS.count(case)
            for (name, kind), count in sorted(counting.counts.items())
            if name == case.name
        }
        for case in CASES
    }


def _kinds(counts: dict[str, float]) -> str:
    return ", ".join(f"{kind} {count:,g}" for kind, count in counts.items())


def _listed(numbers: Any) -> str:
    return " / ".join(f"{number:,}" for number in numbers)


def _seconds(figures: Any) -> str:
    return " / ".join(f"{figure:.2f}" for figure in figures) + " s"
