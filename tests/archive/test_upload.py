"""What is published is whole, or not there: on every kind of store, and after a kill."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tenacity

from airflow_provider_amplemarket.archive import upload
from airflow_provider_amplemarket.archive.sidecar import Entry, Sidecar
from airflow_provider_amplemarket.archive.staging import STAGING
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import ArchiveError
from dev.stores import Store
from dev.stores.relay import Relay
from dev.stores.s3 import write_once
from tests.archive.tools import (
    AUDIO,
    MIB,
    child,
    commit,
    digest_of,
    fail_uploads,
    leftovers,
    listing,
    place,
    publish,
    s3_archive,
    unless,
    wait_for,
)

# gcsfs hands aiohttp whole chunks; those are small enough here.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")


class TestEveryStore:
    """What holds wherever the archive lies."""

    def test_published_object_is_there_byte_for_byte(self, archive: Archive, store: Store, folder: str) -> None:
        publish(archive, place().audio)
        assert archive.fs.cat_file(f"{archive.path.path}/{place().audio}") == AUDIO
        assert archive.digest(place().audio) == digest_of(AUDIO)
        assert store.head(f"{folder}/{place().audio}")[0] == len(AUDIO)

    def test_objects_have_their_content_type(self, archive: Archive, store: Store, folder: str) -> None:
        publish(archive, place().audio, content_type="audio/x-wav")
        commit(archive, place(), status="stored")
        types = [store.head(f"{folder}/{key}")[1] for key in (place().audio, place().sidecar)]
        assert types == ([None, None] if store.name == "local" else ["audio/x-wav", "application/json"])

    def test_object_of_many_parts_is_whole(self, archive: Archive, store: Store, folder: str) -> None:
        data = os.urandom(MIB) * 19 + b"end"
        publish(archive, place().audio, data)
        assert archive.digest(place().audio) == digest_of(data)
        assert store.head(f"{folder}/{place().audio}")[1] in (None, "audio/mpeg")

    def test_publishing_again_replaces(self, archive: Archive) -> None:
        publish(archive, place().audio, b"longer than the other one")
        publish(archive, place().audio, b"other")
        assert archive.fs.cat_file(f"{archive.path.path}/{place().audio}") == b"other"

    def test_nothing_but_the_objects_is_left(self, archive: Archive) -> None:
        archive.check_writable()
        publish(archive, place().audio)
        commit(archive, place(), status="stored")
        assert listing(archive) == {place().audio, place().sidecar}

    def test_failed_upload_is_made_again_from_the_file(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch, naps: list[float]
    ) -> None:
        tries = fail_uploads(monkeypatch, archive, times=3)
        publish(archive, place().audio)
        assert tries == [1, 2, 3, 4]
        assert naps == sorted(naps)
        assert len(naps) == 3
        assert archive.digest(place().audio) == digest_of(AUDIO)

    @pytest.mark.parametrize("size", [3, 12], ids=["one-request", "many-parts"])
    def test_upload_survives_cut_connections(
        self, archive: Archive, relay: Relay, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Some versions of aiohttp send a cut body again in part only, and then wait, each knowing of nothing to do.
        monkeypatch.setattr(upload, "UPLOAD_TIMEOUT", 10)
        monkeypatch.setattr(upload, "SLOWEST_UPLOAD", MIB)
        data = os.urandom(size * MIB)
        relay.cut(after=2 * MIB, times=2)
        publish(archive, place().audio, data)
        assert relay.cut_off == 2
        assert archive.digest(place().audio) == digest_of(data)

    @pytest.mark.parametrize("size", [3, 12], ids=["one-request", "many-parts"])
    def test_upload_that_stalls_is_tried_again(
        self, archive: Archive, relay: Relay, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = os.urandom(size * MIB)
        monkeypatch.setattr(upload, "UPLOAD_TIMEOUT", 5)
        monkeypatch.setattr(upload, "SLOWEST_UPLOAD", 2 * MIB)
        naps: list[float] = []
        monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: (naps.append(seconds), relay.release()))
        relay.hold(after=MIB)
        publish(archive, place().audio, data)
        assert len(naps) == 1
        assert archive.digest(place().audio) == digest_of(data)

    def test_upload_that_stalls_again_is_an_error_that_says_so(
        self, archive: Archive, relay: Relay, monkeypatch: pytest.MonkeyPatch, naps: list[float]
    ) -> None:
        monkeypatch.setattr(upload, "UPLOAD_TIMEOUT", 3)
        monkeypatch.setattr(upload, "SLOWEST_UPLOAD", 3 * MIB)
        relay.hold(after=MIB)
        expected = r"could not be written \(TimeoutError: 3145728 bytes were not taken within .* endpoint"
        with pytest.raises(ArchiveError, match=expected):
            publish(archive, place().audio, bytes(3 * MIB))
        assert len(naps) <= 2

    def test_upload_needs_little_memory(self, archive: Archive, store: Store, folder: str) -> None:
        with child(MEASURE, f"{store.root}/{folder}", place().audio, "64") as writer:
            *_, told = writer.stdout.read().split()  # Airflow may log before
        assert store.head(f"{folder}/{place().audio}")[0] == 64 * MIB
        assert int(told) < 56

    def test_upload_that_keeps_failing_is_an_error_and_changes_nothing(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch, naps: list[float]
    ) -> None:
        publish(archive, place().audio, b"good")
        tries = fail_uploads(monkeypatch, archive, times=99)
        with pytest.raises(ArchiveError, match=r"date=2026-11-20/one\.mp3 could not be written \(OSError: .*no room"):
            publish(archive, place().audio)
        assert len(tries) == 4
        monkeypatch.undo()
        assert archive.fs.cat_file(f"{archive.path.path}/{place().audio}") == b"good"

    def test_other_size_than_was_sent_is_an_error(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        info = archive.fs.info
        monkeypatch.setattr(archive.fs, "info", lambda path, **kwargs: {**info(path, **kwargs), "size": 7})
        with pytest.raises(ArchiveError, match=rf"one\.mp3 has 7 bytes after {len(AUDIO)} were written"):
            publish(archive, place().audio)

    def test_readers_see_the_old_or_the_new_and_never_a_part(self, archive: Archive, store: Store, folder: str) -> None:
        unless(store, "shows-parts")
        old, new = b"o" * (3 * MIB), b"n" * (5 * MIB)
        publish(archive, place().audio, old)
        sizes: set[int] = set()
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                sizes.add(store.head(f"{folder}/{place().audio}")[0])
                time.sleep(0.0005)  # lest the writer has no turn

        with ThreadPoolExecutor(1) as reader:
            looking = reader.submit(look)
            for data in (new, old, new, old, new):
                publish(archive, place().audio, data)
            done.set()
            looking.result()
        assert sizes <= {len(old), len(new)}

    def test_two_writers_of_one_key_leave_one_whole_object(self, archive: Archive, store: Store) -> None:
        unless(store, "shows-parts")
        contents = [bytes([number]) * MIB for number in range(4)]
        with ThreadPoolExecutor(4) as writers:
            list(writers.map(lambda data: publish(archive, place().audio, data), contents))
        assert archive.fs.cat_file(f"{archive.path.path}/{place().audio}") in contents

    @pytest.mark.parametrize("size", [3, 96], ids=["one-request", "many-parts"])
    @pytest.mark.parametrize("is_there", [False, True], ids=["new", "overwriting"])
    def test_kill_in_the_middle_of_an_upload_changes_nothing_in_sight(
        self,
        archive: Archive,
        store: Store,
        folder: str,
        size: int,
        is_there: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if size == 3:
            unless(store, "takes-cut-bodies")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        if is_there:
            publish(archive, place().audio)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        if store.relay:
            store.relay.hold(after=size * MIB // 2)
        with child(PUBLISH, f"{store.root}/{folder}", place().audio, str(size)) as writer:
            # On a local disk publishing is one rename, so the middle of it is the writing of the file.
            wait_for(store.relay.reached.is_set if store.relay else lambda: b"under way" in writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        if store.relay:
            store.relay.release()
            time.sleep(0.5)  # for the server to see the end of it
        visible = {key for key in listing(archive) if not key.startswith(STAGING)}
        assert visible == ({place().audio} if is_there else set())
        if is_there:
            assert archive.digest(place().audio) == digest_of(AUDIO)
            archive.fs.rm_file(f"{archive.path.path}/{place().audio}")
        assert archive.entries([place()])[place().audio] == Entry(place())
        (left,) = leftovers(archive, tmp_path)
        with archive.staging() as directory:
            assert leftovers(archive, tmp_path) == [directory]
            assert left != directory
        assert leftovers(archive, tmp_path) == []
        assert listing(archive) == set()


class TestLocal:
    """What matters on a local disk alone."""

    def test_file_is_moved_not_copied(self, local: Archive) -> None:
        with local.staging() as directory:
            file = directory / "file"
            file.write_bytes(AUDIO)
            number = file.stat().st_ino
            local.publish(file, place().audio, "audio/mpeg")
            assert not file.exists()
        assert Path(local.path.path, place().audio).stat().st_ino == number

    def test_folder_on_another_disk(self, local: Archive, tmp_path: Path) -> None:
        shared = Path("/dev/shm")
        if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no other disk here")
        with tempfile.TemporaryDirectory(dir=shared) as other:
            root = tmp_path / "archive"
            root.mkdir()
            (root / place().folder).symlink_to(other)
            publish(local, place().audio)
            assert sorted(os.listdir(other)) == ["one.mp3"]
            assert Path(other, "one.mp3").read_bytes() == AUDIO
        assert sorted(os.listdir(root)) == [place().folder]

    def test_file_where_a_folder_has_to_be_is_an_error(self, local: Archive, naps: list[float]) -> None:
        publish(local, place().folder)
        with pytest.raises(ArchiveError, match="could not be written"):
            publish(local, place().audio)


class TestWriteOnce:
    """What matters on a store that replaces and deletes nothing."""

    @pytest.fixture(params=[True, False], ids=["parts", "no-parts"])
    def endpoint(self, request: pytest.FixtureRequest) -> Iterator[str]:
        with write_once(takes_parts=request.param) as endpoint:
            yield endpoint

    @pytest.fixture
    def archive(self, endpoint: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> Archive:
        return s3_archive(endpoint, folder, monkeypatch)

    def test_what_is_there_with_the_same_bytes_is_published(self, archive: Archive) -> None:
        data = os.urandom(3 * MIB)
        publish(archive, place().audio, data)
        publish(archive, place().audio, data)
        assert archive.digest(place().audio) == digest_of(data)

    def test_other_bytes_are_refused_at_once_in_plain_words(self, archive: Archive, naps: list[float]) -> None:
        publish(archive, place().audio, b"first")
        with pytest.raises(ArchiveError, match=r"one\.mp3 is there already and .* not let it be replaced, .*retention"):
            publish(archive, place().audio, b"other")
        assert naps == []
        assert archive.fs.cat_file(archive.full_name(place().audio)) == b"first"

    def test_sidecar_that_would_change_its_status_is_refused_in_plain_words(self, archive: Archive) -> None:
        commit(archive, place(), status="failed")
        with pytest.raises(
            ArchiveError, match=r"one\.json is there already and the bucket does not let it be replaced"
        ):
            commit(archive, place(), status="stored")
        assert archive.entries([place()])[place().audio].sidecar == Sidecar.load({"status": "failed"})

    def test_upload_whose_answer_is_lost_is_no_failure(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch, naps: list[float]
    ) -> None:
        put_file = archive.fs.put_file

        def lose_the_answer(*args: Any, **kwargs: Any) -> None:
            monkeypatch.undo()
            put_file(*args, **kwargs)
            raise OSError("connection reset")

        monkeypatch.setattr(archive.fs, "put_file", lose_the_answer)
        publish(archive, place().audio)
        assert archive.digest(place().audio) == digest_of(AUDIO)


def hidden(error: Exception, behind: Exception) -> Exception:
    """Return an error as a client raises it while it handles another one."""
    error.__context__ = behind
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(
            "Forbidden: https://storage/o\nObject 'b/k' is subject to bucket's retention policy or object retention "
            "and cannot be deleted or overwritten until 2027-01-01T00:00:00-08:00"
        ),
        OSError(
            "Forbidden: Object 'b/k' is subject to bucket's retention policy and cannot be deleted, overwritten or"
        ),
        OSError("Object 'b/k' is under active Temporary hold and cannot be deleted, overwritten or archived until"),
        OSError("a@b.iam.gserviceaccount.com does not have storage.objects.delete access to the Google Cloud Storage"),
        hidden(
            FileExistsError("File already exists!"),
            Exception("This operation is not permitted as the blob is immutable due to a policy."),
        ),
        hidden(FileExistsError("File already exists!"), Exception("ErrorCode:BlobImmutableDueToLegalHold")),
        Exception("This request is not authorized to perform blob overwrites.\nErrorCode:UnauthorizedBlobOverwrite"),
        OSError(5, "Object is WORM protected and cannot be overwritten"),
        OSError(5, "The object is locked by the bucket policy."),
        PermissionError("Access Denied because object protected by object lock."),
    ],
)
def test_words_of_a_store_that_protects_what_is_there(error: Exception) -> None:
    assert upload._is_protection(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError("s3://bucket/retention/immutable/object-lock/hold/one.mp3: connection reset"),
        PermissionError("Access Denied"),
        OSError("Forbidden: a@b does not have storage.objects.create access to the Google Cloud Storage object."),
        FileExistsError("File already exists!"),
        TimeoutError(),
    ],
)
def test_other_words_of_a_store(error: Exception) -> None:
    assert not upload._is_protection(error)


# Processes that die, or are measured

PUBLISH = """
with archive.staging() as directory:
    file = directory / "file"
    with file.open("wb") as output:
        for number in range(int(sys.argv[3])):
            output.write(bytes(1024**2))
            if archive.is_local and number == 1:
                print("under way", flush=True)
                time.sleep(60)
    archive.publish(file, key, "audio/mpeg")
"""

# Linux forgets the peak so far when 5 is written there.
MEASURE = """
def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith(name + ":"))

def publish(size):
    file = directory / "file"
    with file.open("wb") as output:
        for _ in range(size):
            output.write(bytes(1024**2))
    archive.publish(file, key, "audio/mpeg")

with archive.staging() as directory:
    publish(12)  # which imports what there is to import
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    publish(int(sys.argv[3]))
    print(memory("VmHWM") - before, flush=True)
"""
