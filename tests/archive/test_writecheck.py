"""Whether an archive can be written is found out without leaving anything in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import writecheck
from airflow_provider_amplemarket.archive.sidecar import Entry, Sidecar
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.archive.writecheck import WRITE_CHECK
from airflow_provider_amplemarket.exceptions import ArchiveError
from dev.stores import Store
from dev.stores.s3 import aws_connection, demanding_credentials, endpoint_of, s3_client, write_once
from tests.archive.tools import (
    commit,
    counted,
    listing,
    place,
    publish,
    s3_archive,
)

# gcsfs hands aiohttp whole chunks; those are small enough here.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")


class TestEveryStore:
    """What holds wherever the archive lies."""

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

        monkeypatch.setattr(writecheck, "PROBES", {})
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


class TestLocal:
    """What matters on a local disk alone."""

    def test_root_below_a_file_is_not_writable(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ArchiveError, match=r"file/archive cannot be written \(NotADirectoryError"):
            Archive(f"file://{tmp_path}/file/archive").check_writable()


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
        assert archive.entries([place()])[place().audio].sidecar == Sidecar.load({"status": "stored"})
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
            archive.fs.rm_file(archive.full_name(place().audio))

    @pytest.mark.parametrize("takes_parts", [True, False], ids=["parts", "no-parts"])
    def test_every_run_finds_a_store_writable_that_replaces_and_deletes_nothing(
        self, takes_parts: bool, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with write_once(takes_parts=takes_parts) as endpoint:
            archive = s3_archive(endpoint, folder, monkeypatch)
            for _ in range(3):
                archive.check_writable()
