"""The archive: what is in it is whole, on every kind of store; and what is not can be said so."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tenacity

from airflow_provider_amplemarket.archive import store as module
from airflow_provider_amplemarket.archive.layout import Layout, Place
from airflow_provider_amplemarket.archive.store import STAGING, WRITE_CHECK, Archive, Digest, Entry
from airflow_provider_amplemarket.exceptions import ArchiveError
from dev.stores import (
    BUCKET,
    STORES,
    Kind,
    MuteServer,
    Relay,
    Store,
    aws_connection,
    demanding_credentials,
    endpoint_of,
    s3_client,
    write_once,
)

# gcsfs hands aiohttp whole chunks; those are small enough here.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")

AUDIO = b"ID3" + bytes(range(256)) * 40
MIB = 1024**2


@pytest.fixture(scope="module", params=STORES, ids=lambda kind: kind.name)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    kind: Kind = request.param
    with kind.running(tmp_path_factory.mktemp(kind.name)) as running:
        yield running


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder of the store for each test alone."""
    return hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


@pytest.fixture
def relay(store: Store) -> Iterator[Relay]:
    if store.relay is None:
        pytest.skip("no network here")
    yield store.relay
    store.relay.release()


@pytest.fixture
def archive(store: Store, folder: str) -> Archive:
    return Archive(f"{store.root}/{folder}")


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return Archive(f"file://{tmp_path}/archive")


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", made.append)
    return made


def unless(store: Store, quirk: str) -> None:
    if quirk in store.quirks:
        pytest.skip(f"{store.name} {quirk.replace('-', ' ')}, unlike what it stands for")


def place(call_id: str = "one", day: int = 20) -> Place:
    return Layout().place({"id": call_id, "start_date": f"2026-11-{day:02}T10:00:00Z"})


def publish(archive: Archive, key: str, data: bytes = AUDIO, content_type: str = "audio/mpeg") -> None:
    with archive.staging() as directory:
        local = directory / "file"
        local.write_bytes(data)
        archive.publish(local, key, content_type)


def s3_archive(endpoint: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Return an archive on an S3 server of this machine."""
    conn_id = f"aws_{endpoint.rpartition(':')[2]}"
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", aws_connection(endpoint))
    return Archive(f"s3://{conn_id}@{BUCKET}/{folder}")


def commit(archive: Archive, where: Place, **record: Any) -> None:
    with archive.staging() as directory:
        archive.write_record(where, record, directory)


def listing(archive: Archive) -> set[str]:
    archive.fs.invalidate_cache()
    root = archive.fs._strip_protocol(archive.path.path)
    # Some stores go on to list a folder that has nothing in it any more.
    return {name.removeprefix(f"{root}/") for name in archive.fs.find(root) if name.rstrip("/") != root}


def digest_of(data: bytes, is_whole: bool = False) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest(), is_whole)


def counted(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> list[Any]:
    """Note the first argument of each call of a method."""
    method, calls = getattr(target, name), []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return method(*args, **kwargs)

    monkeypatch.setattr(target, name, wrapper)
    return calls


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

    def test_uri_is_what_airflow_opens(self, archive: Archive) -> None:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        publish(archive, place().audio)
        assert ObjectStoragePath(archive.uri(place().audio)).read_bytes() == AUDIO

    def test_record_is_readable_json(self, archive: Archive) -> None:
        commit(archive, place(), status="stored", notes="“short” — é", moment=None)
        text = archive.fs.cat_file(f"{archive.path.path}/{place().sidecar}").decode()
        assert "“short” — é" in text
        assert text.endswith("}\n")
        assert json.loads(text) == {"status": "stored", "notes": "“short” — é", "moment": None}

    def test_empty_archive_has_an_entry_without_anything_for_each_place(self, archive: Archive) -> None:
        places = [place("one"), place("two", 21)]
        assert archive.entries(places) == {where.audio: Entry(where) for where in places}

    def test_no_places_need_no_listing(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        finds = counted(monkeypatch, archive.fs, "find")
        assert archive.entries([]) == {}
        assert archive.search([]) == {}
        assert finds == []

    def test_entry_is_stored_once_the_record_is_there(self, archive: Archive) -> None:
        publish(archive, place().audio)
        entry = archive.entries([place()])[place().audio]
        assert (entry.size, entry.record) == (len(AUDIO), None)
        assert entry.is_uncommitted
        assert not entry.is_stored
        commit(archive, place(), status="stored", size=len(AUDIO))
        entry = archive.entries([place()])[place().audio]
        assert entry.record == {"status": "stored", "size": len(AUDIO)}
        assert entry.is_stored
        assert not entry.is_uncommitted

    @pytest.mark.parametrize(
        ("size", "record", "is_stored", "is_uncommitted"),
        [
            (5, {"status": "stored", "size": 5}, True, False),
            (5, {"status": "stored", "size": 6}, False, False),
            (5, {"status": "stored"}, False, False),
            (5, {"status": "stored", "size": "5"}, False, False),
            (None, {"status": "stored", "size": 5}, False, False),
            (5, {"status": "not_found"}, False, True),
            (5, {"status": "failed"}, False, True),
            (5, {"status": "deleted"}, False, False),
            (5, None, False, True),
            (0, None, False, False),
            (None, None, False, False),
            (None, {"status": "not_found"}, False, False),
        ],
    )
    def test_what_an_entry_comes_to(
        self, size: int | None, record: dict[str, Any] | None, is_stored: bool, is_uncommitted: bool
    ) -> None:
        entry = Entry(place(), size, record)
        assert (entry.is_stored, entry.is_uncommitted) == (is_stored, is_uncommitted)

    @pytest.mark.parametrize(
        "text", [b"", b'{"status": "stor', b"[]", b"null", b'"stored"', b"\xff\xfe\x00", b"\x00" * 100]
    )
    def test_garbled_record_counts_as_none(self, archive: Archive, text: bytes) -> None:
        publish(archive, place().audio)
        publish(archive, place().sidecar, text)
        entry = archive.entries([place()])[place().audio]
        assert entry.record is None
        assert entry.is_uncommitted

    def test_one_listing_for_each_folder_and_one_read_for_each_record(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        places = [place(f"call-{number}", day) for day in (19, 20, 21) for number in range(10)]
        for where in places[:12]:
            publish(archive, where.audio)
            commit(archive, where, status="stored", size=len(AUDIO))
        finds = counted(monkeypatch, archive.fs, "find")
        reads = counted(monkeypatch, archive.fs, "cat_file")
        infos = counted(monkeypatch, archive.fs, "info") if not archive.is_local else []
        entries = archive.entries(places)
        assert [where for where in places if entries[where.audio].is_stored] == places[:12]
        assert sorted(name.rpartition("/")[2] for name in finds) == [
            "date=2026-11-19",
            "date=2026-11-20",
            "date=2026-11-21",
        ]
        assert len(reads) == 12
        assert infos == []

    def test_folder_whose_name_goes_on_is_another(self, archive: Archive) -> None:
        publish(archive, "date=2026-11-200/one.mp3")
        assert archive.entries([place()])[place().audio].size is None

    def test_what_others_write_after_a_listing_is_seen(self, archive: Archive, store: Store, folder: str) -> None:
        publish(archive, place("one").audio)
        places = [place("one"), place("two")]
        root = archive.path.path
        for _ in range(2):
            archive.entries(places)
            archive.fs.ls(f"{root}/{place().folder}")
        store.put(f"{folder}/{place('two').audio}", AUDIO)
        store.put(f"{folder}/{place('two').sidecar}", json.dumps({"status": "stored", "size": len(AUDIO)}).encode())
        assert archive.entries(places)[place("two").audio].is_stored
        assert archive.search(["two"])["two"].is_stored

    def test_search_finds_calls_wherever_they_lie(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        undated = Layout().place({"id": "lost"})
        for where in (place("one", 3), place("two", 20), undated):
            publish(archive, where.audio)
            commit(archive, where, status="stored", size=len(AUDIO))
        publish(archive, "date=2026-11-20/three.txt")
        publish(archive, "elsewhere/three.mp3")
        finds = counted(monkeypatch, archive.fs, "find")
        found = archive.search(["one", "two", "three", "lost", "on"])
        assert {call_id: entry.place for call_id, entry in found.items()} == {
            "one": place("one", 3),
            "two": place("two", 20),
            "lost": undated,
        }
        assert all(entry.is_stored for entry in found.values())
        assert len(finds) == 1

    def test_check_leaves_everything_as_it_was(self, archive: Archive) -> None:
        publish(archive, place().audio)
        archive.check_writable()
        archive.check_writable()
        assert listing(archive) == {place().audio}

    def test_check_uploads_nothing(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        puts = counted(monkeypatch, archive.fs, "put_file")
        archive.check_writable()
        assert puts == []

    def test_where_no_upload_can_be_begun_and_nothing_deleted_each_check_has_a_name_of_its_own(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if archive.is_local:
            pytest.skip("there are no uploads here")

        def refuse(path: str, **kwargs: Any) -> None:
            raise PermissionError(path)

        monkeypatch.setattr(module, "PROBES", {})
        monkeypatch.setattr(archive.fs, "rm_file", refuse)
        archive.check_writable()
        archive.check_writable()
        names = listing(archive)
        assert len(names) == 2
        assert all(name.startswith(f"{WRITE_CHECK}-") for name in names)
        assert archive.entries([place()]) == {place().audio: Entry(place())}

    def test_missing_bucket_is_not_writable(self, store: Store) -> None:
        if store.missing is None:
            pytest.skip("no buckets here")
        with pytest.raises(ArchiveError, match=r"no-such-bucket/archive cannot be written .*storage_conn_id"):
            Archive(store.missing).check_writable()

    def test_refused_credentials_are_not_writable(
        self, store: Store, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if store.refused is None:
            pytest.skip("all credentials are taken here")
        conn_id = f"refused_{folder}"
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", store.refused)
        root, _ = store.apart
        with pytest.raises(ArchiveError, match=r"(?s)cannot be written .*storage_conn_id") as caught:
            Archive(root, conn_id=conn_id).check_writable()
        assert not any(secret in str(caught.value) for secret in ("secretsecret", "AccountKey"))

    def test_connection_may_be_named_in_the_path(self, archive: Archive, store: Store) -> None:
        assert store.root in archive.uri(place().audio)

    def test_connection_may_be_given_apart(self, store: Store, folder: str) -> None:
        root, conn_id = store.apart
        publish(Archive(f"{root}/{folder}", conn_id=conn_id), place().audio)
        assert store.head(f"{folder}/{place().audio}")[0] == len(AUDIO)

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
        monkeypatch.setattr(module, "_UPLOAD_PATIENCE", 10)
        monkeypatch.setattr(module, "_SLOWEST_UPLOAD", MIB)
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
        monkeypatch.setattr(module, "_UPLOAD_PATIENCE", 5)
        monkeypatch.setattr(module, "_SLOWEST_UPLOAD", 2 * MIB)
        naps: list[float] = []
        monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: (naps.append(seconds), relay.release()))
        relay.hold(after=MIB)
        publish(archive, place().audio, data)
        assert len(naps) == 1
        assert archive.digest(place().audio) == digest_of(data)

    def test_upload_that_stalls_again_is_an_error_that_says_so(
        self, archive: Archive, relay: Relay, monkeypatch: pytest.MonkeyPatch, naps: list[float]
    ) -> None:
        monkeypatch.setattr(module, "_UPLOAD_PATIENCE", 3)
        monkeypatch.setattr(module, "_SLOWEST_UPLOAD", 3 * MIB)
        relay.hold(after=MIB)
        expected = r"could not be written \(TimeoutError: 3145728 bytes were not taken within .* endpoint"
        with pytest.raises(ArchiveError, match=expected):
            publish(archive, place().audio, bytes(3 * MIB))
        assert len(naps) <= 2

    def test_store_that_falls_silent_holds_nobody_for_ever(
        self, archive: Archive, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(archive, place().audio)
        monkeypatch.setattr(module, "_PATIENCE", 2)
        relay.hold(after=0)
        with pytest.raises(ArchiveError, match=r"could not be listed \(FSTimeoutError"):
            archive.entries([place()])

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

    def test_archive_that_cannot_be_listed_is_not_an_empty_one(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: str, **kwargs: Any) -> None:
            raise PermissionError("not for you")

        monkeypatch.setattr(archive.fs, "find", refuse)
        for read in (lambda: archive.entries([place()]), lambda: archive.search(["one"])):
            with pytest.raises(ArchiveError, match=r"could not be listed \(PermissionError: not for you"):
                read()

    def test_record_that_cannot_be_read_is_not_a_missing_one(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit(archive, place(), status="deleted")

        def refuse(path: str, **kwargs: Any) -> None:
            raise PermissionError("not for you")

        monkeypatch.setattr(archive.fs, "cat_file", refuse)
        with pytest.raises(ArchiveError, match=r"one\.json could not be read \(PermissionError: not for you"):
            archive.entries([place()])

    def test_record_that_is_gone_after_the_listing_counts_as_none(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit(archive, place(), status="not_found")

        def vanish(path: str, **kwargs: Any) -> None:
            raise FileNotFoundError(path)

        monkeypatch.setattr(archive.fs, "cat_file", vanish)
        assert archive.entries([place()])[place().audio].record is None

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

    def test_staging_is_private_and_gone_afterwards(
        self, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with archive.staging() as directory, archive.staging() as another:
            assert directory != another
            assert directory.stat().st_mode & 0o077 == 0
            (directory / "part").write_bytes(AUDIO)
        assert not directory.exists()
        assert not directory.parent.exists()
        assert listing(archive) == set()

    def test_many_tasks_may_stage_at_once(
        self, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def work(number: int) -> bool:
            with archive.staging() as directory:
                return directory.is_dir()

        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with ThreadPoolExecutor(16) as tasks:
            assert all(tasks.map(work, range(300)))

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

    def test_staging_in_use_is_left_alone(
        self, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with archive.staging() as held:
            (held / "mine").write_text("mine")
            publish(archive, place().audio)
            archive.check_writable()
            assert (held / "mine").read_text() == "mine"


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

    def test_root_below_a_file_is_not_writable(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ArchiveError, match=r"file/archive cannot be written \(NotADirectoryError"):
            Archive(f"file://{tmp_path}/file/archive").check_writable()

    def test_file_where_a_folder_has_to_be_is_an_error(self, local: Archive, naps: list[float]) -> None:
        publish(local, place().folder)
        with pytest.raises(ArchiveError, match="could not be written"):
            publish(local, place().audio)

    @pytest.mark.parametrize("name", ["my recordings", "ünïcode", "a#b%20c", "[x]*?", "a/../b", "slash/"])
    def test_roots_with_odd_names(self, tmp_path: Path, name: str) -> None:
        archive = Archive(f"file://{tmp_path}/{name}")
        publish(archive, place().audio)
        commit(archive, place(), status="stored", size=len(AUDIO))
        assert archive.entries([place()])[place().audio].is_stored
        assert archive.search(["one"])["one"].is_stored
        (file,) = tmp_path.rglob("one.mp3")
        assert file.read_bytes() == AUDIO

    def test_root_that_is_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        archive = Archive(f"file://{tmp_path}/link")
        publish(archive, place().audio)
        assert archive.entries([place()])[place().audio].size == len(AUDIO)
        assert (tmp_path / "real" / place().audio).is_file()


class TestS3:
    """What matters on S3 alone."""

    @pytest.fixture
    def store(self, store: Store) -> Store:
        if not store.is_s3:
            pytest.skip("not S3")
        return store

    def test_unknown_credentials_are_not_writable(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        if store.name != "moto":
            pytest.skip("only moto can be told to forget them")
        monkeypatch.setenv("AIRFLOW_CONN_AWS_WRONG", aws_connection(endpoint_of(store), login="AKIAWRONG"))
        with (
            demanding_credentials(store),
            pytest.raises(ArchiveError, match=r"cannot be written \(PermissionError: .*Access Key") as caught,
        ):
            Archive(store.apart[0], conn_id="aws_wrong").check_writable()
        assert "secretsecret" not in str(caught.value)

    def test_root_of_a_bucket(self, store: Store) -> None:
        s3_client(endpoint_of(store)).create_bucket(Bucket="whole")
        (conn_id,) = store.connections
        archive = Archive("s3://whole", conn_id=conn_id)
        archive.check_writable()
        publish(archive, place().audio)
        commit(archive, place(), status="stored", size=len(AUDIO))
        assert archive.entries([place()])[place().audio].is_stored
        assert archive.search(["one"])["one"].is_stored

    @pytest.fixture
    def client(self, store: Store) -> Any:
        if store.name != "moto":
            pytest.skip("only moto keeps versions")
        return s3_client(endpoint_of(store))

    def test_checks_leave_nothing_in_a_bucket_with_object_lock(self, store: Store, client: Any) -> None:
        client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
        lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}}
        client.put_object_lock_configuration(Bucket="locked", ObjectLockConfiguration=lock)
        (conn_id,) = store.connections
        archive = Archive("s3://locked", conn_id=conn_id)
        archive.check_writable()
        archive.check_writable()
        told = client.list_object_versions(Bucket="locked")
        assert told.get("Versions", []) + told.get("DeleteMarkers", []) == []
        assert client.list_multipart_uploads(Bucket="locked").get("Uploads", []) == []
        # A sidecar may change its status, which makes a new version.
        commit(archive, place(), status="failed")
        commit(archive, place(), status="stored")
        assert archive.entries([place()])[place().audio].record == {"status": "stored"}
        assert len(client.list_object_versions(Bucket="locked")["Versions"]) == 2

    def test_checks_leave_nothing_where_deleting_is_denied(self, store: Store, client: Any) -> None:
        client.create_bucket(Bucket="kept")
        deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::kept/*"}
        client.put_bucket_policy(Bucket="kept", Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
        (conn_id,) = store.connections
        archive = Archive("s3://kept", conn_id=conn_id)
        archive.check_writable()
        archive.check_writable()
        assert client.list_objects_v2(Bucket="kept").get("KeyCount") == 0
        publish(archive, place().audio)
        with pytest.raises(PermissionError):
            archive.fs.rm_file(archive._full(place().audio))


class TestWriteOnce:
    """What matters on a store that replaces and deletes nothing."""

    @pytest.fixture(params=[True, False], ids=["parts", "no-parts"])
    def endpoint(self, request: pytest.FixtureRequest) -> Iterator[str]:
        with write_once(takes_parts=request.param) as endpoint:
            yield endpoint

    @pytest.fixture
    def archive(self, endpoint: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> Archive:
        return s3_archive(endpoint, folder, monkeypatch)

    def test_every_run_finds_it_writable(self, archive: Archive) -> None:
        for _ in range(3):
            archive.check_writable()

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
        assert archive.fs.cat_file(archive._full(place().audio)) == b"first"

    def test_sidecar_that_would_change_its_status_is_refused_in_plain_words(self, archive: Archive) -> None:
        commit(archive, place(), status="failed")
        with pytest.raises(
            ArchiveError, match=r"one\.json is there already and the bucket does not let it be replaced"
        ):
            commit(archive, place(), status="stored")
        assert archive.entries([place()])[place().audio].record == {"status": "failed"}

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
    assert module._is_protection(error)


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
    assert not module._is_protection(error)


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
        ids=["publish", "publish-parts", "write_record", "entries", "search", "digest", "check_writable"],
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
        list_folder = archive._list

        def list_and_fall_silent(folder: str) -> dict[str, int]:
            sizes = list_folder(folder)
            relay.hold(after=0)
            return sizes

        monkeypatch.setattr(archive, "_list", list_and_fall_silent)
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


# Uploads that fail, and processes that die

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


class child:
    """A process of its own that works on an archive and is killed at the end of the block, if not before."""

    def __init__(self, script: str, root: str, key: str, *arguments: str) -> None:
        opening = "import sys, time\nfrom airflow_provider_amplemarket.archive.store import Archive\n"
        opening += "archive, key = Archive(sys.argv[1]), sys.argv[2]\n"
        command = [sys.executable, "-c", opening + script, root, key, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def leftovers(archive: Archive, tmp_path: Path) -> list[Path]:
    parent = Path(archive.path.path) / STAGING if archive.is_local else tmp_path
    pattern = "*" if archive.is_local else "airflow-provider-amplemarket-*/*"
    return sorted(parent.glob(pattern))


def fail_uploads(monkeypatch: pytest.MonkeyPatch, archive: Archive, times: int) -> list[int]:
    """Let so many uploads fail; answer the numbers of the tries."""
    owner, name = (os, "replace") if archive.is_local else (archive.fs, "put_file")
    upload = getattr(owner, name)
    tries: list[int] = []

    def flaky(*args: Any, **kwargs: Any) -> Any:
        tries.append(len(tries) + 1)
        if len(tries) <= times:
            raise OSError("no room, for a moment")
        return upload(*args, **kwargs)

    monkeypatch.setattr(owner, name, flaky)
    return tries
