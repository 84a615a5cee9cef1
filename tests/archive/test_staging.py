"""Staging: private directories that are gone with their task, also after a kill, and never before."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_amplemarket.archive import staging as module
from airflow_provider_amplemarket.archive.staging import staging

TASK = """
import sys, time
from pathlib import Path
from airflow_provider_amplemarket.archive.staging import staging

with staging(Path(sys.argv[1])) as directory:
    (directory / "half.part").write_bytes(b"half")
    print(directory, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "staging"


@pytest.fixture
def task(parent: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Give another process that stages, and its directory."""
    with subprocess.Popen([sys.executable, "-c", TASK, str(parent)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_gives_a_private_directory_and_leaves_nothing(parent: Path) -> None:
    before = fds()
    with staging(parent) as directory:
        assert directory.parent == parent
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "a").mkdir()
        (directory / "a" / "file").write_bytes(b"x")
    assert not parent.exists()
    assert fds() == before


def test_it_leaves_nothing_after_an_error(parent: Path) -> None:
    def work() -> None:
        with staging(parent) as directory:
            (directory / "file").write_bytes(b"x")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        work()
    assert not parent.exists()


def test_it_does_not_mind_what_removed_its_directory(parent: Path) -> None:
    with staging(parent) as directory:
        (directory / module._LOCK).unlink()
        directory.rmdir()
    assert not parent.exists()


def test_two_do_not_disturb_each_other(parent: Path) -> None:
    with staging(parent) as first:
        (first / "file").write_bytes(b"x")
        with staging(parent) as second:
            assert first != second
        assert (first / "file").read_bytes() == b"x"
        assert not second.exists()
    assert not parent.exists()


def test_what_a_living_task_has_there_is_left_alone(parent: Path, task: tuple[object, Path]) -> None:
    _, theirs = task
    with staging(parent):
        assert (theirs / "half.part").exists()
    assert (theirs / "half.part").exists()


def test_what_a_killed_task_left_is_removed(parent: Path, task: tuple[subprocess.Popen[str], Path]) -> None:
    process, theirs = task
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (theirs / "half.part").exists()
    with staging(parent) as mine:
        assert list(parent.iterdir()) == [mine]
    assert not parent.exists()


def test_what_is_no_staging_directory_is_left_alone(parent: Path) -> None:
    (parent / "date=2026-11-20").mkdir(parents=True)
    (parent / "date=2026-11-20" / "a.mp3").write_bytes(b"x")
    (parent / "file").write_bytes(b"x")
    with staging(parent):
        pass
    assert (parent / "date=2026-11-20" / "a.mp3").exists()
    assert (parent / "file").exists()


def test_a_link_is_not_followed_when_sweeping(parent: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / module._LOCK).touch()
    (elsewhere / "precious").touch()
    parent.mkdir(parents=True)
    (parent / "link").symlink_to(elsewhere)
    with staging(parent):
        pass
    assert (elsewhere / "precious").exists()


def test_a_lock_that_cannot_be_opened_is_left(parent: Path) -> None:
    (parent / "odd" / module._LOCK).mkdir(parents=True)
    with staging(parent) as directory:
        assert directory.is_dir()
    assert (parent / "odd" / module._LOCK).exists()


def test_a_parent_that_is_removed_meanwhile_is_made_again(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another task ends between making the parent and making a directory in it.
    mkdtemp, tries = module.tempfile.mkdtemp, []

    def make(dir: Path) -> str:
        tries.append(dir)
        if len(tries) == 1:
            dir.rmdir()
        return mkdtemp(dir=dir)

    monkeypatch.setattr(module.tempfile, "mkdtemp", make)
    with staging(parent) as directory:
        assert directory.is_dir()
    assert len(tries) == 2


def test_a_parent_that_is_removed_as_soon_as_it_was_found_is_made_again(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, found = os.mkdir, []

    def make(path: Path, *args: Any, **kwargs: Any) -> None:
        if path == parent and not found:
            found.append(path)
            raise FileExistsError(path)
        mkdir(path, *args, **kwargs)

    parent.parent.mkdir()
    monkeypatch.setattr(os, "mkdir", make)
    with staging(parent) as directory:
        assert directory.is_dir()
    assert found


def test_a_file_in_the_place_of_the_parent_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), staging(tmp_path / "file"):
        pass


def test_a_directory_that_is_swept_before_it_is_locked_is_made_again(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, swept = fcntl.flock, []
    before = fds()

    def sweep_and_lock(fd: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.extend(parent.iterdir())
            module._sweep(parent)
        flock(fd, how)

    monkeypatch.setattr(module.fcntl, "flock", sweep_and_lock)
    with staging(parent) as directory:
        assert directory.is_dir()
        assert swept != [directory]
        assert not swept[0].exists()
    assert fds() == before


def test_many_at_once_each_have_their_own(parent: Path) -> None:
    def work(number: int) -> bool:
        with staging(parent) as directory:
            file = directory / "file"
            file.write_text(str(number))
            os.sched_yield()
            return file.read_text() == str(number) and (directory / module._LOCK).exists()

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(500)))
    assert not parent.exists()


def test_a_link_is_not_swept(parent: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "folder").mkdir(parents=True)
    (foreign / "folder" / module._LOCK).touch()
    parent.parent.mkdir(parents=True, exist_ok=True)
    parent.symlink_to(foreign)
    with pytest.raises(OSError, match="is a link"), staging(parent):
        pass
    assert (foreign / "folder").is_dir()


def test_a_directory_without_a_lock_is_swept_when_it_is_empty(parent: Path) -> None:
    (parent / "empty").mkdir(parents=True)
    (parent / "full").mkdir()
    (parent / "full" / "file").touch()
    with staging(parent):
        assert not (parent / "empty").exists()
        assert (parent / "full" / "file").exists()
