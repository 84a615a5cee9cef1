"""What tests of the archive do with one, and the processes that they let work on one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive.layout import Layout, Place
from airflow_provider_amplemarket.archive.objects import Digest
from airflow_provider_amplemarket.archive.sidecar import Sidecar
from airflow_provider_amplemarket.archive.staging import STAGING
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.calls import Call
from dev.stores import Store
from dev.stores.s3 import aws_connection
from dev.stores.store import BUCKET

AUDIO = b"ID3" + bytes(range(256)) * 40
MIB = 1024**2


def unless(store: Store, quirk: str) -> None:
    if quirk in store.quirks:
        pytest.skip(f"{store.name} {quirk.replace('-', ' ')}, unlike what it stands for")


def call(call_id: str = "one", day: int = 20) -> Call:
    return {"id": call_id, "start_date": f"2026-11-{day:02}T10:00:00Z"}


def place(call_id: str = "one", day: int = 20) -> Place:
    return Layout().place(call(call_id, day))


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
        archive.write_sidecar(where, Sidecar.load(record), directory)


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


def fail_uploads(monkeypatch: pytest.MonkeyPatch, archive: Archive, times: int) -> list[int]:
    """Let so many uploads fail; return the numbers of the tries."""
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


def leftovers(archive: Archive, tmp_path: Path) -> list[Path]:
    parent = Path(archive.path.path) / STAGING if archive.is_local else tmp_path
    pattern = "*" if archive.is_local else "airflow-provider-amplemarket-*/*"
    return sorted(parent.glob(pattern))


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


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
