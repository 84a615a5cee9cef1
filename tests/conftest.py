"""One Airflow of its own for each process that runs tests: its home, its database, its Variables and pools."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

# Airflow reads its settings when it is first imported, so they are set before any test module is imported.
HOME = Path(tempfile.mkdtemp(prefix="amplemarket-tests-"))
os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME / 'airflow.db'}",
    }
)
for name in [name for name in os.environ if name.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_"))]:
    del os.environ[name]
(HOME / "dags").mkdir()
# A shell's background job ignores Ctrl-C, and so would the processes that tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Remove Airflow's home, also that of the process that only hands tests to its workers."""
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give Airflow's home with a database in it, of which workers that run side by side make one and copy it."""
    database = HOME / "airflow.db"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make_database()
        return HOME
    template = tmp_path_factory.getbasetemp().parent / "airflow.db"
    with template.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if template.exists():
            copy_database(template, database)
        else:
            make_database()
            copy_database(database, template)
    return HOME


def make_database() -> None:
    from airflow.utils.db import initdb

    initdb()


def copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
