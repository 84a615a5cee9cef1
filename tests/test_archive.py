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
from pathlib import Path
from typing import Any

import pytest
import tenacity

from airflow_provider_amplemarket import archive as module
from airflow_provider_amplemarket.archive import STAGING, WRITE_CHECK, Archive, Entry
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, ArchiveError
from airflow_provider_amplemarket.layout import Layout, Place
from tests.stores import STORES, Kind, Relay, Store, aws_connection, demanding_credentials, endpoint_of, s3_client

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


def commit(archive: Archive, where: Place, **record: Any) -> None:
    with archive.staging() as directory:
        archive.write_record(where, record, directory)


def listing(archive: Archive) -> set[str]:
    archive.fs.invalidate_cache()
    root = archive.fs._strip_protocol(archive.path.path)
    # Some stores go on to list a folder that has nothing in it any more.
    return {name.removeprefix(f"{root}/") for name in archive.fs.find(root) if name.rstrip("/") != root}


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
        assert archive.digest(place().audio) == (len(AUDIO), hashlib.sha256(AUDIO).hexdigest())
        assert store.head(f"{folder}/{place().audio}")[0] == len(AUDIO)

    def test_objects_have_their_content_type(self, archive: Archive, store: Store, folder: str) -> None:
        publish(archive, place().audio, content_type="audio/x-wav")
        commit(archive, place(), status="stored")
        types = [store.head(f"{folder}/{key}")[1] for key in (place().audio, place().sidecar)]
        assert types == ([None, None] if store.name == "local" else ["audio/x-wav", "application/json"])

    def test_object_of_many_parts_is_whole(self, archive: Archive, store: Store, folder: str) -> None:
        data = os.urandom(MIB) * 19 + b"end"
        publish(archive, place().audio, data)
        assert archive.digest(place().audio) == (len(data), hashlib.sha256(data).hexdigest())
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

    def test_archive_that_nobody_may_delete_from_is_writable(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: str) -> None:
            raise PermissionError(path)

        monkeypatch.setattr(archive.fs, "rm_file", refuse)
        archive.check_writable()
        assert listing(archive) == {WRITE_CHECK}

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
        assert archive.digest(place().audio) == (len(AUDIO), hashlib.sha256(AUDIO).hexdigest())

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
        assert archive.digest(place().audio) == (len(data), hashlib.sha256(data).hexdigest())

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
        assert archive.digest(place().audio) == (len(data), hashlib.sha256(data).hexdigest())

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
            assert archive.digest(place().audio) == (len(AUDIO), hashlib.sha256(AUDIO).hexdigest())
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


@pytest.mark.parametrize("path", ["", "  ", "\n"])
def test_empty_path_is_refused(path: str) -> None:
    with pytest.raises(AmplemarketConfigurationError, match="must begin with a scheme"):
        Archive(path)


def test_unknown_protocol_is_refused() -> None:
    with pytest.raises(AmplemarketConfigurationError, match=r"path='nowhere://bucket/x' cannot be used: .*nowhere"):
        Archive("nowhere://bucket/x")


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
        opening = "import sys, time\nfrom airflow_provider_amplemarket.archive import Archive\n"
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
