"""A task that is told to stop is gone soon, whatever the store does."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import tenacity

from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import ArchiveError
from dev.stores.relay import MuteServer, Relay
from tests.archive.tools import (
    MIB,
    child,
    commit,
    fail_uploads,
    place,
    publish,
    s3_archive,
    wait_for,
)

# gcsfs hands aiohttp whole chunks; those are small enough here.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")


class Stop(BaseException):
    """What Airflow raises in the main thread when a task's time is over."""


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise Stop in the main thread when the time is over, as Airflow does; it must come out of the block soon."""

    def ring(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, ring)
    begin = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with pytest.raises(Stop):
            yield
        assert time.monotonic() - begin < seconds + 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class TestStopping:
    """A task that is told to stop is gone soon, whatever the store does."""

    @pytest.fixture(params=["silent", "drips", "sips"])
    def server(self, request: pytest.FixtureRequest) -> Iterator[MuteServer]:
        server = MuteServer(request.param)
        yield server
        server.close()

    @pytest.fixture
    def hanging(self, server: MuteServer, folder: str, monkeypatch: pytest.MonkeyPatch) -> Archive:
        return s3_archive(f"http://127.0.0.1:{server.port}", folder, monkeypatch)

    @pytest.mark.parametrize(
        "work",
        [
            lambda archive: publish(archive, place().audio, bytes(3 * MIB)),
            lambda archive: publish(archive, place().audio, bytes(12 * MIB)),
            lambda archive: commit(archive, place(), status="stored"),
            lambda archive: archive.entries([place()]),
            lambda archive: archive.search(["one"]),
            lambda archive: archive.digest(place().audio),
            lambda archive: archive.check_writable(),
        ],
        ids=["publish", "publish-parts", "write_sidecar", "entries", "search", "digest", "check_writable"],
    )
    def test_whatever_is_asked_for_ends_soon_after_abort(
        self, hanging: Archive, server: MuteServer, work: Callable[[Archive], Any]
    ) -> None:
        with ThreadPoolExecutor(1) as threads:
            working = threads.submit(work, hanging)
            wait_for(server.reached.is_set)
            begin = time.monotonic()
            hanging.abort()
            with pytest.raises(ArchiveError, match="not used any more, because the task was told to stop"):
                working.result()
        assert time.monotonic() - begin < 10

    def test_nothing_is_begun_after_abort(self, hanging: Archive, server: MuteServer) -> None:
        hanging.abort()
        hanging.abort()
        for work in (
            lambda: publish(hanging, place().audio),
            lambda: commit(hanging, place(), status="stored"),
            lambda: hanging.entries([place()]),
            lambda: hanging.digest(place().audio),
            lambda: hanging.check_writable(),
        ):
            with pytest.raises(ArchiveError, match="told to stop"):
                work()
        assert server.connections == 0

    def test_nothing_is_tried_again_after_abort(self, local: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        tries = fail_uploads(monkeypatch, local, times=99)
        monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: local.abort())
        with pytest.raises(ArchiveError, match="told to stop"):
            publish(local, place().audio)
        assert tries == [1]

    def test_readers_do_not_keep_the_main_thread(
        self, archive: Archive, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        places = [place(f"call-{number}") for number in range(40)]
        for where in places:
            commit(archive, where, status="stored")
        list_folder = archive.list_sizes

        def list_and_fall_silent(folder: str) -> dict[str, int]:
            sizes = list_folder(folder)
            relay.hold(after=0)
            return sizes

        monkeypatch.setattr(archive, "list_sizes", list_and_fall_silent)
        with stopped_after(2):
            archive.entries(places)
        archive.abort()  # lest the readers go on in other tests

    def test_upload_does_not_keep_the_main_thread(self, hanging: Archive) -> None:
        with stopped_after(2):
            publish(hanging, place().audio)
        hanging.abort()

    def test_what_was_abandoned_does_not_keep_the_process(self, server: MuteServer, hanging: Archive) -> None:
        with child(STOP, str(hanging.path), place().audio) as process:
            output = process.stdout.read().decode()
            process.wait(30)
        assert "told to stop" in output
        assert process.returncode == 0
        assert server.reached.is_set()


STOP = """
import threading
from airflow_provider_amplemarket.exceptions import ArchiveError

threading.Timer(3, archive.abort).start()
with archive.staging() as directory:
    file = directory / "file"
    file.write_bytes(bytes(1024**2))
    try:
        archive.publish(file, key, "audio/mpeg")
    except ArchiveError as error:
        print(error, flush=True)
"""
