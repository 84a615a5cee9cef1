"""How permits become requests: with a hook that sends none, so that every moment can be chosen."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
import pytest

from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.archive.sidecar import Attempt, Entry, Item, Sidecar, Status
from airflow_provider_amplemarket.archive.staging import STAGING
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    AmplemarketError,
    ArchiveError,
    AuthenticationError,
    LedgerBusyError,
    LedgerError,
    RateLimitExceededError,
    RecordingNotFoundError,
    RecordingTooLargeError,
)
from airflow_provider_amplemarket.quota.rate import Permit, RateLimit, Report
from airflow_provider_amplemarket.run.downloads import Downloads
from airflow_provider_amplemarket.run.judge import OUTAGE
from airflow_provider_amplemarket.run.orphans import commit_orphans
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.recorder import Recorder
from airflow_provider_amplemarket.run.rules import Rules
from airflow_provider_amplemarket.run.work import Work
from airflow_provider_amplemarket.sandbox.recordings import recording_of

AUDIO = b"ID3 audio"
ATTEMPT = Attempt("dag", "task", "run", -1, 1, 1)


class Hook:
    """Respond as each call id wants; by default with a recording.

    :param answers: what is raised for a call, or what is done instead of responding at once.
    """

    amplemarket_conn_id = "amplemarket_default"

    def __init__(self, answers: Mapping[str, Exception | Callable[[], Any]]) -> None:
        self.asked: list[str] = []
        self.most = 0
        self._answers = answers
        self._now = 0
        self._lock = threading.Lock()

    def abort(self) -> None:
        pass

    def download_recording(
        self, call_id: str, target: Path, cancelled: Callable[[], bool], on_response: Callable[[], None]
    ) -> Recording:
        with self._lock:
            self.asked.append(call_id)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            answer = self._answers.get(call_id, lambda: None)
            if isinstance(answer, Exception):
                raise answer
            answer()
            on_response()
            target.write_bytes(AUDIO)
        finally:
            with self._lock:
                self._now -= 1
        now = pendulum.now("UTC")
        digest = hashlib.sha256(AUDIO).hexdigest()
        return Recording(call_id, len(AUDIO), digest, "audio/mpeg", True, now, now, now)


class Ledger:
    """Gives permits out of a heap and notes what it hears, but for what it hears when it raises.

    :param permits: How many there are; the first ``stale`` of them have grown too old to be used.
    """

    def __init__(self, permits: int = 1000) -> None:
        self.left = permits
        self.stale = 0
        self.given: list[Permit] = []
        self.answered: dict[Permit, float] = {}
        self.unused: list[Permit] = []
        self.refusals: list[float | None] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.busy = 0
        self.is_quick = True
        self.limit = RateLimit(50, 3600)
        self.clock = time.time

    def report_and_acquire(self, report: Report, wanted: int) -> list[Permit]:
        self.threads.add(threading.current_thread().name)
        if self.busy and self.given:
            self.busy -= 1
            raise LedgerBusyError("Another task uses it")
        self.answered.update(report.answered)
        self.unused.extend(report.unused)
        self.refusals.extend(report.refusals)
        if self.error and self.given:
            raise self.error
        count = min(wanted, self.left)
        self.left -= count
        numbers = range(len(self.given), len(self.given) + count)
        permits = [Permit(f"p{number}", self.clock() + (-1 if number < self.stale else 30)) for number in numbers]
        self.given.extend(permits)
        return permits


RECORDER = Recorder(attempt=ATTEMPT, conn_id="amplemarket_default", is_full=True, hold=timedelta(hours=1))
#: As another run decides.
RULES = Rules(
    attempt=replace(ATTEMPT, run_id="other"),
    overwrite=False,
    not_found_for=timedelta(days=2),
    give_up_after=timedelta(days=3),
    insists=False,
)


def plan_of(archive: Archive, count: int) -> Plan:
    """Plan calls named c00, c01 and so on, a minute apart, whose recordings are missing."""
    items = []
    start = pendulum.datetime(2026, 11, 20, 8)
    for number in range(count):
        call = {"id": f"c{number:02}", "start_date": start.add(minutes=number).isoformat()}
        where = archive.layout.place(call)
        items.append(Item(call, archive.entries([where])[where.audio]))
    return Plan().with_results((item, Status.PENDING) for item in items)


class Case:
    """Downloads with everything that they use.

    :param directory: Where the archive is made.
    """

    def __init__(self, directory: Path, count: int, answers: Mapping[str, Any] | None = None, **changes: Any) -> None:
        self.root = directory / "archive"
        self.archive = Archive(f"file://{self.root}")
        self.hook = Hook(answers or {})
        self.ledger = Ledger(changes.pop("permits", 1000))
        self.cancel = threading.Event()
        self.downloads = Downloads(
            plan_of(self.archive, count),
            Work(
                hook=self.hook,  # type: ignore[arg-type]
                archive=self.archive,
                rules=RULES,
                recorder=RECORDER,
                cancel=self.cancel,
            ),
            ledger=self.ledger,  # type: ignore[arg-type]
            concurrency=changes.pop("concurrency", 1),
        )

    @property
    def plan(self) -> Plan:
        return self.downloads.plan

    def run(self) -> None:
        self.downloads.run()
        assert not (self.root / STAGING).exists()

    def ids(self, status: Status) -> list[str]:
        return [item.call_id for item in self.plan.items_with(status)]


def test_everything_is_asked_for_once_oldest_first(tmp_path: Path) -> None:
    case = Case(tmp_path, 20)
    case.run()
    assert case.hook.asked == case.ids(Status.STORED) == [f"c{number:02}" for number in range(20)]
    assert case.downloads.requests == 20
    assert set(case.ledger.answered) == set(case.ledger.given)
    assert case.ledger.unused == []


def test_nothing_missing_needs_no_permit(tmp_path: Path) -> None:
    case = Case(tmp_path, 0)
    case.run()
    assert case.ledger.threads == set()


def test_what_has_no_permit_stays_missing(tmp_path: Path) -> None:
    case = Case(tmp_path, 9, permits=5, concurrency=3)
    case.run()
    assert case.ids(Status.STORED) == ["c00", "c01", "c02", "c03", "c04"]
    assert case.ids(Status.PENDING) == ["c05", "c06", "c07", "c08"]
    assert case.downloads.requests == 5


def test_the_pace_is_that_of_the_answers(tmp_path: Path) -> None:
    slow = {f"c{number:02}": lambda: time.sleep(0.05) for number in range(5)}
    case = Case(tmp_path, 5, slow)
    assert case.downloads.pace == 0
    case.run()
    assert 0.05 <= case.downloads.pace < 0.5


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_so_many_at_once_and_no_more(tmp_path: Path, concurrency: int) -> None:
    together = threading.Barrier(concurrency, timeout=60)
    # Until the first one has succeeded, fewer go at once: all of them might be refused.
    first = {f"c{number:02}": together.wait for number in range(1, 1 + concurrency)}
    slow = {f"c{number:02}": lambda: time.sleep(0.02) for number in range(1 + concurrency, 24)}
    case = Case(tmp_path, 24, first | slow, concurrency=concurrency)
    case.run()
    assert case.hook.most == concurrency
    assert len(case.ids(Status.STORED)) == 24


def test_downloads_go_on_while_recordings_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next_one = threading.Event()
    case = Case(tmp_path, 2, {"c01": next_one.set})
    publish = case.archive.publish

    def slow(*arguments: Any) -> None:
        assert next_one.wait(10)
        publish(*arguments)

    monkeypatch.setattr(case.archive, "publish", slow)
    case.run()
    assert case.ids(Status.STORED) == ["c00", "c01"]
    assert case.hook.most == 1


def test_ledger_is_used_by_the_calling_thread_alone(tmp_path: Path) -> None:
    case = Case(tmp_path, 12, concurrency=4)
    case.run()
    assert case.ledger.threads == {threading.current_thread().name}


def test_permit_that_has_grown_old_is_given_back(tmp_path: Path) -> None:
    case = Case(tmp_path, 4)
    case.ledger.stale = 2
    case.run()
    assert sorted(permit.id for permit in case.ledger.unused) == ["p0", "p1"]
    assert set(case.ledger.answered).isdisjoint(case.ledger.unused)
    # Their calls are asked for with other permits, or left for later, but not lost.
    assert sorted(case.hook.asked) == case.ids(Status.STORED)
    assert len(case.ids(Status.STORED) + case.ids(Status.PENDING)) == 4
    assert case.downloads.requests == len(case.hook.asked)


def test_request_without_an_answer_keeps_its_permit(tmp_path: Path) -> None:
    case = Case(tmp_path, 3, {"c01": AmplemarketConnectionError("no answer")})
    case.run()
    assert case.ids(Status.FAILED) == ["c01"]
    (silent,) = set(case.ledger.given) - set(case.ledger.answered)
    assert silent not in case.ledger.unused


def test_refusal_stops_the_run_and_is_no_failure(tmp_path: Path) -> None:
    case = Case(tmp_path, 9, {"c02": RateLimitExceededError("429", retry_after=7.0)})
    case.run()
    assert case.hook.asked == ["c00", "c01", "c02"]
    assert case.ledger.refusals == [7.0]
    assert case.ids(Status.PENDING) == [f"c{number:02}" for number in range(2, 9)]
    assert case.ids(Status.FAILED) == []
    assert len(case.ledger.unused) + len(case.ledger.answered) == len(case.ledger.given)


def test_what_is_unforeseen_with_one_call_does_not_stop_the_others(tmp_path: Path) -> None:
    case = Case(tmp_path, 9, {"c02": RuntimeError("unforeseen")})
    case.run()
    assert case.ids(Status.FAILED) == ["c02"]
    assert len(case.ids(Status.STORED)) == 8


def test_what_makes_going_on_pointless_stops_at_once(tmp_path: Path) -> None:
    error = AuthenticationError("401", status=401)
    case = Case(tmp_path, 9, {"c02": error})
    with pytest.raises(type(error)) as caught:
        case.run()
    assert caught.value is error
    assert case.hook.asked == ["c00", "c01", "c02"]
    assert case.ids(Status.STORED) == ["c00", "c01"]
    assert len(case.ids(Status.PENDING)) == 7


def test_an_outage_stops_the_run_after_ten_requests(tmp_path: Path) -> None:
    case = Case(tmp_path, 30, {f"c{number:02}": AmplemarketAPIError("503", status=503) for number in range(3, 30)})
    with pytest.raises(AmplemarketError, match="10 requests in a row failed, the last one with: 503"):
        case.run()
    assert case.ids(Status.STORED) == ["c00", "c01", "c02"]
    assert len(case.ids(Status.FAILED)) == OUTAGE
    assert case.downloads.requests == len(case.hook.asked)


def test_failures_that_are_the_calls_own_are_no_outage(tmp_path: Path) -> None:
    answers: dict[str, Exception] = {
        f"c{number:02}": RecordingNotFoundError("404", status=404) for number in range(3, 30)
    }
    case = Case(tmp_path, 30, answers)
    case.run()
    assert len(case.ids(Status.NOT_FOUND)) == 27


def test_ledger_that_breaks_ends_what_is_under_way(tmp_path: Path) -> None:
    case = Case(tmp_path, 20, concurrency=2)
    case.ledger.error = LedgerError("cannot be written")
    with pytest.raises(LedgerError):
        case.run()
    assert len(case.hook.asked) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
    assert not (case.root / STAGING).exists()


def test_others_have_the_ledger_for_a_moment(tmp_path: Path) -> None:
    case = Case(tmp_path, 12, concurrency=2)
    case.ledger.busy = 1
    case.run()
    assert case.ledger.busy == 0
    assert len(case.ids(Status.STORED)) == 12
    # What became of the permits that were there meanwhile is told as soon as the ledger is free again.
    assert len(case.ledger.answered) == len(case.ledger.given) == 12


def test_others_have_the_ledger_for_long(tmp_path: Path) -> None:
    case = Case(tmp_path, 12, concurrency=2)
    case.ledger.busy = 1000
    with pytest.raises(LedgerBusyError):
        case.run()
    assert len(case.ids(Status.STORED)) == len(case.ledger.given) == 4
    assert case.ledger.busy == 998


def test_a_ledger_that_answers_slowly_keeps_no_task_that_is_told_to_stop(tmp_path: Path) -> None:
    case = Case(tmp_path, 20)
    case.hook._answers = {"c02": case.cancel.set}
    case.ledger.is_quick = False
    with pytest.raises(AmplemarketError):
        case.run()
    assert len(case.ledger.answered) + len(case.ledger.unused) < len(case.ledger.given)


def test_a_task_that_is_told_to_stop_says_so_also_while_others_have_the_ledger(tmp_path: Path) -> None:
    case = Case(tmp_path, 20)
    case.hook._answers = {"c01": case.cancel.set}
    case.ledger.busy = 1000
    with pytest.raises(AmplemarketError, match="The task was told to stop"):
        case.run()


def test_cancel_ends_the_run_with_its_permits_given_back(tmp_path: Path) -> None:
    case = Case(tmp_path, 20)
    case.hook._answers = {"c02": case.cancel.set}
    with pytest.raises(AmplemarketError):
        case.run()
    assert case.hook.asked == ["c00", "c01", "c02"]
    # What is not published yet in that moment is not published any more.
    assert set(case.ids(Status.STORED)) <= {"c00", "c01"}
    assert len(case.ids(Status.STORED) + case.ids(Status.PENDING)) == 20
    assert len(case.ledger.given) <= 6
    assert len(case.ledger.unused) + len(case.ledger.answered) == len(case.ledger.given)


def test_archive_that_does_not_take_a_failure_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, 6, {"c01": RecordingNotFoundError("404", status=404)})
    write = Archive.write_sidecar

    def refuse(self: Archive, place: Any, sidecar: Sidecar, directory: Path) -> None:
        if sidecar.status == Status.NOT_FOUND:
            raise ArchiveError("no room")
        write(self, place, sidecar, directory)

    def full(self: Archive) -> None:
        raise ArchiveError("no room")

    monkeypatch.setattr(Archive, "write_sidecar", refuse)
    monkeypatch.setattr(Archive, "check_writable", full)
    with pytest.raises(ArchiveError, match="no room"):
        case.run()
    assert case.hook.asked == ["c00", "c01"]
    assert case.ids(Status.STORED) == ["c00"]
    assert set(case.ledger.answered) <= set(case.ledger.given)
    assert len(case.ledger.answered) == 2


def test_a_sidecar_that_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, 6, {"c01": RecordingNotFoundError("404", status=404)})
    write = Archive.write_sidecar

    def refuse(self: Archive, place: Any, sidecar: Sidecar, directory: Path) -> None:
        if sidecar.status == Status.NOT_FOUND:
            raise OSError(36, "File name too long")
        write(self, place, sidecar, directory)

    monkeypatch.setattr(Archive, "write_sidecar", refuse)
    case.run()
    assert case.ids(Status.FAILED) == ["c01"]
    assert case.plan.failures() == {"c01": "404; and this could not be put on record: [Errno 36] File name too long"}
    assert len(case.ids(Status.STORED)) == 5


def test_what_failed_before_is_asked_for_last(tmp_path: Path) -> None:
    case = Case(tmp_path, 4)
    item = case.plan.items["c00"]
    failed = Item(item.call, Entry(item.entry.place, None, Sidecar(status=Status.FAILED)))
    case.downloads.plan = case.plan.with_results([(failed, Status.PENDING)])
    case.run()
    assert case.hook.asked == ["c01", "c02", "c03", "c00"]


def test_permits_that_come_late_are_not_spent_on_what_another_task_archived_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks that plan at the same moment; the second one's permits come a minute later."""
    first = Case(tmp_path, 35, concurrency=4, permits=20)
    second = Case(tmp_path, 35, concurrency=4)
    second.ledger.clock = lambda: time.time() + 60
    first.run()
    listed: list[str] = []
    list_folder = Archive.list_sizes
    monkeypatch.setattr(
        Archive, "list_sizes", lambda self, folder: (listed.append(folder), list_folder(self, folder))[1]
    )
    second.run()
    assert len(first.hook.asked) == 20
    assert sorted(second.hook.asked) == [f"c{number:02}" for number in range(20, 35)]
    assert sorted(second.ids(Status.ALREADY_STORED)) == sorted(first.hook.asked)
    assert len(second.ids(Status.STORED)) == 15
    assert listed == ["date=2026-11-20"]


def test_permits_for_which_nothing_is_left_are_given_back(tmp_path: Path) -> None:
    first, second = Case(tmp_path, 5), Case(tmp_path, 5)
    second.ledger.clock = lambda: time.time() + 60
    first.run()
    second.run()
    assert second.hook.asked == []
    assert second.ids(Status.ALREADY_STORED) == first.ids(Status.STORED)
    assert second.ledger.unused == second.ledger.given != []


def test_permits_that_come_soon_cost_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, 20)
    monkeypatch.setattr(Archive, "list_sizes", lambda self, folder: pytest.fail("listed"))
    case.run()
    assert len(case.ids(Status.STORED)) == 20


def test_the_archive_is_looked_at_once_for_many_calls_and_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, 60, concurrency=4)
    started = time.time() + 60
    case.ledger.clock = lambda: started + len(case.hook.asked)  # each request takes a second
    looks: list[int] = []
    entries = case.archive.entries

    def counted(places: Any) -> Any:
        places = list(places)
        looks.append(len(places))
        return entries(places)

    monkeypatch.setattr(case.archive, "entries", counted)
    case.run()
    assert len(case.ids(Status.STORED)) == 60
    assert looks[0] == 50
    assert 2 <= len(looks) <= 4


def test_what_another_task_has_settled_otherwise_is_not_asked_for(tmp_path: Path) -> None:
    first = Case(tmp_path, 4, {"c00": RecordingNotFoundError("404"), "c01": RecordingTooLargeError("413")})
    second = Case(tmp_path, 4)
    second.ledger.clock = lambda: time.time() + 60
    first.run()
    second.run()
    assert second.hook.asked == []
    assert (second.ids(Status.NOT_FOUND), second.ids(Status.TOO_LARGE)) == (["c00"], ["c01"])


def test_archive_that_cannot_be_listed_gives_the_permits_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, 5)
    case.ledger.clock = lambda: time.time() + 60

    def broken(places: Any) -> Any:
        raise ArchiveError("could not be listed")

    monkeypatch.setattr(case.archive, "entries", broken)
    with pytest.raises(ArchiveError, match="could not be listed"):
        case.run()
    assert case.hook.asked == []
    assert case.ledger.unused == case.ledger.given != []


def test_adopting_nothing_leaves_no_trace(tmp_path: Path) -> None:
    case = Case(tmp_path, 3)
    assert list(commit_orphans(case.plan, case.downloads.work)) == []
    assert not case.root.exists()
    assert len(case.ids(Status.PENDING)) == 3


def test_orphans_that_are_committed_count_though_the_archive_fails_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, 2)
    for item in case.plan.items.values():
        audio = case.root / item.entry.place.audio
        audio.parent.mkdir(parents=True, exist_ok=True)
        audio.write_bytes(b"".join(recording_of(item.call_id)))
    entries = case.archive.entries(item.entry.place for item in case.plan.items.values())
    items = [Item(item.call, entries[item.entry.place.audio]) for item in case.plan.items.values()]
    case.downloads.plan = case.plan.with_results((item, Status.PENDING) for item in items)
    write, written = case.archive.write_sidecar, []

    def write_one(*arguments: Any) -> None:
        if written:
            raise ArchiveError("full")
        written.append(write(*arguments))

    def full() -> None:
        raise ArchiveError("full")

    monkeypatch.setattr(case.archive, "write_sidecar", write_one)
    monkeypatch.setattr(case.archive, "check_writable", full)
    with pytest.raises(ArchiveError):
        case.downloads.prepare()
    assert case.plan.counts()["stored"] == 1
    assert case.plan.left == 1


def test_recordings_are_asked_for_in_their_order(tmp_path: Path) -> None:
    case = Case(tmp_path, 100, concurrency=1)
    case.run()
    assert case.hook.asked == sorted(case.hook.asked)
