"""Run the same Airflow with its UI until Ctrl-C: scheduler, triggerer, DAG processor, API server, and the sandbox."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airflow_provider_amplemarket.sandbox import Sandbox
from airflow_provider_amplemarket.sandbox.settings import PORT, SettingError
from dev import home

PATIENCE = 180.0
#: Its UI is there where ``PORT`` says nothing else.
DEFAULT_PORT = 8080
#: Not ``airflow standalone``, whose parts serve their logs to the whole network.
PARTS = {
    "api-server": ["--workers", "1"],
    "scheduler": ["--skip-serve-logs"],
    "dag-processor": [],
    "triggerer": ["--skip-serve-logs"],
}


class NotStartedError(Exception):
    """Airflow did not come up; the end of its log has been shown."""


def main() -> int:
    """Start everything, say where it is, and stop everything again."""
    if home.API_KEY:
        print("make airflow runs with the sandbox only; leave AMPLEMARKET_API_KEY out")
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        place, port = home.STANDALONE.as_set(), PORT.read(DEFAULT_PORT)
    except SettingError as problem:
        print(problem, file=sys.stderr)
        return 2
    try:
        with place.claim():
            is_new = not place.has_run()
            with place.make_sandbox() as sandbox, airflow(place, sandbox, port) as (parts, env):
                _tell(place, env["AIRFLOW__API__BASE_URL"], sandbox.url, is_new=is_new)
                while all(part.poll() is None for part in parts):
                    time.sleep(1)
        print(f"A part of Airflow has ended; see {_log(place)}")
        return 1
    except (home.StepError, NotStartedError):
        return 1
    except KeyboardInterrupt:
        print("\nAirflow is stopped.", flush=True)
        return 0


@contextmanager
def airflow(
    place: home.Home, sandbox: Sandbox, port: int
) -> Iterator[tuple[list[subprocess.Popen[bytes]], dict[str, str]]]:
    """
    Run a whole Airflow until the end of the block, which begins when it is healthy.

    The example DAG is not paused, so in a new home its first run begins at once.

    :param port: where its UI should be; another one where that is taken.
    :return: the processes of its parts, and the environment that they run in.
    """
    port = _free_port(port)
    url = f"http://127.0.0.1:{port}"
    env = place.environment() | {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        # On a small machine the first answers of a fresh API server take longer than the default allows.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
    }
    print("Starting Airflow; this takes half a minute …", flush=True)
    place.migrate(env)
    _enter_connection(place, sandbox.url, env)
    parts: list[subprocess.Popen[bytes]] = []
    try:
        with _log(place).open("w") as log:
            for part, options in PARTS.items():
                # A process group of its own: what Ctrl-C must stop is then stopped once, and all of it.
                command = ["airflow", part, *options]
                parts.append(
                    subprocess.Popen(
                        command, env=env, cwd=home.CHECKOUT, stdout=log, stderr=log, start_new_session=True
                    )
                )
                if part == "api-server":  # a task that finds none within seconds fails
                    _await(place, parts, url, "metadatabase")
        _await(place, parts, url, "scheduler", "triggerer")
        yield parts, env
    finally:
        _stop(parts)


def _enter_connection(place: home.Home, url: str, env: dict[str, str]) -> None:
    """Put the connection into the database, where the UI shows it; the sandbox has another port each time."""
    file = place.path / "connection.json"
    file.write_text(json.dumps({home.CONN_ID: place.connection(url, home.SANDBOX_KEY)}))
    try:
        place.run("connection", ["airflow", "connections", "import", str(file), "--overwrite"], env)
    finally:
        file.unlink()


def _await(place: home.Home, parts: list[subprocess.Popen[bytes]], url: str, *names: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _is_healthy(url, names):
        if any(part.poll() is not None for part in parts) or time.monotonic() > deadline:
            print("Airflow did not start; the end of its log:\n")
            show_log(place)
            raise NotStartedError
        time.sleep(1)


def _tell(place: home.Home, url: str, sandbox_url: str, *, is_new: bool) -> None:
    passwords = json.loads((place.path / "simple_auth_manager_passwords.json.generated").read_text())
    print(f"Airflow    {url}  (login: admin, password: {passwords['admin']})")
    print(f"DAG        {url}/dags/{home.DAG_ID}")
    if is_new:
        print("           Its first run begins now: it archives, waits for the quota in the triggerer, and ends.")
        print("           Another one that is triggered meanwhile waits for its turn in the pool.")
    else:
        print("           It has run before: what was cut short goes on, and what is archived is not asked for again.")
        print("           The next run begins as soon as another day (UTC) is over, or when it is triggered.")
    print(f"Sandbox    {sandbox_url}  ({place.limit} recordings in {place.period:g} s; calls of {home.yesterday()})")
    print(f"Archive    {home.shown(place.archive)}")
    print("Stop it with Ctrl-C. The next one goes on from there; after `make reset` it begins anew.", flush=True)


def _is_healthy(url: str, names: tuple[str, ...]) -> bool:
    """Return whether the API server answers and says that these are well."""
    with suppress(OSError, ValueError, urllib.error.URLError):
        with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            health = json.load(answer)
        return all(health[name]["status"] == "healthy" for name in names)
    return False


def _log(place: home.Home) -> Path:
    return place.path / "airflow.log"


def show_log(place: home.Home) -> None:
    """Print the end of what Airflow has written."""
    print(*_log(place).read_text().splitlines()[-60:], sep="\n")


def _stop(parts: list[subprocess.Popen[bytes]]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for part in parts:
            with suppress(ProcessLookupError):
                os.killpg(part.pid, number)
        deadline = time.monotonic() + 20
        for part in parts:
            with suppress(subprocess.TimeoutExpired):
                part.wait(timeout=max(0.1, deadline - time.monotonic()))
        if all(part.poll() is not None for part in parts):
            break
    for part in parts:
        with suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)


def _free_port(wished: int) -> int:
    """Return the port, or another one where it is taken."""
    for port in (wished, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("there is no free port")


if __name__ == "__main__":
    sys.exit(main())
