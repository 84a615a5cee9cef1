"""An Airflow of the checkout's own: where it lives, what it is told, and how its commands are run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.sandbox import Sandbox, make_calls

CHECKOUT = Path(__file__).parent.parent
#: The real API gets a home of its own: neither its recordings nor its quota mix with the sandbox's.
API_KEY = os.environ.get("AMPLEMARKET_API_KEY", "").strip()
HOME = Path(os.environ.get("DEMO_HOME", CHECKOUT / ".airflow")).absolute() / ("live" if API_KEY else "sandbox")
ARCHIVE = HOME / "archive"
CONN_ID = "amplemarket_default"
DAG_ID = "amplemarket_recordings"
SANDBOX_KEY = "sandbox-key"
#: The quota to play with; the real one by default.
LIMIT = int(os.environ.get("LIMIT", "50"))
PERIOD = float(os.environ.get("PERIOD", "3600"))


class StepError(Exception):
    """A step did not work; its log has been shown."""


def make_sandbox() -> Sandbox:
    """Make the sandbox of the API, with yesterday's calls; the same ones for a whole day."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    calls = make_calls(24, end=today, days=1.0, seed=today.toordinal())
    return Sandbox(calls=calls, api_key=SANDBOX_KEY, limit=LIMIT, period=PERIOD, log_path=HOME / "sandbox.jsonl")


def connection(url: str, key: str) -> str:
    """Write the connection as Airflow reads it from the environment."""
    return json.dumps(
        {
            "conn_type": "amplemarket",
            "host": url,
            "password": key,
            "extra": {"recording_limit": LIMIT, "recording_period": PERIOD},
        }
    )


def environment(conn: str) -> dict[str, str]:
    """Say to Airflow what it has to know; nothing of it is written to a file."""
    HOME.mkdir(parents=True, exist_ok=True)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "AMPLEMARKET_"))},
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME / 'airflow.db'}",
        f"AIRFLOW_CONN_{CONN_ID.upper()}": conn,
        "AIRFLOW_VAR_AMPLEMARKET_ARCHIVE": f"file://{ARCHIVE}",
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def run(name: str, command: list[str], env: dict[str, str], *, watch: Callable[[str], None] | None = None) -> None:
    """
    Run a command of Airflow with its output in a log; show the log when it fails.

    :param watch: is given every line of the output.
    :raises StepError: when the command fails.
    """
    log = HOME / f"{name}.log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, env=env, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            if watch:
                watch(line)
    if process.returncode:
        print(f"\n{name} failed; the end of {log}:\n", *log.read_text().splitlines()[-40:], sep="\n")
        raise StepError(name)


def migrate(env: dict[str, str]) -> None:
    """Create the database, or bring it up to date."""
    run("database", ["airflow", "db", "migrate"], env)


def yesterday() -> str:
    """Name the day whose calls the sandbox has."""
    return (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
