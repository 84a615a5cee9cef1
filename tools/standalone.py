"""Run the same Airflow with its UI until Ctrl-C: scheduler, triggerer, DAG processor, API server, and the sandbox."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.sandbox import Sandbox
from tools import home

PATIENCE = 180.0


class NotStartedError(Exception):
    """Airflow did not come up; the end of its log has been shown."""


def main() -> int:
    """Start everything, say where it is, and stop everything again."""
    if home.API_KEY:
        print("make airflow runs with the sandbox only; leave AMPLEMARKET_API_KEY out")
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    home.HOME.mkdir(parents=True, exist_ok=True)
    try:
        with home.make_sandbox() as sandbox, airflow(sandbox) as (process, env):
            _tell(env["AIRFLOW__API__BASE_URL"], sandbox.url)
            return process.wait()
    except NotStartedError:
        return 1
    except KeyboardInterrupt:
        print("\nAirflow is stopped.", flush=True)
        return 0


@contextmanager
def airflow(sandbox: Sandbox, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """
    Run a whole Airflow until the end of the block, which begins when it is healthy.

    :param settings: what it is told besides, as environment variables.
    :return: its process, and the environment that it and its commands run in.
    """
    port = _free_port(int(os.environ.get("PORT", "8080")))
    url = f"http://127.0.0.1:{port}"
    env = home.environment(home.connection(sandbox.url, home.SANDBOX_KEY)) | {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        # On a small machine the first answers of a fresh API server take longer than the default allows.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
        **settings,
    }
    home.migrate(env)
    print("Starting Airflow; this takes half a minute …", flush=True)
    with (home.HOME / "standalone.log").open("w") as log:
        # A process group of its own: what Ctrl-C must stop is then stopped once, and all of it.
        process = subprocess.Popen(
            ["airflow", "standalone"], env=env, cwd=home.CHECKOUT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _await(process, url)
            yield process, env
        finally:
            _stop(process)


def _await(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _is_healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            print("Airflow did not start; the end of its log:\n")
            print(*(home.HOME / "standalone.log").read_text().splitlines()[-40:], sep="\n")
            raise NotStartedError
        time.sleep(1)


def _tell(url: str, sandbox_url: str) -> None:
    passwords = json.loads((home.HOME / "simple_auth_manager_passwords.json.generated").read_text())
    print(f"Airflow    {url}  (login: admin, password: {passwords['admin']})")
    print(f"DAG        {url}/dags/{home.DAG_ID}")
    print(
        f"Sandbox    {sandbox_url}  ({home.LIMIT} recordings in {home.PERIOD:g} s; its calls are of {home.yesterday()})"
    )
    print(f"Archive    {home.ARCHIVE}")
    print("Stop it with Ctrl-C.", flush=True)


def _is_healthy(url: str) -> bool:
    """Tell whether the API server answers and the scheduler and the triggerer are alive."""
    with suppress(OSError, ValueError, urllib.error.URLError):
        with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            health = json.load(answer)
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "triggerer"))
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _free_port(wished: int) -> int:
    """Answer the port, or another one where it is taken."""
    for port in (wished, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("there is no free port")


if __name__ == "__main__":
    sys.exit(main())
