"""The Airflow of a home, for the example DAG: the demo, ``make airflow`` and the matrix run it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from airflow_provider_amplemarket.sandbox import Sandbox
from dev import home
from dev.airflow import Airflow
from dev.checkout import CHECKOUT

#: The UI is there where ``PORT`` is not set.
DEFAULT_PORT = 8080
#: The DAG is not paused, so in a new home its first run begins at once.
SETTINGS = {
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__PARALLELISM": "4",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "10",
}


def make_airflow(
    place: home.Home,
    *,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    port: int = 0,
) -> Airflow:
    """Return the Airflow of a home, with its database made or brought up to date; nothing of it runs yet."""
    archive = {"AIRFLOW_VAR_AMPLEMARKET_ARCHIVE": f"file://{place.archive}"}
    airflow = Airflow(
        place.path,
        f"sqlite:///{place.database}",
        {"dags-folder": CHECKOUT / "dags"},
        settings=settings,
        environment={**archive, **(environment or {})},
        port=port,
    )
    _migrate(place, airflow)
    return airflow


def _migrate(place: home.Home, airflow: Airflow) -> None:
    is_new = not place.database.exists()
    try:
        airflow.cli("db", "migrate")
    except BaseException:
        if is_new:  # half of one cannot be brought up to date
            place.database.unlink(missing_ok=True)
        raise


@contextmanager
def running(place: home.Home, sandbox: Sandbox, port: int) -> Iterator[Airflow]:
    """Run the whole Airflow of a home until the end of the block, which begins when it is healthy.

    :param port: where its UI should be; another one where that is taken.
    """
    print("Starting Airflow; this takes half a minute …", flush=True)
    airflow = make_airflow(place, settings=SETTINGS, port=port)
    _enter_connection(place, sandbox.url, airflow)
    with airflow:
        yield airflow


def _enter_connection(place: home.Home, url: str, airflow: Airflow) -> None:
    """Put the connection into the database, where the UI shows it; the sandbox has another port each time."""
    file = place.path / "connection.json"
    file.write_text(json.dumps({home.CONN_ID: place.connection(url, home.SANDBOX_KEY)}))
    try:
        airflow.cli("connections", "import", str(file), "--overwrite")
    finally:
        file.unlink()
