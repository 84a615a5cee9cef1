"""The archive on every kind of store: what is in it is found and read, and what is not can be said so."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import objects
from airflow_provider_amplemarket.archive.layout import Layout
from airflow_provider_amplemarket.archive.sidecar import Entry, Sidecar
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.exceptions import ArchiveError
from dev.stores import Store
from dev.stores.relay import Relay
from dev.stores.s3 import endpoint_of, s3_client
from tests.archive.tools import (
    AUDIO,
    call,
    commit,
    counted,
    listing,
    place,
    publish,
)

# gcsfs hands aiohttp whole chunks; those are small enough here.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")


class TestEveryStore:
    """What holds wherever the archive lies."""

    def test_uri_is_what_airflow_opens(self, archive: Archive) -> None:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        publish(archive, place().audio)
        assert ObjectStoragePath(archive.uri(place().audio)).read_bytes() == AUDIO

    def test_record_is_readable_json(self, archive: Archive) -> None:
        commit(archive, place(), status="stored", notes="“short” — é", moment=None)
        text = archive.fs.cat_file(f"{archive.path.path}/{place().sidecar}").decode()
        assert "“short” — é" in text
        assert text.endswith("}\n")
        assert json.loads(text) == {
            "version": 1,
            "start_date": None,
            "status": "stored",
            "notes": "“short” — é",
            "moment": None,
        }

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
        assert (entry.size, entry.sidecar) == (len(AUDIO), Sidecar())
        assert entry.is_orphaned
        assert not entry.is_stored
        commit(archive, place(), status="stored", size=len(AUDIO))
        entry = archive.entries([place()])[place().audio]
        assert entry.sidecar == Sidecar.load({"status": "stored", "size": len(AUDIO)})
        assert entry.is_stored
        assert not entry.is_orphaned

    @pytest.mark.parametrize(
        ("size", "record", "is_stored", "is_orphaned"),
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
        self, size: int | None, record: dict[str, Any] | None, is_stored: bool, is_orphaned: bool
    ) -> None:
        entry = Entry(place(), size, Sidecar.load(record or {}))
        assert (entry.is_stored, entry.is_orphaned) == (is_stored, is_orphaned)

    @pytest.mark.parametrize(
        "text", [b"", b'{"status": "stor', b"[]", b"null", b'"stored"', b"\xff\xfe\x00", b"\x00" * 100]
    )
    def test_garbled_record_counts_as_none(self, archive: Archive, text: bytes) -> None:
        publish(archive, place().audio)
        publish(archive, place().sidecar, text)
        entry = archive.entries([place()])[place().audio]
        assert entry.sidecar == Sidecar()
        assert entry.is_orphaned

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

    def test_find_reads_calls_at_their_places(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = [call("one", 20), call("two", 21), call("three", 21)]
        for where in (place("one", 20), place("two", 21)):
            publish(archive, where.audio)
            commit(archive, where, status="stored", size=len(AUDIO))
        finds = counted(monkeypatch, archive.fs, "find")
        found = archive.find(calls)
        assert list(found) == ["one", "two", "three"]
        assert found == {
            "one": Entry(place("one", 20), len(AUDIO), Sidecar.load({"status": "stored", "size": len(AUDIO)})),
            "two": Entry(place("two", 21), len(AUDIO), Sidecar.load({"status": "stored", "size": len(AUDIO)})),
            "three": Entry(place("three", 21)),
        }
        folders = [name.rpartition("/")[2] for name in finds]
        assert folders == ["date=2026-11-20", "date=2026-11-21", "undated"]

    def test_find_does_not_look_elsewhere_where_all_is_settled(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit(archive, place(), status="deleted")
        finds = counted(monkeypatch, archive.fs, "find")
        assert archive.find([call()])["one"].sidecar == Sidecar.load({"status": "deleted"})
        assert len(finds) == 1

    def test_find_of_no_calls_needs_no_listing(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        finds = counted(monkeypatch, archive.fs, "find")
        assert archive.find([]) == {}
        assert finds == []

    @pytest.mark.parametrize("record", [{"status": "stored", "size": len(AUDIO)}, {"status": "deleted"}])
    @pytest.mark.parametrize("at_its_place", [None, {"status": "not_found"}, {"status": "failed"}])
    def test_find_takes_what_is_settled_under_undated(
        self, archive: Archive, record: dict[str, Any], at_its_place: dict[str, Any] | None
    ) -> None:
        undated = Layout().undated(call())
        publish(archive, undated.audio)
        commit(archive, undated, **record)
        if at_its_place is not None:
            commit(archive, place(), **at_its_place)
        assert archive.find([call()]) == {"one": Entry(undated, len(AUDIO), Sidecar.load(record))}

    @pytest.mark.parametrize("record", [None, {"status": "not_found"}, {"status": "stored", "size": 1}])
    def test_find_leaves_what_is_not_settled_under_undated(
        self, archive: Archive, record: dict[str, Any] | None
    ) -> None:
        undated = Layout().undated(call())
        publish(archive, undated.audio)
        if record is not None:
            commit(archive, undated, **record)
        assert archive.find([call()]) == {"one": Entry(place())}

    def test_find_prefers_what_is_settled_at_its_place(self, archive: Archive) -> None:
        for where in (place(), Layout().undated(call())):
            commit(archive, where, status="deleted")
        assert archive.find([call()])["one"].place == place()

    def test_find_takes_a_call_without_a_date_as_it_lies(self, archive: Archive) -> None:
        undated = Layout().place({"id": "one"})
        commit(archive, undated, status="not_found")
        assert archive.find([{"id": "one"}]) == {"one": Entry(undated, None, Sidecar.load({"status": "not_found"}))}

    def test_connection_may_be_named_in_the_path(self, archive: Archive, store: Store) -> None:
        assert store.root in archive.uri(place().audio)

    def test_connection_may_be_given_apart(self, store: Store, folder: str) -> None:
        root, conn_id = store.apart
        publish(Archive(f"{root}/{folder}", conn_id=conn_id), place().audio)
        assert store.head(f"{folder}/{place().audio}")[0] == len(AUDIO)

    def test_store_that_falls_silent_holds_nobody_for_ever(
        self, archive: Archive, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(archive, place().audio)
        monkeypatch.setattr(objects, "TIMEOUT", 2)
        relay.hold(after=0)
        with pytest.raises(ArchiveError, match=r"could not be listed \(FSTimeoutError"):
            archive.entries([place()])

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
        assert archive.entries([place()])[place().audio].sidecar == Sidecar()

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

    def test_root_of_a_bucket(self, store: Store) -> None:
        if not store.is_s3:
            pytest.skip("not S3")
        s3_client(endpoint_of(store)).create_bucket(Bucket="whole")
        (conn_id,) = store.connections
        archive = Archive("s3://whole", conn_id=conn_id)
        archive.check_writable()
        publish(archive, place().audio)
        commit(archive, place(), status="stored", size=len(AUDIO))
        assert archive.entries([place()])[place().audio].is_stored
        assert archive.search(["one"])["one"].is_stored
