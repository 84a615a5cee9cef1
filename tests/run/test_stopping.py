"""A task that is told to stop is gone in seconds, whatever the other side does, and leaves nothing untrue behind."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

import pytest

from airflow_provider_amplemarket.archive.sidecar import Attempt, Entry, Item, Status
from airflow_provider_amplemarket.archive.staging import STAGING
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import AmplemarketError
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.quota.rate import Permit, RateLimit, Report
from airflow_provider_amplemarket.run.downloads import Downloads
from airflow_provider_amplemarket.run.orphans import commit_orphans
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.recorder import Recorder
from airflow_provider_amplemarket.run.rules import Rules
from airflow_provider_amplemarket.run.work import Work
from airflow_provider_amplemarket.sandbox.recordings import recording_of

#: What a task that is told to stop may need; it is killed hard after a while.
GONE_WITHIN = 10.0
HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 1000000\r\n\r\nID3"


class Server(socketserver.ThreadingTCPServer):
    """A server on this machine that does with every connection the same.

    :param pieces: What it sends, with pauses between them; and then nothing, without closing the connection.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pieces = pieces
        self.requests = 0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        self.request.recv(65536)
        self.server.requests += 1
        try:
            for piece in self.server.pieces:
                self.request.sendall(piece)
                if self.server.over.wait(0.1):
                    return
            self.server.over.wait(120)
        except OSError:
            return


@contextmanager
def serving(pieces: list[bytes]) -> Iterator[Server]:
    with Server(pieces) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def drops(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


MODES: dict[str, list[bytes]] = {
    "body drips": [HEADER, *[b"x"] * 1000],
    "body falls silent": [HEADER],
    "header drips": drops(HEADER.replace(b"ID3", b"") + b"X-Long: " + b"x" * 1000),
    "no answer": [],
    "error body drips": [b"HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n"]
    + [b" "] * 1000,
}


class Ledger:
    """Gives every permit, and notes which come back."""

    clock = staticmethod(time.time)
    limit = RateLimit(50, 3600)
    is_quick = True

    def __init__(self) -> None:
        self.given = 0
        self.unused: list[Permit] = []

    def report_and_acquire(self, report: Report, wanted: int) -> list[Permit]:
        self.unused += report.unused
        self.given += wanted
        return [Permit(f"p{self.given - number}", time.time() + 30) for number in range(wanted)]


class Interrupted(BaseException):
    """What Airflow raises in the main thread at the end of execution_timeout is a BaseException like this."""


ATTEMPT = Attempt("dag", "task", "run", -1, 0, 1)
RECORDER = Recorder(attempt=ATTEMPT, conn_id="amplemarket_default", is_full=True, hold=timedelta(hours=1))
RULES = Rules(
    attempt=ATTEMPT,
    overwrite=False,
    not_found_for=timedelta(days=2),
    give_up_after=timedelta(days=3),
    insists=False,
)


@dataclass
class Case:
    """Downloads, and what they use."""

    downloads: Downloads
    archive: Archive
    hook: AmplemarketHook
    cancel: threading.Event

    @property
    def left(self) -> int:
        return self.downloads.plan.left


def told(case: Case) -> None:
    """As on_kill does."""
    case.cancel.set()
    case.hook.abort()


def interrupt(case: Case) -> None:
    os.kill(os.getpid(), signal.SIGALRM)


@pytest.fixture(params=[told, interrupt], ids=["told to stop", "time-out"])
def end(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], None]]:
    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, raise_it)
    yield request.param
    signal.signal(signal.SIGALRM, before)


def downloads_from(url: str, path: str, patch: pytest.MonkeyPatch, concurrency: int = 4) -> Case:
    conn = {"conn_type": "amplemarket", "host": url, "password": "key", "extra": {"timeout": 60}}
    patch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(conn))
    archive, hook, cancel = Archive(path), AmplemarketHook(), threading.Event()
    calls = [{"id": f"call-{number:02}", "start_date": "2026-11-20T08:00:00Z"} for number in range(20)]
    entries = archive.find(calls) if path.startswith("file:") else {}
    items = [Item(call, entries.get(call["id"], Entry(archive.layout.place(call)))) for call in calls]
    downloads = Downloads(
        Plan().with_results((item, Status.PENDING) for item in items),
        Work(hook=hook, archive=archive, rules=RULES, recorder=RECORDER, cancel=cancel),
        ledger=Ledger(),  # type: ignore[arg-type]
        concurrency=concurrency,
    )
    return Case(downloads, archive, hook, cancel)


def seconds_to_leave(case: Case, end: Callable[[Case], None], when: Callable[[], bool]) -> float:
    """Let the run end once something is the case; return how long it goes on."""
    moments: list[float] = []

    def watch() -> None:
        deadline = time.monotonic() + 30
        while not when() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        moments.append(time.monotonic())
        end(case)

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises((AmplemarketError, Interrupted)):
        case.downloads.run()
    return time.monotonic() - moments[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_never_ends_keeps_no_task(
    mode: str, end: Callable[[Case], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "archive"
    with serving(MODES[mode]) as server:
        case = downloads_from(server.url, f"file://{root}", monkeypatch)
        seconds = seconds_to_leave(case, end, lambda: server.requests >= 3)
        print(f"\n{mode}: {seconds:.1f} s")
        assert seconds < GONE_WITHIN
        assert not (root / STAGING).exists()
        requests = server.requests
        assert requests <= 4
        assert case.downloads.requests == requests
        assert case.left == 20
    time.sleep(0.5)  # the threads that were left behind have their end now
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert server.requests == requests


def test_an_upload_that_never_ends_keeps_no_task(
    end: Callable[[Case], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = HEADER.replace(b"1000000", b"3")
    with serving([audio]) as server, serving([]) as store:
        extra = {"endpoint_url": store.url, "region_name": "eu-west-1"}
        conn = {"conn_type": "aws", "login": "id", "password": "secret", "extra": extra}
        conn_id = f"hanging_{store.server_address[1]}"  # Airflow keeps a store for each connection
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(conn))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        case = downloads_from(server.url, f"s3://{conn_id}@bucket/recordings", monkeypatch)
        seconds = seconds_to_leave(case, end, lambda: store.requests >= 1)
        print(f"\nupload: {seconds:.1f} s")
        assert seconds < GONE_WITHIN
        assert list(tmp_path.rglob("*")) == []


def test_what_was_published_in_that_moment_is_adopted_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = b"".join(recording_of("call-00"))
    header = HEADER.replace(b"1000000", str(len(audio)).encode()).removesuffix(b"ID3")
    with serving([header + audio]) as server:
        case = downloads_from(server.url, f"file://{tmp_path}/archive", monkeypatch, concurrency=1)
        publish = case.archive.publish

        def and_then_killed(local: Path, key: str, content_type: str) -> None:
            publish(local, key, content_type)
            case.cancel.set()

        monkeypatch.setattr(case.archive, "publish", and_then_killed)
        with pytest.raises(AmplemarketError):
            case.downloads.run()
        names = [path.name for path in (tmp_path / "archive").rglob("*") if path.is_file()]
        assert names == ["call-00.mp3"]
        again = downloads_from(server.url, f"file://{tmp_path}/archive", monkeypatch)
        plan = again.downloads.plan
        assert plan.with_results(commit_orphans(plan, again.downloads.work)).left == 19


def test_what_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    """As Airflow runs it: the time-out in the main thread, and then the interpreter's end."""
    with serving(MODES["header drips"]) as server:
        code = f"""
        import os, signal, time
        import pytest
        from tests.run.test_stopping import Interrupted, downloads_from

        def raise_it(number, frame):
            raise Interrupted

        signal.signal(signal.SIGALRM, raise_it)
        with pytest.MonkeyPatch.context() as patch:
            case = downloads_from({server.url!r}, "file://{tmp_path}/archive", patch)
            signal.setitimer(signal.ITIMER_REAL, 2)
            try:
                case.downloads.run()
            except Interrupted:
                print("interrupted", time.time(), flush=True)
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=Path(__file__).parents[2],
        )
        gone = time.time()
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("interrupted")]
    assert gone - float(line.split()[1]) < GONE_WITHIN
