"""Object stores on this machine that an archive can lie in, for the same tests to run on each of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from dev.processes import find_program
from dev.stores.azure import azurite
from dev.stores.gcs import gcs
from dev.stores.s3 import moto, rclone
from dev.stores.store import Store

__all__ = ["KINDS", "STORES", "Kind", "Store"]

#: The variable that names the kinds of store to test on, with commas; all of them by default.
SELECTION = "AMPLEMARKET_TEST_STORES"


@dataclass(frozen=True)
class Kind:
    """A kind of store.

    :param name: Its name.
    :param start: Starts one, given a directory to keep things in.
    :param packages: What has to be importable for that.
    :param program: What has to be installed for that.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Store]]
    packages: tuple[str, ...] = ()
    program: str | None = None

    @contextmanager
    def running(self, directory: Path) -> Iterator[Store]:
        """Start a store, put its connections into the environment, and undo both at the end."""
        for package in self.packages:
            if not is_importable(package):
                report_missing(f"{self.name} needs the package {package}")
        if self.program and not find_program(self.program):
            report_missing(f"{self.name} needs {self.program}, which `make test-stores` installs")
        with self.start(directory) as store, pytest.MonkeyPatch.context() as patch:
            for name, value in store.environment().items():
                patch.setenv(name, value)
            yield store


@contextmanager
def local(directory: Path) -> Iterator[Store]:
    """Use a folder on the local disk."""

    def head(key: str) -> tuple[int, str | None]:
        return (directory / key).stat().st_size, None

    def put(key: str, data: bytes) -> None:
        (directory / key).parent.mkdir(parents=True, exist_ok=True)
        (directory / key).write_bytes(data)

    yield Store("local", f"file://{directory}", head, put)


_S3 = ("s3fs", "boto3", "airflow.providers.amazon")
KINDS = (
    Kind("local", local),
    Kind("moto", moto, (*_S3, "moto", "flask")),
    Kind("rclone", rclone, _S3, "rclone"),
    Kind("azurite", azurite, ("adlfs", "airflow.providers.microsoft.azure"), "azurite-blob"),
    Kind("gcs", gcs, ("gcsfs", "airflow.providers.google", "gcp_storage_emulator")),
)
_SELECTED = [name.strip() for name in os.environ.get(SELECTION, "").split(",") if name.strip()]
STORES = tuple(kind for kind in KINDS if not _SELECTED or kind.name in _SELECTED)


def report_missing(why: str) -> NoReturn:
    """Skip the test; in CI, where every store has to be there, let it fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def is_importable(package: str) -> bool:
    """Return whether a package is installed, whose parents may not be, either."""
    with suppress(ModuleNotFoundError):
        return importlib.util.find_spec(package) is not None
    return False
